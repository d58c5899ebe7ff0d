//! Parts of volumes (`subPath`): a path within a volume that a container sees instead of the whole.
//!
//! What is in a volume was written by containers: a link there may lead anywhere. So the path is resolved by the kernel
//! beneath the volume, what is found stays open, and that very file is mounted for the container, never what its path
//! leads to a moment later. The mounts lie beside the volume's own, under `parts`, and go before it.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    mount::{MntFlags, MsFlags},
    sys::stat::{Mode, SFlag, fchmod, fstat, mkdirat},
};

use crate::mounts;

/// The folder of mounted parts in a volume's folder.
pub const PARTS: &str = "parts";

/// Mounts the part `path` of the volume at `volume` under `home`, where `name` tells it from others, and says where. Makes
/// folders that are missing, with the mode of the volume's root, unless `fixed`. Idempotent.
pub fn mount(home: &Path, name: &str, volume: &Path, path: &str, fixed: bool) -> io::Result<PathBuf> {
    let target = home.join(PARTS).join(name);
    let root = nix::fcntl::open(volume, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    let part = find(root.as_fd(), path, fixed).map_err(|error| {
        let why = match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EXDEV | Errno::ELOOP) => "a link in it leads out of the volume".to_owned(),
            _ => error.to_string(),
        };
        io::Error::new(error.kind(), format!("subPath {path:?}: {why}"))
    })?;
    if mounts::shown_at(&target)?.is_some() {
        let mounted = nix::fcntl::open(&target, OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, Mode::empty())?;
        if is_same(&mounted, &part)? {
            return Ok(target);
        }
        // The path leads to something else since the last run of the container, such as the next version of a file.
        drop(mounted);
        nix::mount::umount2(&target, MntFlags::UMOUNT_NOFOLLOW)?;
    }
    if let Some(left) = crate::beneath::present(fs::symlink_metadata(&target))? {
        // Of the same kind as what is mounted on it.
        if left.is_dir() { fs::remove_dir(&target)? } else { fs::remove_file(&target)? }
    }
    fs::create_dir_all(home.join(PARTS))?;
    if is_dir(&part)? {
        fs::create_dir_all(&target)?;
    } else {
        fs::OpenOptions::new().write(true).create(true).truncate(false).open(&target)?;
    }
    let source = format!("/proc/self/fd/{}", part.as_raw_fd());
    nix::mount::mount(Some(source.as_str()), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(target)
}

/// Takes all parts of a volume down. Idempotent.
pub fn unmount(home: &Path) -> io::Result<()> {
    let parts = home.join(PARTS);
    let Some(entries) = crate::beneath::present(fs::read_dir(&parts))? else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        while mounts::shown_at(&entry.path())?.is_some() {
            nix::mount::umount2(&entry.path(), MntFlags::UMOUNT_NOFOLLOW)?;
        }
        // Never recursive: what is not empty is not the agent's.
        if entry.file_type()?.is_dir() { fs::remove_dir(entry.path())? } else { fs::remove_file(entry.path())? }
    }
    fs::remove_dir(&parts)
}

fn is_same(one: &OwnedFd, other: &OwnedFd) -> io::Result<bool> {
    let (one, other) = (fstat(one)?, fstat(other)?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

fn is_dir(file: &OwnedFd) -> io::Result<bool> {
    Ok(SFlag::from_bits_truncate(fstat(file)?.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFDIR)
}

fn find(root: BorrowedFd<'_>, path: &str, fixed: bool) -> io::Result<OwnedFd> {
    match beneath(root, Path::new(path), OFlag::O_PATH) {
        Err(Errno::ENOENT) if !fixed => make(root, Path::new(path)),
        found => Ok(found?),
    }
}

/// Makes the folders that are missing, one below the other.
fn make(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    let mode = Mode::from_bits_truncate(fstat(root)?.st_mode);
    let mut at = root.try_clone_to_owned()?;
    for part in path.components() {
        let Component::Normal(name) = part else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "must be relative and without \"..\""));
        };
        let name = Path::new(name);
        let made = match mkdirat(&at, name, Mode::from_bits_truncate(0o700)) {
            Ok(()) => true,
            Err(Errno::EEXIST) => false,
            Err(error) => return Err(error.into()),
        };
        let flags = if made { OFlag::O_RDONLY | OFlag::O_DIRECTORY } else { OFlag::O_PATH };
        let next = beneath(at.as_fd(), name, flags)?;
        if made {
            fchmod(&next, mode)?;
        }
        at = next;
    }
    Ok(at)
}

/// Opens what a path means without ever leaving the folder. Links within it are followed.
fn beneath(folder: BorrowedFd<'_>, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    openat2(folder, path, OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn parts_are_mounted_made_and_taken_down() {
        let (home, volume) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::set_permissions(volume.path(), fs::Permissions::from_mode(0o2775)).unwrap();
        fs::create_dir(volume.path().join("real")).unwrap();
        fs::write(volume.path().join("real/file"), "x").unwrap();
        symlink("real", volume.path().join("inside")).unwrap();
        let file = mount(home.path(), "main-0", volume.path(), "inside/file", true).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "x");
        let made = mount(home.path(), "main-1", volume.path(), "new/deep", false).unwrap();
        fs::write(made.join("y"), "y").unwrap();
        assert_eq!(fs::read_to_string(volume.path().join("new/deep/y")).unwrap(), "y");
        assert_eq!(fs::metadata(volume.path().join("new/deep")).unwrap().mode() & 0o7777, 0o2775);
        assert_eq!(mount(home.path(), "main-1", volume.path(), "new/deep", false).unwrap(), made, "again");
        assert!(made.join("y").exists());
        // Another file has the name now, and then a folder: the next run of the container sees it.
        fs::write(volume.path().join("real/new"), "z").unwrap();
        fs::rename(volume.path().join("real/new"), volume.path().join("real/file")).unwrap();
        let file = mount(home.path(), "main-0", volume.path(), "inside/file", true).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "z");
        fs::remove_file(volume.path().join("real/file")).unwrap();
        let folder = mount(home.path(), "main-0", volume.path(), "inside/file", false).unwrap();
        assert!(folder.is_dir());
        unmount(home.path()).unwrap();
        unmount(home.path()).unwrap();
        assert!(!home.path().join(PARTS).exists());
        assert!(volume.path().join("new/deep/y").exists(), "the volume keeps its files");
    }

    #[test]
    fn no_link_leads_out_of_the_volume() {
        let (home, volume, outside) =
            (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(outside.path().join("precious"), "x").unwrap();
        symlink(outside.path(), volume.path().join("absolute")).unwrap();
        symlink("../../../../../../../../etc", volume.path().join("relative")).unwrap();
        for path in ["absolute", "absolute/precious", "absolute/new", "relative/passwd", "..", "../x", "/etc"] {
            let error = mount(home.path(), "main-0", volume.path(), path, false).unwrap_err();
            assert!(!outside.path().join("new").exists(), "{path}: {error}");
        }
        let missing = mount(home.path(), "main-0", volume.path(), "nothing", true).unwrap_err();
        assert!(missing.to_string().contains("subPath \"nothing\""), "{missing}");
    }
}
