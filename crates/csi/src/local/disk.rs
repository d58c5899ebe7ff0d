//! Directories of volumes on a node's disk, and the markers that tell a new volume from a lost one.
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

use jiff::Timestamp;
use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    sys::stat::{Mode, mkdirat},
};

use super::VolumeId;

/// Why a volume's directory cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The volume was here and is not any more.
    #[error(
        "the data of volume {id} is gone: it was first used on {created_at}, and {} no longer exists; bring the \
         directory back (from a backup, or by mounting its disk), or delete the claim to begin with an empty volume",
        path.display()
    )]
    Lost {
        /// The volume.
        id: VolumeId,
        /// Where its data was.
        path: PathBuf,
        /// When it was first staged.
        created_at: String,
    },
    /// It is still mounted somewhere.
    #[error("volume {id} is still mounted at {at}; unpublish and unstage it first")]
    InUse {
        /// The volume.
        id: VolumeId,
        /// One of the places.
        at: String,
    },
    /// The disk did not do what it should.
    #[error("{action} {}: {error}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What came back.
        error: io::Error,
    },
}

fn io_error<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> DiskError {
    move |error| DiskError::Io { action, path: path.to_owned(), error: error.into() }
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Marker {
    volume_id: String,
    created_at: String,
}

/// A data directory: `volumes/` with the data, `markers/` beside it, `trash/` for what is being deleted.
#[derive(Clone, Debug)]
pub struct Disk {
    volumes: PathBuf,
    markers: PathBuf,
    trash: PathBuf,
}

impl Disk {
    /// Takes a data directory, and makes what is missing of it. Only its owner can enter it: directories of volumes
    /// are writable by any user, since the pod decides as whom it runs.
    pub fn open(root: &Path) -> io::Result<Self> {
        let root = std::path::absolute(root)?;
        let disk = Self { volumes: root.join("volumes"), markers: root.join("markers"), trash: root.join("trash") };
        for dir in [&disk.volumes, &disk.markers, &disk.trash] {
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        Ok(disk)
    }

    /// The directory of a volume. One that was never here before is made; one that was and is not is [`DiskError::Lost`].
    pub fn claim(&self, id: &VolumeId) -> Result<OwnedFd, DiskError> {
        let path = self.volumes.join(id.as_str());
        let marker = self.read_marker(id)?;
        let found = self.find(id)?;
        match (found, marker) {
            (Some(dir), Some(_)) => Ok(dir),
            (None, Some(marker)) => Err(DiskError::Lost { id: id.clone(), path, created_at: marker.created_at }),
            // A crash came between directory and marker, or someone put data there on purpose: it is the volume's data.
            (Some(dir), None) => {
                self.write_marker(id)?;
                Ok(dir)
            }
            (None, None) => {
                self.create(id).map_err(io_error("make the directory", &path))?;
                self.write_marker(id)?;
                let made = self.find(id)?;
                made.ok_or_else(|| io_error("open the new directory", &path)(io::Error::from(io::ErrorKind::NotFound)))
            }
        }
    }

    /// The directory of a volume, if there is one.
    pub fn find(&self, id: &VolumeId) -> Result<Option<OwnedFd>, DiskError> {
        let path = self.volumes.join(id.as_str());
        let volumes = File::open(&self.volumes).map_err(io_error("open", &self.volumes))?;
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        match openat2(volumes.as_fd(), id.as_str(), how) {
            Ok(dir) => Ok(Some(dir)),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(io_error("open the directory", &path)(error)),
        }
    }

    /// Deletes a volume's data and marker; nothing happens if there are none. Refused while it is mounted anywhere.
    ///
    /// The directory is renamed away first, so that a crash on the way leaves a volume that is wholly there or wholly
    /// gone.
    pub fn delete(&self, id: &VolumeId) -> Result<(), DiskError> {
        let (data, trash) = (self.volumes.join(id.as_str()), self.trash.join(id.as_str()));
        let elsewhere = runtime::mounts::shown_elsewhere(&data).map_err(io_error("read the mounts of", &data))?;
        if let Some(at) = elsewhere {
            return Err(DiskError::InUse { id: id.clone(), at: at.display().to_string() });
        }
        absent_is_done(fs::remove_dir_all(&trash)).map_err(io_error("remove", &trash))?;
        absent_is_done(fs::rename(&data, &trash)).map_err(io_error("move to the trash", &data))?;
        sync_dir(&self.volumes)?;
        let marker = self.marker_path(id);
        absent_is_done(fs::remove_file(&marker)).map_err(io_error("remove", &marker))?;
        sync_dir(&self.markers)?;
        absent_is_done(fs::remove_dir_all(&trash)).map_err(io_error("remove", &trash))
    }

    fn create(&self, id: &VolumeId) -> io::Result<()> {
        let volumes = File::open(&self.volumes)?;
        mkdirat(volumes.as_fd(), id.as_str(), Mode::S_IRWXU)?;
        // Not with mkdir, which the umask would take bits from.
        fs::set_permissions(self.volumes.join(id.as_str()), Permissions::from_mode(0o777))?;
        volumes.sync_all()
    }

    fn marker_path(&self, id: &VolumeId) -> PathBuf {
        self.markers.join(format!("{id}.json"))
    }

    fn read_marker(&self, id: &VolumeId) -> Result<Option<Marker>, DiskError> {
        let path = self.marker_path(id);
        match fs::read(&path) {
            Ok(bytes) => {
                let marker = serde_json::from_slice(&bytes).map_err(io::Error::from);
                marker.map(Some).map_err(io_error("read the marker", &path))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("read the marker", &path)(error)),
        }
    }

    fn write_marker(&self, id: &VolumeId) -> Result<(), DiskError> {
        let path = self.marker_path(id);
        let marker = Marker { volume_id: id.to_string(), created_at: Timestamp::now().to_string() };
        let write = || {
            let temporary = self.markers.join(format!(".{id}.new"));
            let mut file = File::create(&temporary)?;
            file.write_all(&serde_json::to_vec(&marker)?)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        };
        write().map_err(io_error("write the marker", &path))?;
        sync_dir(&self.markers)
    }
}

fn sync_dir(path: &Path) -> Result<(), DiskError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(io_error("sync", path))
}

fn absent_is_done(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> VolumeId {
        "pvc-1".parse().unwrap()
    }

    #[test]
    fn a_lost_directory_is_an_error_and_not_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        disk.claim(&id()).unwrap();
        disk.claim(&id()).unwrap();
        fs::remove_dir(dir.path().join("volumes/pvc-1")).unwrap();
        let error = disk.claim(&id()).unwrap_err();
        assert!(matches!(error, DiskError::Lost { .. }), "{error}");
        assert!(!dir.path().join("volumes/pvc-1").exists());
        disk.delete(&id()).unwrap();
        disk.claim(&id()).expect("a deleted volume may be made anew");
    }

    #[test]
    fn data_without_marker_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        fs::create_dir(dir.path().join("volumes/pvc-1")).unwrap();
        fs::write(dir.path().join("volumes/pvc-1/file"), "data").unwrap();
        disk.claim(&id()).unwrap();
        assert!(dir.path().join("markers/pvc-1.json").exists());
        assert!(dir.path().join("volumes/pvc-1/file").exists());
    }

    #[test]
    fn links_are_not_followed() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let disk = Disk::open(dir.path()).unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("volumes/pvc-1")).unwrap();
        assert!(matches!(disk.claim(&id()), Err(DiskError::Io { .. })));
    }
}
