//! A CSI driver whose volumes are folders, with real mounts, and with faults on demand.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use parking_lot::Mutex;
use pb::{
    csi::v1::{
        controller_server::{Controller, ControllerServer},
        identity_server::{Identity, IdentityServer},
        node_server::{Node, NodeServer},
        node_service_capability::{Rpc, Type, rpc},
        plugin_capability, *,
    },
    pluginregistration::{
        InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
        registration_server::{Registration, RegistrationServer},
    },
};
use runtime::{CancellationToken, Server};
use tonic::{Request, Response, Status};

/// What the driver does wrong, and what it was told.
#[derive(Default)]
pub struct State {
    /// Publishes nothing, and says that it has.
    pub lies: bool,
    /// Mounts, but never answers NodeStageVolume.
    pub silent_after_stage: bool,
    /// Every call, as `Call volume`.
    pub calls: Vec<String>,
    /// Publish context of the last NodeStageVolume.
    pub publish_context: BTreeMap<String, String>,
    /// The last NodeStageVolume's capability.
    pub capability: Option<VolumeCapability>,
    /// Bytes that NodeExpandVolume was asked for.
    pub expanded: Option<i64>,
    /// What the agent said to the registrations.
    pub registered: Vec<RegistrationStatus>,
    /// Deadlines that came with controller calls.
    pub deadlines: Vec<String>,
    /// Volumes that are in the midst of a call.
    busy: Vec<String>,
    /// Calls that came while another for the volume was in flight: a mistake of the agent, unless it had given that one up.
    pub collisions: Vec<String>,
}

#[derive(Clone)]
pub struct Driver {
    dir: PathBuf,
    volumes: PathBuf,
    pub state: Arc<Mutex<State>>,
}

impl Driver {
    /// Serves for the agent whose folder of drivers is `<dir>/csi`.
    pub fn start(dir: &Path) -> (Self, CancellationToken) {
        let driver = Self { dir: dir.to_owned(), volumes: dir.join("driver"), state: Arc::default() };
        let stop = driver.serve();
        (driver, stop)
    }

    /// Serves, and registers, until it is stopped.
    pub fn serve(&self) -> CancellationToken {
        let stop = CancellationToken::new();
        let server = Server::unix("csi", &self.endpoint())
            .service(IdentityServer::new(self.clone()))
            .service(ControllerServer::new(self.clone()))
            .service(NodeServer::new(self.clone()));
        tokio::spawn(server.serve(stop.clone()));
        self.register("test", &stop);
        stop
    }

    /// Opens one more socket that registers the driver.
    pub fn register(&self, socket: &str, stop: &CancellationToken) {
        let path = self.socket(socket);
        let server = Server::unix("registration", &path).service(RegistrationServer::new(self.clone()));
        tokio::spawn(server.serve(stop.clone()));
    }

    pub fn socket(&self, name: &str) -> PathBuf {
        self.dir.join(format!("csi/registry/{name}-reg.sock"))
    }

    fn endpoint(&self) -> PathBuf {
        self.dir.join("csi/test.sock")
    }

    /// Where the data of a volume is.
    pub fn data(&self, volume: &str) -> PathBuf {
        self.volumes.join(volume)
    }

    /// How often a call was made.
    pub fn count(&self, call: &str) -> usize {
        self.state.lock().calls.iter().filter(|made| made.starts_with(call)).count()
    }

    fn enter(&self, call: &str, volume: &str) -> Result<Busy, Status> {
        let mut state = self.state.lock();
        state.calls.push(format!("{call} {volume}"));
        if state.busy.contains(&volume.to_owned()) {
            state.collisions.push(format!("{call} {volume}"));
            return Err(Status::aborted("another call for the volume is in flight"));
        }
        state.busy.push(volume.to_owned());
        Ok(Busy { state: self.state.clone(), volume: volume.to_owned() })
    }
}

/// A call for a volume.
struct Busy {
    state: Arc<Mutex<State>>,
    volume: String,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.state.lock().busy.retain(|volume| *volume != self.volume);
    }
}

fn bind(from: &Path, to: &Path, readonly: bool) -> io::Result<()> {
    fs::create_dir_all(to)?;
    if !is_mounted(to) {
        mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        if readonly {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(None::<&str>, to, None::<&str>, flags, None::<&str>)?;
        }
    }
    Ok(())
}

fn unbind(at: &Path) -> io::Result<()> {
    if is_mounted(at) {
        umount2(at, MntFlags::empty())?;
    }
    match fs::remove_dir(at) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

pub fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}

fn internal(error: io::Error) -> Status {
    Status::internal(error.to_string())
}

fn not_offered<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not offered by this driver"))
}

#[tonic::async_trait]
impl Registration for Driver {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".into(),
            name: "test".into(),
            endpoint: self.endpoint().display().to_string(),
            supported_versions: vec!["1.0.0".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        self.state.lock().registered.push(request.into_inner());
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

#[tonic::async_trait]
impl Identity for Driver {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse { name: "test".into(), ..Default::default() }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let service = plugin_capability::Service { r#type: plugin_capability::service::Type::ControllerService.into() };
        let capabilities = vec![PluginCapability { r#type: Some(plugin_capability::Type::Service(service)) }];
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities }))
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        Ok(Response::new(ProbeResponse { ready: None }))
    }
}

#[tonic::async_trait]
impl Node for Driver {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let request = request.into_inner();
        let _busy = self.enter("NodeStageVolume", &request.volume_id)?;
        let data = self.data(&request.volume_id);
        if !data.exists() {
            return Err(Status::data_loss(format!("volume {}: its folder is gone", request.volume_id)));
        }
        bind(&data, Path::new(&request.staging_target_path), false).map_err(internal)?;
        let silent = {
            let mut state = self.state.lock();
            state.publish_context = request.publish_context;
            state.capability = request.volume_capability;
            state.silent_after_stage
        };
        if silent {
            tokio::time::sleep(Duration::from_secs(3600)).await;
        }
        Ok(Response::new(NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        let request = request.into_inner();
        let _busy = self.enter("NodeUnstageVolume", &request.volume_id)?;
        unbind(Path::new(&request.staging_target_path)).map_err(internal)?;
        Ok(Response::new(NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let _busy = self.enter("NodePublishVolume", &request.volume_id)?;
        let target = Path::new(&request.target_path);
        if self.state.lock().lies {
            fs::create_dir_all(target).map_err(internal)?;
        } else {
            bind(Path::new(&request.staging_target_path), target, request.readonly).map_err(internal)?;
        }
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let _busy = self.enter("NodeUnpublishVolume", &request.volume_id)?;
        unbind(Path::new(&request.target_path)).map_err(internal)?;
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let request = request.into_inner();
        let _busy = self.enter("NodeGetVolumeStats", &request.volume_id)?;
        if !is_mounted(Path::new(&request.volume_path)) {
            return Err(Status::not_found(format!("nothing at {}", request.volume_path)));
        }
        let usage = VolumeUsage { available: 60, total: 100, used: 40, unit: volume_usage::Unit::Bytes.into() };
        Ok(Response::new(NodeGetVolumeStatsResponse { usage: vec![usage], volume_condition: None }))
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        let request = request.into_inner();
        let _busy = self.enter("NodeExpandVolume", &request.volume_id)?;
        let bytes = request.capacity_range.map_or(0, |range| range.required_bytes);
        self.state.lock().expanded = Some(bytes);
        Ok(Response::new(NodeExpandVolumeResponse { capacity_bytes: bytes }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let all = [rpc::Type::StageUnstageVolume, rpc::Type::GetVolumeStats, rpc::Type::ExpandVolume];
        let capability =
            |ability: rpc::Type| NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: ability.into() })) };
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities: all.map(capability).into() }))
    }

    async fn node_get_info(&self, _: Request<NodeGetInfoRequest>) -> Result<Response<NodeGetInfoResponse>, Status> {
        let segments = [("test.example/zone".to_owned(), "left".to_owned())].into();
        Ok(Response::new(NodeGetInfoResponse {
            node_id: "id-of-node-1".into(),
            max_volumes_per_node: 17,
            accessible_topology: Some(Topology { segments }),
        }))
    }
}

#[tonic::async_trait]
impl Controller for Driver {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let deadline = request.metadata().get("grpc-timeout").map(|value| value.to_str().unwrap().to_owned());
        self.state.lock().deadlines.extend(deadline);
        let name = request.into_inner().name;
        if name == "full" {
            return Err(Status::resource_exhausted("no room"));
        }
        fs::create_dir_all(self.data(&name)).map_err(internal)?;
        let volume = Volume { volume_id: name, ..Default::default() };
        Ok(Response::new(CreateVolumeResponse { volume: Some(volume) }))
    }

    async fn delete_volume(&self, _: Request<DeleteVolumeRequest>) -> Result<Response<DeleteVolumeResponse>, Status> {
        not_offered()
    }

    async fn controller_publish_volume(
        &self,
        _: Request<ControllerPublishVolumeRequest>,
    ) -> Result<Response<ControllerPublishVolumeResponse>, Status> {
        not_offered()
    }

    async fn controller_unpublish_volume(
        &self,
        _: Request<ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<ControllerUnpublishVolumeResponse>, Status> {
        not_offered()
    }

    async fn validate_volume_capabilities(
        &self,
        _: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        not_offered()
    }

    async fn list_volumes(&self, _: Request<ListVolumesRequest>) -> Result<Response<ListVolumesResponse>, Status> {
        not_offered()
    }

    async fn get_capacity(&self, _: Request<GetCapacityRequest>) -> Result<Response<GetCapacityResponse>, Status> {
        not_offered()
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        not_offered()
    }

    async fn create_snapshot(
        &self,
        _: Request<CreateSnapshotRequest>,
    ) -> Result<Response<CreateSnapshotResponse>, Status> {
        not_offered()
    }

    async fn delete_snapshot(
        &self,
        _: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        not_offered()
    }

    async fn list_snapshots(
        &self,
        _: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        not_offered()
    }

    async fn controller_expand_volume(
        &self,
        _: Request<ControllerExpandVolumeRequest>,
    ) -> Result<Response<ControllerExpandVolumeResponse>, Status> {
        not_offered()
    }

    async fn controller_get_volume(
        &self,
        _: Request<ControllerGetVolumeRequest>,
    ) -> Result<Response<ControllerGetVolumeResponse>, Status> {
        not_offered()
    }
}
