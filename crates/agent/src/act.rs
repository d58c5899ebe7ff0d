//! Does what a plan says.

use std::{fs, io, path::Path};

use k8s_cri::v1 as cri;
use pb::{
    agent::v1::PodBundle,
    objects::{Container, Pod},
};
use plan::node::{Action, Runtime};
use tonic::Status;

use crate::{
    cgroup,
    images::NoImage,
    rotate,
    spec::{self, ImageUser, Resolver, Run, reference},
    termination,
    worker::Shared,
};

/// The node's own resolver.
const RESOLVER: &str = "/etc/resolv.conf";

/// How an action failed: one word in Kubernetes' vocabulary, and a sentence.
#[derive(Clone, Debug)]
pub struct Failed {
    /// The word.
    pub reason: &'static str,
    /// The sentence.
    pub message: String,
}

impl Failed {
    fn new(reason: &'static str, message: impl std::fmt::Display) -> Self {
        Self { reason, message: message.to_string() }
    }

    /// What the runtime said.
    pub fn status(reason: &'static str) -> impl Fn(Status) -> Self {
        move |status| Self::new(reason, status.message())
    }
}

/// Does one action.
pub async fn perform(shared: &Shared, bundle: &PodBundle, runtime: &Runtime, action: &Action) -> Result<(), Failed> {
    // The gate is never closed.
    let turn = || async { shared.gate.acquire().await.ok() };
    match action {
        // Not through the gate: a driver that does not answer must not keep pods of other drivers from starting.
        Action::MountVolumes => {
            let host_ip = shared.settings.node_ip.to_string();
            let mounted = shared.volumes.mount(bundle, shared.settings.place(&host_ip, "")).await;
            mounted.map_err(|error| Failed::new(error.reason(), error))
        }
        Action::UnmountVolumes => {
            let pod = bundle.pod.clone().unwrap_or_default();
            let uid = reference(&pod).uid;
            shared.volumes.unmount(&uid).await.map_err(|error| Failed::new("FailedUnmount", error))
        }
        Action::RunSandbox { attempt } => {
            let _turn = turn().await;
            run_sandbox(shared, bundle, *attempt).await
        }
        Action::StopSandbox { id } => shared.cri.stop_sandbox(id).await.map_err(Failed::status("FailedKillPod")),
        Action::DiscardSandbox { id } => {
            shared.cri.stop_sandbox(id).await.map_err(Failed::status("FailedKillPod"))?;
            shared.cri.remove_sandbox(id).await.map_err(Failed::status("FailedKillPod"))
        }
        Action::StartContainer { name, attempt, crashes, sandbox } => {
            let container = named(bundle, name)?;
            let no_image = |why: NoImage| Failed::new(why.reason(), why);
            let image = shared.images.ensure(bundle, container).await.map_err(no_image)?;
            let _turn = turn().await;
            let start = Start { container, image: &image, attempt: *attempt, crashes: *crashes, sandbox };
            start_container(shared, bundle, runtime, start).await
        }
        // These go on by themselves: see `hooks`.
        Action::RunPostStart { .. } | Action::RunPreStop { .. } | Action::StopContainer { .. } => Ok(()),
        Action::RemoveContainer { id, .. } => {
            shared.cri.remove_container(id).await.map_err(Failed::status("FailedRemoveContainer"))?;
            remove_log(shared, bundle, runtime, id).map_err(|error| Failed::new("FailedRemoveContainer", error))
        }
    }
}

async fn run_sandbox(shared: &Shared, bundle: &PodBundle, attempt: u32) -> Result<(), Failed> {
    let pod = bundle.pod.clone().unwrap_or_default();
    let failed = |error: io::Error| Failed::new("FailedCreatePodSandBox", error);
    fs::create_dir_all(shared.settings.log_dir(&reference(&pod))).map_err(failed)?;
    fs::create_dir_all(shared.settings.pod_dir(&reference(&pod).uid)).map_err(failed)?;
    let spec = pod.spec.clone().unwrap_or_default();
    cgroup::make(Path::new(cgroup::ROOT), &shared.settings.cgroup(&reference(&pod).uid), spec::bounds(&spec))
        .map_err(|error| Failed::new("FailedCreatePodContainer", format!("cannot make the pod's cgroup: {error}")))?;
    let began = std::time::Instant::now();
    let config = sandbox_config(shared, &pod, attempt)?;
    shared.cri.run_sandbox(config).await.map_err(Failed::status("FailedCreatePodSandBox"))?;
    shared.metrics.sandbox_seconds.observe(began.elapsed().as_secs_f64());
    Ok(())
}

/// The sandbox as the pod and the node's resolver ask for it now.
fn sandbox_config(shared: &Shared, pod: &Pod, attempt: u32) -> Result<cri::PodSandboxConfig, Failed> {
    let resolver = match fs::read_to_string(RESOLVER) {
        Ok(text) => Resolver::parse(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Resolver::default(),
        Err(error) => return Err(Failed::new("FailedCreatePodSandBox", format!("{RESOLVER}: {error}"))),
    };
    let config = shared.settings.sandbox(pod, attempt, &resolver);
    config.map_err(|error| Failed::new("FailedCreatePodSandBox", error))
}

/// A container of the pod by its name.
fn named<'a>(bundle: &'a PodBundle, name: &str) -> Result<&'a Container, Failed> {
    let spec = bundle.pod.as_ref().and_then(|pod| pod.spec.as_ref());
    let mut containers = spec.into_iter().flat_map(|spec| spec.containers.iter().chain(&spec.init_containers));
    let found = containers.find(|container| container.name == name);
    found.ok_or_else(|| Failed::new("CreateContainerError", format!("the pod has no container {name:?}")))
}

struct Start<'a> {
    container: &'a Container,
    image: &'a cri::Image,
    attempt: u32,
    crashes: u32,
    sandbox: &'a str,
}

async fn start_container(
    shared: &Shared,
    bundle: &PodBundle,
    runtime: &Runtime,
    start: Start<'_>,
) -> Result<(), Failed> {
    let pod = bundle.pod.clone().unwrap_or_default();
    let container = start.container;
    let name = container.name.as_str();
    let sandbox = runtime.sandboxes.iter().find(|sandbox| sandbox.id == start.sandbox);
    let pod_ip = sandbox.and_then(|sandbox| sandbox.ip.clone()).unwrap_or_default();
    let verified =
        || async { shared.volumes.verify(&pod, name).await.map_err(|error| Failed::new(error.reason(), error)) };
    verified().await?;
    let failed = |error: &dyn std::fmt::Display| Failed::new("CreateContainerError", error);
    let reference = reference(&pod);
    let hosts = shared.settings.pod_dir(&reference.uid).join("hosts");
    fs::write(&hosts, shared.settings.hosts_file(&pod, &pod_ip)).map_err(|error| failed(&error))?;
    let log = shared.settings.log_dir(&reference).join(name);
    fs::create_dir_all(log).map_err(|error| failed(&error))?;
    let volumes = shared.volumes.paths(&pod);
    let parts = shared.settings.parts(bundle, container, &pod_ip);
    let parts = parts.map_err(|error| Failed::new("CreateContainerConfigError", error))?;
    let parts = shared.volumes.parts(&pod, name, &parts);
    let run = Run {
        bundle,
        container,
        attempt: start.attempt,
        crashes: start.crashes,
        pod_ip: &pod_ip,
        volumes: &volumes,
        parts: &parts.map_err(|error| Failed::new("CreateContainerConfigError", error))?,
        hosts: &hosts,
        image_user: &ImageUser::from(start.image),
    };
    let mut config: cri::ContainerConfig =
        shared.settings.container(run).map_err(|error| Failed::new("CreateContainerConfigError", error))?;
    termination::prepare(&mut config, container, &shared.settings.pod_dir(&reference.uid))
        .map_err(|error| failed(&error))?;
    let attempt = sandbox.map_or(0, |sandbox| sandbox.attempt);
    let sandbox_config = sandbox_config(shared, &pod, attempt)?;
    let id = shared
        .cri
        .create_container(start.sandbox, config, sandbox_config)
        .await
        .map_err(Failed::status("CreateContainerError"))?;
    shared.index.lock().insert(id.clone(), reference.uid.clone());
    // Again, for making it took its time: the mounts are taken over when it starts.
    verified().await?;
    shared.cri.start_container(&id).await.map_err(Failed::status("RunContainerError"))?;
    shared.metrics.started_containers.inc();
    tracing::info!(container = name, attempt = start.attempt, id, "container started");
    Ok(())
}

fn remove_log(shared: &Shared, bundle: &PodBundle, runtime: &Runtime, id: &str) -> io::Result<()> {
    let Some(run) = runtime.containers.iter().find(|run| run.id == id) else { return Ok(()) };
    let pod = bundle.pod.clone().unwrap_or_default();
    let path = shared.settings.log_dir(&reference(&pod)).join(spec::log_path(&run.name, run.attempt));
    rotate::remove(&path)
}
