//! The side that makes volumes.

use std::collections::BTreeMap;

use jiff::Timestamp;
use pb::csi::v1::{
    ControllerExpandVolumeRequest, ControllerExpandVolumeResponse, ControllerGetCapabilitiesRequest,
    ControllerGetCapabilitiesResponse, ControllerGetVolumeRequest, ControllerGetVolumeResponse,
    ControllerPublishVolumeRequest, ControllerPublishVolumeResponse, ControllerServiceCapability,
    ControllerUnpublishVolumeRequest, ControllerUnpublishVolumeResponse, CreateSnapshotRequest, CreateSnapshotResponse,
    CreateVolumeRequest, CreateVolumeResponse, DeleteSnapshotRequest, DeleteSnapshotResponse, DeleteVolumeRequest,
    DeleteVolumeResponse, GetCapacityRequest, GetCapacityResponse, Int64Value, ListSnapshotsRequest,
    ListSnapshotsResponse, ListVolumesRequest, ListVolumesResponse, Snapshot as SnapshotMessage, Topology,
    TopologyRequirement, ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse,
    Volume as VolumeMessage, VolumeCapability, VolumeCondition, VolumeContentSource, controller_get_volume_response,
    controller_server::Controller,
    controller_service_capability::{Rpc, Type, rpc},
    list_snapshots_response, list_volumes_response,
    validate_volume_capabilities_response::Confirmed,
    volume_content_source::{SnapshotSource, Type as SourceType, VolumeSource},
};
use tonic::{Request, Response, Status};

use crate::{
    args::{self, Use},
    attachment::{Attachment, Attachments},
    disk::Disk,
    driver::{Driver, OnNode, Policy},
    error::{Error, Result as Done},
    id::VolumeId,
    provision::{self, existing},
    record::{Kind, Snapshot, Source, Volume},
};

/// Entries of a page when the caller does not say.
const PAGE: usize = 1000;
/// In the context of a listed volume: it was never staged, so nobody's data is in it. The volume manager deletes without
/// asking only such volumes, when nobody knows them.
const UNUSED: &str = "volume.berth.dev/unused";
/// What a token of a page begins with. The id of the entry before follows.
const TOKEN: &str = "after:";

#[tonic::async_trait]
impl Controller for Driver {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let (request, policy) = (request.into_inner(), self.policy);
        let id = args::id("name", &request.name)?;
        let uses = uses(policy, &request.volume_capabilities)?;
        let kind = args::kind(policy, &request.parameters, &uses)?;
        let range = args::range(request.capacity_range)?;
        let source = args::source(request.volume_content_source.as_ref())?;
        let node = home(self, request.accessibility_requirements)?;
        let volume = if self.has_node() {
            let volume = self.work(move |node| provision::create(node, &id, kind, range, source)).await?;
            describe(policy, node.as_deref(), &volume)
        } else {
            let instance = String::new();
            let (created_at, capacity) = (String::new(), range.required);
            let volume = Volume { id, instance, created_at, kind, capacity, source, staged: false };
            describe(policy, node.as_deref(), &volume)
        };
        Ok(Response::new(CreateVolumeResponse { volume: Some(volume) }))
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let id = args::id("volume_id", &request.into_inner().volume_id)?;
        if self.has_node() {
            self.work(move |node| {
                let _turn = node.disk.turn(&id)?;
                if let Some(other) = Attachments::read(&node.disk, &id)?.nodes.keys().next() {
                    return Err(Error::Refused(format!("volume {id} is attached to node {other:?}; detach it first")));
                }
                node.disk.delete::<Volume>(&id)
            })
            .await?;
        }
        Ok(Response::new(DeleteVolumeResponse {}))
    }

    async fn controller_publish_volume(
        &self,
        request: Request<ControllerPublishVolumeRequest>,
    ) -> Result<Response<ControllerPublishVolumeResponse>, Status> {
        if !self.policy.attaches {
            return Err(unimplemented());
        }
        let (request, policy) = (request.into_inner(), self.policy);
        let id = args::unknown("volume_id", &request.volume_id)?;
        let to = args::unknown("node_id", &request.node_id)?;
        let used = Use::of(policy, request.volume_capability.as_ref())?;
        self.work(move |node| {
            let _turn = node.disk.turn(&id)?;
            let volume = existing(&node.disk, &id)?;
            if !node.disk.knows_node(&to)? {
                return Err(Error::NotFound { what: "node", id: to.to_string(), place: "with this driver".to_owned() });
            }
            used.suits(volume.kind)?;
            let how = Attachment { many_nodes: used.many_nodes(), readonly: request.readonly || used.only_reads() };
            Attachments::read(&node.disk, &id)?.attach(&node.disk, &id, to.as_str(), how)
        })
        .await?;
        let publish_context = BTreeMap::from([(policy.context_node.to_owned(), request.node_id)]);
        Ok(Response::new(ControllerPublishVolumeResponse { publish_context }))
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<ControllerUnpublishVolumeResponse>, Status> {
        if !self.policy.attaches {
            return Err(unimplemented());
        }
        let request = request.into_inner();
        let id = args::id("volume_id", &request.volume_id)?;
        self.work(move |node| {
            let _turn = node.disk.turn(&id)?;
            let from = Some(request.node_id.as_str()).filter(|node| !node.is_empty());
            match node.disk.volume(&id)? {
                Some(_) => Attachments::read(&node.disk, &id)?.detach(&node.disk, &id, from),
                // What is not there is on no node.
                None => Ok(()),
            }
        })
        .await?;
        Ok(Response::new(ControllerUnpublishVolumeResponse {}))
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        let (request, policy) = (request.into_inner(), self.policy);
        let id = args::unknown("volume_id", &request.volume_id)?;
        if request.volume_capabilities.is_empty() {
            return Err(Status::invalid_argument("volume_capabilities is empty"));
        }
        let volume = self.work(move |node| existing(&node.disk, &id)).await?;
        let possible = || {
            let uses = uses(policy, &request.volume_capabilities)?;
            if !request.parameters.is_empty() {
                args::kind(policy, &request.parameters, &uses).and_then(|kind| is(kind, volume.kind))?;
            }
            uses.iter().try_for_each(|one| one.suits(volume.kind))
        };
        Ok(Response::new(match possible() {
            Ok(()) => ValidateVolumeCapabilitiesResponse {
                confirmed: Some(Confirmed {
                    volume_context: request.volume_context,
                    volume_capabilities: request.volume_capabilities,
                    parameters: request.parameters,
                    mutable_parameters: request.mutable_parameters,
                }),
                message: String::new(),
            },
            Err(error) => ValidateVolumeCapabilitiesResponse { confirmed: None, message: error.to_string() },
        }))
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        let (request, policy) = (request.into_inner(), self.policy);
        let (entries, next_token) = self
            .work(move |node| {
                let (ids, next) = page(node.disk.ids::<Volume>()?, request.max_entries, &request.starting_token)?;
                let mut entries = Vec::with_capacity(ids.len());
                for id in &ids {
                    // It may go while we read.
                    if let Some(volume) = node.disk.volume(id)? {
                        let (published_node_ids, condition) = observe(policy, node, &volume)?;
                        let status = list_volumes_response::VolumeStatus {
                            published_node_ids,
                            volume_condition: Some(condition),
                        };
                        let mut told = describe(policy, Some(&node.name), &volume);
                        if !volume.staged {
                            told.volume_context.insert(UNUSED.to_owned(), "true".to_owned());
                        }
                        entries.push(list_volumes_response::Entry { volume: Some(told), status: Some(status) });
                    }
                }
                Ok((entries, next))
            })
            .await?;
        Ok(Response::new(ListVolumesResponse { entries, next_token }))
    }

    async fn get_capacity(
        &self,
        request: Request<GetCapacityRequest>,
    ) -> Result<Response<GetCapacityResponse>, Status> {
        let (request, policy) = (request.into_inner(), self.policy);
        let none = GetCapacityResponse { available_capacity: 0, ..GetCapacityResponse::default() };
        // What cannot be made at all has no room.
        let uses = request.volume_capabilities.iter().map(|one| Use::of(policy, Some(one))).collect::<Done<Vec<_>>>();
        let Ok(kind) = uses.and_then(|uses| args::kind(policy, &request.parameters, &uses)) else {
            return Ok(Response::new(none));
        };
        let node = self.node()?;
        let asked = request.accessible_topology.unwrap_or_default().segments;
        if let Some(key) = policy.topology_key
            && asked.get(key).is_some_and(|asked| *asked != node.name)
        {
            return Ok(Response::new(none));
        }
        let left = bytes(self.work(|node| provision::available(&node.disk)).await?);
        Ok(Response::new(GetCapacityResponse {
            available_capacity: left,
            maximum_volume_size: Some(Int64Value { value: left }),
            minimum_volume_size: Some(Int64Value { value: bytes(kind.least()) }),
        }))
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        use rpc::Type as Can;
        let mut all = vec![Can::CreateDeleteVolume, Can::ExpandVolume, Can::SingleNodeMultiWriter];
        if self.has_node() {
            all.extend([
                Can::ListVolumes,
                Can::GetCapacity,
                Can::CreateDeleteSnapshot,
                Can::ListSnapshots,
                Can::CloneVolume,
                Can::VolumeCondition,
                Can::GetVolume,
            ]);
        }
        if self.policy.attaches {
            all.extend([Can::PublishUnpublishVolume, Can::PublishReadonly, Can::ListVolumesPublishedNodes]);
        }
        let ability = |can: Can| ControllerServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: can.into() })) };
        let capabilities = all.into_iter().map(ability).collect();
        Ok(Response::new(ControllerGetCapabilitiesResponse { capabilities }))
    }

    async fn create_snapshot(
        &self,
        request: Request<CreateSnapshotRequest>,
    ) -> Result<Response<CreateSnapshotResponse>, Status> {
        let request = request.into_inner();
        let id = args::id("name", &request.name)?;
        let of = args::unknown("source_volume_id", &request.source_volume_id)?;
        let snapshot = self.work(move |node| provision::create_snapshot(node, &id, &of)).await?;
        Ok(Response::new(CreateSnapshotResponse { snapshot: Some(describe_snapshot(&snapshot)) }))
    }

    async fn delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        let id = args::id("snapshot_id", &request.into_inner().snapshot_id)?;
        self.work(move |node| provision::delete_snapshot(&node.disk, &id)).await?;
        Ok(Response::new(DeleteSnapshotResponse {}))
    }

    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        let request = request.into_inner();
        let (entries, next_token) = self
            .work(move |node| {
                let mut found = BTreeMap::new();
                for id in node.disk.ids::<Snapshot>()? {
                    let wanted = |asked: &str, is: &VolumeId| asked.is_empty() || asked == is.as_str();
                    if wanted(&request.snapshot_id, &id)
                        && let Some(snapshot) = node.disk.read::<Snapshot>(&id)?
                        && wanted(&request.source_volume_id, &snapshot.volume)
                    {
                        found.insert(id, snapshot);
                    }
                }
                let ids = found.keys().cloned().collect();
                let (ids, next) = page(ids, request.max_entries, &request.starting_token)?;
                let entry = |snapshot| list_snapshots_response::Entry { snapshot: Some(describe_snapshot(snapshot)) };
                Ok((ids.iter().filter_map(|id| found.get(id)).map(entry).collect(), next))
            })
            .await?;
        Ok(Response::new(ListSnapshotsResponse { entries, next_token }))
    }

    async fn controller_expand_volume(
        &self,
        request: Request<ControllerExpandVolumeRequest>,
    ) -> Result<Response<ControllerExpandVolumeResponse>, Status> {
        let (request, policy) = (request.into_inner(), self.policy);
        let id = args::unknown("volume_id", &request.volume_id)?;
        let range = args::range(request.capacity_range)?;
        if request.capacity_range.is_none() || (range.required == 0 && range.limit == 0) {
            return Err(Status::invalid_argument("capacity_range is missing"));
        }
        if let Some(capability) = &request.volume_capability {
            Use::of(policy, Some(capability))?;
        }
        if !self.has_node() {
            let capacity_bytes = bytes(range.required);
            return Ok(Response::new(ControllerExpandVolumeResponse {
                capacity_bytes,
                node_expansion_required: false,
            }));
        }
        let volume = self.work(move |node| provision::expand(&node.disk, &id, range)).await?;
        Ok(Response::new(ControllerExpandVolumeResponse {
            capacity_bytes: bytes(volume.capacity),
            node_expansion_required: volume.kind != Kind::Directory,
        }))
    }

    async fn controller_get_volume(
        &self,
        request: Request<ControllerGetVolumeRequest>,
    ) -> Result<Response<ControllerGetVolumeResponse>, Status> {
        let policy = self.policy;
        let id = args::unknown("volume_id", &request.into_inner().volume_id)?;
        let (volume, status) = self
            .work(move |node| {
                let volume = existing(&node.disk, &id)?;
                let (published_node_ids, condition) = observe(policy, node, &volume)?;
                let volume_condition = Some(condition);
                let status = controller_get_volume_response::VolumeStatus { published_node_ids, volume_condition };
                Ok((describe(policy, Some(&node.name), &volume), status))
            })
            .await?;
        Ok(Response::new(ControllerGetVolumeResponse { volume: Some(volume), status: Some(status) }))
    }
}

fn unimplemented() -> Status {
    Status::unimplemented("volumes of this driver are not attached to nodes")
}

fn uses(policy: &Policy, capabilities: &[VolumeCapability]) -> Done<Vec<Use>> {
    if capabilities.is_empty() {
        return Err(Error::Invalid("volume_capabilities is empty".to_owned()));
    }
    capabilities.iter().map(|capability| Use::of(policy, Some(capability))).collect()
}

fn is(asked: Kind, there: Kind) -> Done<()> {
    if asked == there { Ok(()) } else { Err(Error::Invalid(format!("the volume is a {there}, not a {asked}"))) }
}

/// The node whose volume is asked for, where volumes are on nodes.
fn home(driver: &Driver, places: Option<TopologyRequirement>) -> Result<Option<String>, Status> {
    let Some(key) = driver.policy.topology_key else { return Ok(None) };
    let own = driver.node().ok().map(|node| node.name.clone());
    let unnamed = || Status::invalid_argument(format!("accessibility_requirements must name a node under {key}"));
    let Some(places) = places else { return own.map(Some).ok_or_else(unnamed) };
    let named = |places: &[Topology]| -> Vec<String> {
        let names = places.iter().filter_map(|place| place.segments.get(key));
        names.filter(|node| !node.is_empty()).cloned().collect()
    };
    let (requisite, preferred) = (named(&places.requisite), named(&places.preferred));
    let first = preferred.first().or(requisite.first()).cloned().ok_or_else(unnamed)?;
    match own {
        None => Ok(Some(first)),
        Some(own) if requisite.contains(&own) || (requisite.is_empty() && preferred.contains(&own)) => Ok(Some(own)),
        Some(own) => Err(Status::resource_exhausted(format!(
            "accessibility_requirements: the volume is wanted on node {first:?}, and this driver is on {own:?}; ask there"
        ))),
    }
}

/// The part of a list that a page shows, and where the next one begins.
fn page(ids: Vec<VolumeId>, max: i32, token: &str) -> Done<(Vec<VolumeId>, String)> {
    let max = match usize::try_from(max) {
        Ok(0) => PAGE,
        Ok(max) => max.min(PAGE),
        Err(_) => return Err(Error::Invalid(format!("max_entries is negative: {max}"))),
    };
    let bad = || Error::BadToken(token.chars().take(160).collect());
    let after = match token {
        "" => None,
        token => {
            let id = token.strip_prefix(TOKEN).ok_or_else(bad)?;
            Some(id.parse::<VolumeId>().map_err(|_| bad())?)
        }
    };
    let mut rest = ids.into_iter().filter(|id| after.as_ref().is_none_or(|after| id > after));
    let page: Vec<_> = rest.by_ref().take(max).collect();
    let next = match (rest.next(), page.last()) {
        (Some(_), Some(last)) => format!("{TOKEN}{last}"),
        _ => String::new(),
    };
    Ok((page, next))
}

/// On which nodes a volume is, and how it is.
fn observe(policy: &Policy, node: &OnNode, volume: &Volume) -> Done<(Vec<String>, VolumeCondition)> {
    let nodes = if policy.attaches {
        Attachments::read(&node.disk, &volume.id)?.nodes.into_keys().collect()
    } else {
        Vec::new()
    };
    Ok((nodes, condition(&node.disk, volume)?))
}

fn condition(disk: &Disk, volume: &Volume) -> Done<VolumeCondition> {
    Ok(match disk.data::<Volume>(&volume.id, volume.kind)? {
        Some(_) => VolumeCondition { abnormal: false, message: "its data is there".to_owned() },
        None => {
            let message = crate::staging::lost(disk, volume).to_string();
            VolumeCondition { abnormal: true, message }
        }
    })
}

fn describe(policy: &Policy, node: Option<&str>, volume: &Volume) -> VolumeMessage {
    let home = policy.topology_key.and(node).map(|node| (policy.context_node.to_owned(), node.to_owned()));
    let instance = Some(volume.instance.clone()).filter(|instance| !instance.is_empty());
    let instance = instance.map(|instance| (policy.context_instance.to_owned(), instance));
    let source = volume.source.as_ref().map(|source| match source {
        Source::Snapshot(id) => SourceType::Snapshot(SnapshotSource { snapshot_id: id.to_string() }),
        Source::Volume(id) => SourceType::Volume(VolumeSource { volume_id: id.to_string() }),
    });
    VolumeMessage {
        capacity_bytes: bytes(volume.capacity),
        volume_id: volume.id.to_string(),
        volume_context: home.into_iter().chain(instance).collect(),
        content_source: source.map(|source| VolumeContentSource { r#type: Some(source) }),
        accessible_topology: node.and_then(|node| topology(policy, node)).into_iter().collect(),
    }
}

fn describe_snapshot(snapshot: &Snapshot) -> SnapshotMessage {
    let created = snapshot.created_at.parse::<Timestamp>().unwrap_or_default();
    SnapshotMessage {
        size_bytes: bytes(snapshot.capacity),
        snapshot_id: snapshot.id.to_string(),
        source_volume_id: snapshot.volume.to_string(),
        creation_time: Some(pb::csi::v1::Timestamp {
            seconds: created.as_second(),
            nanos: created.subsec_nanosecond(),
        }),
        // It has its name only when it is whole.
        ready_to_use: true,
        group_snapshot_id: String::new(),
    }
}

/// The place of a node, where volumes are on nodes.
pub(super) fn topology(policy: &Policy, node: &str) -> Option<Topology> {
    policy.topology_key.map(|key| Topology { segments: BTreeMap::from([(key.to_owned(), node.to_owned())]) })
}

/// On the wire sizes have a sign.
pub(super) fn bytes(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}
