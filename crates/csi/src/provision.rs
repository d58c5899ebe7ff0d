//! Volumes and snapshots in a data directory: made, copied, grown, deleted, counted.
//!
//! Every operation gives the same answer when it is repeated, and takes the turn of what it works on. A copy also keeps
//! its source from being deleted; that of a directory lets pods come and go meanwhile, that of an image does not, since
//! an image that is mounted in the middle of it would be torn.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use nix::sys::statvfs::statvfs;

use crate::{
    attachment::Attachments,
    copy,
    disk::{Disk, Draft, Entry, remove_file},
    driver::OnNode,
    error::{Error, Result, io_error},
    filesystem,
    id::VolumeId,
    lock::Turn,
    record::{FsType, Kind, Snapshot, Source, Volume},
    staging, tools,
};

/// Sizes are whole numbers of these bytes.
const GRAIN: u64 = 1 << 20;

/// Bounds of a size, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Range {
    /// At least.
    pub required: u64,
    /// At most; 0: no bound.
    pub limit: u64,
}

impl Range {
    /// Whether a size is within.
    pub fn holds(self, size: u64) -> bool {
        size >= self.required && (self.limit == 0 || size <= self.limit)
    }

    /// The size to make: what is asked for, but not less than `least`.
    fn choose(self, kind: Kind, usual: u64, least: u64) -> Result<u64> {
        let wanted = if self.required == 0 { usual } else { self.required };
        let size = match kind {
            Kind::Directory => wanted.max(least),
            Kind::Image { .. } => wanted.max(least).max(kind.least()).next_multiple_of(GRAIN),
        };
        match self.limit {
            0 => Ok(size),
            limit if size <= limit => Ok(size),
            // Nothing was asked for but a bound.
            limit if self.required == 0 && limit >= least.max(kind.least()) => {
                Ok(if kind == Kind::Directory { limit } else { limit / GRAIN * GRAIN })
            }
            limit => Err(Error::OutOfRange(format!(
                "capacity_range: the volume would have {size} bytes, and limit_bytes is {limit}; raise the limit"
            ))),
        }
    }
}

/// Makes a volume, or gives the one that is there.
pub(crate) fn create(
    OnNode { disk, name, .. }: &OnNode,
    id: &VolumeId,
    kind: Kind,
    range: Range,
    source: Option<Source>,
) -> Result<Volume> {
    let _turn = disk.turn(id)?;
    if let Some(volume) = disk.volume(id)? {
        return same(volume, kind, range, source.as_ref());
    }
    let origin = source.as_ref().map(|source| Origin::find(disk, name, source)).transpose()?;
    if let Some(origin) = &origin
        && !origin.fits(kind)
    {
        return Err(Error::Invalid(format!(
            "volume_content_source is a {}, and the volume would be a {kind}; ask for the same type",
            origin.kind
        )));
    }
    let least = origin.as_ref().map_or(0, |origin| origin.capacity);
    let usual = if least == 0 { kind.usual() } else { least };
    if range.required != 0 && range.required < least {
        return Err(Error::OutOfRange(format!(
            "capacity_range: {} bytes are less than the {least} of the source; ask for as many",
            range.required
        )));
    }
    let capacity = range.choose(kind, usual, least)?;
    room(disk, kind, capacity)?;
    let draft = disk.draft()?;
    match &origin {
        Some(origin) => origin.copy_to(disk, &draft)?,
        None => make_empty(&draft, kind, capacity)?,
    }
    if kind != Kind::Directory {
        set_size(&draft.data(kind), capacity)?;
    }
    let volume = Volume::new(id.clone(), kind, capacity, source);
    draft.commit(id, &volume)?;
    Ok(volume)
}

fn make_empty(draft: &Draft<'_>, kind: Kind, capacity: u64) -> Result<()> {
    match kind {
        Kind::Directory => draft.make_directory(),
        Kind::Image { fs_type } => {
            let image = draft.data(kind);
            File::create_new(&image).map_err(io_error("make", &image))?;
            set_size(&image, capacity)?;
            filesystem::make(fs_type, &image)
        }
    }
}

/// The volume that has the name, if it is what is asked for.
fn same(volume: Volume, kind: Kind, range: Range, source: Option<&Source>) -> Result<Volume> {
    let differs = if volume.kind != kind {
        format!("is a {}, not a {kind}", volume.kind)
    } else if !range.holds(volume.capacity) {
        format!("has {} bytes, not {} to {}", volume.capacity, range.required, range.limit)
    } else if volume.source.as_ref() != source {
        "began with something else".to_owned()
    } else {
        return Ok(volume);
    };
    Err(Error::Exists(format!("volume {} exists and {differs}; choose another name", volume.id)))
}

/// What a copy is made of. Its data stays as long as this is held.
struct Origin {
    source: Source,
    kind: Kind,
    capacity: u64,
    _held: Vec<Turn>,
}

impl Origin {
    fn find(disk: &Disk, node: &str, source: &Source) -> Result<Self> {
        let not_found = |what, id: &VolumeId| Error::NotFound { what, id: id.to_string(), place: String::new() };
        match source {
            Source::Snapshot(id) => {
                let held = vec![disk.hold::<Snapshot>(id)?];
                let Snapshot { kind, capacity, .. } =
                    disk.read::<Snapshot>(id)?.ok_or_else(|| not_found("snapshot", id))?;
                Ok(Self { source: source.clone(), kind, capacity, _held: held })
            }
            Source::Volume(id) => {
                let mut held = vec![disk.hold::<Volume>(id)?];
                let Volume { kind, capacity, .. } = disk.volume(id)?.ok_or_else(|| not_found("volume", id))?;
                if kind != Kind::Directory {
                    held.push(disk.turn(id)?);
                    refuse_elsewhere(disk, node, id)?;
                }
                Ok(Self { source: source.clone(), kind, capacity, _held: held })
            }
        }
    }

    fn fits(&self, kind: Kind) -> bool {
        self.kind == kind
    }

    fn copy_to(&self, disk: &Disk, draft: &Draft<'_>) -> Result<()> {
        match &self.source {
            Source::Snapshot(id) => copy_data::<Snapshot>(disk, id, self.kind, draft),
            Source::Volume(id) => {
                if disk.data::<Volume>(id, self.kind)?.is_none() {
                    let path = disk.data_path::<Volume>(id, self.kind);
                    return Err(Error::Lost { id: id.clone(), path, why: "no longer exists" });
                }
                copy_data::<Volume>(disk, id, self.kind, draft)
            }
        }
    }
}

/// The data of an image that another node has mounted cannot be copied here: what that node holds back is not in it.
fn refuse_elsewhere(disk: &Disk, node: &str, id: &VolumeId) -> Result<()> {
    match Attachments::read(disk, id)?.nodes.keys().find(|other| *other != node) {
        None => Ok(()),
        Some(other) => Err(Error::Refused(format!(
            "volume {id} is an image that node {other:?} has; ask the driver there, or detach it first"
        ))),
    }
}

fn copy_data<E: Entry>(disk: &Disk, id: &VolumeId, kind: Kind, draft: &Draft<'_>) -> Result<()> {
    let (from, to) = (disk.data_path::<E>(id, kind), draft.data(kind));
    match kind {
        Kind::Directory => copy::tree(&from, &to),
        Kind::Image { .. } => {
            let frozen = staging::mounted_at(&from)?.map(|at| Frozen::new(&from, &at)).transpose()?;
            let copied = copy::file(&from, &to);
            if let Some(frozen) = frozen {
                frozen.thaw()?;
            }
            copied
        }
    }
}

/// A mounted file system that waits with writes, so that its image is whole. A note beside the image tells the next
/// process of it.
struct Frozen {
    note: PathBuf,
    at: Option<PathBuf>,
}

impl Frozen {
    fn new(image: &Path, at: &Path) -> Result<Self> {
        let note = frozen_note(image);
        File::create(&note).and_then(|file| file.sync_all()).map_err(io_error("write", &note))?;
        let frozen = Self { note, at: Some(at.to_owned()) };
        tools::run("fsfreeze", &[Path::new("-f"), at])?;
        Ok(frozen)
    }

    fn thaw(mut self) -> Result<()> {
        self.at.take().map_or(Ok(()), |at| thaw(&self.note, &at))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Some(at) = self.at.take()
            && let Err(error) = thaw(&self.note, &at)
        {
            tracing::warn!(%error, "a file system may still be frozen");
        }
    }
}

fn thaw(note: &Path, at: &Path) -> Result<()> {
    tools::run("fsfreeze", &[Path::new("-u"), at])?;
    remove_file(note)
}

fn frozen_note(image: &Path) -> PathBuf {
    image.with_file_name("frozen")
}

/// Removes what a process that has died left behind, and lets the file systems go on that it held.
pub(crate) fn recover(disk: &Disk) -> Result<()> {
    disk.recover()?;
    for id in disk.ids::<Volume>()? {
        let image = disk.data_path::<Volume>(&id, Kind::Image { fs_type: FsType::Ext4 });
        let note = frozen_note(&image);
        if !note.exists() {
            continue;
        }
        match disk.turn(&id) {
            Ok(_turn) => match staging::mounted_at(&image)? {
                Some(at) => match thaw(&note, &at) {
                    // It had not come to the freeze.
                    Err(Error::Tool { .. }) => remove_file(&note)?,
                    done => done?,
                },
                None => remove_file(&note)?,
            },
            // Somebody works on it, so it is not left behind.
            Err(Error::Busy(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Makes a volume larger. Its file system grows on the node.
pub(crate) fn expand(disk: &Disk, id: &VolumeId, range: Range) -> Result<Volume> {
    let _turn = disk.turn(id)?;
    let mut volume = existing(disk, id)?;
    if range.required <= volume.capacity {
        if range.limit != 0 && range.limit < volume.capacity {
            return Err(Error::OutOfRange(format!(
                "capacity_range: volume {id} has {} bytes, which is more than limit_bytes; volumes do not shrink",
                volume.capacity
            )));
        }
        return Ok(volume);
    }
    let capacity = range.choose(volume.kind, volume.capacity, volume.capacity)?;
    room(disk, volume.kind, capacity - volume.capacity)?;
    volume.capacity = capacity;
    if volume.kind != Kind::Directory {
        if disk.data::<Volume>(id, volume.kind)?.is_none() {
            return Err(staging::lost(disk, &volume));
        }
        set_size(&disk.data_path::<Volume>(id, volume.kind), capacity)?;
    }
    disk.rewrite(id, &volume)?;
    Ok(volume)
}

/// A volume that must be there.
pub(crate) fn existing(disk: &Disk, id: &VolumeId) -> Result<Volume> {
    let volume = disk.volume(id)?;
    volume.ok_or_else(|| Error::NotFound {
        what: "volume",
        id: id.to_string(),
        place: format!("in {}", disk.root().display()),
    })
}

/// Makes a snapshot of a volume, or gives the one that is there.
pub(crate) fn create_snapshot(OnNode { disk, name, .. }: &OnNode, id: &VolumeId, of: &VolumeId) -> Result<Snapshot> {
    let _turn = disk.snapshot_turn(id)?;
    if let Some(snapshot) = disk.read::<Snapshot>(id)? {
        if &snapshot.volume == of {
            return Ok(snapshot);
        }
        let taken = format!("snapshot {id} exists and is of volume {}; choose another name", snapshot.volume);
        return Err(Error::Exists(taken));
    }
    let origin = Origin::find(disk, name, &Source::Volume(of.clone()))?;
    if let Kind::Image { .. } = origin.kind {
        room(disk, Kind::Directory, allocated(&disk.data_path::<Volume>(of, origin.kind))?)?;
    }
    let draft = disk.draft()?;
    let created_at = Timestamp::now().to_string();
    origin.copy_to(disk, &draft)?;
    let snapshot =
        Snapshot { id: id.clone(), volume: of.clone(), created_at, kind: origin.kind, capacity: origin.capacity };
    draft.commit(id, &snapshot)?;
    Ok(snapshot)
}

/// Deletes a snapshot, if it is there.
pub(crate) fn delete_snapshot(disk: &Disk, id: &VolumeId) -> Result<()> {
    let _turn = disk.snapshot_turn(id)?;
    disk.delete::<Snapshot>(id)
}

/// Bytes that can still be promised to new volumes of a kind: what the file system has left, less what images were
/// promised and have not taken yet.
pub(crate) fn available(disk: &Disk) -> Result<u64> {
    let stat = statvfs(disk.root()).map_err(io_error("measure", disk.root()))?;
    let mut left = stat.blocks_available() * stat.fragment_size();
    for id in disk.ids::<Volume>()? {
        if let Some(volume) = disk.volume(&id)?
            && volume.kind != Kind::Directory
        {
            let taken = allocated(&disk.data_path::<Volume>(&id, volume.kind))?;
            left = left.saturating_sub(volume.capacity.saturating_sub(taken));
        }
    }
    Ok(left)
}

/// Whether there is room for so much more. Only the size of images is a promise.
fn room(disk: &Disk, kind: Kind, bytes: u64) -> Result<()> {
    if kind == Kind::Directory {
        return Ok(());
    }
    let left = available(disk)?;
    if bytes <= left {
        return Ok(());
    }
    Err(Error::Exhausted(format!(
        "{bytes} bytes are asked for, and {left} are left in {}; delete volumes, or take another node",
        disk.root().display()
    )))
}

fn allocated(image: &Path) -> Result<u64> {
    match fs::metadata(image) {
        Ok(file) => Ok(file.blocks() * 512),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(io_error("measure", image)(error)),
    }
}

fn set_size(image: &Path, bytes: u64) -> Result<()> {
    let set = || {
        let file = File::options().write(true).open(image)?;
        // Never smaller: a copy of a larger image keeps its size.
        if file.metadata()?.len() < bytes {
            file.set_len(bytes)?;
        }
        file.sync_all()
    };
    set().map_err(io_error("set the size of", image))
}

/// The file system that a request's `fs_type` means for a volume, if it is one.
pub(crate) fn fs_type(text: &str) -> Result<Option<FsType>> {
    match text {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(Error::Invalid),
    }
}
