//! An archive into a folder.
//!
//! Nothing of an archive is trusted: every name is resolved below the folder, and no link is followed, neither one of the
//! archive nor one that was there. Whom a file belonged to does not count.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read},
    os::{
        fd::OwnedFd,
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag},
    sys::stat::{Mode, fchmod, mkdirat},
    unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat},
};
use tar::{Entry, EntryType};

use super::root::within;

/// Who the files belong to.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Files, folders and links.
    pub entries: i64,
    /// Bytes of files.
    pub bytes: i64,
}

/// How to unpack.
#[derive(Clone, Debug, Default)]
pub struct How {
    /// Whom the files belong to; to this process' user if nobody is named.
    pub owner: Option<Owner>,
    /// What the archive's top file or folder is called, instead of its name there.
    pub top: Option<OsString>,
}

/// Unpacks into `folder`, and tells what is written so far. What is in the way of a file is replaced; folders are kept as
/// they are.
///
/// # Errors
/// When the archive is broken, leads out of the folder, or cannot be written.
pub fn unpack(
    folder: &OwnedFd,
    how: &How,
    archive: impl Read,
    mut progress: impl FnMut(Written),
) -> io::Result<Written> {
    let mut written = Written::default();
    for entry in tar::Archive::new(archive).entries()? {
        let mut entry = entry?;
        let name = PathBuf::from(OsStr::from_bytes(&entry.path_bytes()));
        let done = make(folder, how, &name, &mut entry);
        written.bytes += done.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", name.display())))?;
        written.entries += 1;
        progress(written);
    }
    Ok(written)
}

impl How {
    /// Where a name of the archive is in the folder; one that leads elsewhere is an error.
    fn place(&self, name: &Path) -> io::Result<PathBuf> {
        let plain = name.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if !plain {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a path that leads out of the folder"));
        }
        let mut parts = name.components().filter(|part| *part != Component::CurDir).map(Component::as_os_str);
        let first = parts.next().map(|first| self.top.as_deref().unwrap_or(first));
        Ok(first.into_iter().chain(parts).collect())
    }
}

fn make(folder: &OwnedFd, how: &How, name: &Path, entry: &mut Entry<'_, impl Read>) -> io::Result<i64> {
    let (place, owner) = (how.place(name)?, how.owner);
    let Some(last) = place.file_name() else {
        // The folder itself, which is there.
        return Ok(0);
    };
    let parent = parents(folder, owner, place.parent().unwrap_or(Path::new("")))?;
    let mode = Mode::from_bits_truncate(entry.header().mode()? & 0o777);
    match entry.header().entry_type() {
        EntryType::Directory => make_folder(&parent, last, owner, Some(mode)).map(|_| 0),
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let mut file = File::from(fresh(&parent, last)?);
            let length = io::copy(entry, &mut file)?;
            // The owner first: changing it takes bits of the mode away.
            own(&file, owner)?;
            fchmod(&file, mode)?;
            Ok(i64::try_from(length).unwrap_or(i64::MAX))
        }
        EntryType::Symlink => {
            replace(&parent, last)?;
            symlinkat(link_target(entry)?.as_os_str(), &parent, last)?;
            if let Some(Owner { uid, gid }) = owner {
                let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
                fchownat(&parent, last, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?;
            }
            Ok(0)
        }
        EntryType::Link => {
            let first = how.place(Path::new(&link_target(entry)?))?;
            let first_parent = within(folder, first.parent().unwrap_or(Path::new("")), FOLDER, Mode::empty())?;
            let first_name = first.file_name().ok_or_else(|| io::Error::other("a link to the folder itself"))?;
            replace(&parent, last)?;
            linkat(&first_parent, first_name, &parent, last, AtFlags::empty())?;
            Ok(0)
        }
        // Devices and pipes mean nothing where they come from.
        _ => Ok(0),
    }
}

const FOLDER: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY);

fn link_target(entry: &Entry<'_, impl Read>) -> io::Result<OsString> {
    let target = entry.link_name_bytes().map(|target| OsString::from_vec(target.into_owned()));
    target.ok_or_else(|| io::Error::other("a link without a target"))
}

/// The folder in which an entry is, made where the archive does not name it.
fn parents(folder: &OwnedFd, owner: Option<Owner>, path: &Path) -> io::Result<OwnedFd> {
    let mut parent = folder.try_clone()?;
    for part in path.components() {
        parent = make_folder(&parent, part.as_os_str(), owner, None)?;
    }
    Ok(parent)
}

/// Opens a folder, made if it is missing. One that is there keeps its owner and mode.
fn make_folder(parent: &OwnedFd, name: &OsStr, owner: Option<Owner>, mode: Option<Mode>) -> io::Result<OwnedFd> {
    let made = match mkdirat(parent, name, Mode::S_IRWXU) {
        Ok(()) => true,
        Err(Errno::EEXIST) => false,
        Err(error) => return Err(error.into()),
    };
    let opened = within(parent, Path::new(name), FOLDER, Mode::empty())?;
    if made {
        let mode = mode.unwrap_or(Mode::from_bits_truncate(0o755));
        let file = File::from(opened.try_clone()?);
        own(&file, owner)?;
        // What the archive has below it must fit into it.
        fchmod(&file, mode | Mode::S_IRWXU)?;
    }
    Ok(opened)
}

fn own(file: &File, owner: Option<Owner>) -> io::Result<()> {
    match owner {
        Some(Owner { uid, gid }) => Ok(fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?),
        None => Ok(()),
    }
}

/// Removes a file or link that is in the way.
fn replace(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A new, empty file. Who has the old one open keeps it; one that is mounted by itself is emptied instead.
fn fresh(parent: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    match replace(parent, name) {
        Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => {
            within(parent, Path::new(name), OFlag::O_WRONLY | OFlag::O_TRUNC | OFlag::O_NONBLOCK, Mode::empty())
        }
        replaced => {
            replaced?;
            within(parent, Path::new(name), OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL, mode)
        }
    }
}
