//! What callers of drivers share: requests made from volume objects.

use std::path::Path;

use pb::{
    csi::v1::{
        NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest,
        VolumeCapability,
        node_client::NodeClient,
        volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode},
    },
    objects::{CsiPersistentVolumeSource, PersistentVolume, PersistentVolumeSpec},
};
use runtime::channel::{BadAddress, Channel, connect};
use tonic::Status;

/// How a file system with these access modes (Kubernetes' names) is used, in CSI's words. The widest mode counts.
pub fn capability(access_modes: &[String], fs_type: &str) -> VolumeCapability {
    let has = |name: &str| access_modes.iter().any(|mode| mode == name);
    let mode = if has("ReadWriteMany") {
        Mode::MultiNodeMultiWriter
    } else if has("ReadOnlyMany") {
        Mode::MultiNodeReaderOnly
    } else if has("ReadWriteOncePod") && !has("ReadWriteOnce") {
        Mode::SingleNodeSingleWriter
    } else {
        Mode::SingleNodeWriter
    };
    let mount = MountVolume { fs_type: fs_type.to_owned(), ..MountVolume::default() };
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(mount)),
    }
}

/// The node service of a driver. Every call is idempotent: after an error or a restart, call again.
#[derive(Clone, Debug)]
pub struct NodeDriver {
    client: NodeClient<Channel>,
}

impl NodeDriver {
    /// A driver on a socket, `unix:///path`. Connects when first called.
    pub fn connect(url: &str) -> Result<Self, BadAddress> {
        Ok(Self { client: NodeClient::new(connect(url)?) })
    }

    /// Mounts a volume once on the node. The directory above `staging` must exist.
    pub async fn stage(&self, volume: &PersistentVolume, staging: &Path) -> Result<(), Status> {
        let (spec, source) = source(volume)?;
        let request = NodeStageVolumeRequest {
            volume_id: source.volume_handle.clone(),
            staging_target_path: text(staging)?,
            volume_capability: Some(capability(&spec.access_modes, &source.fs_type)),
            volume_context: source.volume_attributes.clone(),
            ..NodeStageVolumeRequest::default()
        };
        self.client.clone().node_stage_volume(request).await?;
        Ok(())
    }

    /// Makes a staged volume appear at a pod's path. The directory above `target` must exist.
    pub async fn publish(
        &self,
        volume: &PersistentVolume,
        staging: &Path,
        target: &Path,
        readonly: bool,
    ) -> Result<(), Status> {
        let (spec, source) = source(volume)?;
        let request = NodePublishVolumeRequest {
            volume_id: source.volume_handle.clone(),
            staging_target_path: text(staging)?,
            target_path: text(target)?,
            volume_capability: Some(capability(&spec.access_modes, &source.fs_type)),
            readonly,
            volume_context: source.volume_attributes.clone(),
            ..NodePublishVolumeRequest::default()
        };
        self.client.clone().node_publish_volume(request).await?;
        Ok(())
    }

    /// Takes a volume away from a pod's path, and the path with it.
    pub async fn unpublish(&self, volume_id: &str, target: &Path) -> Result<(), Status> {
        let request = NodeUnpublishVolumeRequest { volume_id: volume_id.to_owned(), target_path: text(target)? };
        self.client.clone().node_unpublish_volume(request).await?;
        Ok(())
    }

    /// Undoes [`NodeDriver::stage`]. No pod's path may show the volume any more.
    pub async fn unstage(&self, volume_id: &str, staging: &Path) -> Result<(), Status> {
        let request = NodeUnstageVolumeRequest { volume_id: volume_id.to_owned(), staging_target_path: text(staging)? };
        self.client.clone().node_unstage_volume(request).await?;
        Ok(())
    }
}

fn source(volume: &PersistentVolume) -> Result<(&PersistentVolumeSpec, &CsiPersistentVolumeSource), Status> {
    let found = volume.spec.as_ref().and_then(|spec| Some((spec, spec.csi.as_ref()?)));
    found.ok_or_else(|| {
        Status::invalid_argument("the volume has no spec.csi; only volumes of CSI drivers can be mounted")
    })
}

fn text(path: &Path) -> Result<String, Status> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| Status::invalid_argument(format!("the path {} is not UTF-8", path.display())))
}
