//! The agent's own folders, walked without leaving them.
//!
//! Every step below the data folder is resolved by the kernel with openat2: no symbolic link is followed, no `..` leads
//! out, and no mount is entered. So what is removed here can neither be in a mounted volume (I21) nor elsewhere, whatever
//! a pod or a driver does to the folders meanwhile.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path, PathBuf},
};

use nix::{
    dir::{Dir, Type},
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2, renameat},
    sys::stat::{Mode, fchmod, mkdirat},
    unistd::{UnlinkatFlags, unlinkat},
};

/// Folders within folders that removal goes into; deeper ones are left, with an error.
const DEPTH: usize = 128;

/// An open folder, and its path for messages and for drivers.
#[derive(Debug)]
pub struct Folder {
    fd: OwnedFd,
    path: PathBuf,
}

fn how(flags: OFlag) -> OpenHow {
    OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV)
}

/// A name of one part: not empty, no `/`, not `..`.
fn is_name(name: &OsStr) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name)
}

fn check(name: &OsStr) -> io::Result<()> {
    let bad = || io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is not the name of a file"));
    is_name(name).then_some(()).ok_or_else(bad)
}

/// None where there is nothing.
pub fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl Folder {
    /// A folder of the operator's, with its parents made if they are missing. Links on the way are the operator's.
    pub fn root(path: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        let path = path.canonicalize()?;
        Ok(Self { fd: File::open(&path)?.into(), path })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A folder in it.
    pub fn open(&self, name: impl AsRef<OsStr>) -> io::Result<Self> {
        let name = name.as_ref();
        check(name)?;
        let fd = openat2(&self.fd, name, how(OFlag::O_RDONLY | OFlag::O_DIRECTORY))?;
        Ok(Self { fd, path: self.path.join(name) })
    }

    /// A folder in it, made if it is missing.
    pub fn make(&self, name: impl AsRef<OsStr>) -> io::Result<Self> {
        let name = name.as_ref();
        check(name)?;
        match mkdirat(&self.fd, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => self.open(name),
            Err(error) => Err(error.into()),
        }
    }

    /// Names of all that is in it.
    pub fn names(&self) -> io::Result<Vec<OsString>> {
        Ok(self.entries()?.into_iter().map(|(name, _)| name).collect())
    }

    fn entries(&self) -> io::Result<Vec<(OsString, Option<Type>)>> {
        let fd = openat2(&self.fd, ".", how(OFlag::O_RDONLY | OFlag::O_DIRECTORY))?;
        let mut entries = Vec::new();
        for entry in Dir::from_fd(fd)?.iter() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                entries.push((OsStr::from_bytes(name).to_owned(), entry.file_type()));
            }
        }
        Ok(entries)
    }

    /// What a file in it holds.
    pub fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        check(name.as_ref())?;
        let mut bytes = Vec::new();
        File::from(openat2(&self.fd, name, how(OFlag::O_RDONLY))?).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Writes a file in it, whole or not at all, and for good: it is there after a crash of the machine.
    pub fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        check(name.as_ref())?;
        let mode = Mode::from_bits_truncate(0o600);
        let new = format!("{name}.berth-new");
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC;
        let mut file = File::from(openat2(&self.fd, new.as_str(), how(flags).mode(mode))?);
        file.write_all(bytes)?;
        fchmod(&file, mode)?;
        file.sync_all()?;
        renameat(&self.fd, new.as_str(), &self.fd, name)?;
        nix::unistd::fsync(&self.fd)?;
        Ok(())
    }

    /// Removes a file in it, if it is there.
    pub fn remove_file(&self, name: &str) -> io::Result<()> {
        self.unlink(name.as_ref(), UnlinkatFlags::NoRemoveDir)
    }

    /// Removes an empty folder in it, if it is there; what is in the way is an error, never removed.
    pub fn remove_dir(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        self.unlink(name.as_ref(), UnlinkatFlags::RemoveDir)
    }

    fn unlink(&self, name: &OsStr, flags: UnlinkatFlags) -> io::Result<()> {
        check(name)?;
        match unlinkat(self.fd.as_fd(), name, flags) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(error) => {
                let error = io::Error::from(error);
                Err(io::Error::new(error.kind(), format!("{}: {error}", self.path.join(name).display())))
            }
        }
    }

    /// Removes a folder or file with all that is in it, if it is there. A mount in it is an error and stays as it is.
    pub fn remove_tree(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        self.remove_at_depth(name.as_ref(), DEPTH)
    }

    fn remove_at_depth(&self, name: &OsStr, depth: usize) -> io::Result<()> {
        let inner = match self.open(name) {
            Ok(inner) => inner,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // Not a folder: a file or a link, which is removed itself.
            Err(error) if matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::ENOTDIR | Errno::ELOOP)) => {
                return self.unlink(name, UnlinkatFlags::NoRemoveDir);
            }
            Err(error) => {
                let path = self.path.join(name);
                return Err(io::Error::new(error.kind(), format!("{}: {error}: it is left", path.display())));
            }
        };
        let Some(deeper) = depth.checked_sub(1) else {
            return Err(io::Error::other(format!("{}: too many folders within each other", inner.path.display())));
        };
        for (name, kind) in inner.entries()? {
            match kind {
                Some(Type::Directory) | None => inner.remove_at_depth(&name, deeper)?,
                Some(_) => inner.unlink(&name, UnlinkatFlags::NoRemoveDir)?,
            }
        }
        self.unlink(name, UnlinkatFlags::RemoveDir)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn links_and_ways_out_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("precious"), "x").unwrap();
        let folder = Folder::root(dir.path()).unwrap();
        symlink(outside.path(), dir.path().join("link")).unwrap();
        assert!(folder.open("link").is_err());
        assert!(folder.make("link").is_err());
        for name in ["..", ".", "", "a/b", "/etc"] {
            assert!(folder.open(name).is_err(), "{name}");
            assert!(folder.remove_tree(name).is_err(), "{name}");
        }
        let inner = folder.make("inner").unwrap();
        symlink(outside.path(), dir.path().join("inner/link")).unwrap();
        fs::create_dir_all(dir.path().join("inner/deep/er")).unwrap();
        inner.write("record", b"1").unwrap();
        inner.write("record", b"2").unwrap();
        assert_eq!(inner.read("record").unwrap(), b"2");
        folder.remove_tree("inner").unwrap();
        folder.remove_tree("link").unwrap();
        folder.remove_tree("nothing").unwrap();
        assert_eq!(folder.names().unwrap(), Vec::<OsString>::new());
        assert!(outside.path().join("precious").exists());
    }
}
