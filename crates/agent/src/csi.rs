//! The node side of CSI drivers.
//!
//! At most one call per volume is in flight (I4): whoever calls holds the volume's [`Turn`]. A call that was not answered
//! may have been carried out; nothing here assumes either. Before a volume is staged, that is written down, and the note
//! goes only after the driver has said that it is unstaged: what is noted may be mounted.

mod capability;
mod driver;
pub mod proxy;
mod registry;

use std::{
    collections::BTreeMap,
    future::Future,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use pb::{
    csi::v1::{
        CapacityRange, NodeExpandVolumeRequest, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse,
        NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest,
        VolumeCapability, volume_capability::AccessType,
    },
    objects::{PersistentVolume, PersistentVolumeSpec},
};
use tokio::sync::OwnedMutexGuard;
use tonic::{Code, Response, Status};

pub use capability::is_for_one_pod;
pub use driver::Driver;
pub use registry::{Known, Registry};

use crate::{
    beneath::{Folder, present},
    mounts,
    volumes::FsGroup,
};

/// The note of a staged volume, beside its mount.
const NOTE: &str = "volume.json";

/// The mount in a volume's folder.
pub const MOUNT: &str = "mount";

/// What went wrong with a volume of a driver.
#[derive(Debug, thiserror::Error)]
pub enum CsiError {
    /// The volume has no CSI source.
    #[error("volume {0:?} names no CSI driver: only CSI volumes can be mounted")]
    NotCsi(String),
    /// A raw device is asked for.
    #[error("volume {0:?} has volumeMode Block: only Filesystem can be mounted")]
    Block(String),
    /// The driver is not there.
    #[error("CSI driver {driver:?} is not registered on this node: is it running, with its socket in {}?", folder.display())]
    NotRegistered {
        /// The driver.
        driver: String,
        /// Where it registers.
        folder: PathBuf,
    },
    /// The driver refused, or its answer never came.
    #[error("{call} of volume {volume:?}: {}", status.message())]
    Call {
        /// The call.
        call: &'static str,
        /// The driver's id of the volume.
        volume: String,
        /// What the driver said.
        status: Box<Status>,
    },
    /// The driver lied.
    #[error("CSI driver {driver:?} published volume {volume:?}, but nothing is mounted at {}", target.display())]
    NotMounted {
        /// The driver.
        driver: String,
        /// The driver's id of the volume.
        volume: String,
        /// Where it should be.
        target: PathBuf,
    },
    /// The node's own file system.
    #[error("{}: {error}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What.
        error: io::Error,
    },
}

impl CsiError {
    /// Whether the driver says that the volume's data is not there.
    pub fn is_lost(&self) -> bool {
        matches!(self, CsiError::Call { status, .. } if matches!(status.code(), Code::DataLoss | Code::NotFound))
    }
}

/// Which volume of which driver.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct VolumeId {
    /// The driver.
    pub driver: String,
    /// The driver's id of the volume.
    pub volume: String,
}

impl VolumeId {
    /// Of a volume that can be mounted.
    pub fn of(volume: &PersistentVolume) -> Result<Self, CsiError> {
        let name = || volume.metadata.as_ref().map_or("", |meta| &meta.name).to_owned();
        let spec = volume.spec.as_ref();
        if spec.and_then(|spec| spec.volume_mode.as_deref()).is_some_and(|mode| mode == "Block") {
            return Err(CsiError::Block(name()));
        }
        let csi = spec.and_then(|spec| spec.csi.as_ref()).ok_or_else(|| CsiError::NotCsi(name()))?;
        Ok(Self { driver: csi.driver.clone(), volume: csi.volume_handle.clone() })
    }

    /// As the name of a folder: the driver's ids may hold any character.
    fn folder(&self) -> String {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        let part = |b: u8| if plain(b) { char::from(b).to_string() } else { format!("%{b:02x}") };
        let name: String = self.volume.bytes().map(part).collect();
        if name.len() <= 200 {
            return name;
        }
        // Longer than names of files may be: the end tells such ids apart as well as it can be had without the rest.
        use sha2::Digest;
        let digest = sha2::Sha256::digest(self.volume.as_bytes());
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The right to make calls for one volume.
#[derive(Debug)]
pub struct Turn {
    id: VolumeId,
    _held: OwnedMutexGuard<()>,
}

impl Turn {
    /// Which volume.
    pub fn id(&self) -> &VolumeId {
        &self.id
    }
}

/// How a volume shall appear.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// The volume.
    pub volume: &'a PersistentVolume,
    /// What attaching it said.
    pub publish_context: &'a BTreeMap<String, String>,
    /// Where.
    pub target: &'a Path,
    /// Whether it shall be only read.
    pub read_only: bool,
    /// The group that its files shall belong to. A driver that can does that itself.
    pub group: Option<FsGroup>,
}

/// Calls to all drivers of the node.
#[derive(Debug)]
pub struct Drivers {
    /// Which drivers there are.
    pub registry: Arc<Registry>,
    staging: Folder,
    deadline: Duration,
    turns: Mutex<BTreeMap<VolumeId, Arc<tokio::sync::Mutex<()>>>>,
}

impl Drivers {
    /// Volumes are staged under `staging`; a call may take `deadline`.
    pub fn new(registry: Arc<Registry>, staging: Folder, deadline: Duration) -> Self {
        Self { registry, staging, deadline, turns: Mutex::default() }
    }

    /// Waits for the calls for a volume that are in flight.
    pub async fn turn(&self, id: &VolumeId) -> Turn {
        let lock = {
            let mut turns = self.turns.lock();
            turns.retain(|_, lock| Arc::strong_count(lock) > 1);
            turns.entry(id.clone()).or_default().clone()
        };
        Turn { id: id.clone(), _held: lock.lock_owned().await }
    }

    fn driver(&self, id: &VolumeId) -> Result<Arc<Driver>, CsiError> {
        self.registry.driver(&id.driver).ok_or_else(|| CsiError::NotRegistered {
            driver: id.driver.clone(),
            folder: self.registry.folder().to_owned(),
        })
    }

    async fn called<T>(
        &self,
        driver: &Driver,
        call: &'static str,
        id: &VolumeId,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, CsiError> {
        let failed = |status| CsiError::Call { call, volume: id.volume.clone(), status: Box::new(status) };
        let deadline = self.deadline;
        let answer = async {
            // Never closed.
            let _permit = driver.calls.acquire().await;
            answer.await
        };
        match tokio::time::timeout(deadline, answer).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(failed(status)),
            Err(_) => {
                let message = format!("the driver did not answer within {deadline:?}; the call is repeated");
                Err(failed(Status::deadline_exceeded(message)))
            }
        }
    }

    fn stage_folder(&self, id: &VolumeId) -> Result<Option<Folder>, CsiError> {
        let open = || -> io::Result<Option<Folder>> {
            let Some(driver) = present(self.staging.open(&id.driver))? else { return Ok(None) };
            present(driver.open(id.folder()))
        };
        open().map_err(|error| self.broken(id, error))
    }

    fn broken(&self, id: &VolumeId, error: io::Error) -> CsiError {
        CsiError::Io { path: self.staging.path().join(&id.driver).join(id.folder()), error }
    }

    /// Where a volume is staged; None if its driver does not stage.
    fn staging_path(&self, id: &VolumeId, driver: &Driver) -> Option<PathBuf> {
        let path = || self.staging.path().join(&id.driver).join(id.folder()).join(MOUNT);
        driver.facts.abilities.stage.then(path)
    }

    /// Whether a volume is staged, or may be after a call whose end is not known.
    pub fn may_be_staged(&self, id: &VolumeId) -> Result<bool, CsiError> {
        let Some(folder) = self.stage_folder(id)? else { return Ok(false) };
        let note = present(folder.read(NOTE)).map_err(|error| self.broken(id, error))?;
        Ok(note.is_some())
    }

    /// All volumes that are staged or may be.
    pub fn staged(&self) -> io::Result<Vec<VolumeId>> {
        let mut staged = Vec::new();
        for driver in self.staging.names()? {
            let folder = self.staging.open(&driver)?;
            for volume in folder.names()? {
                let Some(folder) = present(folder.open(&volume))? else { continue };
                // A folder without a note: nothing was ever called.
                if let Some(note) = present(folder.read(NOTE))? {
                    staged.push(serde_json::from_slice(&note)?);
                }
            }
        }
        Ok(staged)
    }

    /// Makes a volume appear. Idempotent. Tells whether the driver has given it to its group.
    pub async fn publish(&self, turn: &Turn, wish: Wish<'_>) -> Result<bool, CsiError> {
        let id = turn.id();
        let driver = self.driver(id)?;
        let staging = self.stage(turn, &driver, wish).await?;
        let spec = spec_of(wish.volume);
        let request = NodePublishVolumeRequest {
            volume_id: id.volume.clone(),
            publish_context: wish.publish_context.clone(),
            staging_target_path: staging.as_deref().map(text).unwrap_or_default(),
            target_path: text(wish.target),
            volume_capability: Some(capability_for(&spec, &driver, wish)),
            readonly: wish.read_only || spec.csi.as_ref().is_some_and(|csi| csi.read_only),
            volume_context: attributes(&spec),
            ..Default::default()
        };
        self.called(&driver, "NodePublishVolume", id, driver.node().node_publish_volume(request)).await?;
        if staging.is_none() {
            self.grow(turn, &driver, wish.volume, wish.target).await;
        }
        match mounts::shown_at(wish.target) {
            Ok(Some(_)) => Ok(driver.facts.abilities.mount_group),
            Ok(None) => {
                let (driver, volume) = (id.driver.clone(), id.volume.clone());
                Err(CsiError::NotMounted { driver, volume, target: wish.target.to_owned() })
            }
            Err(error) => Err(CsiError::Io { path: wish.target.to_owned(), error }),
        }
    }

    /// Stages a volume if its driver stages; tells where.
    async fn stage(&self, turn: &Turn, driver: &Driver, wish: Wish<'_>) -> Result<Option<PathBuf>, CsiError> {
        let id = turn.id();
        let Some(path) = self.staging_path(id, driver) else { return Ok(None) };
        self.note(id).map_err(|error| self.broken(id, error))?;
        let spec = spec_of(wish.volume);
        let request = NodeStageVolumeRequest {
            volume_id: id.volume.clone(),
            publish_context: wish.publish_context.clone(),
            staging_target_path: text(&path),
            volume_capability: Some(capability_for(&spec, driver, wish)),
            volume_context: attributes(&spec),
            ..Default::default()
        };
        self.called(driver, "NodeStageVolume", id, driver.node().node_stage_volume(request)).await?;
        self.grow(turn, driver, wish.volume, &path).await;
        Ok(Some(path))
    }

    fn note(&self, id: &VolumeId) -> io::Result<()> {
        let folder = self.staging.make(&id.driver)?.make(id.folder())?;
        folder.write(NOTE, &serde_json::to_vec(id)?)?;
        // The driver finds the folder that it mounts over.
        if mounts::shown_at(&folder.path().join(MOUNT))?.is_none() {
            folder.make(MOUNT)?;
        }
        Ok(())
    }

    /// Lets the file system fill a volume that has grown meanwhile. A pod starts also with the smaller one.
    async fn grow(&self, turn: &Turn, driver: &Driver, volume: &PersistentVolume, path: &Path) {
        let size =
            spec_of(volume).capacity.get("storage").and_then(|size| model::quantity::Quantity::try_from(size).ok());
        let Some(bytes) = size.map(model::quantity::Quantity::as_units).filter(|_| driver.facts.abilities.expand)
        else {
            return;
        };
        if let Err(error) = self.node_expand(turn, driver, volume, path, bytes).await {
            let (driver, volume) = (&turn.id().driver, &turn.id().volume);
            tracing::warn!(driver, volume, %error, "the volume's file system stays as large as it was");
        }
    }

    async fn node_expand(
        &self,
        turn: &Turn,
        driver: &Driver,
        volume: &PersistentVolume,
        path: &Path,
        bytes: i64,
    ) -> Result<i64, CsiError> {
        let id = turn.id();
        let spec = spec_of(volume);
        let request = NodeExpandVolumeRequest {
            volume_id: id.volume.clone(),
            volume_path: text(path),
            capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            staging_target_path: self.staging_path(id, driver).as_deref().map(text).unwrap_or_default(),
            volume_capability: Some(capability::capability(&spec, driver.facts.abilities.multi_writer)),
            ..Default::default()
        };
        let answer = self.called(driver, "NodeExpandVolume", id, driver.node().node_expand_volume(request)).await?;
        // 0 means that the driver does not say.
        Ok(if answer.capacity_bytes > 0 { answer.capacity_bytes } else { bytes })
    }

    /// Makes the file system of a mounted volume as large as the volume; tells how large it is. `published` is where the
    /// volume is published, of which any will do.
    pub async fn expand(
        &self,
        turn: &Turn,
        volume: &PersistentVolume,
        published: &[PathBuf],
        bytes: i64,
    ) -> Result<Option<i64>, CsiError> {
        let driver = self.driver(turn.id())?;
        let Some(path) = self.seen_at(turn.id(), &driver, published)? else { return Ok(None) };
        if !driver.facts.abilities.expand {
            return Ok(Some(bytes));
        }
        self.node_expand(turn, &driver, volume, &path, bytes).await.map(Some)
    }

    /// How full a mounted volume is; None if it is not mounted or its driver does not say.
    pub async fn stats(
        &self,
        turn: &Turn,
        published: &[PathBuf],
    ) -> Result<Option<NodeGetVolumeStatsResponse>, CsiError> {
        let id = turn.id();
        let driver = self.driver(id)?;
        if !driver.facts.abilities.stats {
            return Ok(None);
        }
        let Some(path) = self.seen_at(id, &driver, published)? else { return Ok(None) };
        let request = NodeGetVolumeStatsRequest {
            volume_id: id.volume.clone(),
            volume_path: text(&path),
            staging_target_path: self.staging_path(id, &driver).as_deref().map(text).unwrap_or_default(),
        };
        self.called(&driver, "NodeGetVolumeStats", id, driver.node().node_get_volume_stats(request)).await.map(Some)
    }

    /// Where the kernel shows the volume: where it is staged, or else one of the places where it is published.
    fn seen_at(&self, id: &VolumeId, driver: &Driver, published: &[PathBuf]) -> Result<Option<PathBuf>, CsiError> {
        for path in self.staging_path(id, driver).iter().chain(published) {
            let shown = mounts::shown_at(path).map_err(|error| CsiError::Io { path: path.clone(), error })?;
            if shown.is_some() {
                return Ok(Some(path.clone()));
            }
        }
        Ok(None)
    }

    /// Undoes publishing at `target`. Idempotent, and called also when it is not known whether publishing succeeded.
    pub async fn unpublish(&self, turn: &Turn, target: &Path) -> Result<(), CsiError> {
        let id = turn.id();
        let driver = self.driver(id)?;
        let request = NodeUnpublishVolumeRequest { volume_id: id.volume.clone(), target_path: text(target) };
        self.called(&driver, "NodeUnpublishVolume", id, driver.node().node_unpublish_volume(request)).await?;
        Ok(())
    }

    /// Undoes staging, if it was ever begun. Idempotent.
    pub async fn unstage(&self, turn: &Turn) -> Result<(), CsiError> {
        let id = turn.id();
        let Some(folder) = self.stage_folder(id)? else { return Ok(()) };
        let driver = self.driver(id)?;
        let path = folder.path().join(MOUNT);
        let request = NodeUnstageVolumeRequest { volume_id: id.volume.clone(), staging_target_path: text(&path) };
        self.called(&driver, "NodeUnstageVolume", id, driver.node().node_unstage_volume(request)).await?;
        let forget = || {
            // Fails while something is mounted there, or if files lie there: then the note stays.
            folder.remove_dir(MOUNT)?;
            folder.remove_file(NOTE)?;
            self.staging.open(&id.driver)?.remove_dir(id.folder())
        };
        forget().map_err(|error| self.broken(id, error))
    }
}

/// How the volume is used, with the group for a driver that gives its files away itself.
fn capability_for(spec: &PersistentVolumeSpec, driver: &Driver, wish: Wish<'_>) -> VolumeCapability {
    let mut capability = capability::capability(spec, driver.facts.abilities.multi_writer);
    if let (true, Some(group), Some(AccessType::Mount(mount))) =
        (driver.facts.abilities.mount_group, wish.group, &mut capability.access_type)
    {
        mount.volume_mount_group = group.gid.to_string();
    }
    capability
}

fn spec_of(volume: &PersistentVolume) -> PersistentVolumeSpec {
    volume.spec.clone().unwrap_or_default()
}

fn attributes(spec: &PersistentVolumeSpec) -> BTreeMap<String, String> {
    spec.csi.as_ref().map(|csi| csi.volume_attributes.clone()).unwrap_or_default()
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
