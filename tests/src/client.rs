//! A user's view of a cluster, over gRPC.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use pb::{
    Kind, Object, ObjectExt,
    api::v1::{
        ApplyRequest, ApplyResponse, DeleteRequest, EventType, ExecRequest, ExecResponse, GetRequest, ListRequest,
        UpdateScaleRequest, WatchRequest, api_service_client::ApiServiceClient,
    },
    objects::Pod,
};
use runtime::channel::{Channel, connect, connect_streaming};

/// The namespace that tests use.
pub const NAMESPACE: &str = "default";

/// For an answer beyond what the work itself may take.
const ON_THE_WAY: Duration = Duration::from_secs(15);

/// A user.
#[derive(Clone)]
pub struct Client {
    calls: ApiServiceClient<Channel>,
    streams: ApiServiceClient<Channel>,
}

/// What became of a pod, and when a watching user heard of it.
#[derive(Clone, Debug)]
pub struct Heard {
    /// The pod, as it was then.
    pub pod: Pod,
    /// What happened.
    pub event: EventType,
    /// When it was heard.
    pub at: Instant,
}

impl Client {
    /// A user of the API service at `http://HOST:PORT`.
    pub fn new(server: &str) -> Result<Self> {
        Ok(Self {
            calls: ApiServiceClient::new(connect(server)?),
            streams: ApiServiceClient::new(connect_streaming(server)?),
        })
    }

    /// The service itself, for calls that have no words of their own here.
    pub fn api(&self) -> ApiServiceClient<Channel> {
        self.calls.clone()
    }

    /// Applies manifests.
    pub async fn apply(&self, manifests: &[serde_json::Value]) -> Result<ApplyResponse, tonic::Status> {
        let manifests = manifests.iter().map(|manifest| manifest.to_string().into_bytes()).collect();
        let request = ApplyRequest { manifests, namespace: NAMESPACE.to_owned(), ..ApplyRequest::default() };
        Ok(self.calls.clone().apply(request).await?.into_inner())
    }

    /// All objects of a kind, with the revision that they show.
    pub async fn list<T: Object>(&self, label_selector: &str) -> Result<(Vec<T>, String)> {
        let mut request = ListRequest {
            kind: T::KIND.name().to_owned(),
            namespace: if T::KIND.namespaced() { NAMESPACE.to_owned() } else { String::new() },
            label_selector: label_selector.to_owned(),
            ..ListRequest::default()
        };
        let mut items = Vec::new();
        loop {
            let page = self.calls.clone().list(request.clone()).await?.into_inner();
            for item in page.items {
                items.push(T::from_any(item).map_err(|_| anyhow::anyhow!("an object of another kind in the list"))?);
            }
            if page.r#continue.is_empty() {
                return Ok((items, page.resource_version));
            }
            request.r#continue = page.r#continue;
        }
    }

    /// One object; None if there is none of this name.
    pub async fn get<T: Object>(&self, name: &str) -> Result<Option<T>> {
        let request = GetRequest {
            kind: T::KIND.name().to_owned(),
            namespace: if T::KIND.namespaced() { NAMESPACE.to_owned() } else { String::new() },
            name: name.to_owned(),
            ..GetRequest::default()
        };
        match self.calls.clone().get(request).await {
            Ok(response) => {
                let object = response.into_inner().object.context("an empty answer")?;
                Ok(Some(T::from_any(object).map_err(|_| anyhow::anyhow!("an object of another kind"))?))
            }
            Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
            Err(status) => Err(status.into()),
        }
    }

    /// Waits until the object of this name is as `done` wants it, and gives it.
    pub async fn until<T: Object + std::fmt::Debug>(
        &self,
        name: &str,
        deadline: Duration,
        done: impl Fn(&T) -> bool,
    ) -> Result<T> {
        let mut last = None;
        match tokio::time::timeout(deadline, self.watch_until(name, &mut last, done)).await {
            Ok(object) => Ok(object),
            Err(_) => bail!("{} {name} is not so after {deadline:?}; it was last {last:#?}", T::KIND),
        }
    }

    async fn watch_until<T: Object>(&self, name: &str, last: &mut Option<T>, done: impl Fn(&T) -> bool) -> T {
        let request = WatchRequest {
            kind: T::KIND.name().to_owned(),
            namespace: if T::KIND.namespaced() { NAMESPACE.to_owned() } else { String::new() },
            field_selector: format!("metadata.name={name}"),
            ..WatchRequest::default()
        };
        loop {
            // A broken stream begins again with what exists now: nothing is missed that still holds.
            if let Ok(response) = self.streams.clone().watch(request.clone()).await {
                let mut stream = response.into_inner();
                while let Ok(Some(event)) = stream.message().await {
                    let Some(Ok(object)) = event.object.map(T::from_any) else { continue };
                    if done(&object) {
                        return object;
                    }
                    *last = Some(object);
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Scales a set.
    pub async fn scale(&self, name: &str, replicas: i32) -> Result<()> {
        let request = UpdateScaleRequest {
            namespace: NAMESPACE.to_owned(),
            name: name.to_owned(),
            replicas,
            resource_version: String::new(),
        };
        self.calls.clone().update_scale(request).await?;
        Ok(())
    }

    /// Deletes an object.
    pub async fn delete(&self, kind: Kind, name: &str) -> Result<()> {
        let request = DeleteRequest {
            kind: kind.name().to_owned(),
            namespace: NAMESPACE.to_owned(),
            name: name.to_owned(),
            ..DeleteRequest::default()
        };
        self.calls.clone().delete(request).await?;
        Ok(())
    }

    /// Runs a command in a container; the call may take a little longer than `limit`, which is the command's.
    pub async fn exec(&self, request: ExecRequest, limit: Duration) -> Result<ExecResponse> {
        let mut calls = self.streams.clone();
        let answer = tokio::time::timeout(limit + ON_THE_WAY, calls.exec(request)).await;
        Ok(answer.with_context(|| format!("no answer after {limit:?}"))??.into_inner())
    }

    /// Follows the pods of a selector from a revision on until `done` says so. Resumes after a broken stream; if the
    /// revision is not to be had any more, it lists and goes on from there, as every client must.
    pub async fn follow_pods(
        &self,
        label_selector: &str,
        since: &str,
        deadline: Duration,
        done: impl FnMut(&Heard) -> bool,
    ) -> Result<Vec<Heard>> {
        let mut story = Story { heard: Vec::new(), there: BTreeMap::new(), done };
        match tokio::time::timeout(deadline, self.follow(label_selector, since, &mut story)).await {
            Ok(()) => Ok(story.heard),
            Err(_) => {
                let told: Vec<String> =
                    story.heard.iter().map(|one| format!("{:?} {}", one.event, one.pod.name())).collect();
                bail!("not done after {deadline:?}; heard: {}", told.join(", "));
            }
        }
    }

    async fn follow(&self, label_selector: &str, since: &str, story: &mut Story<impl FnMut(&Heard) -> bool>) {
        let mut since = since.to_owned();
        loop {
            let request = WatchRequest {
                kind: Kind::Pod.name().to_owned(),
                namespace: NAMESPACE.to_owned(),
                label_selector: label_selector.to_owned(),
                resource_version: since.clone(),
                ..WatchRequest::default()
            };
            let end = match self.streams.clone().watch(request).await {
                Ok(response) => {
                    let mut stream = response.into_inner();
                    loop {
                        match stream.message().await {
                            Ok(Some(event)) => {
                                since.clone_from(&event.resource_version);
                                let kind = event.r#type();
                                let Some(Ok(pod)) = event.object.map(Pod::from_any) else { continue };
                                if story.hear(pod, kind) {
                                    return;
                                }
                            }
                            Ok(None) => break None,
                            Err(status) => break Some(status),
                        }
                    }
                }
                Err(status) => Some(status),
            };
            match end {
                Some(status) if status.code() == tonic::Code::OutOfRange => {
                    let Ok((pods, revision)) = self.list::<Pod>(label_selector).await else { continue };
                    since = revision;
                    if story.catch_up(pods) {
                        return;
                    }
                }
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

/// What was heard of pods.
struct Story<F> {
    heard: Vec<Heard>,
    there: BTreeMap<String, Pod>,
    done: F,
}

impl<F: FnMut(&Heard) -> bool> Story<F> {
    /// Takes one event in; says whether the story is over.
    fn hear(&mut self, pod: Pod, event: EventType) -> bool {
        match event {
            EventType::Deleted => drop(self.there.remove(pod.name())),
            _ => drop(self.there.insert(pod.name().to_owned(), pod.clone())),
        }
        let one = Heard { pod, event, at: Instant::now() };
        let over = (self.done)(&one);
        self.heard.push(one);
        over
    }

    /// Takes a whole list in, after events were missed.
    fn catch_up(&mut self, now: Vec<Pod>) -> bool {
        let names: BTreeSet<&str> = now.iter().map(ObjectExt::name).collect();
        let gone: Vec<Pod> = self.there.values().filter(|pod| !names.contains(pod.name())).cloned().collect();
        let changed: Vec<Pod> = now.iter().filter(|pod| self.there.get(pod.name()) != Some(*pod)).cloned().collect();
        gone.into_iter().any(|pod| self.hear(pod, EventType::Deleted))
            || changed.into_iter().any(|pod| self.hear(pod, EventType::Modified))
    }
}

/// Whether a pod's Ready condition is true.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| &status.conditions);
    conditions.into_iter().any(|condition| condition.r#type == "Ready" && condition.status == "True")
}

/// A set with one claim for each ordinal and a readiness probe.
pub fn set_manifest(name: &str, replicas: i32) -> serde_json::Value {
    serde_json::json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": {"name": name},
        "spec": {
            "serviceName": name,
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "terminationGracePeriodSeconds": 5,
                    "containers": [{
                        "name": "nginx",
                        "image": "registry.k8s.io/nginx-slim:0.24",
                        "ports": [{"containerPort": 80, "name": "web"}],
                        "readinessProbe": {"tcpSocket": {"port": "web"}, "periodSeconds": 1},
                        "volumeMounts": [{"name": "www", "mountPath": "/usr/share/nginx/html"}],
                    }],
                },
            },
            "volumeClaimTemplates": [{
                "metadata": {"name": "www"},
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "64Mi"}}},
            }],
        },
    })
}
