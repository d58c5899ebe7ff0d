//! The gRPC services over the functions of [`Shared`]: no decision is taken here.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt, TryStreamExt};
use pb::{
    agent::v1::{
        HeartbeatRequest, HeartbeatResponse, RegisterRequest, RegisterResponse, ReportStatusRequest,
        ReportStatusResponse, WatchEndpointsRequest, WatchEndpointsResponse, WatchNodesRequest, WatchNodesResponse,
        WatchPodsRequest, WatchPodsResponse, node_service_server::NodeService,
    },
    api::v1::{api_service_server::ApiService, *},
};
use tonic::{Request, Response, Status};

use crate::{Shared, error::Error, write::Part};

type Answer<T> = Result<Response<T>, Status>;
type Streaming<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What users and programs call.
#[derive(Clone)]
pub struct Api(pub Arc<Shared>);

/// What node agents call.
#[derive(Clone)]
pub struct Nodes(pub Arc<Shared>);

fn required(object: Option<Object>) -> Result<Object, Error> {
    object.ok_or_else(|| Error::field("object", "Required value"))
}

#[tonic::async_trait]
impl ApiService for Api {
    type WatchStream = Streaming<WatchResponse>;
    type LogsStream = Streaming<LogsResponse>;
    type ExecStreamStream = Streaming<ExecStreamResponse>;
    type PortForwardStream = Streaming<PortForwardResponse>;
    type CopyFromStream = Streaming<CopyFromResponse>;

    async fn exec_stream(
        &self,
        request: Request<tonic::Streaming<ExecStreamRequest>>,
    ) -> Answer<Self::ExecStreamStream> {
        Ok(Response::new(self.0.exec_stream(request.into_inner()).await?.boxed()))
    }

    async fn port_forward(
        &self,
        request: Request<tonic::Streaming<PortForwardRequest>>,
    ) -> Answer<Self::PortForwardStream> {
        Ok(Response::new(self.0.port_forward(request.into_inner()).await?.boxed()))
    }

    async fn copy_from(&self, request: Request<CopyFromRequest>) -> Answer<Self::CopyFromStream> {
        Ok(Response::new(self.0.copy_from(request.into_inner()).await?.boxed()))
    }

    async fn copy_to(&self, request: Request<tonic::Streaming<CopyToRequest>>) -> Answer<CopyToResponse> {
        Ok(Response::new(self.0.copy_to(request.into_inner()).await?))
    }

    async fn top(&self, request: Request<TopRequest>) -> Answer<TopResponse> {
        Ok(Response::new(self.0.top(request.into_inner()).await?))
    }

    async fn get(&self, request: Request<GetRequest>) -> Answer<GetResponse> {
        Ok(Response::new(self.0.get(request.into_inner()).await?))
    }

    async fn list(&self, request: Request<ListRequest>) -> Answer<ListResponse> {
        Ok(Response::new(self.0.list(request.into_inner()).await?))
    }

    async fn create(&self, request: Request<CreateRequest>) -> Answer<CreateResponse> {
        let CreateRequest { object, dry_run } = request.into_inner();
        let object = self.0.create(required(object)?, dry_run).await?;
        Ok(Response::new(CreateResponse { object: Some(object) }))
    }

    async fn update(&self, request: Request<UpdateRequest>) -> Answer<UpdateResponse> {
        let UpdateRequest { object, dry_run, subresource } = request.into_inner();
        let part = match subresource.as_str() {
            "" => Part::Main,
            "status" => Part::Status,
            other => {
                let why = format!("Unsupported value: {other:?}: supported values: \"\", \"status\"");
                return Err(Error::field("subresource", why).into());
            }
        };
        let object = self.0.update(required(object)?, part, dry_run).await?;
        Ok(Response::new(UpdateResponse { object: Some(object) }))
    }

    async fn patch(&self, request: Request<PatchRequest>) -> Answer<PatchResponse> {
        Ok(Response::new(self.0.patch(request.into_inner()).await?))
    }

    async fn apply(&self, request: Request<ApplyRequest>) -> Answer<ApplyResponse> {
        Ok(Response::new(self.0.apply(request.into_inner()).await?))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Answer<DeleteResponse> {
        Ok(Response::new(self.0.delete(request.into_inner()).await?))
    }

    async fn delete_collection(&self, request: Request<DeleteCollectionRequest>) -> Answer<DeleteCollectionResponse> {
        Ok(Response::new(self.0.delete_collection(request.into_inner()).await?))
    }

    async fn watch(&self, request: Request<WatchRequest>) -> Answer<Self::WatchStream> {
        let events = self.0.watch(request.into_inner()).await?;
        Ok(Response::new(events.map_err(Status::from).boxed()))
    }

    async fn get_scale(&self, request: Request<GetScaleRequest>) -> Answer<GetScaleResponse> {
        Ok(Response::new(self.0.get_scale(request.into_inner()).await?))
    }

    async fn update_scale(&self, request: Request<UpdateScaleRequest>) -> Answer<UpdateScaleResponse> {
        Ok(Response::new(self.0.update_scale(request.into_inner()).await?))
    }

    async fn remove_ordinal(&self, request: Request<RemoveOrdinalRequest>) -> Answer<RemoveOrdinalResponse> {
        Ok(Response::new(self.0.remove_ordinal(request.into_inner()).await?))
    }

    async fn undo_rollout(&self, request: Request<UndoRolloutRequest>) -> Answer<UndoRolloutResponse> {
        Ok(Response::new(self.0.undo_rollout(request.into_inner()).await?))
    }

    async fn evict(&self, request: Request<EvictRequest>) -> Answer<EvictResponse> {
        Ok(Response::new(self.0.evict(request.into_inner()).await?))
    }

    async fn logs(&self, request: Request<LogsRequest>) -> Answer<Self::LogsStream> {
        Ok(Response::new(self.0.logs(request.into_inner()).await?.boxed()))
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Answer<ExecResponse> {
        Ok(Response::new(self.0.exec(request.into_inner()).await?))
    }

    async fn why(&self, request: Request<WhyRequest>) -> Answer<WhyResponse> {
        Ok(Response::new(self.0.why(request.into_inner()).await?))
    }

    async fn snapshot_volumes(&self, request: Request<SnapshotVolumesRequest>) -> Answer<SnapshotVolumesResponse> {
        Ok(Response::new(self.0.snapshot_volumes(request.into_inner()).await?))
    }

    async fn restore_volumes(&self, request: Request<RestoreVolumesRequest>) -> Answer<RestoreVolumesResponse> {
        Ok(Response::new(self.0.restore_volumes(request.into_inner()).await?))
    }

    async fn move_volumes(&self, request: Request<MoveVolumesRequest>) -> Answer<MoveVolumesResponse> {
        Ok(Response::new(self.0.move_volumes(request.into_inner()).await?))
    }

    async fn volume_usage(&self, request: Request<VolumeUsageRequest>) -> Answer<VolumeUsageResponse> {
        Ok(Response::new(self.0.volume_usage(request.into_inner()).await?))
    }
}

#[tonic::async_trait]
impl NodeService for Nodes {
    type WatchPodsStream = Streaming<WatchPodsResponse>;
    type WatchEndpointsStream = Streaming<WatchEndpointsResponse>;
    type WatchNodesStream = Streaming<WatchNodesResponse>;

    async fn register(&self, request: Request<RegisterRequest>) -> Answer<RegisterResponse> {
        Ok(Response::new(self.0.register(request.into_inner()).await?))
    }

    async fn heartbeat(&self, request: Request<HeartbeatRequest>) -> Answer<HeartbeatResponse> {
        Ok(Response::new(self.0.heartbeat(request.into_inner()).await?))
    }

    async fn watch_pods(&self, request: Request<WatchPodsRequest>) -> Answer<Self::WatchPodsStream> {
        let changes = self.0.watch_pods(request.into_inner()).await?;
        Ok(Response::new(changes.map_err(Status::from).boxed()))
    }

    async fn report_status(&self, request: Request<ReportStatusRequest>) -> Answer<ReportStatusResponse> {
        Ok(Response::new(self.0.report_status(request.into_inner()).await?))
    }

    async fn watch_endpoints(&self, _: Request<WatchEndpointsRequest>) -> Answer<Self::WatchEndpointsStream> {
        let changes = self.0.watch_endpoints().await;
        Ok(Response::new(changes.map_err(Status::from).boxed()))
    }

    async fn watch_nodes(&self, _: Request<WatchNodesRequest>) -> Answer<Self::WatchNodesStream> {
        let changes = self.0.watch_nodes().await?;
        Ok(Response::new(changes.map_err(Status::from).boxed()))
    }
}
