//! An archive into a new, empty volume; and whether the volume really holds it.
//!
//! Nothing of an archive is trusted: every path is resolved by the kernel below the volume's top folder, without following
//! links, and nothing that exists is written over.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, PosixFadviseAdvice, ResolveFlag, openat2, posix_fadvise},
    sys::stat::{
        FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, futimens, makedev, mkdirat, mknodat, utimensat,
    },
    unistd::{Gid, Uid, fchown, fchownat, linkat, symlinkat, syncfs},
};
use sha2::{Digest, Sha256};
use tar::{Entry, EntryType, Header};
use xattr::FileExt;

use super::{entry::Extra, pack::TOP};

/// Bytes that are read and written at a time; runs of as many zeros become holes.
const BLOCK: usize = 64 * 1024;

type Sum = [u8; 32];

/// What was unpacked.
#[derive(Debug, Default)]
pub struct Unpacked {
    /// Bytes of all files.
    pub bytes: i64,
    /// Number of files and folders.
    pub entries: i64,
    /// The sum of each file's bytes.
    sums: Vec<(PathBuf, Sum)>,
    /// Folders, whose times change with each file that is made in them.
    folders: Vec<(PathBuf, Owned)>,
}

/// Who a file belongs to, and what goes along with it.
#[derive(Debug)]
struct Owned {
    uid: Uid,
    gid: Gid,
    mode: Mode,
    extra: Extra,
}

impl Owned {
    fn of(header: &Header, extra: Extra) -> io::Result<Self> {
        let id = |id: u64| u32::try_from(id).map_err(|_| io::Error::other(format!("{id} is no id of a user or group")));
        Ok(Self {
            uid: Uid::from_raw(id(header.uid()?)?),
            gid: Gid::from_raw(id(header.gid()?)?),
            mode: Mode::from_bits_truncate(header.mode()? & 0o7777),
            extra,
        })
    }

    fn give(&self, file: &File) -> io::Result<()> {
        // The owner first: changing it takes set-user-id away.
        fchown(file, Some(self.uid), Some(self.gid))?;
        fchmod(file, self.mode)?;
        for (name, value) in &self.extra.xattrs {
            file.set_xattr(OsStr::from_bytes(name), value)?;
        }
        let time = self.extra.time();
        futimens(file, &time, &time)?;
        Ok(())
    }
}

fn how(flags: OFlag) -> OpenHow {
    OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV)
}

fn open(root: &OwnedFd, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    Ok(openat2(root, path, how(flags))?)
}

const FOLDER: OFlag = OFlag::O_DIRECTORY;

/// Where a name in the archive is in the volume: empty for its top folder.
fn place(name: &Path) -> io::Result<PathBuf> {
    let bad = |_| io::Error::other(format!("the archive has {} outside of {TOP}", name.display()));
    let place = name.strip_prefix(TOP).map_err(bad)?;
    if place.components().all(|part| matches!(part, Component::Normal(_))) {
        return Ok(place.to_owned());
    }
    Err(io::Error::other(format!("the archive has a path that leads elsewhere: {}", name.display())))
}

/// Unpacks into the volume whose top folder is `root`; tells how many bytes have arrived.
pub fn unpack(
    root: &Path,
    archive: impl Read,
    progress: &mut dyn FnMut(i64) -> io::Result<()>,
) -> io::Result<Unpacked> {
    let root: OwnedFd = File::open(root)?.into();
    let mut done = Unpacked::default();
    for entry in tar::Archive::new(archive).entries()? {
        let mut entry = entry?;
        let name = PathBuf::from(OsStr::from_bytes(&entry.path_bytes()));
        let made = make(&root, &name, &mut entry, &mut done, progress);
        made.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", name.display())))?;
        done.entries += 1;
    }
    Ok(done)
}

fn make(
    root: &OwnedFd,
    name: &Path,
    entry: &mut Entry<'_, impl Read>,
    done: &mut Unpacked,
    progress: &mut dyn FnMut(i64) -> io::Result<()>,
) -> io::Result<()> {
    let place = place(name)?;
    let mut extra = Extra::default();
    for record in entry.pax_extensions()?.into_iter().flatten() {
        let record = record?;
        extra.take(record.key_bytes(), record.value_bytes())?;
    }
    let owned = Owned::of(entry.header(), extra)?;
    let parent = open(root, place.parent().unwrap_or(Path::new("")), FOLDER)?;
    let Some(last) = place.file_name() else {
        done.folders.push((place, owned));
        return Ok(());
    };
    match entry.header().entry_type() {
        EntryType::Directory => {
            match mkdirat(&parent, last, Mode::S_IRWXU) {
                // Only what the file system made by itself can be there; openat2 says if it is no folder.
                Ok(()) | Err(Errno::EEXIST) => drop(open(&parent, Path::new(last), FOLDER)?),
                Err(error) => return Err(error.into()),
            }
            done.folders.push((place, owned));
            Ok(())
        }
        EntryType::Regular | EntryType::GNUSparse => {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
            let mode = Mode::S_IRUSR | Mode::S_IWUSR;
            let file = File::from(openat2(&parent, last, how(flags).mode(mode))?);
            let sum = fill(&file, entry, &mut done.bytes, progress)?;
            owned.give(&file)?;
            done.sums.push((place, sum));
            Ok(())
        }
        EntryType::Symlink => {
            symlinkat(OsStr::from_bytes(&target(entry)?), &parent, last)?;
            own_by_name(&parent, last, &owned)
        }
        EntryType::Link => {
            let first = self::place(Path::new(OsStr::from_bytes(&target(entry)?)))?;
            let folder = open(root, first.parent().unwrap_or(Path::new("")), FOLDER)?;
            let name = first.file_name().ok_or_else(|| io::Error::other("a link to the top folder"))?;
            linkat(&folder, name, &parent, last, AtFlags::empty())?;
            Ok(())
        }
        kind @ (EntryType::Fifo | EntryType::Char | EntryType::Block) => {
            let device = |part: io::Result<Option<u32>>| part.map(|part| u64::from(part.unwrap_or(0)));
            let (kind, device) = match kind {
                EntryType::Fifo => (SFlag::S_IFIFO, 0),
                _ => {
                    let number =
                        makedev(device(entry.header().device_major())?, device(entry.header().device_minor())?);
                    (if kind == EntryType::Char { SFlag::S_IFCHR } else { SFlag::S_IFBLK }, number)
                }
            };
            mknodat(&parent, last, kind, Mode::S_IRUSR, device)?;
            own_by_name(&parent, last, &owned)?;
            fchmodat(&parent, last, owned.mode, FchmodatFlags::FollowSymlink)?;
            Ok(())
        }
        other => Err(io::Error::other(format!("an archive of Berth has no entries of type {other:?}"))),
    }
}

fn target(entry: &Entry<'_, impl Read>) -> io::Result<Vec<u8>> {
    let target = entry.link_name_bytes().map(|target| target.into_owned());
    target.ok_or_else(|| io::Error::other("a link without a target"))
}

/// What cannot be opened without meaning something by it: links, pipes, devices. Its name was made here, just before.
fn own_by_name(parent: &OwnedFd, name: &OsStr, owned: &Owned) -> io::Result<()> {
    fchownat(parent, name, Some(owned.uid), Some(owned.gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let time = owned.extra.time();
    utimensat(parent, name, &time, &time, UtimensatFlags::NoFollowSymlink)?;
    Ok(())
}

/// Writes a file's bytes, leaving holes where they are zero; tells their sum.
fn fill(
    mut file: &File,
    from: &mut impl Read,
    bytes: &mut i64,
    progress: &mut dyn FnMut(i64) -> io::Result<()>,
) -> io::Result<Sum> {
    let (mut sum, mut length) = (Sha256::new(), 0u64);
    let mut block = vec![0; BLOCK];
    loop {
        let read = from.read(&mut block)?;
        let data = block.get(..read).unwrap_or_default();
        if data.is_empty() {
            break;
        }
        sum.update(data);
        if data.iter().all(|byte| *byte == 0) {
            file.seek(SeekFrom::Current(i64::try_from(read).map_err(io::Error::other)?))?;
        } else {
            file.write_all(data)?;
        }
        length += read as u64;
        *bytes += i64::try_from(read).map_err(io::Error::other)?;
        progress(*bytes)?;
    }
    file.set_len(length)?;
    Ok(sum.finalize().into())
}

/// Brings all to the disk.
pub fn sync(root: &Path) -> io::Result<()> {
    Ok(syncfs(File::open(root)?)?)
}

/// Reads each file back from the disk and compares.
pub fn verify(root: &Path, unpacked: &Unpacked, progress: &mut dyn FnMut(i64) -> io::Result<()>) -> io::Result<()> {
    let root: OwnedFd = File::open(root)?.into();
    for (path, expected) in &unpacked.sums {
        let mut file = File::from(open(&root, path, OFlag::O_RDONLY)?);
        // What the kernel still has in memory proves nothing of the disk.
        posix_fadvise(file.as_fd(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        let mut sum = Sha256::new();
        let mut block = vec![0; BLOCK];
        loop {
            let read = file.read(&mut block)?;
            if read == 0 {
                break;
            }
            sum.update(block.get(..read).unwrap_or_default());
            progress(unpacked.bytes)?;
        }
        if *expected != *sum.finalize() {
            let path = path.display();
            return Err(io::Error::other(format!("{path}: the new volume gives back other bytes than were written")));
        }
    }
    Ok(())
}

/// Gives folders their owners and times, now that nothing is made in them any more, and brings that to the disk.
pub fn finish(root: &Path, unpacked: &Unpacked) -> io::Result<()> {
    let top: OwnedFd = File::open(root)?.into();
    // Inner ones first: a folder that may no longer be entered has nothing left to be done in it.
    for (path, owned) in unpacked.folders.iter().rev() {
        owned.give(&File::from(open(&top, path, OFlag::O_RDONLY | FOLDER)?))?;
    }
    sync(root)
}
