//! What lies in a data directory, and how it comes and goes.
//!
//! A volume is one directory `volumes/<id>/` with its record `volume.json` and its data: the directory `data/` or the
//! file `image`. Data that a person put there needs no record. A snapshot is the same below `snapshots/`. Either is built as a draft in `new/` under a name of its
//! own and renamed into place when it is whole, and renamed to `trash/` before it is deleted: a crash leaves something
//! that is wholly there or wholly gone. Nothing but making a volume makes its data, so that missing data is lost data.
//!
//! All state is in the directory: several processes, also on several nodes, may use one at the same time. Whoever works
//! on a volume holds its [`Turn`]; a draft is locked by whoever builds it.
//!
//! All paths beneath the data directory are resolved by the kernel without symbolic links and without leaving it.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{DirBuilderExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, OpenHow, RenameFlags, ResolveFlag, openat2, renameat2},
    unistd::syncfs,
};
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::{
    error::{Error, Result, absent_is_done, io_error},
    filesystem,
    id::VolumeId,
    lock::Turn,
    loopdev, mounts,
    record::{FsType, Kind, Snapshot, Volume},
    tools,
};

/// Name of the directory with a volume's files.
const DATA: &str = "data";
/// Name of the file that holds a volume's file system.
const IMAGE: &str = "image";

/// A data directory.
#[derive(Clone, Debug)]
pub struct Disk {
    root: PathBuf,
}

/// What a data directory holds.
pub(crate) trait Entry: Serialize + DeserializeOwned {
    /// The folder of its kind.
    const FOLDER: &'static str;
    /// Name of its record.
    const RECORD: &'static str;
    /// In messages.
    const WHAT: &'static str;
}

impl Entry for Volume {
    const FOLDER: &'static str = "volumes";
    const RECORD: &'static str = "volume.json";
    const WHAT: &'static str = "volume";
}

impl Entry for Snapshot {
    const FOLDER: &'static str = "snapshots";
    const RECORD: &'static str = "snapshot.json";
    const WHAT: &'static str = "snapshot";
}

impl Disk {
    /// Takes a data directory, and makes what is missing of it. Only its owner can enter what is below: directories of
    /// volumes are writable by any user, since the pod decides as whom it runs.
    pub fn open(root: &Path) -> io::Result<Self> {
        let root = std::path::absolute(root)?;
        let disk = Self { root };
        for folder in ["volumes", "snapshots", "new", "trash", "locks", "nodes"] {
            DirBuilder::new().recursive(true).mode(0o700).create(disk.root.join(folder))?;
        }
        // Mounts are told by the kernel with no links in their paths.
        Ok(Self { root: disk.root.canonicalize()? })
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The right to work on a volume.
    pub(crate) fn turn(&self, id: &VolumeId) -> Result<Turn> {
        Turn::take(self.root.join(format!("locks/volume.{id}")), &format!("volume {id}"))
    }

    /// The right to work on a snapshot.
    pub(crate) fn snapshot_turn(&self, id: &VolumeId) -> Result<Turn> {
        Turn::take(self.root.join(format!("locks/snapshot.{id}")), &format!("snapshot {id}"))
    }

    /// Keeps the data of a volume or snapshot from being deleted while it is read.
    pub(crate) fn hold<E: Entry>(&self, id: &VolumeId) -> Result<Turn> {
        Turn::share(self.data_lock::<E>(id), &format!("the data of {} {id}", E::WHAT))
    }

    fn data_lock<E: Entry>(&self, id: &VolumeId) -> PathBuf {
        self.root.join(format!("locks/data.{}.{id}", E::WHAT))
    }

    fn place<E: Entry>(&self, id: &VolumeId) -> PathBuf {
        self.root.join(E::FOLDER).join(id.as_str())
    }

    /// The record of a volume or snapshot, if it is there.
    pub(crate) fn read<E: Entry>(&self, id: &VolumeId) -> Result<Option<E>> {
        self.read_json(&format!("{}/{id}/{}", E::FOLDER, E::RECORD))
    }

    /// A volume, if it is there. Data that a person put in a volume's place is a volume too, without a record.
    pub(crate) fn volume(&self, id: &VolumeId) -> Result<Option<Volume>> {
        if let Some(volume) = self.read::<Volume>(id)? {
            return Ok(Some(volume));
        }
        if self.data::<Volume>(id, Kind::Directory)?.is_some() {
            return Ok(Some(Volume::found(id.clone(), Kind::Directory, 0)));
        }
        for fs_type in [FsType::Ext4, FsType::Xfs] {
            let kind = Kind::Image { fs_type };
            if let Some(image) = self.data::<Volume>(id, kind)?
                && filesystem::size(fs_type, &self.data_path::<Volume>(id, kind)).is_ok()
            {
                let size = File::from(image).metadata().map_err(io_error("measure", &self.place::<Volume>(id)))?.len();
                return Ok(Some(Volume::found(id.clone(), kind, size)));
            }
        }
        Ok(None)
    }

    /// A file below the data directory, if it is there.
    pub(crate) fn read_json<T: DeserializeOwned>(&self, relative: &str) -> Result<Option<T>> {
        let path = self.root.join(relative);
        let file = match self.resolve(relative, OFlag::O_RDONLY) {
            Ok(file) => File::from(file),
            Err(Errno::ENOENT) => return Ok(None),
            Err(error) => return Err(io_error("open", &path)(error)),
        };
        let read = serde_json::from_reader(io::BufReader::new(file)).map_err(io::Error::from);
        read.map(Some).map_err(io_error("read", &path))
    }

    /// Writes the record of something that is there anew, all of it or nothing.
    pub(crate) fn rewrite<E: Entry>(&self, id: &VolumeId, record: &E) -> Result<()> {
        write_json(&self.place::<E>(id), E::RECORD, record)
    }

    /// Writes a file into a volume's directory, all of it or nothing.
    pub(crate) fn write_beside<T: Serialize>(&self, id: &VolumeId, name: &str, value: &T) -> Result<()> {
        write_json(&self.place::<Volume>(id), name, value)
    }

    /// Writes down that a node has a driver for this directory.
    pub(crate) fn note_node(&self, node: &VolumeId) -> Result<()> {
        write_json(&self.root.join("nodes"), &format!("{node}.json"), &serde_json::json!({ "node": node.as_str() }))
    }

    /// Whether a node has, or had, a driver for this directory.
    pub(crate) fn knows_node(&self, node: &VolumeId) -> Result<bool> {
        Ok(self.read_json::<serde_json::Value>(&format!("nodes/{node}.json"))?.is_some())
    }

    /// All ids of a kind, in order. What is no id was not put here by a driver.
    pub(crate) fn ids<E: Entry>(&self) -> Result<Vec<VolumeId>> {
        let folder = self.root.join(E::FOLDER);
        let mut ids = Vec::new();
        for entry in fs::read_dir(&folder).map_err(io_error("list", &folder))? {
            let name = entry.map_err(io_error("list", &folder))?.file_name();
            ids.extend(name.to_str().and_then(|name| name.parse::<VolumeId>().ok()));
        }
        ids.sort();
        Ok(ids)
    }

    /// The path of the data of a volume or snapshot.
    pub(crate) fn data_path<E: Entry>(&self, id: &VolumeId, kind: Kind) -> PathBuf {
        self.place::<E>(id).join(data_name(kind))
    }

    /// The data of a volume or snapshot, opened. None if it is not there.
    pub(crate) fn data<E: Entry>(&self, id: &VolumeId, kind: Kind) -> Result<Option<OwnedFd>> {
        let flags = match kind {
            Kind::Directory => OFlag::O_PATH | OFlag::O_DIRECTORY,
            // A pipe in its place must not make us wait.
            Kind::Image { .. } => OFlag::O_RDONLY | OFlag::O_NONBLOCK,
        };
        let found = match self.resolve(&format!("{}/{id}/{}", E::FOLDER, data_name(kind)), flags) {
            Ok(data) => data,
            Err(Errno::ENOENT) => return Ok(None),
            Err(error) => return Err(io_error("open", &self.data_path::<E>(id, kind))(error)),
        };
        Ok(Some(found))
    }

    fn resolve(&self, relative: &str, flags: OFlag) -> nix::Result<OwnedFd> {
        let root = File::open(&self.root).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or_default()))?;
        let how = OpenHow::new()
            .flags(flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        openat2(root.as_fd(), relative, how)
    }

    /// Begins to build a volume or snapshot.
    pub(crate) fn draft(&self) -> Result<Draft<'_>> {
        let name = Uuid::new_v4().to_string();
        let lock = Turn::take(self.root.join(format!("locks/draft.{name}")), "the draft")?;
        let path = self.root.join("new").join(&name);
        DirBuilder::new().mode(0o700).create(&path).map_err(io_error("make", &path))?;
        Ok(Draft { disk: self, path, _lock: lock })
    }

    /// Deletes a volume or snapshot; nothing happens if there is none. Refused while it is mounted anywhere or its data
    /// is being read. The caller holds its turn.
    pub(crate) fn delete<E: Entry>(&self, id: &VolumeId) -> Result<()> {
        let place = self.place::<E>(id);
        if !place.try_exists().map_err(io_error("look at", &place))? {
            return Ok(());
        }
        let _alone = Turn::take(self.data_lock::<E>(id), &format!("the data of {} {id}", E::WHAT))?;
        let image = place.join(IMAGE);
        loopdev::detach_unused(&image)?;
        let in_use = match mounts::in_use(&place).map_err(io_error("read the mounts of", &place))? {
            Some(at) => Some(at.display().to_string()),
            None => match loopdev::find(&image)? {
                // In mounts that are not seen here, such as those of a container.
                Some(device) if loopdev::is_mounted(&device)? => Some(device.path.display().to_string()),
                _ => None,
            },
        };
        if let Some(at) = in_use {
            return Err(Error::InUse { id: id.clone(), at });
        }
        let trash = self.root.join("trash").join(Uuid::new_v4().to_string());
        fs::rename(&place, &trash).map_err(io_error("move to the trash", &place))?;
        sync_dir(&self.root.join(E::FOLDER))?;
        remove(&trash)
    }

    /// Removes what a process that has died left behind.
    pub(crate) fn recover(&self) -> Result<()> {
        for entry in entries(&self.root.join("trash"))? {
            remove(&entry)?;
        }
        for entry in entries(&self.root.join("new"))? {
            let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
            match Turn::take(self.root.join(format!("locks/draft.{name}")), "the draft") {
                Ok(_alone) => remove(&entry)?,
                // Another process is building it.
                Err(Error::Busy(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// A volume or snapshot that is being built. Removed when dropped, unless it was [committed](Draft::commit).
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    disk: &'a Disk,
    path: PathBuf,
    _lock: Turn,
}

impl Draft<'_> {
    /// Where its data goes.
    pub fn data(&self, kind: Kind) -> PathBuf {
        self.path.join(data_name(kind))
    }

    /// Makes an empty directory for the data, which every user can write to.
    pub fn make_directory(&self) -> Result<()> {
        let path = self.data(Kind::Directory);
        fs::create_dir(&path).map_err(io_error("make", &path))?;
        // Not with mkdir, which the umask would take bits from.
        fs::set_permissions(&path, Permissions::from_mode(0o777)).map_err(io_error("open to all", &path))
    }

    /// Puts it in its place, whole and on disk. An entry that is in the way is an error.
    pub fn commit<E: Entry>(self, id: &VolumeId, record: &E) -> Result<()> {
        write_json(&self.path, E::RECORD, record)?;
        let all = File::open(&self.path).map_err(io_error("open", &self.path))?;
        syncfs(&all).map_err(io_error("sync", &self.path))?;
        let place = self.disk.place::<E>(id);
        match renameat2(AT_FDCWD, &self.path, AT_FDCWD, &place, RenameFlags::RENAME_NOREPLACE) {
            // File servers do not know the flag. Only an empty directory could be replaced, which holds no data.
            Err(Errno::EINVAL) => fs::rename(&self.path, &place),
            done => done.map_err(io::Error::from),
        }
        .map_err(io_error("move into place", &place))?;
        sync_dir(&self.disk.root.join(E::FOLDER))
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if self.path.exists()
            && let Err(error) = remove(&self.path)
        {
            tracing::warn!(%error, "a draft stays behind until the driver starts again");
        }
    }
}

fn data_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Directory => DATA,
        Kind::Image { .. } => IMAGE,
    }
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = || fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>();
    list().map_err(io_error("list", folder))
}

/// Deletes a tree of ours that nothing is mounted in.
fn remove(path: &Path) -> Result<()> {
    if let Some(at) = mounts::in_use(path).map_err(io_error("read the mounts of", path))? {
        return Err(Error::Refused(format!("{} is not deleted: {} is mounted", path.display(), at.display())));
    }
    // Trees may be deeper than files can be open; the tool walks them one by one.
    let args = ["-rf", "--one-file-system", "--"].map(std::ffi::OsStr::new);
    tools::run("rm", &[&args[..], &[path.as_os_str()]].concat()).map(drop)
}

fn write_json<T: Serialize>(folder: &Path, name: &str, value: &T) -> Result<()> {
    let write = || {
        let temporary = folder.join(format!(".{name}.new"));
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(value)?)?;
        file.sync_all()?;
        fs::rename(&temporary, folder.join(name))
    };
    write().map_err(io_error("write", &folder.join(name)))?;
    sync_dir(folder)
}

/// Makes what was renamed in a folder last.
fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(io_error("sync", path))
}

/// Removes a file of a volume's directory, if it is there.
pub(crate) fn remove_file(path: &Path) -> Result<()> {
    absent_is_done(fs::remove_file(path)).map_err(io_error("remove", path))
}
