//! Volumes on this node: staged, published, grown, measured.
//!
//! What is staged or published is asked of the kernel each time. Staging never makes data: what is missing is lost (I5).
//! The caller holds the volume's turn.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::sys::statvfs::statvfs;
use runtime::mounts::{Mount, table};

use crate::{
    disk::Disk,
    error::{Error, Result, io_error},
    filesystem, loopdev,
    mounts::{self, Options, Shown},
    record::{FsType, Kind, Volume},
};

/// How long the files of a directory are counted before its file system is asked instead.
const COUNTING: Duration = Duration::from_secs(2);

/// How full a volume is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Bytes left, used, in all.
    pub bytes: [u64; 3],
    /// Inodes left, used, in all.
    pub inodes: [u64; 3],
}

/// Mounts a volume at its staging path. Nothing happens if it is there.
pub(crate) fn stage(disk: &Disk, volume: &Volume, staging: &Path, options: &Options) -> Result<()> {
    let Some(data) = disk.data::<Volume>(&volume.id, volume.kind)? else {
        return Err(lost(disk, volume));
    };
    match volume.kind {
        Kind::Directory => {
            if !options.data().is_empty() {
                return Err(Error::Invalid(format!(
                    "mount_flags: {:?} cannot be set for a volume that is a directory",
                    options.data()
                )));
            }
            match mounts::shown(&data, staging).map_err(io_error("look at", staging))? {
                Shown::Yes { .. } => Ok(()),
                Shown::Empty => mounts::bind(&data, staging, options).map_err(io_error("mount at", staging)),
                Shown::Other => Err(in_the_way("staging_target_path", staging)),
            }
        }
        Kind::Image { fs_type } => {
            stage_image(&disk.data_path::<Volume>(&volume.id, volume.kind), fs_type, staging, options)
        }
    }
}

/// That a volume's data is not where it was made.
pub(crate) fn lost(disk: &Disk, volume: &Volume) -> Error {
    let path = disk.data_path::<Volume>(&volume.id, volume.kind);
    Error::Lost { id: volume.id.clone(), path, why: "no longer exists" }
}

fn stage_image(image: &Path, fs: FsType, staging: &Path, options: &Options) -> Result<()> {
    if let Some(device) = loopdev::find(image)? {
        let table = table().map_err(io_error("read the mounts for", staging))?;
        if let Some(mounted) = table.iter().find(|mount| mount.device == device.number) {
            if mounts::point(&table, staging).is_some_and(|mount| mount.device == device.number) {
                return Ok(());
            }
            return Err(Error::Refused(format!(
                "the volume is mounted at {} already; unpublish and unstage it there first",
                mounted.point.display()
            )));
        }
    }
    if !mounts::is_free(staging).map_err(io_error("look at", staging))? {
        return Err(in_the_way("staging_target_path", staging));
    }
    let size = fs::metadata(image).map_err(io_error("look at", image))?.len();
    // Before the loop device, which would be left behind if it is another one.
    filesystem::size(fs, image)?;
    let device = loopdev::attach(image)?;
    let mounted = mount_image(&device, fs, size, staging, options);
    // From now on the device goes with its last mount; at once if there is none.
    loopdev::release(&device)?;
    mounted
}

fn mount_image(device: &loopdev::Loop, fs: FsType, size: u64, staging: &Path, options: &Options) -> Result<()> {
    loopdev::resize(device)?;
    let mut small = false;
    // A container may still have it, in mounts of its own: it is then whole, and not ours to repair.
    if !loopdev::is_mounted(device)? {
        filesystem::check(fs, &device.path)?;
        small = filesystem::size(fs, &device.path)? + ROUNDING <= size;
        if small {
            filesystem::grow_offline(fs, &device.path)?;
        }
    }
    let options = match fs {
        FsType::Ext4 => options.clone(),
        // Copies of an image have the same identity, and may be mounted beside it.
        FsType::Xfs => options.clone().with_data("nouuid"),
    };
    mounts::mount_device(&device.path, fs.as_str(), staging, &options).map_err(io_error("mount at", staging))?;
    if small && fs == FsType::Xfs {
        filesystem::grow_mounted(fs, &device.path, staging)?;
    }
    Ok(())
}

/// File systems are whole numbers of blocks, and leave an odd end of the device alone.
const ROUNDING: u64 = 1 << 20;

/// Takes a volume away from its staging path. Nothing happens if it is not there.
pub(crate) fn unstage(disk: &Disk, volume: Option<&Volume>, staging: &Path) -> Result<()> {
    mounts::unbind(staging).map_err(io_error("unmount", staging))?;
    match volume {
        Some(volume) if volume.kind != Kind::Directory => {
            loopdev::detach_unused(&disk.data_path::<Volume>(&volume.id, volume.kind))
        }
        _ => Ok(()),
    }
}

/// Shows a staged volume at a pod's path. Nothing happens if it is there.
pub(crate) fn publish(disk: &Disk, volume: &Volume, staging: &Path, target: &Path, options: &Options) -> Result<()> {
    let staged = match mounts::open(staging) {
        Ok(staged) if shows(disk, volume, staging)? => staged,
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error("look at", staging)(error));
        }
        _ => {
            return Err(Error::Refused(format!(
                "volume {} is not staged at {}; call NodeStageVolume first",
                volume.id,
                staging.display()
            )));
        }
    };
    match mounts::shown(&staged, target).map_err(io_error("look at", target))? {
        Shown::Yes { readonly } if readonly == options.is_read_only() => Ok(()),
        Shown::Yes { readonly } => Err(Error::Exists(format!(
            "volume {} is published at {} with readonly={readonly}; unpublish it first",
            volume.id,
            target.display()
        ))),
        Shown::Empty => mounts::bind(&staged, target, &options.of_mount()).map_err(io_error("mount at", target)),
        Shown::Other => Err(in_the_way("target_path", target)),
    }
}

/// Refuses a volume to a second pod: it is for one alone.
pub(crate) fn alone(volume: &Volume, staging: &Path, target: &Path) -> Result<()> {
    let table = table().map_err(io_error("read the mounts for", target))?;
    let Some(staged) = mounts::point(&table, staging) else { return Ok(()) };
    let same = |mount: &&Mount| mount.device == staged.device && mount.root == staged.root;
    match table.iter().filter(same).find(|mount| mount.point != staging && mount.point != target) {
        None => Ok(()),
        Some(other) => Err(Error::Refused(format!(
            "volume {} is for one pod at a time, and is published at {}; unpublish it there first",
            volume.id,
            other.point.display()
        ))),
    }
}

/// Takes a volume away from a pod's path. Nothing happens if it is not there.
pub(crate) fn unpublish(target: &Path) -> Result<()> {
    mounts::unbind(target).map_err(io_error("unmount", target))
}

/// Whether a path shows a volume.
pub(crate) fn shows(disk: &Disk, volume: &Volume, at: &Path) -> Result<bool> {
    match volume.kind {
        Kind::Directory => {
            let Some(data) = disk.data::<Volume>(&volume.id, volume.kind)? else {
                return Err(lost(disk, volume));
            };
            let shown = mounts::shown(&data, at).map_err(io_error("look at", at))?;
            Ok(matches!(shown, Shown::Yes { .. }))
        }
        Kind::Image { .. } => {
            let device = loopdev::find(&disk.data_path::<Volume>(&volume.id, volume.kind))?;
            let table = table().map_err(io_error("read the mounts for", at))?;
            Ok(device.is_some_and(|device| mounts::point(&table, at).is_some_and(|m| m.device == device.number)))
        }
    }
}

/// Grows the file system of a mounted volume to the size of the volume. Nothing happens if it has it.
pub(crate) fn grow(disk: &Disk, volume: &Volume, at: &Path) -> Result<()> {
    let Kind::Image { fs_type } = volume.kind else { return Ok(()) };
    let image = disk.data_path::<Volume>(&volume.id, volume.kind);
    let Some(device) = loopdev::find(&image)? else { return Err(lost(disk, volume)) };
    loopdev::resize(&device)?;
    let size = fs::metadata(&image).map_err(io_error("look at", &image))?.len();
    match fs_type {
        FsType::Ext4 if filesystem::size(fs_type, &device.path)? + ROUNDING > size => Ok(()),
        // Whose size on the device is not always the one that it has already.
        FsType::Ext4 | FsType::Xfs => filesystem::grow_mounted(fs_type, &device.path, at),
    }
}

/// Where a volume with a file system of its own is mounted, if it is.
pub(crate) fn mounted_at(image: &Path) -> Result<Option<PathBuf>> {
    let Some(device) = loopdev::find(image)? else { return Ok(None) };
    let table = table().map_err(io_error("read the mounts for", image))?;
    Ok(table.into_iter().find(|mount| mount.device == device.number).map(|mount| mount.point))
}

/// How full a volume is that is mounted at a path.
pub(crate) fn usage(volume: &Volume, at: &Path) -> Result<Usage> {
    let stat = statvfs(at).map_err(io_error("measure", at))?;
    let block = stat.fragment_size();
    let (total, free, available) = (stat.blocks() * block, stat.blocks_free() * block, stat.blocks_available() * block);
    let (files, files_free) = (stat.files(), stat.files_free());
    let of_fs = Usage {
        bytes: [available, total.saturating_sub(free), total],
        inodes: [files_free, files.saturating_sub(files_free), files],
    };
    match volume.kind {
        Kind::Image { .. } => Ok(of_fs),
        // The file system is shared by many: what the volume uses of it must be counted.
        Kind::Directory => Ok(match count(at, Instant::now() + COUNTING).map_err(io_error("measure", at))? {
            Some([bytes, inodes]) => Usage {
                bytes: [available, bytes, bytes.saturating_add(available)],
                inodes: [files_free, inodes, inodes.saturating_add(files_free)],
            },
            None => of_fs,
        }),
    }
}

/// Bytes and files below a directory; none if there are too many to count in time.
fn count(top: &Path, until: Instant) -> io::Result<Option<[u64; 2]>> {
    let mut linked = std::collections::BTreeSet::new();
    let (mut bytes, mut files) = (0_u64, 0_u64);
    let mut folders = vec![top.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            // Pods go on deleting while we count.
            Err(error) if error.kind() == io::ErrorKind::NotFound && folder != top => continue,
            Err(error) => return Err(error),
        };
        for entry in entries.filter_map(|entry| entry.ok()) {
            if Instant::now() > until {
                return Ok(None);
            }
            let Ok(file) = entry.metadata() else { continue };
            if file.is_dir() {
                folders.push(entry.path());
            } else if file.nlink() > 1 && !linked.insert((file.dev(), file.ino())) {
                continue;
            }
            bytes = bytes.saturating_add(file.blocks() * 512);
            files += 1;
        }
    }
    Ok(Some([bytes, files]))
}

fn in_the_way(field: &str, path: &Path) -> Error {
    Error::Refused(format!(
        "{field} {} holds files of something else, which a mount would hide; move them away",
        path.display()
    ))
}
