//! The driver: Identity, Controller, Node and Registration over [`State`], each call through the [`Script`] first.
//!
//! It writes down when two calls for one volume are in flight at once on its controller side, which no caller may do.

use std::{
    future::Future,
    io,
    path::Path,
    process::{self, Command},
    sync::Arc,
    time::Duration,
};

use pb::{
    csi::v1::{
        self as csi, controller_server::Controller, controller_service_capability as controller_capability,
        identity_server::Identity, node_server::Node, node_service_capability as node_capability, plugin_capability,
    },
    pluginregistration::{
        InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse, registration_server::Registration,
    },
};
use tonic::{Code, Request, Response, Status};

use super::{
    script::{Fault, Script},
    state::State,
};

/// A driver that told a wrong node is started again after so long.
const MISTAKEN: Duration = Duration::from_secs(3);

/// What one driver process is.
#[derive(Clone, Debug)]
pub struct Identified {
    /// The driver's name.
    pub name: String,
    /// The node that it serves.
    pub node: String,
    /// The socket on which it serves CSI.
    pub endpoint: String,
}

/// The driver. Clones share everything.
#[derive(Clone)]
pub struct Driver {
    me: Arc<Identified>,
    state: State,
    script: Script,
}

type Answer<T> = Result<Response<T>, Status>;

impl Driver {
    /// A driver over a folder.
    pub fn new(me: Identified, state: State) -> Self {
        let script = Script::of(state.folder());
        Self { me: Arc::new(me), state, script }
    }

    /// Carries a call out as the script wants it. `act` is told whether it shall mistake the node.
    async fn call<T, A>(&self, call: &'static str, volume: &str, act: impl FnOnce(bool) -> A) -> Answer<T>
    where
        A: Future<Output = Result<T, Status>>,
    {
        if volume.is_empty() || volume.contains(['/', '.']) {
            return Err(Status::invalid_argument(format!("{call}: {volume:?} is no name or id")));
        }
        let fault = self.script.fault(call, volume).map_err(mishap)?;
        let node = &self.me.node;
        eprintln!("{node} {call} {volume} {}", fault.map_or("", Fault::name));
        let done = match fault {
            Some(fault) if !fault.is_done() => None,
            _ => Some(act(fault == Some(Fault::WrongNode)).await),
        };
        match (fault, done) {
            (None | Some(Fault::WrongNode), Some(done)) => done.map(Response::new),
            (Some(Fault::Silent | Fault::DoneButSilent), _) => std::future::pending().await,
            (Some(Fault::Crash | Fault::DoneThenCrash), _) => process::exit(9),
            (Some(Fault::Aborted), _) => Err(Status::aborted("another call for this volume is in progress (scripted)")),
            (Some(Fault::DoneButError), _) => Err(Status::new(Code::Unknown, "the answer was lost (scripted)")),
            _ => Err(Status::internal("a mishap (scripted)")),
        }
    }

    /// A call of the controller side: there must be one at a time for each volume, on all nodes together.
    async fn alone<T, A>(&self, call: &'static str, volume: &str, act: impl FnOnce(bool) -> A) -> Answer<T>
    where
        A: Future<Output = Result<T, Status>>,
    {
        let busy = Busy::begin(&self.state, call, volume).map_err(mishap)?;
        let mut answer = std::pin::pin!(self.call(call, volume, act));
        if let Ok(answer) = tokio::time::timeout(GIVEN_UP, &mut answer).await {
            return answer;
        }
        // Who calls has a deadline, and may call again before this process hears that the call was given up.
        drop(busy);
        answer.await
    }

    fn needs(&self, volume: &str) -> Result<i64, Status> {
        self.state
            .size("volumes", volume)
            .map_err(mishap)?
            .ok_or_else(|| Status::not_found(format!("no volume {volume}")))
    }
}

/// After how long a call that is not answered counts as given up: a little less than the deadline of those who call.
const GIVEN_UP: Duration = Duration::from_millis(2500);

/// A call in flight for a volume. The file lock ends with the process, too.
struct Busy(#[allow(dead_code, reason = "held for its lock")] Option<std::fs::File>);

impl Busy {
    fn begin(state: &State, call: &str, volume: &str) -> io::Result<Self> {
        let path = state.folder().join("busy").join(volume.replace('/', "_"));
        let file = std::fs::File::options().create(true).append(true).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Self(Some(file))),
            Err(std::fs::TryLockError::WouldBlock) => {
                state.broken(&format!("{call} for {volume} while another call for it was in flight"))?;
                Ok(Self(None))
            }
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        }
    }
}

fn mishap(error: io::Error) -> Status {
    Status::internal(error.to_string())
}

#[tonic::async_trait]
impl Registration for Driver {
    async fn get_info(&self, _: Request<InfoRequest>) -> Answer<PluginInfo> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: self.me.name.clone(),
            endpoint: self.me.endpoint.clone(),
            supported_versions: vec!["1.0.0".to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        status: Request<RegistrationStatus>,
    ) -> Answer<RegistrationStatusResponse> {
        let status = status.into_inner();
        eprintln!("{} registered: {} {}", self.me.node, status.plugin_registered, status.error);
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

#[tonic::async_trait]
impl Identity for Driver {
    async fn get_plugin_info(&self, _: Request<csi::GetPluginInfoRequest>) -> Answer<csi::GetPluginInfoResponse> {
        Ok(Response::new(csi::GetPluginInfoResponse {
            name: self.me.name.clone(),
            vendor_version: "1".to_owned(),
            ..Default::default()
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<csi::GetPluginCapabilitiesRequest>,
    ) -> Answer<csi::GetPluginCapabilitiesResponse> {
        let service = plugin_capability::Service { r#type: plugin_capability::service::Type::ControllerService.into() };
        let online =
            plugin_capability::VolumeExpansion { r#type: plugin_capability::volume_expansion::Type::Online.into() };
        let capabilities =
            [plugin_capability::Type::Service(service), plugin_capability::Type::VolumeExpansion(online)]
                .map(|one| csi::PluginCapability { r#type: Some(one) });
        Ok(Response::new(csi::GetPluginCapabilitiesResponse { capabilities: capabilities.to_vec() }))
    }

    async fn probe(&self, _: Request<csi::ProbeRequest>) -> Answer<csi::ProbeResponse> {
        Ok(Response::new(csi::ProbeResponse { ready: Some(csi::BoolValue { value: true }) }))
    }
}

#[tonic::async_trait]
impl Controller for Driver {
    async fn controller_get_capabilities(
        &self,
        _: Request<csi::ControllerGetCapabilitiesRequest>,
    ) -> Answer<csi::ControllerGetCapabilitiesResponse> {
        use controller_capability::rpc::Type;
        let all = [
            Type::CreateDeleteVolume,
            Type::PublishUnpublishVolume,
            Type::ListVolumes,
            Type::ExpandVolume,
            Type::CreateDeleteSnapshot,
        ];
        let capabilities = all.map(|one| csi::ControllerServiceCapability {
            r#type: Some(controller_capability::Type::Rpc(controller_capability::Rpc { r#type: one.into() })),
        });
        Ok(Response::new(csi::ControllerGetCapabilitiesResponse { capabilities: capabilities.to_vec() }))
    }

    async fn create_volume(&self, request: Request<csi::CreateVolumeRequest>) -> Answer<csi::CreateVolumeResponse> {
        let request = request.into_inner();
        let (name, source) = (request.name.clone(), request.volume_content_source.clone());
        let wanted = request.capacity_range.unwrap_or_default().required_bytes.max(1 << 20);
        self.alone("CreateVolume", &request.name, |_| async move {
            let from = match source.clone().and_then(|source| source.r#type) {
                None => None,
                Some(csi::volume_content_source::Type::Snapshot(one)) => {
                    Some(self.state.snapshot_data(&one.snapshot_id))
                }
                Some(csi::volume_content_source::Type::Volume(one)) => Some(self.state.data(&one.volume_id)),
            };
            let size = match self.state.size("volumes", &name).map_err(mishap)? {
                Some(size) if size < wanted => return Err(Status::already_exists("of another size")),
                Some(size) => size,
                None => {
                    self.state.make("volumes", &name, wanted, from.as_deref()).map_err(mishap)?;
                    wanted
                }
            };
            let volume =
                csi::Volume { volume_id: name, capacity_bytes: size, content_source: source, ..Default::default() };
            Ok(csi::CreateVolumeResponse { volume: Some(volume) })
        })
        .await
    }

    async fn delete_volume(&self, request: Request<csi::DeleteVolumeRequest>) -> Answer<csi::DeleteVolumeResponse> {
        let id = request.into_inner().volume_id;
        self.alone("DeleteVolume", &id, |_| async {
            if let Some(node) = self.state.attached(&id).map_err(mishap)? {
                self.state.broken(&format!("DeleteVolume of {id}, which is attached to {node}")).map_err(mishap)?;
                return Err(Status::failed_precondition(format!("attached to {node}")));
            }
            self.state.remove("volumes", &id).map_err(mishap)?;
            Ok(csi::DeleteVolumeResponse {})
        })
        .await
    }

    async fn controller_publish_volume(
        &self,
        request: Request<csi::ControllerPublishVolumeRequest>,
    ) -> Answer<csi::ControllerPublishVolumeResponse> {
        let csi::ControllerPublishVolumeRequest { volume_id: id, node_id: node, .. } = request.into_inner();
        self.alone("ControllerPublishVolume", &id.clone(), |mistaken| async move {
            self.needs(&id)?;
            let Some(node) = node.strip_prefix("id-") else {
                return Err(Status::not_found(format!("there is no node {node}")));
            };
            match self.state.attached(&id).map_err(mishap)? {
                Some(other) if other != node => {
                    self.state.broken(&format!("{id} to {node} while it is attached to {other}")).map_err(mishap)?;
                    return Err(Status::failed_precondition(format!("attached to {other}")));
                }
                _ if mistaken => return Err(Status::not_found(format!("there is no node {node} (scripted)"))),
                _ => self.state.attach(&id, node).map_err(mishap)?,
            }
            let publish_context = [("attached".to_owned(), node.to_owned())].into();
            Ok(csi::ControllerPublishVolumeResponse { publish_context })
        })
        .await
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<csi::ControllerUnpublishVolumeRequest>,
    ) -> Answer<csi::ControllerUnpublishVolumeResponse> {
        let csi::ControllerUnpublishVolumeRequest { volume_id: id, node_id: node, .. } = request.into_inner();
        self.alone("ControllerUnpublishVolume", &id.clone(), |_| async move {
            if self.state.attached(&id).map_err(mishap)?.is_some_and(|at| format!("id-{at}") == node || node.is_empty())
            {
                self.state.detach(&id).map_err(mishap)?;
            }
            Ok(csi::ControllerUnpublishVolumeResponse {})
        })
        .await
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<csi::ValidateVolumeCapabilitiesRequest>,
    ) -> Answer<csi::ValidateVolumeCapabilitiesResponse> {
        self.needs(&request.into_inner().volume_id)?;
        Ok(Response::new(csi::ValidateVolumeCapabilitiesResponse::default()))
    }

    async fn list_volumes(&self, _: Request<csi::ListVolumesRequest>) -> Answer<csi::ListVolumesResponse> {
        let ids = self.state.ids("volumes").map_err(mishap)?;
        // What holds no file was never used.
        let unused = |id: &str| {
            let empty = std::fs::read_dir(self.state.data(id)).is_ok_and(|mut files| files.next().is_none());
            empty.then(|| ("volume.berth.dev/unused".to_owned(), "true".to_owned()))
        };
        let entry = |volume_id: String| csi::list_volumes_response::Entry {
            volume: Some(csi::Volume {
                volume_context: unused(&volume_id).into_iter().collect(),
                volume_id,
                ..Default::default()
            }),
            status: None,
        };
        Ok(Response::new(csi::ListVolumesResponse {
            entries: ids.into_iter().map(entry).collect(),
            next_token: String::new(),
        }))
    }

    async fn get_capacity(&self, _: Request<csi::GetCapacityRequest>) -> Answer<csi::GetCapacityResponse> {
        Err(Status::unimplemented("no capacity"))
    }

    async fn create_snapshot(
        &self,
        request: Request<csi::CreateSnapshotRequest>,
    ) -> Answer<csi::CreateSnapshotResponse> {
        let csi::CreateSnapshotRequest { source_volume_id: volume, name, .. } = request.into_inner();
        let _busy = Busy::begin(&self.state, "CreateSnapshot", &volume).map_err(mishap)?;
        self.call("CreateSnapshot", &name, |_| async {
            let size = self.needs(&volume)?;
            if self.state.size("snapshots", &name).map_err(mishap)?.is_none() {
                self.state.make("snapshots", &name, size, Some(&self.state.data(&volume))).map_err(mishap)?;
            }
            let snapshot = csi::Snapshot {
                size_bytes: size,
                snapshot_id: name.clone(),
                source_volume_id: volume.clone(),
                creation_time: Some(csi::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
                ready_to_use: true,
                group_snapshot_id: String::new(),
            };
            Ok(csi::CreateSnapshotResponse { snapshot: Some(snapshot) })
        })
        .await
    }

    async fn delete_snapshot(
        &self,
        request: Request<csi::DeleteSnapshotRequest>,
    ) -> Answer<csi::DeleteSnapshotResponse> {
        let id = request.into_inner().snapshot_id;
        self.call("DeleteSnapshot", &id, |_| async {
            self.state.remove("snapshots", &id).map_err(mishap)?;
            Ok(csi::DeleteSnapshotResponse {})
        })
        .await
    }

    async fn list_snapshots(&self, _: Request<csi::ListSnapshotsRequest>) -> Answer<csi::ListSnapshotsResponse> {
        Err(Status::unimplemented("no list of snapshots"))
    }

    async fn controller_expand_volume(
        &self,
        request: Request<csi::ControllerExpandVolumeRequest>,
    ) -> Answer<csi::ControllerExpandVolumeResponse> {
        let csi::ControllerExpandVolumeRequest { volume_id: id, capacity_range, .. } = request.into_inner();
        let wanted = capacity_range.unwrap_or_default().required_bytes;
        self.alone("ControllerExpandVolume", &id, |_| async {
            let size = self.needs(&id)?.max(wanted);
            self.state.grow(&id, size).map_err(mishap)?;
            Ok(csi::ControllerExpandVolumeResponse { capacity_bytes: size, node_expansion_required: true })
        })
        .await
    }

    async fn controller_get_volume(
        &self,
        _: Request<csi::ControllerGetVolumeRequest>,
    ) -> Answer<csi::ControllerGetVolumeResponse> {
        Err(Status::unimplemented("no single volumes"))
    }
}

#[tonic::async_trait]
impl Node for Driver {
    async fn node_get_capabilities(
        &self,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Answer<csi::NodeGetCapabilitiesResponse> {
        use node_capability::rpc::Type;
        let capabilities = [Type::StageUnstageVolume, Type::ExpandVolume].map(|one| csi::NodeServiceCapability {
            r#type: Some(node_capability::Type::Rpc(node_capability::Rpc { r#type: one.into() })),
        });
        Ok(Response::new(csi::NodeGetCapabilitiesResponse { capabilities: capabilities.to_vec() }))
    }

    async fn node_get_info(&self, _: Request<csi::NodeGetInfoRequest>) -> Answer<csi::NodeGetInfoResponse> {
        let node = self.me.node.clone();
        self.call("NodeGetInfo", &node.clone(), |mistaken| async move {
            let node_id = if mistaken {
                // A node that the controller side does not know. The driver's next life knows better.
                tokio::spawn(async {
                    tokio::time::sleep(MISTAKEN).await;
                    process::exit(9);
                });
                format!("mistaken-{node}")
            } else {
                format!("id-{node}")
            };
            Ok(csi::NodeGetInfoResponse { node_id, max_volumes_per_node: 0, accessible_topology: None })
        })
        .await
    }

    async fn node_stage_volume(
        &self,
        request: Request<csi::NodeStageVolumeRequest>,
    ) -> Answer<csi::NodeStageVolumeResponse> {
        let csi::NodeStageVolumeRequest { volume_id: id, staging_target_path, publish_context, .. } =
            request.into_inner();
        self.call("NodeStageVolume", &id, |_| async {
            self.needs(&id)?;
            let node = &self.me.node;
            let attached = self.state.attached(&id).map_err(mishap)?;
            if attached.as_ref() != Some(node) || publish_context.get("attached") != Some(node) {
                let broken = format!("{id} is staged on {node} and attached to {attached:?}, told {publish_context:?}");
                self.state.broken(&broken).map_err(mishap)?;
                return Err(Status::failed_precondition(broken));
            }
            bind(&self.state.data(&id), Path::new(&staging_target_path))?;
            Ok(csi::NodeStageVolumeResponse {})
        })
        .await
    }

    async fn node_unstage_volume(
        &self,
        request: Request<csi::NodeUnstageVolumeRequest>,
    ) -> Answer<csi::NodeUnstageVolumeResponse> {
        let csi::NodeUnstageVolumeRequest { volume_id: id, staging_target_path } = request.into_inner();
        self.call("NodeUnstageVolume", &id, |_| async {
            unmount(Path::new(&staging_target_path))?;
            Ok(csi::NodeUnstageVolumeResponse {})
        })
        .await
    }

    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Answer<csi::NodePublishVolumeResponse> {
        let csi::NodePublishVolumeRequest { volume_id: id, staging_target_path, target_path, .. } =
            request.into_inner();
        self.call("NodePublishVolume", &id, |_| async {
            let staging = Path::new(&staging_target_path);
            if !mounted(staging)? {
                self.state.broken(&format!("{id} is published and not staged")).map_err(mishap)?;
                return Err(Status::failed_precondition("not staged"));
            }
            // The target is the driver's to make.
            std::fs::create_dir_all(&target_path).map_err(mishap)?;
            bind(staging, Path::new(&target_path))?;
            Ok(csi::NodePublishVolumeResponse {})
        })
        .await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Answer<csi::NodeUnpublishVolumeResponse> {
        let csi::NodeUnpublishVolumeRequest { volume_id: id, target_path } = request.into_inner();
        self.call("NodeUnpublishVolume", &id, |_| async {
            unmount(Path::new(&target_path))?;
            match std::fs::remove_dir(&target_path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(mishap(error)),
                _ => Ok(csi::NodeUnpublishVolumeResponse {}),
            }
        })
        .await
    }

    async fn node_get_volume_stats(
        &self,
        _: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Answer<csi::NodeGetVolumeStatsResponse> {
        Err(Status::unimplemented("no statistics"))
    }

    async fn node_expand_volume(
        &self,
        request: Request<csi::NodeExpandVolumeRequest>,
    ) -> Answer<csi::NodeExpandVolumeResponse> {
        let id = request.into_inner().volume_id;
        self.call("NodeExpandVolume", &id, |_| async {
            Ok(csi::NodeExpandVolumeResponse { capacity_bytes: self.needs(&id)? })
        })
        .await
    }
}

fn mounted(path: &Path) -> Result<bool, Status> {
    Ok(lab::system::mounts().map_err(mishap)?.iter().any(|mount| mount.target == path))
}

/// Shows a folder at a path; done already is fine.
fn bind(from: &Path, to: &Path) -> Result<(), Status> {
    if mounted(to)? {
        return Ok(());
    }
    run("mount", &[Path::new("--bind"), from, to])
}

fn unmount(path: &Path) -> Result<(), Status> {
    while mounted(path)? {
        run("umount", &[path])?;
    }
    Ok(())
}

fn run(program: &str, args: &[&Path]) -> Result<(), Status> {
    let ran = Command::new(program).args(args).output().map_err(mishap)?;
    if ran.status.success() {
        return Ok(());
    }
    Err(Status::internal(format!("{program} {args:?}: {}", String::from_utf8_lossy(&ran.stderr))))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn driver(folder: &Path, script: &[(&str, Fault, u32)]) -> Driver {
        let state = State::open(folder).unwrap();
        let me = Identified { name: "x".to_owned(), node: "node-1".to_owned(), endpoint: String::new() };
        let driver = Driver::new(me, state);
        driver.script.write(script).unwrap();
        driver
    }

    async fn create(driver: &Driver) -> Answer<csi::CreateVolumeResponse> {
        driver
            .create_volume(Request::new(csi::CreateVolumeRequest { name: "v".to_owned(), ..Default::default() }))
            .await
    }

    #[tokio::test]
    async fn a_call_is_done_or_not_as_the_fault_says_and_the_next_one_is_well() {
        for (fault, code, done) in [
            (Fault::Aborted, Code::Aborted, false),
            (Fault::Error, Code::Internal, false),
            (Fault::DoneButError, Code::Unknown, true),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let driver = driver(folder.path(), &[("*", fault, 1)]);
            assert_eq!(create(&driver).await.unwrap_err().code(), code, "{fault}");
            assert_eq!(driver.state.ids("volumes").unwrap().len(), usize::from(done), "{fault}");
            assert_eq!(create(&driver).await.unwrap().into_inner().volume.unwrap().volume_id, "v", "{fault}");
            assert_eq!(driver.state.ids("volumes").unwrap(), ["v"], "{fault}");
            assert!(driver.state.all_broken().unwrap().is_empty(), "{fault}");
        }
    }

    #[tokio::test]
    async fn two_calls_in_flight_for_a_volume_are_written_down() {
        let folder = tempfile::tempdir().unwrap();
        let driver = driver(folder.path(), &[("CreateVolume", Fault::Silent, 1)]);
        let silent = tokio::time::timeout(Duration::from_millis(200), create(&driver));
        let (silent, other) = tokio::join!(silent, async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            create(&driver).await
        });
        assert!(silent.is_err() && other.is_ok());
        assert_eq!(driver.state.all_broken().unwrap().len(), 1);
        // The first one has been given up: the volume is free.
        assert!(create(&driver).await.is_ok());
        assert_eq!(driver.state.all_broken().unwrap().len(), 1);
    }
}
