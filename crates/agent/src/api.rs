//! The agent's one way to the rest of Berth: the API service's `NodeService`.

use std::{future::Future, time::Duration};

use pb::agent::v1::{
    HeartbeatRequest, HeartbeatResponse, RegisterRequest, RegisterResponse, ReportStatusRequest, ReportStatusResponse,
    WatchEndpointsRequest, WatchEndpointsResponse, WatchNodesRequest, WatchNodesResponse, WatchPodsRequest,
    WatchPodsResponse, node_service_client::NodeServiceClient,
};
use runtime::channel::{BadAddress, Channel};
use tonic::{Response, Status, Streaming};

/// The most that a bundle with its ConfigMaps and Secrets can weigh.
const MESSAGE_LIMIT: usize = 16 * 1024 * 1024;

/// How long the server may take to open a stream.
const OPENING: Duration = Duration::from_secs(10);

/// A client of `NodeService`. Clones share the connection.
#[derive(Clone, Debug)]
pub struct NodeApi {
    unary: NodeServiceClient<Channel>,
    streams: NodeServiceClient<Channel>,
}

impl NodeApi {
    /// Connects when first used.
    pub fn connect(url: &str) -> Result<Self, BadAddress> {
        let client = |channel| NodeServiceClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT);
        Ok(Self {
            unary: client(runtime::channel::connect(url)?),
            streams: client(runtime::channel::connect_streaming(url)?),
        })
    }

    /// Makes the node known.
    pub async fn register(&mut self, request: RegisterRequest) -> Result<RegisterResponse, Status> {
        self.unary.register(request).await.map(Response::into_inner)
    }

    /// Renews the lease.
    pub async fn heartbeat(&mut self, request: HeartbeatRequest) -> Result<HeartbeatResponse, Status> {
        self.unary.heartbeat(request).await.map(Response::into_inner)
    }

    /// Sends what is observed.
    pub async fn report_status(&mut self, request: ReportStatusRequest) -> Result<ReportStatusResponse, Status> {
        self.unary.report_status(request).await.map(Response::into_inner)
    }

    /// The node's pods.
    pub async fn watch_pods(mut self, node: String) -> Result<Streaming<WatchPodsResponse>, Status> {
        opening(self.streams.watch_pods(WatchPodsRequest { node_name: node })).await
    }

    /// What stands behind the Services.
    pub async fn watch_endpoints(mut self) -> Result<Streaming<WatchEndpointsResponse>, Status> {
        opening(self.streams.watch_endpoints(WatchEndpointsRequest {})).await
    }

    /// The other nodes.
    pub async fn watch_nodes(mut self) -> Result<Streaming<WatchNodesResponse>, Status> {
        opening(self.streams.watch_nodes(WatchNodesRequest {})).await
    }
}

async fn opening<M>(
    call: impl Future<Output = Result<Response<Streaming<M>>, Status>>,
) -> Result<Streaming<M>, Status> {
    match tokio::time::timeout(OPENING, call).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("the API service did not open the stream within 10 s")),
    }
}
