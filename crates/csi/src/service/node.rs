//! The side that mounts volumes on a node.

use pb::csi::v1::{
    NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest, NodeGetCapabilitiesResponse,
    NodeGetInfoRequest, NodeGetInfoResponse, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse,
    NodePublishVolumeRequest, NodePublishVolumeResponse, NodeServiceCapability, NodeStageVolumeRequest,
    NodeStageVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse, NodeUnstageVolumeRequest,
    NodeUnstageVolumeResponse, VolumeUsage,
    node_server::Node,
    node_service_capability::{Rpc, Type, rpc},
    volume_capability::access_mode::Mode,
    volume_usage::Unit,
};
use tonic::{Request, Response, Status};

use super::controller::{bytes, topology};
use crate::{
    args::{self, Use},
    attachment::{Attachment, Attachments},
    driver::{Driver, OnNode, Policy},
    error::{Error, Result as Done},
    id::VolumeId,
    provision::existing,
    record::Volume,
    staging,
};

/// The volume that a request means: the very one that its context speaks of, not a later one of the same name.
fn meant(
    policy: &Policy,
    node: &OnNode,
    id: &VolumeId,
    context: &std::collections::BTreeMap<String, String>,
) -> Done<Volume> {
    if let Some(home) =
        context.get(policy.context_node).filter(|home| policy.topology_key.is_some() && **home != node.name)
    {
        return Err(Error::Refused(format!(
            "volume {id} is on node {home:?} and this is {:?}; the pod must run there",
            node.name
        )));
    }
    let instance = context.get(policy.context_instance);
    let lost = |why| Error::Lost { id: id.clone(), path: node.disk.root().join("volumes").join(id.as_str()), why };
    match (node.disk.volume(id)?, instance) {
        (Some(volume), Some(instance)) if *instance != volume.instance => {
            Err(lost("is a later volume of the same name, and not the one that was made for this claim"))
        }
        (Some(volume), _) => Ok(volume),
        (None, Some(_)) => Err(lost("no longer exists")),
        (None, None) => existing(&node.disk, id),
    }
}

/// How the volume is attached to this node, if volumes are attached at all.
fn attached(policy: &Policy, node: &OnNode, id: &VolumeId) -> Done<Option<Attachment>> {
    if !policy.attaches {
        return Ok(None);
    }
    let attachment = Attachments::read(&node.disk, id)?.nodes.get(&node.name).copied();
    attachment.map(Some).ok_or_else(|| {
        Error::Refused(format!(
            "volume {id} is not attached to node {:?}; call ControllerPublishVolume first",
            node.name
        ))
    })
}

#[tonic::async_trait]
impl Node for Driver {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let (request, policy) = (request.into_inner(), self.policy);
        let id = args::id("volume_id", &request.volume_id)?;
        let staging = args::path("staging_target_path", &request.staging_target_path)?;
        let used = Use::of(policy, request.volume_capability.as_ref())?;
        self.work(move |node| {
            let _turn = node.disk.turn(&id)?;
            let volume = meant(policy, node, &id, &request.volume_context)?;
            used.suits(volume.kind)?;
            attached(policy, node, &id)?;
            if !volume.staged {
                // Before there can be data in it.
                node.disk.rewrite(&id, &Volume { staged: true, ..volume.clone() })?;
            }
            staging::stage(&node.disk, &volume, &staging, &used.options)
        })
        .await?;
        Ok(Response::new(NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        let request = request.into_inner();
        let id = args::id("volume_id", &request.volume_id)?;
        let staging = args::path("staging_target_path", &request.staging_target_path)?;
        self.work(move |node| {
            let _turn = node.disk.turn(&id)?;
            // Also when the volume is lost, its mount goes.
            let volume = node.disk.volume(&id)?;
            staging::unstage(&node.disk, volume.as_ref(), &staging)
        })
        .await?;
        Ok(Response::new(NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let (request, policy) = (request.into_inner(), self.policy);
        let id = args::id("volume_id", &request.volume_id)?;
        let target = args::path("target_path", &request.target_path)?;
        let used = Use::of(policy, request.volume_capability.as_ref())?;
        if request.staging_target_path.is_empty() {
            return Err(Status::failed_precondition("staging_target_path is missing; call NodeStageVolume first"));
        }
        let staging = args::path("staging_target_path", &request.staging_target_path)?;
        self.work(move |node| {
            let _turn = node.disk.turn(&id)?;
            let volume = meant(policy, node, &id, &request.volume_context)?;
            used.suits(volume.kind)?;
            let readonly = request.readonly || used.only_reads();
            if attached(policy, node, &id)?.is_some_and(|attachment| attachment.readonly && !readonly) {
                return Err(Error::Refused(format!("volume {id} is attached to this node for reading only")));
            }
            if used.mode == Mode::SingleNodeSingleWriter {
                staging::alone(&volume, &staging, &target)?;
            }
            staging::publish(&node.disk, &volume, &staging, &target, &used.options.read_only(readonly))
        })
        .await?;
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let id = args::id("volume_id", &request.volume_id)?;
        let target = args::path("target_path", &request.target_path)?;
        self.work(move |node| {
            let _turn = node.disk.turn(&id)?;
            staging::unpublish(&target)
        })
        .await?;
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let request = request.into_inner();
        let id = args::id("volume_id", &request.volume_id)?;
        let at = args::path("volume_path", &request.volume_path)?;
        let usage = self
            .work(move |node| {
                let volume = shown_at(node, &id, &at)?;
                staging::usage(&volume, &at)
            })
            .await?;
        let of = |[available, used, total]: [u64; 3], unit: Unit| VolumeUsage {
            available: bytes(available),
            total: bytes(total),
            used: bytes(used),
            unit: unit.into(),
        };
        let usage = vec![of(usage.bytes, Unit::Bytes), of(usage.inodes, Unit::Inodes)];
        Ok(Response::new(NodeGetVolumeStatsResponse { usage, volume_condition: None }))
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        let request = request.into_inner();
        let id = args::id("volume_id", &request.volume_id)?;
        let at = args::path("volume_path", &request.volume_path)?;
        let range = args::range(request.capacity_range)?;
        let volume = self
            .work(move |node| {
                let _turn = node.disk.turn(&id)?;
                let volume = shown_at(node, &id, &at)?;
                if range.required > volume.capacity {
                    return Err(Error::OutOfRange(format!(
                        "capacity_range: volume {id} has {} bytes; call ControllerExpandVolume first",
                        volume.capacity
                    )));
                }
                staging::grow(&node.disk, &volume, &at)?;
                Ok(volume)
            })
            .await?;
        Ok(Response::new(NodeExpandVolumeResponse { capacity_bytes: bytes(volume.capacity) }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let abilities = [
            rpc::Type::StageUnstageVolume,
            rpc::Type::GetVolumeStats,
            rpc::Type::ExpandVolume,
            rpc::Type::SingleNodeMultiWriter,
        ];
        let ability =
            |ability: rpc::Type| NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: ability.into() })) };
        let capabilities = abilities.map(ability).into();
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(&self, _: Request<NodeGetInfoRequest>) -> Result<Response<NodeGetInfoResponse>, Status> {
        let node = self.node()?;
        Ok(Response::new(NodeGetInfoResponse {
            node_id: node.name.clone(),
            max_volumes_per_node: i64::from(node.max_volumes),
            accessible_topology: topology(self.policy, &node.name),
        }))
    }
}

/// The volume, if it is what a path shows.
fn shown_at(node: &OnNode, id: &VolumeId, at: &std::path::Path) -> Done<Volume> {
    let volume = existing(&node.disk, id)?;
    if staging::shows(&node.disk, &volume, at)? {
        return Ok(volume);
    }
    Err(Error::NotFound { what: "volume", id: id.to_string(), place: format!("at {}", at.display()) })
}
