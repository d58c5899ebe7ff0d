//! Files below a root, such as those of a running container, as its own processes see them.
//!
//! Every path is resolved by the kernel as if that root were the root of everything (openat2): links lead within it, and
//! those of the kernel (`/proc/PID/cwd` and the like), which would lead out, are refused. Whatever a container does to its
//! files meanwhile, nothing of the node is read or written.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use nix::{
    dir::Dir,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2, readlinkat},
    sys::stat::{FileStat, Mode, SFlag, fstat, fstatat},
};

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// A file of bytes.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A socket, a pipe or a device.
    Other,
}

/// Of which sort something is.
pub fn sort(stat: &FileStat) -> Sort {
    match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFREG => Sort::File,
        SFlag::S_IFDIR => Sort::Folder,
        SFlag::S_IFLNK => Sort::Link,
        _ => Sort::Other,
    }
}

/// The root of a process' files.
pub fn of_process(pid: i32) -> io::Result<OwnedFd> {
    Ok(File::open(format!("/proc/{pid}/root"))?.into())
}

/// An absolute path without `..`, as the container's processes write it.
pub fn absolute(path: &str) -> io::Result<PathBuf> {
    let path = Path::new(path);
    let plain =
        path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_) | Component::CurDir));
    if path.is_absolute() && plain {
        return Ok(path.components().filter(|part| *part != Component::CurDir).collect());
    }
    let why = format!("path: {:?} must be absolute, without \"..\"", path.display());
    Err(io::Error::new(io::ErrorKind::InvalidInput, why))
}

/// Opens a path of the container. Links on the way are followed as its processes would.
pub fn resolve(root: &OwnedFd, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    Ok(openat2(root, path, how)?)
}

/// Opens what is in a folder; no link is followed.
pub fn within(folder: &OwnedFd, path: &Path, flags: OFlag, mode: Mode) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
        .mode(mode)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    Ok(openat2(folder, path, how)?)
}

/// What is known of something open.
pub fn stat(fd: &OwnedFd) -> io::Result<FileStat> {
    Ok(fstat(fd)?)
}

/// What is known of a name in a folder; of a link itself.
pub fn stat_at(folder: &OwnedFd, name: &OsStr) -> io::Result<FileStat> {
    Ok(fstatat(folder.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW)?)
}

/// Where a link in a folder leads.
pub fn target(folder: &OwnedFd, name: &OsStr) -> io::Result<std::ffi::OsString> {
    Ok(readlinkat(folder.as_fd(), name)?)
}

/// The names in a folder, sorted.
pub fn names(folder: &OwnedFd) -> io::Result<Vec<std::ffi::OsString>> {
    use std::os::unix::ffi::OsStrExt;
    let fd = within(folder, Path::new(""), OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::from_fd(fd)?.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    names.sort();
    Ok(names)
}
