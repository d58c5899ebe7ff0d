//! The API service in this process, over a store of choice, behind a real socket.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "tests")]
#![allow(dead_code, reason = "each test file uses a part")]

use std::{sync::Arc, time::Duration};

use api::{Policy, Settings, Shared};
use pb::{
    agent::v1::node_service_client::NodeServiceClient,
    api::v1::{Object as AnyObject, api_service_client::ApiServiceClient, *},
    objects::*,
};
use runtime::{CancellationToken, Server, Tasks, channel, channel::Channel};
use serde_json::{Value, json};
use store::{MemStore, Store, testing::EtcdProcess};
use tokio_stream::StreamExt;

/// How long anything may take that should happen soon.
pub const SOON: Duration = Duration::from_secs(10);

pub struct Harness {
    pub store: Arc<dyn Store>,
    pub api: ApiServiceClient<Channel>,
    pub nodes: NodeServiceClient<Channel>,
    stop: CancellationToken,
    _tasks: Tasks,
    _etcd: Option<EtcdProcess>,
}

impl Drop for Harness {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Harness {
    pub async fn over_memory() -> Self {
        Self::over(Arc::new(MemStore::new()), None).await
    }

    pub async fn over_etcd() -> Self {
        let etcd = EtcdProcess::start().await.unwrap();
        let store = Arc::new(etcd.store().await.unwrap());
        Self::over(store, Some(etcd)).await
    }

    pub async fn over(store: Arc<dyn Store>, etcd: Option<EtcdProcess>) -> Self {
        let stop = CancellationToken::new();
        let tasks = Tasks::new(&stop);
        let settings = Settings {
            volumes: "http://127.0.0.1:1".into(),
            cluster_domain: "cluster.local".into(),
            pod_cidr: "10.77.0.0/16".parse().unwrap(),
            service_cidr: "10.96.0.0/27".parse().unwrap(),
            node_lease: Duration::from_secs(10),
            policy: Policy::default(),
        };
        let shared = Shared::start(store.clone(), settings, &tasks).await.unwrap();
        let bound = shared.server(Server::new("api", "127.0.0.1:0".parse().unwrap())).bind().await.unwrap();
        let url = format!("http://{}", bound.local_addr().unwrap());
        tokio::spawn(bound.serve(stop.clone()));
        let channel = channel::connect_streaming(&url).unwrap();
        Self {
            store,
            api: ApiServiceClient::new(channel.clone()),
            nodes: NodeServiceClient::new(channel),
            stop,
            _tasks: tasks,
            _etcd: etcd,
        }
    }

    /// Stops the service, as a signal would.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    pub fn api(&self) -> ApiServiceClient<Channel> {
        self.api.clone()
    }

    pub fn nodes(&self) -> NodeServiceClient<Channel> {
        self.nodes.clone()
    }

    pub async fn apply(&self, manifests: &[Value]) -> Result<Vec<ApplyResult>, tonic::Status> {
        let manifests = manifests.iter().map(|manifest| manifest.to_string().into_bytes()).collect();
        let request = ApplyRequest { manifests, ..Default::default() };
        Ok(self.api().apply(request).await?.into_inner().results)
    }

    pub async fn create<T: pb::Object>(&self, object: T) -> Result<T, tonic::Status> {
        let request = CreateRequest { object: Some(object.into_any()), dry_run: false };
        let made = self.api().create(request).await?.into_inner().object.unwrap();
        Ok(T::from_any(made).unwrap())
    }

    pub async fn get<T: pb::Object>(&self, name: &str) -> Result<T, tonic::Status> {
        let request = GetRequest {
            kind: T::KIND.name().into(),
            namespace: "default".into(),
            name: name.into(),
            ..GetRequest::default()
        };
        Ok(T::from_any(self.api().get(request).await?.into_inner().object.unwrap()).unwrap())
    }

    pub async fn delete(&self, kind: &str, name: &str) -> Result<DeleteResponse, tonic::Status> {
        let request = DeleteRequest { kind: kind.into(), name: name.into(), ..Default::default() };
        Ok(self.api().delete(request).await?.into_inner())
    }

    pub async fn list(&self, request: ListRequest) -> ListResponse {
        self.api().list(request).await.unwrap().into_inner()
    }

    pub async fn watch(&self, request: WatchRequest) -> tonic::Streaming<WatchResponse> {
        self.api().watch(request).await.unwrap().into_inner()
    }
}

/// The next message of a stream that must come soon.
pub async fn next<T>(stream: &mut tonic::Streaming<T>) -> T {
    tokio::time::timeout(SOON, stream.next()).await.expect("nothing came").expect("the stream ended").unwrap()
}

/// What a watch told, in short: type, name, revision to resume from.
pub fn told(response: &WatchResponse) -> (EventType, String, String) {
    let name = response.object.as_ref().map(|object| object.meta().name.clone()).unwrap_or_default();
    (response.r#type(), name, response.resource_version.clone())
}

pub fn config_map(name: &str, labels: &[(&str, &str)]) -> ConfigMap {
    ConfigMap {
        metadata: Some(ObjectMeta {
            name: name.into(),
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub fn pod(name: &str, node: &str) -> Pod {
    Pod {
        metadata: Some(ObjectMeta {
            name: name.into(),
            labels: [("app".to_owned(), "nginx".to_owned())].into(),
            ..Default::default()
        }),
        spec: Some(PodSpec {
            node_name: node.into(),
            hostname: name.into(),
            subdomain: "nginx".into(),
            containers: vec![Container { name: "nginx".into(), image: "nginx".into(), ..Default::default() }],
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub fn web() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "web"},
        "spec": {
            "serviceName": "nginx", "replicas": 3,
            "selector": {"matchLabels": {"app": "nginx"}},
            "template": {
                "metadata": {"labels": {"app": "nginx"}},
                "spec": {"containers": [{
                    "name": "nginx", "image": "nginx", "ports": [{"containerPort": 80, "name": "web"}],
                    "volumeMounts": [{"name": "www", "mountPath": "/usr/share/nginx/html"}],
                }]},
            },
            "volumeClaimTemplates": [{
                "metadata": {"name": "www"},
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
            }],
        },
    })
}

pub fn nginx() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "nginx", "labels": {"app": "nginx"}},
        "spec": {"ports": [{"port": 80, "name": "web"}], "clusterIP": "None", "selector": {"app": "nginx"}},
    })
}

pub fn violations(status: &tonic::Status) -> Vec<(String, String)> {
    use tonic_types::StatusExt;
    let details = status.get_error_details();
    let found = details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
    found.into_iter().map(|violation| (violation.field, violation.description)).collect()
}

pub fn name_of(object: &AnyObject) -> String {
    object.meta().name.clone()
}

/// The same test over both stores.
#[macro_export]
macro_rules! over_both_stores {
    ($($scenario:ident),* $(,)?) => {
        mod over_memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $scenario() { super::$scenario(&super::common::Harness::over_memory().await).await; })*
        }
        mod over_etcd {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $scenario() { super::$scenario(&super::common::Harness::over_etcd().await).await; })*
        }
    };
}
