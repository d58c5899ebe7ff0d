//! A driver as the cases see it: its services, what it can do, and what was made on it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context, Result, bail, ensure};
use pb::csi::v1::{
    CapacityRange, ControllerExpandVolumeRequest, ControllerGetCapabilitiesRequest, ControllerGetVolumeRequest,
    ControllerPublishVolumeRequest, ControllerUnpublishVolumeRequest, CreateSnapshotRequest, CreateVolumeRequest,
    DeleteSnapshotRequest, DeleteVolumeRequest, GetCapacityRequest, GetPluginCapabilitiesRequest, ListSnapshotsRequest,
    ListVolumesRequest, NodeExpandVolumeRequest, NodeGetCapabilitiesRequest, NodeGetInfoRequest, NodeGetInfoResponse,
    NodeGetVolumeStatsRequest, NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest, Snapshot, TopologyRequirement, ValidateVolumeCapabilitiesRequest, Volume,
    VolumeCapability, VolumeContentSource,
    controller_client::ControllerClient,
    controller_service_capability,
    identity_client::IdentityClient,
    node_client::NodeClient,
    node_service_capability, plugin_capability,
    volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode},
    volume_content_source::{SnapshotSource, Type, VolumeSource},
};
use runtime::channel::{Channel, connect};
use tonic::{Code, Status};

use super::Need;

/// What is asked of a driver in a run.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// In the table.
    pub name: String,
    /// Parameters of the class.
    pub parameters: BTreeMap<String, String>,
    /// Size of volumes in bytes.
    pub size: i64,
    /// One of Berth's own.
    pub own: bool,
    /// The size of volumes is enforced.
    pub image: bool,
    /// Several nodes may have a volume.
    pub many_nodes: bool,
    /// Another node of the same driver.
    pub other_node: String,
}

/// A driver under test.
pub struct World {
    pub profile: Profile,
    pub info: NodeGetInfoResponse,
    /// Where the cases mount.
    pub folder: PathBuf,
    channel: Channel,
    can: BTreeSet<String>,
    count: AtomicU32,
    made: Mutex<Made>,
}

#[derive(Default)]
struct Made {
    volumes: Vec<Volume>,
    snapshots: Vec<String>,
}

/// A call of which only the code of the answer counts.
#[derive(Clone, Debug)]
pub enum Call {
    Create(CreateVolumeRequest),
    Delete(DeleteVolumeRequest),
    Publish(ControllerPublishVolumeRequest),
    Unpublish(ControllerUnpublishVolumeRequest),
    Validate(ValidateVolumeCapabilitiesRequest),
    List(ListVolumesRequest),
    Capacity(GetCapacityRequest),
    Snapshot(CreateSnapshotRequest),
    DeleteSnapshot(DeleteSnapshotRequest),
    ListSnapshots(ListSnapshotsRequest),
    Expand(ControllerExpandVolumeRequest),
    Get(ControllerGetVolumeRequest),
    Stage(NodeStageVolumeRequest),
    Unstage(NodeUnstageVolumeRequest),
    NodePublish(NodePublishVolumeRequest),
    NodeUnpublish(NodeUnpublishVolumeRequest),
    Stats(NodeGetVolumeStatsRequest),
    NodeExpand(NodeExpandVolumeRequest),
}

impl World {
    /// Asks a driver what it is. Mounts go below `folder`.
    pub async fn new(endpoint: &str, profile: Profile, folder: PathBuf) -> Result<Self> {
        let channel = connect(endpoint)?;
        let mut can = BTreeSet::new();
        let plugin = IdentityClient::new(channel.clone());
        for one in { plugin }.get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await?.into_inner().capabilities
        {
            if let Some(plugin_capability::Type::Service(service)) = one.r#type {
                can.insert(format!("{:?}", Need::Plugin(service.r#type())));
            }
        }
        let mut controller = ControllerClient::new(channel.clone());
        let abilities = controller.controller_get_capabilities(ControllerGetCapabilitiesRequest {}).await?.into_inner();
        for one in abilities.capabilities {
            if let Some(controller_service_capability::Type::Rpc(rpc)) = one.r#type {
                can.insert(format!("{:?}", Need::Controller(rpc.r#type())));
            }
        }
        let mut node = NodeClient::new(channel.clone());
        for one in node.node_get_capabilities(NodeGetCapabilitiesRequest {}).await?.into_inner().capabilities {
            if let Some(node_service_capability::Type::Rpc(rpc)) = one.r#type {
                can.insert(format!("{:?}", Need::Node(rpc.r#type())));
            }
        }
        let info = node.node_get_info(NodeGetInfoRequest {}).await?.into_inner();
        let (count, made) = (AtomicU32::new(0), Mutex::default());
        Ok(Self { profile, info, folder, channel, can, count, made })
    }

    pub fn identity(&self) -> IdentityClient<Channel> {
        IdentityClient::new(self.channel.clone())
    }

    pub fn controller(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.channel.clone())
    }

    pub fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel.clone())
    }

    /// Whether the driver has what a case needs.
    pub fn has(&self, need: Need) -> bool {
        match need {
            Need::Own => self.profile.own,
            Need::Image => self.profile.image,
            Need::ManyNodes => self.profile.many_nodes,
            Need::Without(ability) => !self.has(Need::Controller(ability)),
            need => self.can.contains(&format!("{need:?}")),
        }
    }

    /// A name that nothing has.
    pub fn name(&self) -> String {
        format!("csi-table-{}-{}", std::process::id(), self.count.fetch_add(1, Ordering::Relaxed))
    }

    /// A use that every driver has.
    pub fn capability(&self) -> VolumeCapability {
        self.capability_of(Mode::SingleNodeWriter)
    }

    pub fn capability_of(&self, mode: Mode) -> VolumeCapability {
        VolumeCapability {
            access_mode: Some(AccessMode { mode: mode.into() }),
            access_type: Some(AccessType::Mount(MountVolume::default())),
        }
    }

    pub fn create_request(&self, name: &str) -> CreateVolumeRequest {
        let place = self.info.accessible_topology.clone();
        CreateVolumeRequest {
            name: name.to_owned(),
            capacity_range: Some(CapacityRange { required_bytes: self.profile.size, limit_bytes: 0 }),
            volume_capabilities: vec![self.capability()],
            parameters: self.profile.parameters.clone(),
            accessibility_requirements: place
                .map(|place| TopologyRequirement { requisite: vec![place.clone()], preferred: vec![place] }),
            ..CreateVolumeRequest::default()
        }
    }

    /// Makes a volume, which is deleted after the case.
    pub async fn create_of(&self, request: CreateVolumeRequest) -> Result<Volume, Status> {
        let volume = self.controller().create_volume(request).await?.into_inner().volume;
        let volume = volume.ok_or_else(|| Status::internal("the answer has no volume"))?;
        let mut made = self.made.lock().expect("no case panics with it");
        if !made.volumes.iter().any(|one| one.volume_id == volume.volume_id) {
            made.volumes.push(volume.clone());
        }
        Ok(volume)
    }

    pub async fn create(&self) -> Result<Volume> {
        Ok(self.create_of(self.create_request(&self.name())).await?)
    }

    pub async fn create_from(&self, source: Type) -> Result<Volume, Status> {
        let volume_content_source = Some(VolumeContentSource { r#type: Some(source) });
        self.create_of(CreateVolumeRequest { volume_content_source, ..self.create_request(&self.name()) }).await
    }

    /// Makes a snapshot, which is deleted after the case, and waits until it can be used.
    pub async fn snapshot(&self, name: &str, of: &Volume) -> Result<Snapshot, Status> {
        let request = CreateSnapshotRequest {
            name: name.to_owned(),
            source_volume_id: of.volume_id.clone(),
            ..CreateSnapshotRequest::default()
        };
        loop {
            let snapshot = self.controller().create_snapshot(request.clone()).await?.into_inner().snapshot;
            let snapshot = snapshot.ok_or_else(|| Status::internal("the answer has no snapshot"))?;
            self.note_snapshot(&snapshot.snapshot_id);
            if snapshot.ready_to_use {
                return Ok(snapshot);
            }
            tokio::task::yield_now().await;
        }
    }

    fn note_snapshot(&self, id: &str) {
        let mut made = self.made.lock().expect("no case panics with it");
        if !made.snapshots.iter().any(|one| one == id) {
            made.snapshots.push(id.to_owned());
        }
    }

    pub fn staging(&self, volume: &Volume) -> String {
        if !self.has(super::STAGE) {
            return String::new();
        }
        self.folder.join(format!("staging-{}", plain(&volume.volume_id))).display().to_string()
    }

    pub fn target(&self, volume: &Volume, pod: &str) -> String {
        self.folder.join(format!("pod-{pod}-{}", plain(&volume.volume_id))).display().to_string()
    }

    pub fn publish_request(&self, volume: &Volume) -> ControllerPublishVolumeRequest {
        ControllerPublishVolumeRequest {
            volume_id: volume.volume_id.clone(),
            node_id: self.info.node_id.clone(),
            volume_capability: Some(self.capability()),
            volume_context: volume.volume_context.clone(),
            ..ControllerPublishVolumeRequest::default()
        }
    }

    pub fn unpublish_request(&self, volume: &Volume) -> ControllerUnpublishVolumeRequest {
        ControllerUnpublishVolumeRequest {
            volume_id: volume.volume_id.clone(),
            node_id: self.info.node_id.clone(),
            ..ControllerUnpublishVolumeRequest::default()
        }
    }

    pub fn stage_request(&self, volume: &Volume) -> NodeStageVolumeRequest {
        NodeStageVolumeRequest {
            volume_id: volume.volume_id.clone(),
            staging_target_path: self.staging(volume),
            volume_capability: Some(self.capability()),
            volume_context: volume.volume_context.clone(),
            ..NodeStageVolumeRequest::default()
        }
    }

    pub fn unstage_request(&self, volume: &Volume) -> NodeUnstageVolumeRequest {
        NodeUnstageVolumeRequest { volume_id: volume.volume_id.clone(), staging_target_path: self.staging(volume) }
    }

    pub fn node_publish_request(&self, volume: &Volume, pod: &str) -> NodePublishVolumeRequest {
        NodePublishVolumeRequest {
            volume_id: volume.volume_id.clone(),
            staging_target_path: self.staging(volume),
            target_path: self.target(volume, pod),
            volume_capability: Some(self.capability()),
            volume_context: volume.volume_context.clone(),
            ..NodePublishVolumeRequest::default()
        }
    }

    pub fn node_unpublish_request(&self, volume: &Volume, pod: &str) -> NodeUnpublishVolumeRequest {
        NodeUnpublishVolumeRequest { volume_id: volume.volume_id.clone(), target_path: self.target(volume, pod) }
    }

    pub fn expand_request(&self, volume: &Volume, bytes: i64) -> ControllerExpandVolumeRequest {
        ControllerExpandVolumeRequest {
            volume_id: volume.volume_id.clone(),
            capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            volume_capability: Some(self.capability()),
            ..ControllerExpandVolumeRequest::default()
        }
    }

    /// Attaches a volume if the driver does that, and gives what staging must be told.
    pub async fn attach(&self, volume: &Volume) -> Result<BTreeMap<String, String>, Status> {
        if !self.has(super::PUBLISH) {
            return Ok(BTreeMap::new());
        }
        let request = self.publish_request(volume);
        Ok(self.controller().controller_publish_volume(request).await?.into_inner().publish_context)
    }

    /// Attaches and stages a volume.
    pub async fn stage(&self, volume: &Volume) -> Result<()> {
        let publish_context = self.attach(volume).await.context("attach")?;
        if self.has(super::STAGE) {
            std::fs::create_dir_all(self.staging(volume))?;
            let request = NodeStageVolumeRequest { publish_context, ..self.stage_request(volume) };
            self.node().node_stage_volume(request).await.context("stage")?;
        }
        Ok(())
    }

    /// Attaches, stages and publishes a volume, and gives the path where a pod has it.
    pub async fn up(&self, volume: &Volume, pod: &str) -> Result<PathBuf> {
        self.stage(volume).await?;
        let publish_context = self.attach(volume).await.context("attach")?;
        let request = NodePublishVolumeRequest { publish_context, ..self.node_publish_request(volume, pod) };
        let target = PathBuf::from(&request.target_path);
        self.node().node_publish_volume(request).await.context("publish")?;
        Ok(target)
    }

    /// Undoes it, whatever was done.
    pub async fn down(&self, volume: &Volume) -> Result<()> {
        for pod in ["a", "b"] {
            let request = self.node_unpublish_request(volume, pod);
            if std::path::Path::new(&request.target_path).exists() {
                self.node().node_unpublish_volume(request).await.context("unpublish")?;
            }
        }
        if self.has(super::STAGE) {
            self.node().node_unstage_volume(self.unstage_request(volume)).await.context("unstage")?;
            // Who made it removes it, if the driver left it.
            if let Err(error) = std::fs::remove_dir(self.staging(volume)) {
                ensure!(error.kind() == std::io::ErrorKind::NotFound, "remove the staging path: {error}");
            }
        }
        if self.has(super::PUBLISH) {
            let request = ControllerUnpublishVolumeRequest {
                volume_id: volume.volume_id.clone(),
                ..ControllerUnpublishVolumeRequest::default()
            };
            self.controller().controller_unpublish_volume(request).await.context("detach")?;
        }
        Ok(())
    }

    /// Takes away what the case made.
    pub async fn clean(&self) -> Result<()> {
        let made = std::mem::take(&mut *self.made.lock().expect("no case panics with it"));
        for volume in &made.volumes {
            self.down(volume).await?;
        }
        for snapshot_id in made.snapshots {
            let request = DeleteSnapshotRequest { snapshot_id, ..DeleteSnapshotRequest::default() };
            self.controller().delete_snapshot(request).await.context("delete a snapshot")?;
        }
        for volume in made.volumes {
            self.expect(Call::Delete(self.delete_request(&volume)), &[Code::Ok]).await?;
        }
        Ok(())
    }

    pub fn delete_request(&self, volume: &Volume) -> DeleteVolumeRequest {
        DeleteVolumeRequest { volume_id: volume.volume_id.clone(), ..DeleteVolumeRequest::default() }
    }

    /// Calls, and looks at the code of the answer.
    pub async fn expect(&self, call: Call, codes: &[Code]) -> Result<()> {
        let (code, message) = match self.call(call).await {
            Ok(()) => (Code::Ok, String::new()),
            Err(status) => (status.code(), status.message().to_owned()),
        };
        if codes.contains(&code) {
            // An error of ours must say something.
            ensure!(
                code == Code::Ok || !self.profile.own || message.len() > 10,
                "{code:?} without advice: {message:?}"
            );
            return Ok(());
        }
        bail!("expected {codes:?}, and the answer is {code:?}: {message}")
    }

    pub async fn call(&self, call: Call) -> Result<(), Status> {
        match call {
            Call::Create(request) => self.create_of(request).await.map(drop),
            Call::Delete(request) => self.controller().delete_volume(request).await.map(drop),
            Call::Publish(request) => self.controller().controller_publish_volume(request).await.map(drop),
            Call::Unpublish(request) => self.controller().controller_unpublish_volume(request).await.map(drop),
            Call::Validate(request) => self.controller().validate_volume_capabilities(request).await.map(drop),
            Call::List(request) => self.controller().list_volumes(request).await.map(drop),
            Call::Capacity(request) => self.controller().get_capacity(request).await.map(drop),
            Call::Snapshot(request) => self.controller().create_snapshot(request).await.map(drop),
            Call::DeleteSnapshot(request) => self.controller().delete_snapshot(request).await.map(drop),
            Call::ListSnapshots(request) => self.controller().list_snapshots(request).await.map(drop),
            Call::Expand(request) => self.controller().controller_expand_volume(request).await.map(drop),
            Call::Get(request) => self.controller().controller_get_volume(request).await.map(drop),
            Call::Stage(request) => self.node().node_stage_volume(request).await.map(drop),
            Call::Unstage(request) => self.node().node_unstage_volume(request).await.map(drop),
            Call::NodePublish(request) => self.node().node_publish_volume(request).await.map(drop),
            Call::NodeUnpublish(request) => self.node().node_unpublish_volume(request).await.map(drop),
            Call::Stats(request) => self.node().node_get_volume_stats(request).await.map(drop),
            Call::NodeExpand(request) => self.node().node_expand_volume(request).await.map(drop),
        }
    }
}

/// A volume that is nowhere.
pub fn nowhere() -> Volume {
    Volume { volume_id: "there-is-no-such-volume".to_owned(), ..Volume::default() }
}

pub fn of_snapshot(snapshot: &Snapshot) -> Type {
    Type::Snapshot(SnapshotSource { snapshot_id: snapshot.snapshot_id.clone() })
}

pub fn of_volume(volume: &Volume) -> Type {
    Type::Volume(VolumeSource { volume_id: volume.volume_id.clone() })
}

fn plain(id: &str) -> String {
    id.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(100).collect()
}
