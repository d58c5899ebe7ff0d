//! Mounts of volumes, and what the kernel says of them.
//!
//! A bind mount of a directory is recognised by what it shows: a path that shows the device and inode of the directory
//! is a mount of it, since directories have no second name. A mounted image is recognised by its loop device.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
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
use runtime::mounts::{Mount, table};

use crate::error::{Error, Result};

/// Mounts that may lie upon one path before it is given up.
const STACKED: usize = 16;

/// What a path shows of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
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
pub(crate) fn shown(directory: &impl AsFd, at: &Path) -> io::Result<Shown> {
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
    Ok(if is_free(at)? { Shown::Empty } else { Shown::Other })
}

/// Whether a path is an empty directory with nothing mounted on it, or is not there.
pub(crate) fn is_free(at: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(at) {
        Ok(there) if !there.is_dir() => Ok(false),
        Ok(_) => Ok(fs::read_dir(at)?.next().is_none() && point(&table()?, at).is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// What is mounted at a path, the latest where several are.
pub(crate) fn point<'a>(table: &'a [Mount], at: &Path) -> Option<&'a Mount> {
    table.iter().rev().find(|mount| mount.point == at)
}

/// Shows a directory at a path, whose last part is made if it is missing.
pub(crate) fn bind(directory: &impl AsRawFd, at: &Path, options: &Options) -> io::Result<()> {
    let target = target(at)?;
    let (from, to) = (link(directory), link(&target));
    let none = None::<&str>;
    mount(Some(from.as_str()), to.as_str(), none, MsFlags::MS_BIND, none)?;
    if !options.flags.is_empty() {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | options.flags;
        if let Err(error) = mount(none, at, none, flags, none) {
            // A writable mount must not stay where a read-only one was asked for.
            umount2(at, MntFlags::UMOUNT_NOFOLLOW)?;
            return Err(error.into());
        }
    }
    Ok(())
}

/// Mounts a file system at a path, whose last part is made if it is missing.
pub(crate) fn mount_device(device: &Path, fs: &str, at: &Path, options: &Options) -> io::Result<()> {
    let to = target(at)?;
    let data = (!options.data.is_empty()).then_some(options.data.as_str());
    mount(Some(device), link(&to).as_str(), Some(fs), options.flags, data)?;
    Ok(())
}

fn target(at: &Path) -> io::Result<File> {
    match fs::create_dir(at) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => open(at),
    }
}

/// Takes away what is mounted at a path, then the path if it is an empty directory. Never deletes anything else.
pub(crate) fn unbind(at: &Path) -> io::Result<()> {
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

/// A mount that shows a directory or a part of it elsewhere, or that lies within it.
pub(crate) fn in_use(directory: &Path) -> io::Result<Option<PathBuf>> {
    match directory.canonicalize() {
        Ok(directory) => Ok(find_use(&table()?, &directory)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn find_use(table: &[Mount], directory: &Path) -> Option<PathBuf> {
    let within = table.iter().find(|mount| mount.point.starts_with(directory));
    // The last of the deepest mounts above the directory is the one that it is seen through.
    let above = table.iter().filter(|mount| directory.starts_with(&mount.point));
    let home = above.max_by_key(|mount| mount.point.components().count())?;
    let root = home.root.join(directory.strip_prefix(&home.point).ok()?);
    let shows = |mount: &&Mount| mount.device == home.device && mount.root.starts_with(&root);
    within.or_else(|| table.iter().find(shows)).map(|mount| mount.point.clone())
}

/// Options of a mount: those of the kernel's own, and those of the file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    flags: MsFlags,
    data: String,
}

impl Default for Options {
    fn default() -> Self {
        Self { flags: MsFlags::empty(), data: String::new() }
    }
}

impl Options {
    /// Understands options as `mount` has them.
    pub fn parse(words: &[String]) -> Result<Self> {
        let mut options = Self::default();
        for word in words.iter().flat_map(|words| words.split(',')).map(str::trim).filter(|word| !word.is_empty()) {
            match flag(word) {
                Some((flag, true)) => options.flags |= flag,
                Some((flag, false)) => options.flags -= flag,
                None if word.bytes().all(|byte| byte.is_ascii_graphic()) => options.add_data(word),
                None => return Err(Error::Invalid(format!("mount_flags: {word:?} is not a mount option"))),
            }
        }
        Ok(options)
    }

    /// The same with an option of the file system.
    pub fn with_data(mut self, word: &str) -> Self {
        self.add_data(word);
        self
    }

    /// The same with writes refused, if so.
    pub fn read_only(mut self, readonly: bool) -> Self {
        self.flags.set(MsFlags::MS_RDONLY, readonly || self.flags.contains(MsFlags::MS_RDONLY));
        self
    }

    /// Whether writes are refused.
    pub fn is_read_only(&self) -> bool {
        self.flags.contains(MsFlags::MS_RDONLY)
    }

    /// Options that a mount of a directory cannot have.
    pub fn data(&self) -> &str {
        &self.data
    }

    /// Those that each mount of a file system has for itself.
    pub fn of_mount(&self) -> Self {
        Self { flags: self.flags, data: String::new() }
    }

    fn add_data(&mut self, word: &str) {
        if !self.data.is_empty() {
            self.data.push(',');
        }
        self.data.push_str(word);
    }
}

/// A flag of the kernel, and whether it is set or taken away.
fn flag(word: &str) -> Option<(MsFlags, bool)> {
    let (flag, set) = match word {
        "defaults" => (MsFlags::empty(), true),
        "ro" => (MsFlags::MS_RDONLY, true),
        "rw" => (MsFlags::MS_RDONLY, false),
        "nosuid" => (MsFlags::MS_NOSUID, true),
        "suid" => (MsFlags::MS_NOSUID, false),
        "nodev" => (MsFlags::MS_NODEV, true),
        "dev" => (MsFlags::MS_NODEV, false),
        "noexec" => (MsFlags::MS_NOEXEC, true),
        "exec" => (MsFlags::MS_NOEXEC, false),
        "noatime" => (MsFlags::MS_NOATIME, true),
        "atime" => (MsFlags::MS_NOATIME, false),
        "nodiratime" => (MsFlags::MS_NODIRATIME, true),
        "relatime" => (MsFlags::MS_RELATIME, true),
        "norelatime" => (MsFlags::MS_RELATIME, false),
        "strictatime" => (MsFlags::MS_STRICTATIME, true),
        "sync" => (MsFlags::MS_SYNCHRONOUS, true),
        "async" => (MsFlags::MS_SYNCHRONOUS, false),
        "dirsync" => (MsFlags::MS_DIRSYNC, true),
        _ => return None,
    };
    Some((flag, set))
}

/// Opens a directory only to name it.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    fs::OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)
}

/// The kernel's own way to an open file, which no renaming can bend.
fn link(file: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounted(device: &str, root: &str, point: &str) -> Mount {
        Mount { device: device.into(), root: root.into(), point: point.into() }
    }

    #[test]
    fn a_directory_is_in_use_when_a_mount_shows_a_part_of_it_or_lies_in_it() {
        let at = |extra: Mount| find_use(&[mounted("8:1", "/", "/"), extra], Path::new("/data/volumes/one"));
        let in_use = |point: &str| Some(PathBuf::from(point));
        assert_eq!(at(mounted("8:1", "/data/volumes/one", "/pods/a")), in_use("/pods/a"));
        assert_eq!(at(mounted("8:1", "/data/volumes/one/data/sub", "/pods/a")), in_use("/pods/a"));
        assert_eq!(at(mounted("8:2", "/", "/data/volumes/one/data/x")), in_use("/data/volumes/one/data/x"));
        assert_eq!(at(mounted("8:1", "/data/volumes/one-more", "/pods/a")), None);
        assert_eq!(at(mounted("8:2", "/data/volumes/one", "/pods/a")), None);
    }

    #[test]
    fn options_are_the_kernels_or_the_file_systems() {
        let words = ["noatime,ro".to_owned(), "commit=5".to_owned(), "rw".to_owned(), "discard".to_owned()];
        let options = Options::parse(&words).unwrap();
        assert_eq!((options.flags, options.data()), (MsFlags::MS_NOATIME, "commit=5,discard"));
        assert!(Options::parse(&["a b".to_owned()]).is_err());
        assert!(!options.is_read_only() && options.read_only(true).is_read_only());
    }
}
