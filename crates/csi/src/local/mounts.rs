//! Bind mounts of directories.
//!
//! A mount is recognised by what it shows: a path that shows the device and inode of the volume's directory is a mount
//! of it, since directories have no second name.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::{
        stat::fstat,
        statvfs::{FsFlags, statvfs},
    },
};

/// Mounts that may lie upon one path before it is given up.
const STACKED: usize = 16;

/// What a path shows of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// The directory itself, writable or not.
    Yes {
        /// Whether writes are refused.
        readonly: bool,
    },
    /// Nothing: the path is an empty directory, or is not there.
    Empty,
    /// Something else.
    Other,
}

/// What a path shows of a directory.
pub(super) fn shown(directory: &OwnedFd, at: &Path) -> io::Result<Shown> {
    let there = match open(at) {
        Ok(there) => there,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Shown::Empty),
        Err(error) => return Err(error),
    };
    let (a, b) = (fstat(directory.as_fd())?, fstat(there.as_fd())?);
    if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino) {
        let readonly = statvfs(at)?.flags().contains(FsFlags::ST_RDONLY);
        return Ok(Shown::Yes { readonly });
    }
    let empty = fs::read_dir(at)?.next().is_none();
    Ok(if empty { Shown::Empty } else { Shown::Other })
}

/// Shows a directory at a path, whose last part is made if it is missing.
pub(super) fn bind(directory: &OwnedFd, at: &Path, readonly: bool) -> io::Result<()> {
    match fs::create_dir(at) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let target = open(at)?;
    let (from, to) = (link(directory.as_raw_fd()), link(target.as_raw_fd()));
    let none = None::<&str>;
    mount(Some(from.as_str()), to.as_str(), none, MsFlags::MS_BIND, none)?;
    if readonly {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        if let Err(error) = mount(none, at, none, flags, none) {
            // A writable mount must not stay where a read-only one was asked for.
            umount2(at, MntFlags::UMOUNT_NOFOLLOW)?;
            return Err(error.into());
        }
    }
    Ok(())
}

/// Takes away what is mounted at a path, then the path if it is an empty directory. Never deletes anything else.
pub(super) fn unbind(at: &Path) -> io::Result<()> {
    for _ in 0..STACKED {
        match umount2(at, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            // Not mounted, or not there.
            Err(Errno::EINVAL | Errno::ENOENT) => break,
            Err(error) => return Err(error.into()),
        }
    }
    match fs::remove_dir(at) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn open(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    fs::OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)
}

/// The kernel's own way to an open file, which no renaming can bend.
fn link(fd: i32) -> String {
    format!("/proc/self/fd/{fd}")
}
