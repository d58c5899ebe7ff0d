//! What the API service does when what is around it fails: etcd away, a slow reader, an object that nobody can read, an
//! agent that answers or does not.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::{pin::Pin, sync::Arc};

use common::*;
use futures::{Stream, StreamExt as _, stream};
use pb::{
    ObjectExt,
    agent::v1::{
        self as agent, WatchPodsRequest,
        agent_service_server::{AgentService, AgentServiceServer},
    },
    api::v1::*,
    objects::*,
};
use store::{Key, MemStore, Op, Txn, testing::EtcdProcess};
use tonic::{Code, Request, Response, Status};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_lives_through_a_restart_of_etcd() {
    let mut etcd = EtcdProcess::start().await.unwrap();
    let store = Arc::new(etcd.store().await.unwrap());
    let h = Harness::over(store, None).await;
    let mut watch = h.watch(WatchRequest { kind: "ConfigMap".into(), ..Default::default() }).await;
    assert_eq!(next(&mut watch).await.r#type(), EventType::Bookmark);
    for at in 0..3 {
        h.create(config_map(&format!("a{at}"), &[])).await.unwrap();
        etcd.restart().await.unwrap();
        h.create(config_map(&format!("b{at}"), &[])).await.unwrap();
        assert_eq!(told(&next(&mut watch).await).1, format!("a{at}"));
        assert_eq!(told(&next(&mut watch).await).1, format!("b{at}"));
    }
    etcd.kill9();
    let refused = h.create(config_map("c", &[])).await.unwrap_err();
    assert!(matches!(refused.code(), Code::Unavailable | Code::Unknown), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_can_read_is_not_absent() {
    let store = Arc::new(MemStore::new());
    let h = Harness::over(store.clone(), None).await;
    let kept = h.create(pod("web-0", "n1")).await.unwrap();
    let key = Key::object(pb::Kind::Pod, "default", "web-1");
    let garbage = Op::Put(key.clone(), vec![0xff; 9].into(), None);
    let revision = match store.commit(&Txn { ops: vec![garbage], ..Default::default() }).unwrap() {
        store::TxnOutcome::Committed(revision) => revision,
        store::TxnOutcome::Conflict => panic!(),
    };
    let watch = h.watch(WatchRequest {
        kind: "Pod".into(),
        resource_version: (revision - 1).to_string(),
        ..Default::default()
    });
    let told = watch.await.message().await.unwrap_err();
    assert_eq!(told.code(), Code::DataLoss);
    let read = h.get::<Pod>("web-1").await.unwrap_err();
    assert_eq!(read.code(), Code::DataLoss);
    assert!(read.message().contains(key.as_str()), "{}", read.message());
    let list = h.api().list(ListRequest { kind: "Pod".into(), ..Default::default() }).await.unwrap_err();
    assert_eq!(list.code(), Code::DataLoss);
    // Nobody knows whose pod it is: no node may be told that it has all of its pods.
    let pods = h.nodes().watch_pods(WatchPodsRequest { node_name: "n1".into() }).await.unwrap_err();
    assert_eq!(pods.code(), Code::DataLoss);
    assert_eq!(h.get::<Pod>("web-0").await.unwrap(), kept);
    let again = h.create(pod("web-1", "n1")).await.unwrap_err();
    assert_eq!(again.code(), Code::DataLoss, "{again}");
    assert_eq!(h.delete("pod", "web-1").await.unwrap_err().code(), Code::DataLoss);
    let force =
        DeleteRequest { kind: "pod".into(), name: "web-1".into(), grace_period_seconds: Some(0), ..Default::default() };
    assert!(h.api().delete(force).await.unwrap().into_inner().gone);
    assert_eq!(h.list(ListRequest { kind: "Pod".into(), ..Default::default() }).await.items.len(), 1);
}

/// An agent that answers what it was asked.
struct Agent;

type Pieces = Pin<Box<dyn Stream<Item = Result<agent::LogsResponse, Status>> + Send>>;

#[tonic::async_trait]
impl AgentService for Agent {
    type LogsStream = Pieces;
    type ExecStreamStream = Pin<Box<dyn Stream<Item = Result<agent::ExecStreamResponse, Status>> + Send>>;
    type PortForwardStream = Pin<Box<dyn Stream<Item = Result<agent::PortForwardResponse, Status>> + Send>>;
    type CopyFromStream = Pin<Box<dyn Stream<Item = Result<agent::CopyFromResponse, Status>> + Send>>;

    async fn exec_stream(
        &self,
        _request: Request<tonic::Streaming<agent::ExecStreamRequest>>,
    ) -> Result<Response<Self::ExecStreamStream>, Status> {
        Err(Status::unimplemented("not asked here"))
    }

    async fn port_forward(
        &self,
        _request: Request<tonic::Streaming<agent::PortForwardRequest>>,
    ) -> Result<Response<Self::PortForwardStream>, Status> {
        Err(Status::unimplemented("not asked here"))
    }

    async fn copy_from(
        &self,
        _request: Request<agent::CopyFromRequest>,
    ) -> Result<Response<Self::CopyFromStream>, Status> {
        Err(Status::unimplemented("not asked here"))
    }

    async fn copy_to(
        &self,
        _request: Request<tonic::Streaming<agent::CopyToRequest>>,
    ) -> Result<Response<agent::CopyToResponse>, Status> {
        Err(Status::unimplemented("not asked here"))
    }

    async fn usage(&self, _request: Request<agent::UsageRequest>) -> Result<Response<agent::UsageResponse>, Status> {
        Err(Status::unimplemented("not asked here"))
    }

    async fn logs(&self, request: Request<agent::LogsRequest>) -> Result<Response<Pieces>, Status> {
        let agent::LogsRequest { request, pod_uid } = request.into_inner();
        let request = request.unwrap();
        let lines = [format!("{}/{}", request.pod, request.container), pod_uid];
        let pieces = stream::iter(lines).map(|line| {
            let response = Some(LogsResponse { data: line.into_bytes() });
            Ok(agent::LogsResponse { response })
        });
        Ok(Response::new(pieces.boxed()))
    }

    async fn exec(&self, request: Request<agent::ExecRequest>) -> Result<Response<agent::ExecResponse>, Status> {
        let stdout = request.into_inner().request.unwrap().command.join(" ").into_bytes();
        Ok(Response::new(agent::ExecResponse { response: Some(ExecResponse { stdout, ..Default::default() }) }))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_and_commands_go_to_the_agent_of_the_pod() {
    let h = Harness::over_memory().await;
    let stop = runtime::CancellationToken::new();
    let bound = runtime::Server::new("agent", "127.0.0.1:0".parse().unwrap())
        .service(AgentServiceServer::new(Agent))
        .bind()
        .await
        .unwrap();
    let port = bound.local_addr().unwrap().port().into();
    tokio::spawn(bound.serve(stop.clone()));
    let node = Node {
        metadata: Some(ObjectMeta { name: "n1".into(), ..Default::default() }),
        status: Some(NodeStatus {
            addresses: vec![NodeAddress { r#type: "InternalIP".into(), address: "127.0.0.1".into() }],
            daemon_endpoints: Some(NodeDaemonEndpoints { agent_endpoint: Some(DaemonEndpoint { port }) }),
            ..Default::default()
        }),
        ..Default::default()
    };
    h.nodes().register(agent::RegisterRequest { node: Some(node) }).await.unwrap();
    let web = h.create(pod("web-0", "n1")).await.unwrap();
    h.create(pod("web-1", "")).await.unwrap();
    h.create(pod("web-2", "n9")).await.unwrap();
    let logs =
        |pod: &str, container: &str| LogsRequest { pod: pod.into(), container: container.into(), ..Default::default() };
    let pieces = h.api().logs(logs("web-0", "")).await.unwrap().into_inner();
    let pieces: Vec<_> = pieces.map(|piece| String::from_utf8(piece.unwrap().data).unwrap()).collect().await;
    assert_eq!(pieces, ["web-0/nginx", web.uid()]);
    let exec = ExecRequest { pod: "web-0".into(), command: vec!["echo".into(), "hi".into()], ..Default::default() };
    assert_eq!(h.api().exec(exec).await.unwrap().into_inner().stdout, b"echo hi");
    for (pod, container, code, says) in [
        ("web-9", "", Code::NotFound, "web-9"),
        ("web-1", "", Code::FailedPrecondition, "berth why web-1"),
        ("web-2", "", Code::FailedPrecondition, "node n9"),
        ("web-0", "sidecar", Code::InvalidArgument, "nginx"),
    ] {
        let status = h.api().logs(logs(pod, container)).await.map(drop).unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(says), "{status}");
    }
    stop.cancel();
    assert_eq!(web.name(), "web-0");
}
