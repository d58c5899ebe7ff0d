//! What the controller asks of others on the way of one ordinal: a node, and volumes.
//!
//! In production the ports are gRPC clients; tests and the simulator answer in-process. Both sides answer from memory
//! and write nothing: their answers carry guards, and the controller's transaction compares them.

use async_trait::async_trait;
use pb::{
    scheduler::v1::{PlaceRequest, PlaceResponse, scheduler_service_client::SchedulerServiceClient},
    volumes::v1::{
        PrepareRequest, PrepareResponse, ProvisionRequest, ProvisionResponse,
        volume_service_client::VolumeServiceClient,
    },
};
use runtime::channel::Channel;

/// A service did not answer, or refused.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the {service} did not answer {call}: {reason}; the controller asks again, check that the {service} runs")]
pub struct PortError {
    /// Which service.
    pub service: &'static str,
    /// Which call.
    pub call: &'static str,
    /// What came back.
    pub reason: String,
}

/// Chooses nodes.
#[async_trait]
pub trait Placer: Send + Sync + 'static {
    /// Chooses a node for a pod, or says why there is none.
    async fn place(&self, request: PlaceRequest) -> Result<PlaceResponse, PortError>;
}

/// Finds and makes volumes.
#[async_trait]
pub trait Volumes: Send + Sync + 'static {
    /// Says which volumes claims have or get, and from where these can be reached.
    async fn prepare(&self, request: PrepareRequest) -> Result<PrepareResponse, PortError>;

    /// Makes the volumes of claims whose node is known. The same claims (by uid) give the same volumes.
    async fn provision(&self, request: ProvisionRequest) -> Result<ProvisionResponse, PortError>;
}

/// The scheduler service. The channel holds the deadline of each call.
pub struct RemotePlacer(pub SchedulerServiceClient<Channel>);

#[async_trait]
impl Placer for RemotePlacer {
    async fn place(&self, request: PlaceRequest) -> Result<PlaceResponse, PortError> {
        let answer = self.0.clone().place(request).await;
        answer.map(tonic::Response::into_inner).map_err(|status| refused("scheduler", "Place", &status))
    }
}

/// The volume manager. The channel holds the deadline of each call.
pub struct RemoteVolumes(pub VolumeServiceClient<Channel>);

#[async_trait]
impl Volumes for RemoteVolumes {
    async fn prepare(&self, request: PrepareRequest) -> Result<PrepareResponse, PortError> {
        let answer = self.0.clone().prepare(request).await;
        answer.map(tonic::Response::into_inner).map_err(|status| refused("volume manager", "Prepare", &status))
    }

    async fn provision(&self, request: ProvisionRequest) -> Result<ProvisionResponse, PortError> {
        let answer = self.0.clone().provision(request).await;
        answer.map(tonic::Response::into_inner).map_err(|status| refused("volume manager", "Provision", &status))
    }
}

fn refused(service: &'static str, call: &'static str, status: &tonic::Status) -> PortError {
    PortError { service, call, reason: format!("{:?}: {}", status.code(), status.message()) }
}
