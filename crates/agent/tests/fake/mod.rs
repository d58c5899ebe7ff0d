//! A `NodeService` in memory: the API service as agents see it, with a handle to steer and to look.

#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::{collections::BTreeMap, pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use parking_lot::Mutex;
use pb::{
    agent::v1::{
        HeartbeatRequest, HeartbeatResponse, PodBundle, PodRef, PodReport, RegisterRequest, RegisterResponse,
        ReportResult, ReportStatusRequest, ReportStatusResponse, ServiceEndpoints, WatchEndpointsRequest,
        WatchEndpointsResponse, WatchNodesRequest, WatchNodesResponse, WatchPodsRequest, WatchPodsResponse,
        node_service_server::{NodeService, NodeServiceServer},
        watch_endpoints_response, watch_nodes_response, watch_pods_response,
    },
    objects::{Node, NodeSpec, Time},
};
use runtime::{CancellationToken, Server};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

type Feed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The cluster that the fake shows. Clones share it.
#[derive(Clone)]
pub struct Cluster {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    /// Where agents connect.
    pub url: String,
    shutdown: CancellationToken,
}

#[derive(Default)]
struct State {
    nodes: BTreeMap<String, Node>,
    /// By uid, with the node.
    pods: BTreeMap<String, (String, PodBundle)>,
    stopped: BTreeMap<String, PodReport>,
    endpoints: BTreeMap<String, ServiceEndpoints>,
    watchers: Vec<(String, mpsc::Sender<Result<WatchPodsResponse, Status>>)>,
    node_watchers: Vec<mpsc::Sender<Result<WatchNodesResponse, Status>>>,
    endpoint_watchers: Vec<mpsc::Sender<Result<WatchEndpointsResponse, Status>>>,
    heartbeats: u64,
    forget_leases: bool,
    reports: u64,
}

impl Cluster {
    /// Serves on a port of its own at `host` until dropped.
    pub async fn start(host: &str) -> Self {
        let shutdown = CancellationToken::new();
        let address = format!("{host}:0").parse().unwrap();
        let (changed, _) = watch::channel(0);
        let state = Arc::new(Mutex::new(State::default()));
        let mut cluster = Self { state, changed, url: String::new(), shutdown: shutdown.clone() };
        let server = Server::new("fake", address).service(NodeServiceServer::new(cluster.clone()));
        let bound = server.bind().await.unwrap();
        cluster.url = format!("http://{}", bound.local_addr().unwrap());
        tokio::spawn(bound.serve(shutdown));
        cluster
    }

    pub fn stop(&self) {
        self.shutdown.cancel();
    }

    /// Makes a pod, or changes it.
    pub fn put_pod(&self, node: &str, bundle: PodBundle) {
        let uid = bundle.pod.as_ref().unwrap().metadata.as_ref().unwrap().uid.clone();
        let mut state = self.state.lock();
        state.pods.insert(uid.clone(), (node.to_owned(), bundle));
        state.tell(&uid);
        drop(state);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Asks for graceful deletion.
    pub fn delete_pod(&self, uid: &str) {
        let mut state = self.state.lock();
        let (_, bundle) = state.pods.get_mut(uid).unwrap();
        let meta = bundle.pod.as_mut().unwrap().metadata.as_mut().unwrap();
        meta.deletion_timestamp = Some(Time::from(jiff::Timestamp::now()));
        state.tell(uid);
    }

    /// Takes the pod away at once.
    pub fn remove_pod(&self, uid: &str) {
        let mut state = self.state.lock();
        let Some((node, bundle)) = state.pods.remove(uid) else { return };
        let change = watch_pods_response::Change::Removed(reference(&bundle));
        state.send(&node, change);
    }

    /// Puts a Service's endpoints.
    pub fn put_endpoints(&self, endpoints: ServiceEndpoints) {
        let mut state = self.state.lock();
        state.endpoints.insert(format!("{}/{}", endpoints.namespace, endpoints.name), endpoints.clone());
        let change = watch_endpoints_response::Change::Upsert(endpoints);
        let message = WatchEndpointsResponse { change: Some(change) };
        state.endpoint_watchers.retain(|watcher| watcher.try_send(Ok(message.clone())).is_ok());
    }

    /// Puts a node that has no agent.
    pub fn put_node(&self, node: Node) {
        let mut state = self.state.lock();
        state.nodes.insert(node.metadata.as_ref().unwrap().name.clone(), node.clone());
        let message = WatchNodesResponse { change: Some(watch_nodes_response::Change::Upsert(node)) };
        state.node_watchers.retain(|watcher| watcher.try_send(Ok(message.clone())).is_ok());
    }

    /// Ends all streams.
    pub fn drop_streams(&self) {
        let mut state = self.state.lock();
        state.watchers.clear();
        state.node_watchers.clear();
        state.endpoint_watchers.clear();
    }

    /// Answers heartbeats as if all leases had ended, until the next registration.
    pub fn forget_leases(&self) {
        self.state.lock().forget_leases = true;
    }

    pub fn node(&self, name: &str) -> Option<Node> {
        self.state.lock().nodes.get(name).cloned()
    }

    pub fn pod(&self, uid: &str) -> Option<PodBundle> {
        self.state.lock().pods.get(uid).map(|(_, bundle)| bundle.clone())
    }

    pub fn stopped(&self, uid: &str) -> bool {
        self.state.lock().stopped.contains_key(uid)
    }

    pub fn reports(&self) -> u64 {
        self.state.lock().reports
    }

    pub fn heartbeats(&self) -> u64 {
        self.state.lock().heartbeats
    }

    pub fn phase(&self, uid: &str) -> String {
        let pod = self.pod(uid).and_then(|bundle| bundle.pod).and_then(|pod| pod.status);
        pod.map(|status| status.phase).unwrap_or_default()
    }

    pub fn is_ready(&self, uid: &str) -> bool {
        let status = self.pod(uid).and_then(|bundle| bundle.pod).and_then(|pod| pod.status);
        status.is_some_and(|s| s.conditions.iter().any(|c| c.r#type == "Ready" && c.status == "True"))
    }

    /// Waits until `holds`, looking again after each change.
    pub async fn until(&self, what: &str, limit: Duration, holds: impl Fn(&Self) -> bool) {
        let mut changes = self.changed.subscribe();
        let wait = async {
            while !holds(self) {
                changes.changed().await.unwrap();
            }
        };
        if tokio::time::timeout(limit, wait).await.is_err() {
            let pods: Vec<_> = self.state.lock().pods.values().map(|(_, b)| b.pod.clone().unwrap()).collect();
            let status: Vec<_> = pods.iter().map(|p| serde_json::to_string_pretty(&p.status).unwrap()).collect();
            panic!("not within {limit:?}: {what}\n{}", status.join("\n"));
        }
    }
}

fn reference(bundle: &PodBundle) -> PodRef {
    let meta = bundle.pod.as_ref().unwrap().metadata.as_ref().unwrap();
    PodRef { namespace: meta.namespace.clone(), name: meta.name.clone(), uid: meta.uid.clone() }
}

impl State {
    fn tell(&mut self, uid: &str) {
        let (node, bundle) = self.pods[uid].clone();
        self.send(&node, watch_pods_response::Change::Upsert(bundle));
    }

    fn send(&mut self, node: &str, change: watch_pods_response::Change) {
        let message = WatchPodsResponse { change: Some(change) };
        self.watchers.retain(|(watched, watcher)| watched != node || watcher.try_send(Ok(message.clone())).is_ok());
    }
}

#[tonic::async_trait]
impl NodeService for Cluster {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<RegisterResponse>, Status> {
        let mut node = request.into_inner().node.unwrap();
        let mut state = self.state.lock();
        let name = node.metadata.as_ref().unwrap().name.clone();
        let number = state.nodes.keys().position(|known| *known == name).unwrap_or(state.nodes.len());
        node.spec = Some(NodeSpec { pod_cidr: format!("10.79.{number}.0/24"), ..Default::default() });
        state.nodes.insert(name, node.clone());
        state.forget_leases = false;
        drop(state);
        self.changed.send_modify(|n| *n += 1);
        Ok(Response::new(RegisterResponse { node: Some(node), lease_id: 7, lease_seconds: 1 }))
    }

    async fn heartbeat(&self, _: Request<HeartbeatRequest>) -> Result<Response<HeartbeatResponse>, Status> {
        let mut state = self.state.lock();
        state.heartbeats += 1;
        if state.forget_leases {
            return Err(Status::not_found("no such lease"));
        }
        drop(state);
        self.changed.send_modify(|n| *n += 1);
        Ok(Response::new(HeartbeatResponse { lease_seconds: 1 }))
    }

    type WatchPodsStream = Feed<WatchPodsResponse>;

    async fn watch_pods(&self, request: Request<WatchPodsRequest>) -> Result<Response<Self::WatchPodsStream>, Status> {
        let node = request.into_inner().node_name;
        let (sender, receiver) = mpsc::channel(1024);
        let mut state = self.state.lock();
        for (on, bundle) in state.pods.values() {
            if *on == node {
                let change = watch_pods_response::Change::Upsert(bundle.clone());
                sender.try_send(Ok(WatchPodsResponse { change: Some(change) })).unwrap();
            }
        }
        let synced = WatchPodsResponse { change: Some(watch_pods_response::Change::Synced(true)) };
        sender.try_send(Ok(synced)).unwrap();
        state.watchers.push((node, sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn report_status(
        &self,
        request: Request<ReportStatusRequest>,
    ) -> Result<Response<ReportStatusResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.state.lock();
        let mut results = Vec::new();
        for report in request.pods {
            state.reports += 1;
            let reference = report.pod.clone().unwrap();
            let known = state.pods.get(&reference.uid).map(|(_, bundle)| self::reference(bundle));
            assert!(known.is_none_or(|known| known == reference), "a report names another pod: {reference:?}");
            let outcome = match state.pods.get_mut(&reference.uid) {
                None => "Gone",
                Some(_) if report.stopped => {
                    let (node, bundle) = state.pods.remove(&reference.uid).unwrap();
                    let terminating = bundle.pod.as_ref().unwrap().metadata.as_ref().unwrap().deletion_timestamp;
                    assert!(terminating.is_some(), "stopped without having been asked to: {report:?}");
                    state.stopped.insert(reference.uid.clone(), report);
                    state.send(&node, watch_pods_response::Change::Removed(reference));
                    "Removed"
                }
                Some((_, bundle)) => {
                    bundle.pod.as_mut().unwrap().status = report.status;
                    state.tell(&reference.uid);
                    "Written"
                }
            };
            results.push(ReportResult { outcome: outcome.into() });
        }
        drop(state);
        self.changed.send_modify(|n| *n += 1);
        Ok(Response::new(ReportStatusResponse { results }))
    }

    type WatchEndpointsStream = Feed<WatchEndpointsResponse>;

    async fn watch_endpoints(
        &self,
        _: Request<WatchEndpointsRequest>,
    ) -> Result<Response<Self::WatchEndpointsStream>, Status> {
        let (sender, receiver) = mpsc::channel(1024);
        let mut state = self.state.lock();
        let upserts = state.endpoints.values().cloned().map(watch_endpoints_response::Change::Upsert);
        for change in upserts.chain([watch_endpoints_response::Change::Synced(true)]) {
            sender.try_send(Ok(WatchEndpointsResponse { change: Some(change) })).unwrap();
        }
        state.endpoint_watchers.push(sender);
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    type WatchNodesStream = Feed<WatchNodesResponse>;

    async fn watch_nodes(&self, _: Request<WatchNodesRequest>) -> Result<Response<Self::WatchNodesStream>, Status> {
        let (sender, receiver) = mpsc::channel(1024);
        let mut state = self.state.lock();
        let upserts = state.nodes.values().cloned().map(watch_nodes_response::Change::Upsert);
        for change in upserts.chain([watch_nodes_response::Change::Synced(true)]) {
            sender.try_send(Ok(WatchNodesResponse { change: Some(change) })).unwrap();
        }
        state.node_watchers.push(sender);
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
