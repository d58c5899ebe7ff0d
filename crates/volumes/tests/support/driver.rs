//! A CSI driver that keeps volumes in memory and fails as it is told, and the part of an agent that leads to it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    future::pending,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use pb::{
    agent::v1::{volume_agent_service_server::VolumeAgentService, *},
    csi::v1::{
        controller_server::Controller,
        controller_service_capability::{Rpc, Type, rpc},
        volume_content_source, *,
    },
};
use tonic::{Request, Response, Status};

pub const TOPOLOGY: &str = "fake/node";

/// What the next call of a kind does.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Does it and never answers.
    DoneAndSilent,
    /// Does it and says that it failed.
    DoneButError(tonic::Code),
    /// Does nothing and says why.
    Error(tonic::Code),
    /// Does nothing and never answers.
    Silent,
    /// Makes the volume elsewhere.
    Elsewhere(&'static str),
    /// Answers what no driver may.
    Nonsense,
}

use plan::volume::orphans::UNUSED;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Volumes belong to nodes; it lists them and their ids are their names.
    Local,
    /// Volumes belong to nodes; ids are its own, and it does not list.
    Foreign,
    /// Volumes are everywhere and attached to nodes.
    Shared,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Disk {
    pub name: String,
    pub bytes: i64,
    pub content: Option<String>,
    pub parameters: BTreeMap<String, String>,
}

#[derive(Default)]
pub struct State {
    /// By node (empty: everywhere) and id.
    pub disks: BTreeMap<(String, String), Disk>,
    pub attached: BTreeSet<(String, String)>,
    /// Volumes that were mounted once, by id.
    pub used: BTreeSet<String>,
    /// Volumes that a node's agent says it uses: node and id.
    pub in_use: BTreeSet<(String, String)>,
    pub room: BTreeMap<String, i64>,
    pub data: super::data::Data,
    faults: BTreeMap<&'static str, VecDeque<Fault>>,
    pub calls: Vec<String>,
    /// Volumes with a call in flight, by their name or id.
    busy: BTreeSet<String>,
    /// What must not have happened.
    pub broken: Vec<String>,
    next: u64,
}

/// A driver as it is on one node. Clones and other nodes' share the state.
#[derive(Clone)]
pub struct Driver {
    pub kind: Kind,
    pub node: String,
    pub state: Arc<Mutex<State>>,
}

impl Driver {
    pub fn new(kind: Kind) -> Self {
        Self { kind, node: String::new(), state: Arc::default() }
    }

    pub fn on(&self, node: &str) -> Self {
        Self { node: node.to_owned(), ..self.clone() }
    }

    pub fn name(&self) -> &'static str {
        match self.kind {
            Kind::Local => "fake-local",
            Kind::Foreign => "fake-foreign",
            Kind::Shared => "fake-shared",
        }
    }

    /// What the next calls of a kind do, in this order.
    pub fn will(&self, call: &'static str, faults: impl IntoIterator<Item = Fault>) {
        self.state.lock().faults.entry(call).or_default().extend(faults);
    }

    /// Ids of all volumes, with their nodes.
    pub fn disks(&self) -> Vec<(String, String)> {
        self.state.lock().disks.keys().cloned().collect()
    }

    pub fn calls(&self, call: &str) -> usize {
        self.state.lock().calls.iter().filter(|made| made.starts_with(call)).count()
    }

    fn home(&self) -> String {
        if self.kind == Kind::Shared { String::new() } else { self.node.clone() }
    }

    /// Does a call, or not, as it is told. The doing and its answer are apart: one may come without the other.
    async fn act<T>(
        &self,
        call: &'static str,
        volume: &str,
        act: impl FnOnce(&mut State, Option<Fault>) -> Result<T, Status>,
    ) -> Result<Response<T>, Status> {
        let _busy = self.begin(call, volume);
        // Long enough for a second call to be seen.
        tokio::time::sleep(Duration::from_millis(2)).await;
        let fault = self.state.lock().faults.get_mut(call).and_then(VecDeque::pop_front);
        match &fault {
            Some(Fault::Error(code)) => return Err(Status::new(*code, "as told")),
            Some(Fault::Silent) => return pending().await,
            _ => {}
        }
        let done = act(&mut self.state.lock(), fault.clone());
        match fault {
            Some(Fault::DoneAndSilent) => pending().await,
            Some(Fault::DoneButError(code)) => Err(Status::new(code, "done, as told")),
            _ => done.map(Response::new),
        }
    }

    fn begin(&self, call: &str, volume: &str) -> Busy {
        let mut state = self.state.lock();
        state.calls.push(format!("{call} {volume} on {}", self.node));
        let key = volume.to_owned();
        if !state.busy.insert(key.clone()) {
            state.broken.push(format!("{call} of {key} while another call for it was in flight"));
        }
        Busy { state: Arc::clone(&self.state), key }
    }
}

struct Busy {
    state: Arc<Mutex<State>>,
    key: String,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.state.lock().busy.remove(&self.key);
    }
}

#[tonic::async_trait]
impl Controller for Driver {
    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        let mut types = vec![rpc::Type::CreateDeleteVolume, rpc::Type::CloneVolume];
        if self.kind != Kind::Foreign {
            types.push(rpc::Type::ListVolumes);
            types.extend([rpc::Type::CreateDeleteSnapshot, rpc::Type::ExpandVolume]);
        }
        match self.kind {
            Kind::Shared => types.push(rpc::Type::PublishUnpublishVolume),
            Kind::Local => types.push(rpc::Type::GetCapacity),
            Kind::Foreign => {}
        }
        let capability =
            |kind: rpc::Type| ControllerServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })) };
        let capabilities = types.into_iter().map(capability).collect();
        Ok(Response::new(ControllerGetCapabilitiesResponse { capabilities }))
    }

    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let request = request.into_inner();
        let (kind, mut home) = (self.kind, self.home());
        self.act("CreateVolume", &request.name.clone(), move |state, fault| {
            if let Some(Fault::Elsewhere(node)) = fault {
                home = node.to_owned();
            }
            let multi =
                request.volume_capabilities.iter().any(|c| c.access_mode.as_ref().is_some_and(|mode| mode.mode == 5));
            if multi && kind != Kind::Shared {
                return Err(Status::invalid_argument("one node at a time"));
            }
            let bytes = request.capacity_range.as_ref().map_or(0, |range| range.required_bytes);
            let made = state.disks.iter().find(|((at, _), disk)| *at == home && disk.name == request.name);
            let id = match made {
                Some(((_, id), _)) => id.clone(),
                None => {
                    state.next += 1;
                    let id = if kind == Kind::Foreign { format!("vol/{}", state.next) } else { request.name.clone() };
                    let content = request.volume_content_source.as_ref().and_then(|s| s.r#type.clone());
                    let content = content.map(|source| match source {
                        volume_content_source::Type::Snapshot(s) => s.snapshot_id,
                        volume_content_source::Type::Volume(v) => v.volume_id,
                    });
                    let disk = Disk { name: request.name, bytes, content, parameters: request.parameters };
                    state.disks.insert((home.clone(), id.clone()), disk);
                    id
                }
            };
            let segments = BTreeMap::from([(TOPOLOGY.to_owned(), home.clone())]);
            let place = (!home.is_empty()).then_some(Topology { segments });
            let volume_id = if matches!(fault, Some(Fault::Nonsense)) { "a/../b".to_owned() } else { id };
            let volume = Volume {
                volume_id,
                capacity_bytes: bytes,
                accessible_topology: place.into_iter().collect(),
                ..Volume::default()
            };
            Ok(CreateVolumeResponse { volume: Some(volume) })
        })
        .await
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let id = request.into_inner().volume_id;
        let home = self.home();
        self.act("DeleteVolume", &id.clone(), move |state, _| {
            if state.attached.iter().any(|(attached, _)| *attached == id) {
                state.broken.push(format!("{id} was deleted while attached"));
            }
            if state.in_use.iter().any(|(_, used)| *used == id) {
                state.broken.push(format!("{id} was deleted while in use"));
            }
            state.disks.remove(&(home, id));
            Ok(DeleteVolumeResponse {})
        })
        .await
    }

    async fn controller_publish_volume(
        &self,
        request: Request<ControllerPublishVolumeRequest>,
    ) -> Result<Response<ControllerPublishVolumeResponse>, Status> {
        let request = request.into_inner();
        self.act("Publish", &request.volume_id.clone(), move |state, _| {
            let elsewhere =
                state.attached.iter().any(|(id, node)| *id == request.volume_id && *node != request.node_id);
            if elsewhere {
                state.broken.push(format!("{} was attached to a second node", request.volume_id));
                return Err(Status::failed_precondition("attached elsewhere"));
            }
            state.attached.insert((request.volume_id, request.node_id.clone()));
            Ok(ControllerPublishVolumeResponse {
                publish_context: BTreeMap::from([("by".to_owned(), request.node_id)]),
            })
        })
        .await
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<ControllerUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        self.act("Unpublish", &request.volume_id.clone(), move |state, _| {
            let node = request.node_id.strip_prefix("id-of-").unwrap_or_default().to_owned();
            if state.in_use.contains(&(node, request.volume_id.clone())) {
                state.broken.push(format!("{} was detached while in use", request.volume_id));
            }
            state.attached.remove(&(request.volume_id, request.node_id));
            Ok(ControllerUnpublishVolumeResponse {})
        })
        .await
    }

    async fn list_volumes(&self, _: Request<ListVolumesRequest>) -> Result<Response<ListVolumesResponse>, Status> {
        let (state, home) = (self.state.lock(), self.home());
        let here = state.disks.iter().filter(|((at, _), _)| *at == home);
        let entry = |((at, id), disk): (&(String, String), &Disk)| {
            let segments = BTreeMap::from([(TOPOLOGY.to_owned(), at.clone())]);
            let place = (!at.is_empty()).then_some(Topology { segments });
            let volume = Volume {
                volume_id: id.clone(),
                capacity_bytes: disk.bytes,
                accessible_topology: place.into_iter().collect(),
                volume_context: (!state.used.contains(id))
                    .then(|| (UNUSED.to_owned(), "true".to_owned()))
                    .into_iter()
                    .collect(),
                ..Volume::default()
            };
            list_volumes_response::Entry { volume: Some(volume), status: None }
        };
        let entries = here.map(entry).collect();
        Ok(Response::new(ListVolumesResponse { entries, next_token: String::new() }))
    }

    async fn get_capacity(&self, _: Request<GetCapacityRequest>) -> Result<Response<GetCapacityResponse>, Status> {
        let available_capacity = self.state.lock().room.get(&self.node).copied().unwrap_or(1 << 50);
        Ok(Response::new(GetCapacityResponse { available_capacity, ..GetCapacityResponse::default() }))
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        let request = request.into_inner();
        let known = self.state.lock().disks.contains_key(&(self.home(), request.volume_id));
        let confirmed = known.then(|| validate_volume_capabilities_response::Confirmed {
            volume_capabilities: request.volume_capabilities,
            ..Default::default()
        });
        Ok(Response::new(ValidateVolumeCapabilitiesResponse { confirmed, message: "no such disk".to_owned() }))
    }

    async fn create_snapshot(
        &self,
        request: Request<CreateSnapshotRequest>,
    ) -> Result<Response<CreateSnapshotResponse>, Status> {
        let (request, home) = (request.into_inner(), self.home());
        let volume = request.source_volume_id.clone();
        self.act("CreateSnapshot", &volume, move |state, _| super::data::cut(state, &home, &request)).await
    }

    async fn delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        let id = request.into_inner().snapshot_id;
        self.act("DeleteSnapshot", &id.clone(), move |state, _| {
            state.data.snapshots.remove(&id);
            Ok(DeleteSnapshotResponse {})
        })
        .await
    }

    async fn list_snapshots(
        &self,
        _: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn controller_expand_volume(
        &self,
        request: Request<ControllerExpandVolumeRequest>,
    ) -> Result<Response<ControllerExpandVolumeResponse>, Status> {
        let (request, home) = (request.into_inner(), self.home());
        let volume = request.volume_id.clone();
        self.act("Expand", &volume, move |state, _| super::data::enlarge(state, &home, &request)).await
    }

    async fn controller_get_volume(
        &self,
        _: Request<ControllerGetVolumeRequest>,
    ) -> Result<Response<ControllerGetVolumeResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl VolumeAgentService for Driver {
    type ExportVolumeStream = futures::stream::Empty<Result<ExportVolumeResponse, Status>>;
    type ImportVolumeStream = futures::stream::BoxStream<'static, Result<ImportVolumeResponse, Status>>;

    async fn inspect_volume(
        &self,
        request: Request<InspectVolumeRequest>,
    ) -> Result<Response<InspectVolumeResponse>, Status> {
        let request = request.into_inner();
        let key = (self.node.clone(), request.volume_handle);
        let in_use = self.state.lock().in_use.contains(&key);
        let stats = request.stats && in_use;
        Ok(Response::new(InspectVolumeResponse {
            in_use,
            total_bytes: stats.then_some(100),
            used_bytes: stats.then_some(30),
            available_bytes: stats.then_some(70),
            ..InspectVolumeResponse::default()
        }))
    }

    async fn expand_volume(
        &self,
        request: Request<ExpandVolumeRequest>,
    ) -> Result<Response<ExpandVolumeResponse>, Status> {
        let (request, node) = (request.into_inner(), self.node.clone());
        let id = super::data::handle(request.volume.as_ref());
        self.act("NodeExpand", &id, move |state, _| super::data::enlarge_here(state, &node, request)).await
    }

    async fn export_volume(
        &self,
        _: Request<ExportVolumeRequest>,
    ) -> Result<Response<Self::ExportVolumeStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn import_volume(
        &self,
        request: Request<ImportVolumeRequest>,
    ) -> Result<Response<Self::ImportVolumeStream>, Status> {
        let (request, node) = (request.into_inner(), self.node.clone());
        let id = super::data::handle(request.source.as_ref());
        self.act("Import", &id, move |state, _| Ok(super::data::import(state, &node, request))).await
    }
}
