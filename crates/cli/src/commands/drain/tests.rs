//! A drain against an API service in this process, with a node that obeys.

use std::sync::Arc;

use api::{Policy, Settings, Shared};
use pb::{
    api::v1::{ApplyRequest, CreateRequest, DeleteRequest, UpdateRequest},
    objects::{Condition, ObjectMeta, OwnerReference},
};
use runtime::{CancellationToken, Server, Tasks};
use serde_json::{Value, json};
use store::MemStore;

use super::*;
use crate::client::ClientArgs;

struct Cluster {
    client: Client,
    stop: CancellationToken,
    _tasks: Tasks,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Cluster {
    async fn start() -> Self {
        let stop = CancellationToken::new();
        let tasks = Tasks::new(&stop);
        let settings = Settings {
            volumes: "http://127.0.0.1:1".into(),
            cluster_domain: "cluster.local".into(),
            pod_cidr: "10.77.0.0/16".parse().unwrap(),
            service_cidr: "10.96.0.0/24".parse().unwrap(),
            node_lease: Duration::from_secs(10),
            policy: Policy::default(),
        };
        let shared = Shared::start(Arc::new(MemStore::new()), settings, &tasks).await.unwrap();
        let bound = shared.server(Server::new("api", "127.0.0.1:0".parse().unwrap())).bind().await.unwrap();
        let server = format!("http://{}", bound.local_addr().unwrap());
        tokio::spawn(bound.serve(stop.clone()));
        let client = ClientArgs { server, namespace: "default".into() }.connect().unwrap();
        let cluster = Self { client, stop, _tasks: tasks };
        cluster.apply(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}})).await;
        cluster
    }

    async fn apply(&self, manifest: Value) {
        let request = ApplyRequest { manifests: vec![manifest.to_string().into_bytes()], ..ApplyRequest::default() };
        self.client.api.clone().apply(request).await.unwrap();
    }

    /// A ready pod on the node.
    async fn pod(&self, name: &str, owned: bool) {
        let owner = OwnerReference {
            api_version: "apps/v1".into(),
            kind: "StatefulSet".into(),
            name: "db".into(),
            uid: "u".into(),
            controller: Some(true),
            ..OwnerReference::default()
        };
        let spec = json!({"nodeName": "n1", "containers": [{"name": "a", "image": "a"}]});
        let json = json!({"metadata": {"name": name, "labels": {"app": "db"}}, "spec": spec});
        let mut pod = Pod::from_any(AnyObject::from_json(Kind::Pod, json).unwrap()).unwrap();
        pod.metadata.get_or_insert_with(ObjectMeta::default).owner_references.extend(owned.then_some(owner));
        let request = CreateRequest { object: Some(pod.into_any()), dry_run: false };
        let made = self.client.api.clone().create(request).await.unwrap().into_inner().object.unwrap();
        let mut pod = Pod::from_any(made).unwrap();
        let ready = Condition { r#type: "Ready".into(), status: "True".into(), ..Condition::default() };
        let status = pod.status.get_or_insert_default();
        (status.phase, status.conditions) = ("Running".into(), vec![ready]);
        let request =
            UpdateRequest { object: Some(pod.into_any()), subresource: "status".into(), ..UpdateRequest::default() };
        self.client.api.clone().update(request).await.unwrap();
    }

    async fn pods(&self) -> Vec<String> {
        let request = pb::api::v1::ListRequest { kind: "Pod".into(), ..Default::default() };
        let (pods, _) = self.client.list(request).await.unwrap();
        pods.iter().map(|pod| pod.meta().name.clone()).collect()
    }

    async fn closed(&self) -> bool {
        let node = self.client.get(Kind::Node, "n1").await.unwrap();
        Node::peek(&node).unwrap().spec.as_ref().is_some_and(|spec| spec.unschedulable)
    }

    /// Lets pods that were asked to go be gone, as their node does, for as long as the cluster lives.
    fn obey(&self) {
        let (client, stop) = (self.client.clone(), self.stop.clone());
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            let all = WatchRequest { kind: "Pod".into(), ..WatchRequest::default() };
            let mut pods = Follow::new(&client, all);
            while let Ok(told) = pods.next().await {
                let Told::Is(object) = told else { continue };
                if object.meta().deletion_timestamp.is_some() {
                    let request = DeleteRequest {
                        kind: "Pod".into(),
                        name: object.meta().name.clone(),
                        grace_period_seconds: Some(0),
                        ..DeleteRequest::default()
                    };
                    drop(client.api.clone().delete(request).await);
                }
            }
        }));
    }
}

fn args(more: &[&str]) -> Args {
    within("20s", more)
}

fn within(timeout: &str, more: &[&str]) -> Args {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }
    let line = ["drain", "n1", "--timeout", timeout].into_iter().chain(more.iter().copied());
    <Line as clap::Parser>::parse_from(line).args
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_go_as_far_as_the_budget_lets_them_and_then_the_node_is_empty() {
    let cluster = Cluster::start().await;
    for name in ["db-0", "db-1", "db-2"] {
        cluster.pod(name, true).await;
    }
    cluster
        .apply(json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "db"},
            "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "db"}}},
        }))
        .await;
    cluster.obey();
    // One pod may go; the others are held until the budget asks for less.
    let gave_up = drain(&cluster.client, &within("2s", &[]), "n1").await.unwrap_err().to_string();
    assert!(gave_up.starts_with("timed out") && gave_up.contains("disruption budget db"), "{gave_up}");
    assert_eq!(cluster.pods().await.len(), 2);

    let arguments = args(&[]);
    let drained = run(cluster.client.clone(), arguments);
    let relaxed = async {
        // The drain is under way when it has closed the node.
        let node = WatchRequest { kind: "Node".into(), ..WatchRequest::default() };
        let mut node = Follow::new(&cluster.client, node);
        while !matches!(node.next().await.unwrap(), Told::Is(node) if Node::peek(&node).unwrap().spec.as_ref().is_some_and(|s| s.unschedulable))
        {
        }
        let request = DeleteRequest { kind: "PodDisruptionBudget".into(), name: "db".into(), ..Default::default() };
        cluster.client.api.clone().delete(request).await.unwrap();
    };
    let (code, ()) = tokio::join!(drained, relaxed);
    assert_eq!(format!("{:?}", code.unwrap()), format!("{:?}", ExitCode::SUCCESS));
    assert_eq!(cluster.pods().await, [""; 0]);
    assert!(cluster.closed().await);
    cordon::set(&cluster.client, "n1", false, false).await.unwrap();
    assert!(!cluster.closed().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_goes_while_something_would_be_lost() {
    let cluster = Cluster::start().await;
    cluster.pod("db-0", true).await;
    cluster.pod("alone", false).await;
    cluster.obey();
    let refused = drain(&cluster.client, &args(&[]), "n1").await.unwrap_err().to_string();
    assert!(refused.contains("pod default/alone belongs to no set") && refused.contains("--force"), "{refused}");
    assert!(!refused.contains("db-0"), "{refused}");
    drain(&cluster.client, &args(&["--dry-run", "--force"]), "n1").await.unwrap();
    assert_eq!(cluster.pods().await.len(), 2, "nothing was asked to go");
    drain(&cluster.client, &args(&["-l", "app!=db", "--force"]), "n1").await.unwrap();
    assert_eq!(cluster.pods().await.len(), 2, "none has other labels");
    drain(&cluster.client, &args(&["--force"]), "n1").await.unwrap();
    assert_eq!(cluster.pods().await, [""; 0]);
}
