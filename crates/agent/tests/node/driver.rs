//! A CSI driver whose volumes are folders: the node side, with real mounts.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use pb::csi::v1::{
    node_server::{Node, NodeServer},
    node_service_capability::{Rpc, Type, rpc},
    *,
};
use runtime::{CancellationToken, Server};
use tonic::{Request, Response, Status};

#[derive(Clone)]
pub struct Driver {
    volumes: PathBuf,
    /// Publishes nothing, and says that it has.
    pub lies: Arc<AtomicBool>,
}

impl Driver {
    /// Serves at `<dir>/csi/test.sock`.
    pub fn start(dir: &Path) -> Self {
        let driver = Self { volumes: dir.join("driver"), lies: Arc::default() };
        let socket = dir.join("csi/test.sock");
        let server = Server::unix("csi", &socket).service(NodeServer::new(driver.clone()));
        tokio::spawn(server.serve(CancellationToken::new()));
        driver
    }

    /// Where the data of a volume is.
    pub fn data(&self, volume: &str) -> PathBuf {
        self.volumes.join(volume)
    }
}

fn bind(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    if !is_mounted(to) {
        mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
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

#[tonic::async_trait]
impl Node for Driver {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let request = request.into_inner();
        let data = self.data(&request.volume_id);
        fs::create_dir_all(&data).map_err(internal)?;
        bind(&data, Path::new(&request.staging_target_path)).map_err(internal)?;
        Ok(Response::new(NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        unbind(Path::new(&request.into_inner().staging_target_path)).map_err(internal)?;
        Ok(Response::new(NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let target = Path::new(&request.target_path);
        if self.lies.load(Ordering::Relaxed) {
            fs::create_dir_all(target).map_err(internal)?;
        } else {
            bind(Path::new(&request.staging_target_path), target).map_err(internal)?;
        }
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        unbind(Path::new(&request.into_inner().target_path)).map_err(internal)?;
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let stage = Rpc { r#type: rpc::Type::StageUnstageVolume.into() };
        let capabilities = vec![NodeServiceCapability { r#type: Some(Type::Rpc(stage)) }];
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_volume_stats(
        &self,
        _: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        Err(Status::unimplemented("not offered by this driver"))
    }

    async fn node_expand_volume(
        &self,
        _: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        Err(Status::unimplemented("not offered by this driver"))
    }

    async fn node_get_info(&self, _: Request<NodeGetInfoRequest>) -> Result<Response<NodeGetInfoResponse>, Status> {
        Ok(Response::new(NodeGetInfoResponse { node_id: "node-1".into(), ..Default::default() }))
    }
}
