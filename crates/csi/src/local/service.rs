//! The driver's three services.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use pb::csi::v1::{
    BoolValue, CreateVolumeRequest, CreateVolumeResponse, DeleteVolumeRequest, DeleteVolumeResponse,
    GetPluginInfoRequest, GetPluginInfoResponse, NodeGetCapabilitiesRequest, NodeGetCapabilitiesResponse,
    NodeGetInfoRequest, NodeGetInfoResponse, NodePublishVolumeRequest, NodePublishVolumeResponse,
    NodeServiceCapability, NodeStageVolumeRequest, NodeStageVolumeResponse, NodeUnpublishVolumeRequest,
    NodeUnpublishVolumeResponse, NodeUnstageVolumeRequest, NodeUnstageVolumeResponse, ProbeRequest, ProbeResponse,
    Topology, TopologyRequirement, Volume, VolumeCapability,
    controller_server::Controller,
    identity_server::Identity,
    node_server::Node,
    node_service_capability::{Rpc, Type, rpc},
    volume_capability::{AccessType, access_mode::Mode},
};
use tonic::{Request, Response, Status};

use super::{Disk, DiskError, NAME, TOPOLOGY_KEY, VolumeId, mounts};
use mounts::Shown;

/// In a volume's context: the node that holds its data.
const CONTEXT_NODE: &str = "local.berth.dev/node";
/// Parameter of a class: what a volume is made of.
const PARAMETER_TYPE: &str = "type";

/// The driver. Clones share their state.
#[derive(Clone, Debug)]
pub struct Driver {
    node: Option<Arc<OnNode>>,
}

#[derive(Debug)]
struct OnNode {
    name: String,
    disk: Disk,
    /// Volumes with a call in flight.
    busy: Mutex<BTreeSet<VolumeId>>,
}

impl Driver {
    /// The controller side alone: makes volumes for nodes, and holds none.
    pub fn controller_only() -> Self {
        Self { node: None }
    }

    /// The driver on a node, with the disk that holds the node's volumes.
    pub fn on_node(name: String, disk: Disk) -> Self {
        Self { node: Some(Arc::new(OnNode { name, disk, busy: Mutex::default() })) }
    }

    /// Whether there is a node side.
    pub fn has_node(&self) -> bool {
        self.node.is_some()
    }

    fn node(&self) -> Result<Arc<OnNode>, Status> {
        let node = self.node.clone();
        node.ok_or_else(|| {
            Status::failed_precondition("this process has no node side; ask the driver on the volume's node")
        })
    }

    /// Does work on one volume where blocking is allowed, if nothing else is being done to that volume.
    async fn with_volume<T: Send + 'static>(
        &self,
        id: VolumeId,
        work: impl FnOnce(&OnNode, &VolumeId) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let turn = Turn::take(self.node()?, id)?;
        // The turn moves along: it lasts as long as the work, also when the caller has gone away.
        let done = tokio::task::spawn_blocking(move || work(&turn.node, &turn.id)).await;
        done.map_err(|error| Status::internal(format!("the call broke off: {error}")))?
    }
}

/// The right to work on a volume.
struct Turn {
    node: Arc<OnNode>,
    id: VolumeId,
}

impl Turn {
    fn take(node: Arc<OnNode>, id: VolumeId) -> Result<Self, Status> {
        if !node.busy.lock().insert(id.clone()) {
            return Err(Status::aborted(format!("another call for volume {id} is in flight; call again")));
        }
        Ok(Self { node, id })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.node.busy.lock().remove(&self.id);
    }
}

impl From<DiskError> for Status {
    fn from(error: DiskError) -> Self {
        match &error {
            DiskError::Lost { .. } => Status::data_loss(error.to_string()),
            DiskError::InUse { .. } => Status::failed_precondition(error.to_string()),
            DiskError::Io { .. } => Status::internal(error.to_string()),
        }
    }
}

fn volume_id(text: &str) -> Result<VolumeId, Status> {
    text.parse().map_err(|error: super::BadVolumeId| Status::invalid_argument(error.to_string()))
}

fn path(field: &str, text: &str) -> Result<PathBuf, Status> {
    let path = Path::new(text);
    let plain = path.components().all(|part| !matches!(part, std::path::Component::ParentDir));
    if path.is_absolute() && plain {
        Ok(path.to_owned())
    } else {
        Err(Status::invalid_argument(format!("{field} {text:?} is not an absolute path without \"..\"")))
    }
}

/// Whether a volume can be used so: as a file system, on one node.
fn usable(capability: Option<&VolumeCapability>) -> Result<(), Status> {
    let Some(capability) = capability else {
        return Err(Status::invalid_argument("volume_capability is missing"));
    };
    if !matches!(capability.access_type, Some(AccessType::Mount(_))) {
        return Err(Status::invalid_argument(
            "volume_capability: a local volume is a file system; ask for mount access",
        ));
    }
    match capability.access_mode.as_ref().map(|mode| mode.mode()) {
        Some(
            Mode::SingleNodeWriter
            | Mode::SingleNodeReaderOnly
            | Mode::SingleNodeSingleWriter
            | Mode::SingleNodeMultiWriter,
        ) => Ok(()),
        mode => Err(Status::invalid_argument(format!(
            "volume_capability: access mode {} is not possible; a local volume is on one node",
            mode.map_or("(none)", |mode| mode.as_str_name())
        ))),
    }
}

fn internal(action: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Status {
    let what = format!("{action} {}", path.display());
    move |error| Status::internal(format!("{what}: {error}"))
}

#[tonic::async_trait]
impl Identity for Driver {
    async fn get_plugin_capabilities(
        &self,
        _: Request<pb::csi::v1::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<pb::csi::v1::GetPluginCapabilitiesResponse>, Status> {
        Err(Status::unimplemented("not offered by this driver"))
    }

    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: NAME.to_owned(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: BTreeMap::new(),
        }))
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        Ok(Response::new(ProbeResponse { ready: Some(BoolValue { value: true }) }))
    }
}

#[tonic::async_trait]
impl Controller for Driver {
    async fn controller_publish_volume(
        &self,
        _: Request<pb::csi::v1::ControllerPublishVolumeRequest>,
    ) -> Result<Response<pb::csi::v1::ControllerPublishVolumeResponse>, Status> {
        Err(Status::unimplemented("not offered by this driver"))
    }

    async fn controller_unpublish_volume(
        &self,
        _: Request<pb::csi::v1::ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<pb::csi::v1::ControllerUnpublishVolumeResponse>, Status> {
        Err(Status::unimplemented("not offered by this driver"))
    }

    async fn validate_volume_capabilities(
        &self,
        _: Request<pb::csi::v1::ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<pb::csi::v1::ValidateVolumeCapabilitiesResponse>, Status> {
        Err(Status::unimplemented("not offered by this driver"))
    }

    async fn list_volumes(
        &self,
        _: Request<pb::csi::v1::ListVolumesRequest>,
    ) -> Result<Response<pb::csi::v1::ListVolumesResponse>, Status> {
        Err(Status::unimplemented("not offered by this driver"))
    }

    async fn get_capacity(
        &self,
        _: Request<pb::csi::v1::GetCapacityRequest>,
    ) -> Result<Response<pb::csi::v1::GetCapacityResponse>, Status> {
        Err(Status::unimplemented("not offered by this driver"))
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<pb::csi::v1::ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<pb::csi::v1::ControllerGetCapabilitiesResponse>, Status> {
        Err(Status::unimplemented("not offered by this driver"))
    }

    async fn create_snapshot(
        &self,
        _: Request<pb::csi::v1::CreateSnapshotRequest>,
    ) -> Result<Response<pb::csi::v1::CreateSnapshotResponse>, Status> {
        Err(Status::unimplemented("not offered by this driver"))
    }

    async fn delete_snapshot(
        &self,
        _: Request<pb::csi::v1::DeleteSnapshotRequest>,
    ) -> Result<Response<pb::csi::v1::DeleteSnapshotResponse>, Status> {
        Err(Status::unimplemented("not offered by this driver"))
    }

    async fn list_snapshots(
        &self,
        _: Request<pb::csi::v1::ListSnapshotsRequest>,
    ) -> Result<Response<pb::csi::v1::ListSnapshotsResponse>, Status> {
        Err(Status::unimplemented("not offered by this driver"))
    }

    async fn controller_expand_volume(
        &self,
        _: Request<pb::csi::v1::ControllerExpandVolumeRequest>,
    ) -> Result<Response<pb::csi::v1::ControllerExpandVolumeResponse>, Status> {
        Err(Status::unimplemented("not offered by this driver"))
    }

    async fn controller_get_volume(
        &self,
        _: Request<pb::csi::v1::ControllerGetVolumeRequest>,
    ) -> Result<Response<pb::csi::v1::ControllerGetVolumeResponse>, Status> {
        Err(Status::unimplemented("not offered by this driver"))
    }

    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let request = request.into_inner();
        let id = volume_id(&request.name)?;
        if request.volume_capabilities.is_empty() {
            return Err(Status::invalid_argument("volume_capabilities is empty"));
        }
        request.volume_capabilities.iter().try_for_each(|capability| usable(Some(capability)))?;
        for (name, value) in &request.parameters {
            if (name.as_str(), value.as_str()) != (PARAMETER_TYPE, "directory") {
                return Err(Status::invalid_argument(format!(
                    "parameter {name}={value:?} is not known; the driver {NAME} knows {PARAMETER_TYPE}=\"directory\""
                )));
            }
        }
        let range = request.capacity_range.unwrap_or_default();
        if range.required_bytes < 0 || range.limit_bytes < 0 {
            return Err(Status::invalid_argument("capacity_range is negative"));
        }
        if range.limit_bytes != 0 && range.limit_bytes < range.required_bytes {
            return Err(Status::out_of_range("capacity_range: limit_bytes is less than required_bytes"));
        }
        let node = match request.accessibility_requirements {
            Some(places) => chosen(places)?,
            None => self.node().map(|node| node.name.clone()).map_err(|_| no_node())?,
        };
        let volume = Volume {
            capacity_bytes: range.required_bytes,
            volume_id: id.to_string(),
            volume_context: BTreeMap::from([(CONTEXT_NODE.to_owned(), node.clone())]),
            content_source: None,
            accessible_topology: vec![topology(node)],
        };
        Ok(Response::new(CreateVolumeResponse { volume: Some(volume) }))
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let id = volume_id(&request.into_inner().volume_id)?;
        self.with_volume(id, |node, id| Ok(node.disk.delete(id)?)).await?;
        Ok(Response::new(DeleteVolumeResponse {}))
    }
}

fn topology(node: String) -> Topology {
    Topology { segments: BTreeMap::from([(TOPOLOGY_KEY.to_owned(), node)]) }
}

fn no_node() -> Status {
    Status::invalid_argument(format!("accessibility_requirements must name a node under {TOPOLOGY_KEY}"))
}

/// The first preferred node, else the first that is required.
fn chosen(places: TopologyRequirement) -> Result<String, Status> {
    let mut all = places.preferred.into_iter().chain(places.requisite);
    let node = all.find_map(|place| place.segments.get(TOPOLOGY_KEY).filter(|node| !node.is_empty()).cloned());
    node.ok_or_else(no_node)
}

#[tonic::async_trait]
impl Node for Driver {
    async fn node_get_volume_stats(
        &self,
        _: Request<pb::csi::v1::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<pb::csi::v1::NodeGetVolumeStatsResponse>, Status> {
        Err(Status::unimplemented("not offered by this driver"))
    }

    async fn node_expand_volume(
        &self,
        _: Request<pb::csi::v1::NodeExpandVolumeRequest>,
    ) -> Result<Response<pb::csi::v1::NodeExpandVolumeResponse>, Status> {
        Err(Status::unimplemented("not offered by this driver"))
    }

    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let request = request.into_inner();
        let id = volume_id(&request.volume_id)?;
        let staging = path("staging_target_path", &request.staging_target_path)?;
        usable(request.volume_capability.as_ref())?;
        self.with_volume(id, move |node, id| {
            if let Some(home) = request.volume_context.get(CONTEXT_NODE).filter(|home| **home != node.name) {
                return Err(Status::failed_precondition(format!(
                    "volume {id} is on node {home:?} and this is {:?}; the pod must run there",
                    node.name
                )));
            }
            let directory = node.disk.claim(id)?;
            match mounts::shown(&directory, &staging).map_err(internal("look at", &staging))? {
                Shown::Yes { .. } => Ok(()),
                Shown::Empty => mounts::bind(&directory, &staging, false).map_err(internal("mount at", &staging)),
                Shown::Other => Err(in_the_way("staging_target_path", &staging)),
            }
        })
        .await?;
        Ok(Response::new(NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        let request = request.into_inner();
        let id = volume_id(&request.volume_id)?;
        let staging = path("staging_target_path", &request.staging_target_path)?;
        self.with_volume(id, move |_, _| mounts::unbind(&staging).map_err(internal("unmount", &staging))).await?;
        Ok(Response::new(NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let id = volume_id(&request.volume_id)?;
        let staging = path("staging_target_path", &request.staging_target_path)?;
        let target = path("target_path", &request.target_path)?;
        usable(request.volume_capability.as_ref())?;
        self.with_volume(id, move |node, id| {
            let not_staged = || {
                Status::failed_precondition(format!(
                    "volume {id} is not staged at {}; call NodeStageVolume first",
                    staging.display()
                ))
            };
            let directory = node.disk.find(id)?.ok_or_else(not_staged)?;
            if !matches!(mounts::shown(&directory, &staging).map_err(internal("look at", &staging))?, Shown::Yes { .. })
            {
                return Err(not_staged());
            }
            match mounts::shown(&directory, &target).map_err(internal("look at", &target))? {
                Shown::Yes { readonly } if readonly == request.readonly => Ok(()),
                Shown::Yes { readonly } => Err(Status::already_exists(format!(
                    "volume {id} is published at {} with readonly={readonly}; unpublish it first",
                    target.display()
                ))),
                Shown::Empty => {
                    mounts::bind(&directory, &target, request.readonly).map_err(internal("mount at", &target))
                }
                Shown::Other => Err(in_the_way("target_path", &target)),
            }
        })
        .await?;
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let id = volume_id(&request.volume_id)?;
        let target = path("target_path", &request.target_path)?;
        self.with_volume(id, move |_, _| mounts::unbind(&target).map_err(internal("unmount", &target))).await?;
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let stage = Type::Rpc(Rpc { r#type: rpc::Type::StageUnstageVolume.into() });
        let capabilities = vec![NodeServiceCapability { r#type: Some(stage) }];
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(&self, _: Request<NodeGetInfoRequest>) -> Result<Response<NodeGetInfoResponse>, Status> {
        let node = self.node()?;
        Ok(Response::new(NodeGetInfoResponse {
            node_id: node.name.clone(),
            max_volumes_per_node: 0,
            accessible_topology: Some(topology(node.name.clone())),
        }))
    }
}

fn in_the_way(field: &str, path: &Path) -> Status {
    Status::failed_precondition(format!(
        "{field} {} holds files of something else, which a mount would hide; move them away",
        path.display()
    ))
}
