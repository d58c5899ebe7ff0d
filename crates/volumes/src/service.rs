//! The service: Prepare, Provision and Usage.

use futures::future::try_join_all;
use pb::{
    objects::PersistentVolumeClaim,
    volumes::v1::{
        PrepareRequest, PrepareResponse, ProvisionRequest, ProvisionResponse, UsageRequest, UsageResponse,
        volume_service_server::VolumeService,
    },
};
use tonic::{Request, Response, Status};

use crate::{VolumeManager, provision::Pair};

/// Claims that one question may be about.
const MOST_CLAIMS: usize = 32;

fn bounded(claims: &[PersistentVolumeClaim]) -> Result<(), Status> {
    if claims.len() > MOST_CLAIMS {
        return Err(Status::invalid_argument(format!("claims: {} are more than {MOST_CLAIMS}", claims.len())));
    }
    Ok(())
}

#[tonic::async_trait]
impl VolumeService for VolumeManager {
    async fn prepare(&self, request: Request<PrepareRequest>) -> Result<Response<PrepareResponse>, Status> {
        let PrepareRequest { claims } = request.into_inner();
        bounded(&claims)?;
        self.ready().await;
        let claims = try_join_all(claims.iter().map(|claim| self.inner.prepare(claim))).await?;
        Ok(Response::new(PrepareResponse { claims }))
    }

    async fn provision(&self, request: Request<ProvisionRequest>) -> Result<Response<ProvisionResponse>, Status> {
        let ProvisionRequest { claims, node_name } = request.into_inner();
        bounded(&claims)?;
        if node_name.is_empty() {
            return Err(Status::invalid_argument("node_name is empty; ask the scheduler for a node first"));
        }
        self.ready().await;
        let pairs = try_join_all(claims.iter().map(|claim| self.inner.provision(claim, &node_name))).await?;
        Ok(Response::new(ProvisionResponse { claims: pairs.into_iter().map(Pair::into).collect() }))
    }

    async fn usage(&self, request: Request<UsageRequest>) -> Result<Response<UsageResponse>, Status> {
        self.ready().await;
        let volumes = self.inner.usage(&request.into_inner().volumes).await?;
        Ok(Response::new(UsageResponse { volumes }))
    }
}
