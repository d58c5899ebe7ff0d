//! The node side of CSI drivers.
//!
//! At most one call per volume is in flight (I4), and a volume counts as published only when the kernel says that
//! something is mounted at its target: never an empty directory in the place of a volume (I5).

use std::{
    collections::{BTreeMap, btree_map::Entry},
    future::Future,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use pb::{
    csi::v1::{
        NodeGetCapabilitiesRequest, NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
        NodeUnstageVolumeRequest, VolumeCapability,
        node_client::NodeClient,
        node_service_capability,
        volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode},
    },
    objects::PersistentVolume,
};
use runtime::channel::Channel;
use tonic::{Response, Status};

use crate::mounts;

/// For one call: a driver may check or repair a file system.
const DEADLINE: Duration = Duration::from_secs(120);

/// What went wrong with a volume of a driver.
#[derive(Debug, thiserror::Error)]
pub enum CsiError {
    /// The volume has no CSI source.
    #[error("volume {0:?} names no CSI driver: only CSI volumes can be mounted")]
    NotCsi(String),
    /// The driver's socket.
    #[error("CSI driver {driver:?} has no usable socket at {}: is the driver running on this node?", socket.display())]
    NoDriver {
        /// The driver.
        driver: String,
        /// Where its socket is expected.
        socket: PathBuf,
    },
    /// The driver refused.
    #[error("{call} of volume {volume:?}: {status}")]
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
        error: std::io::Error,
    },
}

/// A volume as it was published: what it takes to undo it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Published {
    /// The driver.
    pub driver: String,
    /// The driver's id of the volume.
    pub volume: String,
}

/// All drivers of the node.
#[derive(Debug)]
pub struct Drivers {
    sockets: PathBuf,
    staging: PathBuf,
    clients: Mutex<BTreeMap<String, NodeClient<Channel>>>,
    stages: Mutex<BTreeMap<String, bool>>,
    volumes: Mutex<BTreeMap<Published, Arc<tokio::sync::Mutex<()>>>>,
}

impl PartialOrd for Published {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Published {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (&self.driver, &self.volume).cmp(&(&other.driver, &other.volume))
    }
}

/// Which volume of which driver.
pub fn source(volume: &PersistentVolume) -> Result<Published, CsiError> {
    let csi = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref());
    match csi {
        Some(csi) => Ok(Published { driver: csi.driver.clone(), volume: csi.volume_handle.clone() }),
        None => Err(CsiError::NotCsi(volume.metadata.as_ref().map_or("", |m| &m.name).to_owned())),
    }
}

impl Drivers {
    /// Drivers with their sockets in `sockets`; volumes are staged under `staging`.
    pub fn new(sockets: PathBuf, staging: PathBuf) -> Self {
        Self { sockets, staging, clients: Mutex::default(), stages: Mutex::default(), volumes: Mutex::default() }
    }

    fn client(&self, driver: &str) -> Result<NodeClient<Channel>, CsiError> {
        let socket = self.sockets.join(format!("{driver}.sock"));
        let no_driver = || CsiError::NoDriver { driver: driver.to_owned(), socket: socket.clone() };
        if driver.is_empty() || driver.contains('/') || !socket.exists() {
            return Err(no_driver());
        }
        match self.clients.lock().entry(driver.to_owned()) {
            Entry::Occupied(entry) => Ok(entry.get().clone()),
            Entry::Vacant(entry) => {
                let url = format!("unix://{}", socket.display());
                let channel = runtime::channel::connect_streaming(&url).map_err(|_| no_driver())?;
                Ok(entry.insert(NodeClient::new(channel)).clone())
            }
        }
    }

    /// Whether the driver wants volumes staged before they are published.
    async fn stages(&self, which: &Published) -> Result<bool, CsiError> {
        if let Some(known) = self.stages.lock().get(&which.driver) {
            return Ok(*known);
        }
        let mut client = self.client(&which.driver)?;
        let call = client.node_get_capabilities(NodeGetCapabilitiesRequest {});
        let capabilities = called("NodeGetCapabilities", which, call).await?.capabilities;
        let stages = capabilities.iter().any(|capability| {
            let stage = node_service_capability::rpc::Type::StageUnstageVolume;
            matches!(&capability.r#type, Some(node_service_capability::Type::Rpc(rpc)) if rpc.r#type() == stage)
        });
        self.stages.lock().insert(which.driver.clone(), stages);
        Ok(stages)
    }

    fn staging_path(&self, which: &Published) -> PathBuf {
        // The driver's ids may hold any character.
        let name: String = which
            .volume
            .bytes()
            .map(|b| match b {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => char::from(b).to_string(),
                other => format!("%{other:02x}"),
            })
            .collect();
        self.staging.join(&which.driver).join(name)
    }

    /// Held during the calls for one volume.
    fn turn(&self, which: &Published) -> Arc<tokio::sync::Mutex<()>> {
        let mut volumes = self.volumes.lock();
        volumes.retain(|_, lock| Arc::strong_count(lock) > 1);
        volumes.entry(which.clone()).or_default().clone()
    }

    /// Makes a volume appear at `target`. Idempotent.
    pub async fn publish(&self, volume: &PersistentVolume, target: &Path, read_only: bool) -> Result<(), CsiError> {
        let which = source(volume)?;
        let spec = volume.spec.clone().unwrap_or_default();
        let csi = spec.csi.unwrap_or_default();
        let turn = self.turn(&which);
        let _turn = turn.lock().await;
        let capability = capability(&csi.fs_type, &spec.access_modes);
        let mut client = self.client(&which.driver)?;
        let staging_path = if self.stages(&which).await? {
            let path = self.staging_path(&which);
            make_dir(&path)?;
            let request = NodeStageVolumeRequest {
                volume_id: which.volume.clone(),
                staging_target_path: path.display().to_string(),
                volume_capability: Some(capability.clone()),
                volume_context: csi.volume_attributes.clone(),
                ..Default::default()
            };
            called("NodeStageVolume", &which, client.node_stage_volume(request)).await?;
            path.display().to_string()
        } else {
            String::new()
        };
        if let Some(parent) = target.parent() {
            make_dir(parent)?;
        }
        let request = NodePublishVolumeRequest {
            volume_id: which.volume.clone(),
            staging_target_path: staging_path,
            target_path: target.display().to_string(),
            volume_capability: Some(capability),
            readonly: read_only,
            volume_context: csi.volume_attributes,
            ..Default::default()
        };
        called("NodePublishVolume", &which, client.node_publish_volume(request)).await?;
        match mounts::is_mount_point(target) {
            Ok(true) => Ok(()),
            Ok(false) => {
                Err(CsiError::NotMounted { driver: which.driver, volume: which.volume, target: target.to_owned() })
            }
            Err(error) => Err(CsiError::Io { path: target.to_owned(), error }),
        }
    }

    /// Undoes [`Drivers::publish`]; unstages too unless `in_use` says that another pod has the volume. Idempotent.
    pub async fn unpublish(&self, which: &Published, target: &Path, in_use: impl Fn() -> bool) -> Result<(), CsiError> {
        let turn = self.turn(which);
        let _turn = turn.lock().await;
        let mut client = self.client(&which.driver)?;
        let request =
            NodeUnpublishVolumeRequest { volume_id: which.volume.clone(), target_path: target.display().to_string() };
        called("NodeUnpublishVolume", which, client.node_unpublish_volume(request)).await?;
        if in_use() || !self.stages(which).await? {
            return Ok(());
        }
        let path = self.staging_path(which);
        let request = NodeUnstageVolumeRequest {
            volume_id: which.volume.clone(),
            staging_target_path: path.display().to_string(),
        };
        called("NodeUnstageVolume", which, client.node_unstage_volume(request)).await?;
        remove_empty_dir(&path)
    }
}

async fn called<T>(
    call: &'static str,
    which: &Published,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, CsiError> {
    let failed = |status| CsiError::Call { call, volume: which.volume.clone(), status: Box::new(status) };
    match tokio::time::timeout(DEADLINE, answer).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(failed(status)),
        Err(_) => Err(failed(Status::deadline_exceeded(format!("the driver did not answer within {DEADLINE:?}")))),
    }
}

fn capability(fs_type: &str, access_modes: &[String]) -> VolumeCapability {
    let mode = match access_modes.first().map(String::as_str) {
        Some("ReadWriteOncePod") => Mode::SingleNodeSingleWriter,
        Some("ReadOnlyMany") => Mode::MultiNodeReaderOnly,
        Some("ReadWriteMany") => Mode::MultiNodeMultiWriter,
        _ => Mode::SingleNodeWriter,
    };
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(MountVolume { fs_type: fs_type.to_owned(), ..Default::default() })),
    }
}

/// Makes a directory with its parents.
pub fn make_dir(path: &Path) -> Result<(), CsiError> {
    std::fs::create_dir_all(path).map_err(|error| CsiError::Io { path: path.to_owned(), error })
}

/// Removes a directory if it is there and empty; what is in the way is an error, never removed.
pub fn remove_empty_dir(path: &Path) -> Result<(), CsiError> {
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(CsiError::Io { path: path.to_owned(), error })
        }
        _ => Ok(()),
    }
}
