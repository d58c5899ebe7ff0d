//! The container runtime, over CRI v1.
//!
//! Every call has a deadline. What the agent must recognise after a restart stands in labels (identity) and annotations
//! (counts) of sandboxes and containers.

pub mod inspect;
mod upkeep;

use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_cri::v1::{
    self as cri, image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient,
};
use parking_lot::Mutex;
use pb::agent::v1::PodRef;
use plan::node::{Container, ContainerState, Runtime, Sandbox};
use runtime::channel::{BadAddress, Channel};
use tonic::{Code, Response, Status};

use crate::termination;

/// Labels that identify what belongs to whom; the names are those that other CRI tools know.
pub mod label {
    /// Uid of the pod.
    pub const UID: &str = "io.kubernetes.pod.uid";
    /// Name of the pod.
    pub const NAME: &str = "io.kubernetes.pod.name";
    /// Namespace of the pod.
    pub const NAMESPACE: &str = "io.kubernetes.pod.namespace";
    /// Name of the container.
    pub const CONTAINER: &str = "io.kubernetes.container.name";
    /// Name of the node: what does not carry it is none of the agent's business.
    pub const NODE: &str = "berth.io/node";
}

/// Annotations.
pub mod annotation {
    /// Early ends in a row before this run.
    pub const CRASHES: &str = "berth.io/crashes";
    /// Seconds that the pod's containers get to end by themselves: for pods that the API no longer knows.
    pub const GRACE: &str = "berth.io/grace-seconds";
}

/// For calls that only look.
const LOOK: Duration = Duration::from_secs(10);
/// For calls that make or remove something: networks and snapshots take their time on a slow disk.
const CHANGE: Duration = Duration::from_secs(120);
/// For pulling an image: some are large. The runtime itself gives up on one that does not come forward.
const PULL: Duration = Duration::from_secs(30 * 60);
/// Above the grace period, for the runtime to kill and clean up.
const KILL: Duration = Duration::from_secs(60);
/// Exec output and long lists.
const MESSAGE_LIMIT: usize = 64 * 1024 * 1024;

/// A client of the container runtime. Clones share the connection and what is known for good.
#[derive(Clone, Debug)]
pub struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    node: Arc<str>,
    known: Arc<Mutex<Known>>,
}

/// What cannot change any more, so that looking again is cheap.
#[derive(Debug, Default)]
struct Known {
    ips: BTreeMap<String, String>,
    /// Status of running and ended containers, by id.
    containers: BTreeMap<String, Container>,
}

/// A pod of which the runtime has something.
#[derive(Clone, Debug)]
pub struct FoundPod {
    /// Which.
    pub reference: PodRef,
    /// The grace period that its sandbox was made with.
    pub grace: Option<Duration>,
}

impl Cri {
    /// Connects when first used. `node` marks what this agent makes.
    pub fn connect(url: &str, node: &str) -> Result<Self, BadAddress> {
        let channel = runtime::channel::connect_streaming(url)?;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_LIMIT),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT),
            node: node.into(),
            known: Arc::default(),
        })
    }

    /// Name and version of the runtime, such as containerd://1.6.20.
    pub async fn version(&self) -> Result<String, Status> {
        let mut client = self.runtime.clone();
        let version = within(LOOK, client.version(cri::VersionRequest { version: "v1".into() })).await?;
        Ok(format!("{}://{}", version.runtime_name, version.runtime_version.trim_start_matches('v')))
    }

    /// Whether the runtime and its network are ready; the reason if not.
    pub async fn ready(&self) -> Result<(), String> {
        let mut client = self.runtime.clone();
        let status = within(LOOK, client.status(cri::StatusRequest { verbose: false })).await;
        let conditions = status.map_err(|s| s.to_string())?.status.map(|s| s.conditions).unwrap_or_default();
        match conditions.iter().find(|condition| !condition.status) {
            Some(condition) => Err(format!("{}: {}", condition.r#type, condition.message)),
            None => Ok(()),
        }
    }

    /// All pods of this node that the runtime has something of.
    pub async fn pods(&self) -> Result<BTreeMap<String, FoundPod>, Status> {
        let mine = HashMap::from([(label::NODE.to_owned(), self.node.to_string())]);
        let mut client = self.runtime.clone();
        let filter = cri::PodSandboxFilter { label_selector: mine.clone(), ..Default::default() };
        let sandboxes =
            within(LOOK, client.list_pod_sandbox(cri::ListPodSandboxRequest { filter: Some(filter) })).await?;
        let filter = cri::ContainerFilter { label_selector: mine, ..Default::default() };
        let containers =
            within(LOOK, client.list_containers(cri::ListContainersRequest { filter: Some(filter) })).await?;
        let grace = |annotations: &HashMap<String, String>| {
            annotations.get(annotation::GRACE).and_then(|text| text.parse().ok()).map(Duration::from_secs)
        };
        let sandboxes = sandboxes.items.into_iter().map(|s| (s.labels, grace(&s.annotations)));
        let containers = containers.containers.into_iter().map(|c| (c.labels, None));
        let mut pods = BTreeMap::new();
        for (labels, grace) in sandboxes.chain(containers) {
            let text = |name| labels.get(name).cloned().unwrap_or_default();
            let reference =
                PodRef { namespace: text(label::NAMESPACE), name: text(label::NAME), uid: text(label::UID) };
            pods.entry(reference.uid.clone()).or_insert(FoundPod { reference, grace });
        }
        Ok(pods)
    }

    /// All that the runtime has of one pod.
    pub async fn observe(&self, uid: &str) -> Result<Runtime, Status> {
        let of_pod =
            HashMap::from([(label::UID.to_owned(), uid.to_owned()), (label::NODE.to_owned(), self.node.to_string())]);
        let (mut one, mut two) = (self.runtime.clone(), self.runtime.clone());
        let filter = cri::PodSandboxFilter { label_selector: of_pod.clone(), ..Default::default() };
        let sandboxes = within(LOOK, one.list_pod_sandbox(cri::ListPodSandboxRequest { filter: Some(filter) }));
        let filter = cri::ContainerFilter { label_selector: of_pod, ..Default::default() };
        let containers = within(LOOK, two.list_containers(cri::ListContainersRequest { filter: Some(filter) }));
        let (sandboxes, containers) = tokio::try_join!(sandboxes, containers)?;
        let mut found = Runtime::default();
        for sandbox in sandboxes.items {
            found.sandboxes.extend(self.sandbox(sandbox).await?);
        }
        for container in containers.containers {
            found.containers.extend(self.container(container).await?);
        }
        Ok(found)
    }

    /// None if it went away in between.
    async fn sandbox(&self, listed: cri::PodSandbox) -> Result<Option<Sandbox>, Status> {
        let ready = listed.state == cri::PodSandboxState::SandboxReady as i32;
        let known = self.known.lock().ips.get(&listed.id).cloned();
        let ip = match known {
            Some(ip) => Some(ip),
            None if ready => {
                let request = cri::PodSandboxStatusRequest { pod_sandbox_id: listed.id.clone(), verbose: false };
                let mut client = self.runtime.clone();
                let status = match within(LOOK, client.pod_sandbox_status(request)).await {
                    Err(status) if status.code() == Code::NotFound => return Ok(None),
                    status => status?.status.unwrap_or_default(),
                };
                let ip = status.network.map(|network| network.ip).filter(|ip| !ip.is_empty());
                if let Some(ip) = &ip {
                    self.known.lock().ips.insert(listed.id.clone(), ip.clone());
                }
                ip
            }
            None => None,
        };
        let attempt = listed.metadata.map_or(0, |metadata| metadata.attempt);
        Ok(Some(Sandbox { id: listed.id, attempt, ready, ip }))
    }

    /// None if it went away in between.
    async fn container(&self, listed: cri::Container) -> Result<Option<Container>, Status> {
        let running = listed.state == cri::ContainerState::ContainerRunning as i32;
        let exited = listed.state == cri::ContainerState::ContainerExited as i32;
        let fits = |known: &Container| match known.state {
            ContainerState::Running { .. } => running,
            ContainerState::Exited { .. } => exited,
            _ => false,
        };
        if let Some(known) = self.known.lock().containers.get(&listed.id).filter(|known| fits(known)) {
            return Ok(Some(known.clone()));
        }
        let request = cri::ContainerStatusRequest { container_id: listed.id.clone(), verbose: false };
        let mut client = self.runtime.clone();
        let status = match within(LOOK, client.container_status(request)).await {
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            status => status?.status.unwrap_or_default(),
        };
        let container = container(listed, status);
        if matches!(container.state, ContainerState::Running { .. } | ContainerState::Exited { .. }) {
            self.known.lock().containers.insert(container.id.clone(), container.clone());
        }
        Ok(Some(container))
    }

    /// Forgets what is known of things that are gone.
    pub fn forget(&self, runtime: &Runtime) {
        let mut known = self.known.lock();
        for sandbox in &runtime.sandboxes {
            known.ips.remove(&sandbox.id);
        }
        for container in &runtime.containers {
            known.containers.remove(&container.id);
        }
    }

    /// Makes a sandbox, and with it the pod's network.
    pub async fn run_sandbox(&self, config: cri::PodSandboxConfig) -> Result<(), Status> {
        let request = cri::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        let mut client = self.runtime.clone();
        within(CHANGE, client.run_pod_sandbox(request)).await.map(drop)
    }

    /// Ends a sandbox and gives its network back. Idempotent.
    pub async fn stop_sandbox(&self, id: &str) -> Result<(), Status> {
        let mut client = self.runtime.clone();
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        gone_is_fine(within(CHANGE, client.stop_pod_sandbox(request)).await.map(drop))
    }

    /// Removes a sandbox and its containers. Idempotent.
    pub async fn remove_sandbox(&self, id: &str) -> Result<(), Status> {
        let mut client = self.runtime.clone();
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        gone_is_fine(within(CHANGE, client.remove_pod_sandbox(request)).await.map(drop))
    }

    /// An image; None if it is not there.
    pub async fn image(&self, image: &str) -> Result<Option<cri::Image>, Status> {
        let spec = cri::ImageSpec { image: image.to_owned(), ..Default::default() };
        let mut client = self.images.clone();
        let request = cri::ImageStatusRequest { image: Some(spec), verbose: false };
        Ok(within(LOOK, client.image_status(request)).await?.image)
    }

    /// Pulls an image. Dropping the call ends the pull.
    pub async fn pull(&self, image: &str, auth: Option<cri::AuthConfig>) -> Result<(), Status> {
        let spec = cri::ImageSpec { image: image.to_owned(), ..Default::default() };
        let mut client = self.images.clone();
        let request = cri::PullImageRequest { image: Some(spec), auth, sandbox_config: None };
        within(PULL, client.pull_image(request)).await.map(drop)
    }

    /// Makes a container; answers with its id.
    pub async fn create_container(
        &self,
        sandbox: &str,
        config: cri::ContainerConfig,
        sandbox_config: cri::PodSandboxConfig,
    ) -> Result<String, Status> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let mut client = self.runtime.clone();
        Ok(within(CHANGE, client.create_container(request)).await?.container_id)
    }

    /// Starts a container.
    pub async fn start_container(&self, id: &str) -> Result<(), Status> {
        let mut client = self.runtime.clone();
        let request = cri::StartContainerRequest { container_id: id.to_owned() };
        within(CHANGE, client.start_container(request)).await.map(drop)
    }

    /// Ends a container: its stop signal, then after `grace` SIGKILL. Returns when it has ended. Idempotent.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), Status> {
        let timeout = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        let mut client = self.runtime.clone();
        let request = cri::StopContainerRequest { container_id: id.to_owned(), timeout };
        gone_is_fine(within(grace.saturating_add(KILL), client.stop_container(request)).await.map(drop))
    }

    /// Removes a container. Idempotent.
    pub async fn remove_container(&self, id: &str) -> Result<(), Status> {
        let mut client = self.runtime.clone();
        let request = cri::RemoveContainerRequest { container_id: id.to_owned() };
        gone_is_fine(within(CHANGE, client.remove_container(request)).await.map(drop))
    }

    /// Runs a command in a container and waits for its end, at most `limit`.
    pub async fn exec(&self, id: &str, command: &[String], limit: Duration) -> Result<cri::ExecSyncResponse, Status> {
        let timeout = i64::try_from(limit.as_secs().max(1)).unwrap_or(i64::MAX);
        let mut client = self.runtime.clone();
        let request = cri::ExecSyncRequest { container_id: id.to_owned(), cmd: command.to_vec(), timeout };
        within(limit.saturating_add(LOOK), client.exec_sync(request)).await
    }
}

async fn within<T>(limit: Duration, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded(format!("the container runtime did not answer within {limit:?}"))),
    }
}

fn gone_is_fine(answer: Result<(), Status>) -> Result<(), Status> {
    match answer {
        Err(status) if status.code() == Code::NotFound => Ok(()),
        answer => answer,
    }
}

fn container(listed: cri::Container, status: cri::ContainerStatus) -> Container {
    let metadata = listed.metadata.unwrap_or_default();
    let said = termination::message(&listed.annotations, &status.log_path, status.exit_code);
    let (started_at, finished_at) = (nanoseconds(status.started_at), nanoseconds(status.finished_at));
    let state = match cri::ContainerState::try_from(status.state) {
        Ok(cri::ContainerState::ContainerCreated) => ContainerState::Created,
        Ok(cri::ContainerState::ContainerRunning) => ContainerState::Running { started_at },
        Ok(cri::ContainerState::ContainerExited) => ContainerState::Exited {
            // A container that could not be started has no start of its own.
            started_at: if status.started_at == 0 { finished_at } else { started_at },
            finished_at,
            code: status.exit_code,
            reason: status.reason,
            message: said.unwrap_or(status.message),
        },
        Ok(cri::ContainerState::ContainerUnknown) | Err(_) => ContainerState::Unknown,
    };
    let crashes = listed.annotations.get(annotation::CRASHES).and_then(|text| text.parse().ok());
    Container {
        id: listed.id,
        name: metadata.name,
        attempt: metadata.attempt,
        sandbox: listed.pod_sandbox_id,
        crashes: crashes.unwrap_or(0),
        image: listed.image.map(|image| image.image).unwrap_or_default(),
        image_id: listed.image_ref,
        state,
    }
}

fn nanoseconds(since_epoch: i64) -> Timestamp {
    Timestamp::from_nanosecond(since_epoch.into()).unwrap_or(Timestamp::UNIX_EPOCH)
}
