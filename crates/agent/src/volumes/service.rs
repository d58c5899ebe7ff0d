//! What the volume manager and other agents ask about the node's volumes.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use pb::{
    agent::v1::{
        ExpandVolumeRequest, ExpandVolumeResponse, ExportVolumeRequest, ExportVolumeResponse, ImportVolumeRequest,
        ImportVolumeResponse, InspectVolumeRequest, InspectVolumeResponse,
        volume_agent_service_server::VolumeAgentService,
    },
    csi::v1::{NodeGetVolumeStatsResponse, volume_usage::Unit},
};
use runtime::tasks::Tasks;
use tokio::sync::oneshot;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use super::{User, VolumeError, VolumeManager, transfer};
use crate::csi::{CsiError, VolumeId};

/// How long a question for how full a volume is waits for other calls for it. It is answered without, then.
const PATIENCE: Duration = Duration::from_secs(2);

/// The service.
#[derive(Clone)]
pub struct VolumeService {
    volumes: Arc<VolumeManager>,
    tasks: Arc<Tasks>,
}

impl From<VolumeError> for Status {
    fn from(error: VolumeError) -> Self {
        let code = match &error {
            VolumeError::Csi(CsiError::Call { status, .. }) => status.code(),
            VolumeError::Csi(CsiError::NotRegistered { .. }) => Code::Unavailable,
            VolumeError::Csi(CsiError::NotCsi(_) | CsiError::Block(_)) => Code::InvalidArgument,
            VolumeError::InUse { .. } => Code::FailedPrecondition,
            VolumeError::Copied { .. } => Code::Aborted,
            _ => Code::Internal,
        };
        Status::new(code, error.to_string())
    }
}

impl VolumeService {
    /// Over the volumes of this node.
    pub fn new(volumes: Arc<VolumeManager>, tasks: Arc<Tasks>) -> Self {
        Self { volumes, tasks }
    }

    /// Carries work to its end also when the caller goes away: a driver's call that nobody waits for would still be in
    /// flight.
    async fn to_the_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Status>> + Send + 'static,
    ) -> Result<T, Status> {
        let (done, answer) = oneshot::channel();
        self.tasks.spawn("volume-call", async move {
            // The caller may be gone.
            drop(done.send(work.await));
        });
        answer.await.map_err(|_| Status::unavailable("the agent ends"))?
    }

    /// Says whether a volume may be mounted, for whom, and how full it is.
    pub async fn inspect(&self, request: InspectVolumeRequest) -> Result<InspectVolumeResponse, Status> {
        let id = VolumeId { driver: request.driver, volume: request.volume_handle };
        required("driver", &id.driver)?;
        required("volume_handle", &id.volume)?;
        let uses = self.volumes.uses(&id)?;
        let staged = self.volumes.drivers.may_be_staged(&id).map_err(VolumeError::from)?;
        let mut pod_uids: Vec<String> = Vec::new();
        for used in &uses {
            if let User::Pod(uid) = &used.user {
                pod_uids.push(uid.clone());
            }
        }
        let mut response = InspectVolumeResponse { in_use: staged || !uses.is_empty(), pod_uids, ..Default::default() };
        if request.stats && response.in_use {
            let volumes = self.volumes.clone();
            let published = uses.into_iter().filter(|used| used.published).map(|used| used.target).collect::<Vec<_>>();
            let stats = self.to_the_end(async move {
                let Ok(turn) = tokio::time::timeout(PATIENCE, volumes.drivers.turn(&id)).await else { return Ok(None) };
                Ok(volumes.drivers.stats(&turn, &published).await.map_err(VolumeError::from)?)
            });
            match stats.await {
                Ok(Some(stats)) => fill(&mut response, &stats),
                Ok(None) => {}
                Err(status) => tracing::warn!(%status, "how full the volume is cannot be told"),
            }
        }
        Ok(response)
    }

    /// Makes a mounted volume's file system as large as the volume.
    pub async fn expand(&self, request: ExpandVolumeRequest) -> Result<ExpandVolumeResponse, Status> {
        let volume = request.volume.ok_or_else(|| Status::invalid_argument("volume: must be given"))?;
        if request.required_bytes <= 0 {
            return Err(Status::invalid_argument("required_bytes: must be more than 0"));
        }
        let volumes = self.volumes.clone();
        self.to_the_end(async move {
            let id = VolumeId::of(&volume).map_err(VolumeError::from)?;
            let turn = volumes.drivers.turn(&id).await;
            let uses = volumes.uses(&id)?;
            let published: Vec<_> = uses.into_iter().filter(|used| used.published).map(|used| used.target).collect();
            let size = volumes.drivers.expand(&turn, &volume, &published, request.required_bytes).await;
            let size = size.map_err(VolumeError::from)?;
            Ok(ExpandVolumeResponse { staged: size.is_some(), capacity_bytes: size.unwrap_or_default() })
        })
        .await
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl VolumeAgentService for VolumeService {
    async fn inspect_volume(
        &self,
        request: Request<InspectVolumeRequest>,
    ) -> Result<Response<InspectVolumeResponse>, Status> {
        self.inspect(request.into_inner()).await.map(Response::new)
    }

    async fn expand_volume(
        &self,
        request: Request<ExpandVolumeRequest>,
    ) -> Result<Response<ExpandVolumeResponse>, Status> {
        self.expand(request.into_inner()).await.map(Response::new)
    }

    type ExportVolumeStream = Answers<ExportVolumeResponse>;

    async fn export_volume(
        &self,
        request: Request<ExportVolumeRequest>,
    ) -> Result<Response<Self::ExportVolumeStream>, Status> {
        let (sender, receiver) = transfer::exported();
        self.tasks.spawn("export", transfer::export(self.volumes.clone(), request.into_inner(), sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    type ImportVolumeStream = Answers<ImportVolumeResponse>;

    async fn import_volume(
        &self,
        request: Request<ImportVolumeRequest>,
    ) -> Result<Response<Self::ImportVolumeStream>, Status> {
        let (sender, receiver) = transfer::imported();
        self.tasks.spawn("import", transfer::import(self.volumes.clone(), request.into_inner(), sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

fn required(field: &str, value: &str) -> Result<(), Status> {
    if value.is_empty() { Err(Status::invalid_argument(format!("{field}: must be given"))) } else { Ok(()) }
}

fn fill(response: &mut InspectVolumeResponse, stats: &NodeGetVolumeStatsResponse) {
    for usage in &stats.usage {
        match usage.unit() {
            Unit::Bytes => {
                response.total_bytes = Some(usage.total);
                response.used_bytes = Some(usage.used);
                response.available_bytes = Some(usage.available);
            }
            Unit::Inodes => {
                response.total_inodes = Some(usage.total);
                response.used_inodes = Some(usage.used);
            }
            Unit::Unknown => {}
        }
    }
}
