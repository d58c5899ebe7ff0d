//! The volumes of pods on this node.
//!
//! Each volume of a pod has a folder under the pod's: `mount` is what containers see, `csi.json` says what it takes to
//! undo a CSI volume and is written before the volume is published. So an agent that starts anew, or that hears of a pod no
//! more, can still take everything down. Nothing below a mount point is ever removed (I21).

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use model::quantity::Quantity;
use nix::mount::{MntFlags, MsFlags};
use pb::{
    agent::v1::{PodBundle, PodRef},
    objects::{KeyToPath, ObjectMeta, Pod, PodSpec, Volume},
};

use crate::{
    csi::{CsiError, Drivers, Published, make_dir, remove_empty_dir, source},
    mounts,
};

/// Mode of files from ConfigMaps and Secrets unless the volume says otherwise.
const FILE_MODE: i32 = 0o644;

/// The file in a pod's folder that tells its namespace and name.
const NAME_FILE: &str = "name";

/// What can go wrong with a pod's volumes.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A claim has no volume yet.
    #[error("volume {volume:?}: claim {claim:?} is not bound to a volume yet")]
    Unbound {
        /// The pod's volume.
        volume: String,
        /// Its claim.
        claim: String,
    },
    /// A ConfigMap or Secret is missing.
    #[error("volume {volume:?}: {problem}")]
    Missing {
        /// The pod's volume.
        volume: String,
        /// What is missing.
        problem: String,
    },
    /// A path that leaves the volume.
    #[error("volume {volume:?}: path {path:?} must be relative and without \"..\"")]
    BadPath {
        /// The pod's volume.
        volume: String,
        /// The path.
        path: String,
    },
    /// A driver.
    #[error(transparent)]
    Csi(#[from] CsiError),
    /// The node's own file system.
    #[error("{}: {error}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What.
        error: io::Error,
    },
    /// Something is still mounted.
    #[error("{} is still mounted: it is left as it is", .0.display())]
    StillMounted(PathBuf),
}

/// The volumes of all pods of the node.
#[derive(Clone, Debug)]
pub struct VolumeManager {
    pods: PathBuf,
    drivers: Arc<Drivers>,
}

impl VolumeManager {
    /// Volumes under `data_dir`; CSI drivers with their sockets under `csi_dir`.
    pub fn new(data_dir: &Path, csi_dir: &Path) -> Self {
        let drivers = Drivers::new(csi_dir.to_owned(), data_dir.join("staging"));
        Self { pods: data_dir.join("pods"), drivers: Arc::new(drivers) }
    }

    fn folder(&self, uid: &str) -> PathBuf {
        self.pods.join(uid).join("volumes")
    }

    /// Makes the pod's folder, with its name in it: who finds the folder later knows whose it is.
    pub fn remember(&self, pod: &PodRef) -> Result<(), VolumeError> {
        let folder = self.pods.join(&pod.uid);
        make_dir(&folder)?;
        let name = folder.join(NAME_FILE);
        write_file(&name, format!("{}/{}", pod.namespace, pod.name).as_bytes(), 0o600)
    }

    /// Pods that have a folder on this node. One whose folder does not tell its name has an empty one.
    pub fn pods(&self) -> io::Result<Vec<PodRef>> {
        let entries = match fs::read_dir(&self.pods) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let read = |entry: io::Result<fs::DirEntry>| {
            let path = entry?.path();
            let uid = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let text = fs::read_to_string(path.join(NAME_FILE)).unwrap_or_default();
            let (namespace, name) = text.split_once('/').unwrap_or_default();
            Ok(PodRef { namespace: namespace.to_owned(), name: name.to_owned(), uid })
        };
        entries.map(read).collect()
    }

    /// Whether nothing of the pod's volumes is on the node.
    pub fn is_absent(&self, uid: &str) -> bool {
        !self.folder(uid).exists()
    }

    /// Where the pod's volumes are, and which are read-only as a whole.
    pub fn paths(&self, pod: &Pod) -> BTreeMap<String, (PathBuf, bool)> {
        let none = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&none);
        let folder = self.folder(pod.metadata.as_ref().map_or("", |meta| &meta.uid));
        let path = |volume: &Volume| {
            let claim_read_only = volume.persistent_volume_claim.as_ref().is_some_and(|claim| claim.read_only);
            let read_only = claim_read_only || volume.config_map.is_some() || volume.secret.is_some();
            (volume.name.clone(), (folder.join(&volume.name).join("mount"), read_only))
        };
        spec.volumes.iter().map(path).collect()
    }

    /// Mounts all volumes of a pod. Idempotent.
    pub async fn mount(&self, bundle: &PodBundle) -> Result<(), VolumeError> {
        let pod = bundle.pod.clone().unwrap_or_default();
        let folder = self.folder(pod.metadata.as_ref().map_or("", |meta| &meta.uid));
        make_dir(&folder)?;
        for volume in pod.spec.iter().flat_map(|spec| &spec.volumes) {
            let folder = folder.join(&volume.name);
            make_dir(&folder)?;
            self.mount_one(bundle, volume, &folder).await?;
        }
        Ok(())
    }

    async fn mount_one(&self, bundle: &PodBundle, volume: &Volume, folder: &Path) -> Result<(), VolumeError> {
        let target = folder.join("mount");
        if let Some(claim) = &volume.persistent_volume_claim {
            let bound = bundle.volumes.iter().find(|bound| bound.claim_name == claim.claim_name);
            let Some(bound) = bound.and_then(|bound| bound.volume.as_ref()) else {
                let (volume, claim) = (volume.name.clone(), claim.claim_name.clone());
                return Err(VolumeError::Unbound { volume, claim });
            };
            let record = folder.join("csi.json");
            let text = serde_json::to_vec(&source(bound)?).map_err(|error| io_error(&record)(error.into()))?;
            write_file(&record, &text, 0o600)?;
            self.drivers.publish(bound, &target, claim.read_only).await?;
        } else if let Some(map) = &volume.config_map {
            let found = bundle.config_maps.iter().find(|found| is_named(found.metadata.as_ref(), &map.name));
            if found.is_none() && map.optional != Some(true) {
                return Err(missing(volume, format!("configMap {:?} does not exist", map.name)));
            }
            let text = found.iter().flat_map(|found| &found.data).map(|(key, text)| (key.as_str(), text.as_bytes()));
            let bytes = found.iter().flat_map(|found| &found.binary_data).map(|(key, b)| (key.as_str(), b.as_slice()));
            let keys = text.chain(bytes).collect();
            make_dir(&target)?;
            write_keys(volume, &target, &keys, &map.items, map.default_mode, map.optional)?;
        } else if let Some(secret) = &volume.secret {
            let found = bundle.secrets.iter().find(|found| is_named(found.metadata.as_ref(), &secret.secret_name));
            if found.is_none() && secret.optional != Some(true) {
                return Err(missing(volume, format!("secret {:?} does not exist", secret.secret_name)));
            }
            let data = found.iter().flat_map(|found| &found.data);
            let keys = data.map(|(key, bytes)| (key.as_str(), bytes.as_slice())).collect();
            mount_tmpfs(&target, "mode=0755")?;
            write_keys(volume, &target, &keys, &secret.items, secret.default_mode, secret.optional)?;
        } else {
            let empty = volume.empty_dir.clone().unwrap_or_default();
            if empty.medium == "Memory" {
                let size = empty.size_limit.as_ref().and_then(|size| Quantity::try_from(size).ok());
                let size = size.map(|size| format!(",size={}", size.as_units())).unwrap_or_default();
                mount_tmpfs(&target, &format!("mode=0777{size}"))?;
            } else {
                make_dir(&target)?;
                fs::set_permissions(&target, fs::Permissions::from_mode(0o777)).map_err(io_error(&target))?;
            }
        }
        Ok(())
    }

    /// Takes all volumes of a pod down. Idempotent; needs nothing but what is on the node.
    pub async fn unmount(&self, uid: &str) -> Result<(), VolumeError> {
        let folder = self.folder(uid);
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(io_error(&folder))?,
        };
        for entry in entries {
            let path = entry.map_err(io_error(&folder))?.path();
            self.unmount_one(uid, &path).await?;
        }
        remove_empty_dir(&folder)?;
        Ok(())
    }

    async fn unmount_one(&self, uid: &str, folder: &Path) -> Result<(), VolumeError> {
        let target = folder.join("mount");
        let record = folder.join("csi.json");
        if let Some(which) = read_record(&record)? {
            self.drivers.unpublish(&which, &target, || self.used_by_another(uid, &which)).await?;
            if !mounts::below(&target).map_err(io_error(&target))?.is_empty() {
                return Err(VolumeError::StillMounted(target));
            }
            // Not recursive: whatever is in an unpublished volume's folder is not ours to remove.
            remove_empty_dir(&target)?;
            fs::remove_file(&record).map_err(io_error(&record))?;
            return Ok(remove_empty_dir(folder)?);
        }
        if target.exists() && mounts::is_mount_point(&target).map_err(io_error(&target))? {
            nix::mount::umount2(&target, MntFlags::UMOUNT_NOFOLLOW).map_err(|e| io_error(&target)(e.into()))?;
        }
        if let Some(point) = mounts::below(folder).map_err(io_error(folder))?.into_iter().next() {
            return Err(VolumeError::StillMounted(point));
        }
        fs::remove_dir_all(folder).map_err(io_error(folder))
    }

    /// Whether another pod of this node has the volume; if that cannot be told, it counts as used.
    fn used_by_another(&self, uid: &str, which: &Published) -> bool {
        let Ok(pods) = self.pods() else { return true };
        pods.iter().filter(|other| other.uid != uid).any(|other| {
            let folders = fs::read_dir(self.folder(&other.uid)).into_iter().flatten().flatten();
            folders.into_iter().any(|volume| match read_record(&volume.path().join("csi.json")) {
                Ok(record) => record.as_ref() == Some(which),
                Err(_) => true,
            })
        })
    }

    /// Removes the pod's own folder, after its volumes are gone.
    pub fn remove_folder(&self, uid: &str) -> Result<(), VolumeError> {
        let folder = self.pods.join(uid);
        if let Some(point) = mounts::below(&folder).map_err(io_error(&folder))?.into_iter().next() {
            return Err(VolumeError::StillMounted(point));
        }
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(&folder)(error)),
            _ => Ok(()),
        }
    }
}

fn is_named(meta: Option<&ObjectMeta>, name: &str) -> bool {
    meta.is_some_and(|meta| meta.name == name)
}

fn missing(volume: &Volume, problem: String) -> VolumeError {
    VolumeError::Missing { volume: volume.name.clone(), problem: format!("{problem}; create it, and the pod starts") }
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> VolumeError {
    let path = path.to_owned();
    move |error| VolumeError::Io { path: path.clone(), error }
}

fn read_record(path: &Path) -> Result<Option<Published>, VolumeError> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| io_error(path)(error.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error(path)(error)),
    }
}

fn mount_tmpfs(target: &Path, options: &str) -> Result<(), VolumeError> {
    make_dir(target)?;
    if mounts::is_mount_point(target).map_err(io_error(target))? {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    nix::mount::mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some(options))
        .map_err(|e| io_error(target)(e.into()))
}

/// Writes keys as files: all, or those that `items` names, at their paths.
fn write_keys(
    volume: &Volume,
    target: &Path,
    keys: &BTreeMap<&str, &[u8]>,
    items: &[KeyToPath],
    default_mode: Option<i32>,
    optional: Option<bool>,
) -> Result<(), VolumeError> {
    let default_mode = default_mode.unwrap_or(FILE_MODE);
    let all: Vec<KeyToPath>;
    let items = if items.is_empty() {
        let item = |key: &&str| KeyToPath { key: (*key).to_owned(), path: (*key).to_owned(), mode: None };
        all = keys.keys().map(item).collect();
        &all
    } else {
        items
    };
    for item in items {
        let Some(bytes) = keys.get(item.key.as_str()) else {
            if optional == Some(true) {
                continue;
            }
            return Err(missing(volume, format!("key {:?} does not exist", item.key)));
        };
        let relative = Path::new(&item.path);
        if item.path.is_empty() || !relative.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(VolumeError::BadPath { volume: volume.name.clone(), path: item.path.clone() });
        }
        let path = target.join(relative);
        if let Some(parent) = path.parent().filter(|parent| *parent != target) {
            let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(parent);
            made.map_err(io_error(parent))?;
        }
        let mode = u32::try_from(item.mode.unwrap_or(default_mode)).unwrap_or(0o644) & 0o777;
        write_file(&path, bytes, mode)?;
    }
    Ok(())
}

/// Writes a file whole or not at all: readers see the old or the new.
fn write_file(path: &Path, bytes: &[u8], mode: u32) -> Result<(), VolumeError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".berth-new");
    let new = path.with_file_name(name);
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&new)?;
        io::Write::write_all(&mut file, bytes)?;
        // The mode above passes through the umask.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        fs::rename(&new, path)
    };
    write().map_err(io_error(path))
}

#[cfg(test)]
mod tests {
    use pb::objects::{ConfigMap, ConfigMapVolumeSource, EmptyDirVolumeSource};

    use super::*;

    fn bundle(volumes: Vec<Volume>) -> PodBundle {
        let meta = |name: &str| ObjectMeta { name: name.into(), uid: name.into(), ..Default::default() };
        let data = [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())].into();
        PodBundle {
            pod: Some(Pod {
                metadata: Some(meta("pod")),
                spec: Some(PodSpec { volumes, ..Default::default() }),
                ..Default::default()
            }),
            config_maps: vec![ConfigMap { metadata: Some(meta("conf")), data, ..Default::default() }],
            ..Default::default()
        }
    }

    fn config(items: Vec<KeyToPath>) -> Volume {
        let map = ConfigMapVolumeSource { name: "conf".into(), items, ..Default::default() };
        Volume { name: "conf".into(), config_map: Some(map), ..Default::default() }
    }

    #[tokio::test]
    async fn files_and_empty_folders_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let manager = VolumeManager::new(dir.path(), dir.path());
        let item = KeyToPath { key: "b".into(), path: "sub/two".into(), mode: Some(0o400) };
        let scratch =
            Volume { name: "scratch".into(), empty_dir: Some(EmptyDirVolumeSource::default()), ..Default::default() };
        let bundle = bundle(vec![config(vec![item]), scratch]);
        manager.mount(&bundle).await.unwrap();
        manager.mount(&bundle).await.unwrap();
        let paths = manager.paths(bundle.pod.as_ref().unwrap());
        let file = paths["conf"].0.join("sub/two");
        assert_eq!(fs::read_to_string(&file).unwrap(), "2");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o400);
        assert!(!paths["conf"].0.join("a").exists());
        fs::write(paths["scratch"].0.join("x"), "y").unwrap();

        manager.unmount("pod").await.unwrap();
        assert!(manager.is_absent("pod"));
        manager.unmount("pod").await.unwrap();
    }

    #[tokio::test]
    async fn refuses_paths_that_leave_the_volume_and_names_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let manager = VolumeManager::new(dir.path(), dir.path());
        for (key, path, says) in
            [("a", "../x", "must be relative"), ("a", "/x", "must be relative"), ("c", "c", "key \"c\"")]
        {
            let item = KeyToPath { key: key.into(), path: path.into(), mode: None };
            let error = manager.mount(&bundle(vec![config(vec![item])])).await.unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        let mut without = bundle(vec![config(vec![])]);
        without.config_maps.clear();
        let error = manager.mount(&without).await.unwrap_err().to_string();
        assert!(error.contains("configMap \"conf\" does not exist"), "{error}");
    }
}
