//! One real node: what starts in which order.
//!
//! The server and the session with the API service come first; then what is on the node is looked at; pods are started
//! only when the pod network is there.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use anyhow::Context;
use parking_lot::Mutex;
use pb::{
    agent::v1::{agent_service_server::AgentServiceServer, volume_agent_service_server::VolumeAgentServiceServer},
    objects::Node,
};
use plan::node::images::Bounds;
use plan::node::pressure::Pressures;
use runtime::{server::Server, tasks::Tasks};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    access::Access,
    api::NodeApi,
    config::Config,
    containerd::Containerd,
    cri::{Cri, FoundPod},
    csi::{Known, Registry, proxy},
    events, facts,
    gc::{self, Collector},
    images::Images,
    metrics::Metrics,
    network,
    pods::Pods,
    pressure::Watcher,
    report::Reporter,
    rotate,
    session::{self, Registration},
    spec::NodeSettings,
    stream::{follow, waits},
    volumes::{VolumeManager, service::VolumeService},
    worker::Shared,
};

/// How long to wait for the runtime to take up the pod network before starting pods all the same.
const NETWORK: Duration = Duration::from_secs(30);

/// How long the node waits for its CSI drivers before it registers without them.
const DRIVERS: Duration = Duration::from_secs(3);

/// Runs the node until `shutdown`.
pub async fn run(config: &Config, server: Server, tasks: &Tasks, shutdown: CancellationToken) -> anyhow::Result<()> {
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("--data-dir {}: cannot make it", config.data_dir.display()))?;
    let api = NodeApi::connect(&config.api).context("--api")?;
    let cri = Cri::connect(&config.cri, &config.node_name).context("--cri")?;
    let registry = Arc::new(Registry::new(&config.csi_dir));
    let timeout = Duration::from_secs(config.csi_timeout.max(1).into());
    let volumes = VolumeManager::new(&config.data_dir, registry.clone(), timeout).context("--data-dir")?;
    let volumes = Arc::new(volumes);
    let shared = Arc::new(Shared {
        cri: cri.clone(),
        images: Images::new(cri.clone(), Tasks::new(tasks.token())),
        volumes: volumes.clone(),
        settings: NodeSettings {
            node_name: config.node_name.clone(),
            node_ip: config.node_ip,
            cgroup_parent: config.cgroup_parent.clone(),
            cluster_domain: config.cluster_domain.clone(),
            dns_ip: config.dns_ip,
            data_dir: config.data_dir.clone(),
            amounts: facts::Amounts::of_machine(config)?,
            seccomp_default: config.seccomp_default,
        },
        reporter: Reporter::default(),
        gate: Semaphore::new(config.parallel.max(1)),
        index: Mutex::new(BTreeMap::new()),
        listening: AtomicBool::new(false),
        metrics: Metrics::register(),
    });
    tasks.spawn("csi-registry", registry.clone().run());
    tasks.spawn("volume-clean", clean(volumes.clone()));
    let transfers = Arc::new(Tasks::new(tasks.token()));
    let containerd = Containerd::connect(&config.cri).context("--cri")?;
    let access = Access::new(shared.clone(), containerd, Arc::new(Tasks::new(tasks.token())));
    access.clean();
    let server = server
        .service(AgentServiceServer::new(access))
        .service(VolumeAgentServiceServer::new(VolumeService::new(volumes, transfers)))
        .service(proxy::Identity(registry.clone()))
        .service(proxy::Controller(registry));
    let pods = Arc::new(Pods::new(shared.clone(), Tasks::new(tasks.token())));
    let starting = start(config.clone(), api, shared, pods, tasks, shutdown.clone());
    tokio::try_join!(server.serve(shutdown), starting).map(|((), ())| ())
}

async fn start(
    config: Config,
    api: NodeApi,
    shared: Arc<Shared>,
    pods: Arc<Pods>,
    tasks: &Tasks,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let token = tasks.token().clone();
    let version = until(&token, "the container runtime answers", || shared.cri.version()).await;
    let Some(version) = version else { return Ok(()) };
    tracing::info!(runtime = version, "container runtime found");
    let node = facts::real_node(&config, &shared.settings.amounts, &version);
    let watcher = Watcher::new(&config, shared.cri.clone());
    let (pressed, pressures) = watch::channel(watcher.look(Pressures::default()).await);
    tasks.spawn("pressure", watcher.run(pressed));
    let node = described(node, shared.volumes.registry(), pressures, pods.clone(), tasks).await;
    let (registered, registration) = watch::channel(None);
    tasks.spawn("session", session::keep(api.clone(), node, 1.0, registered, token.clone()));

    for pod in found(&shared, &token).await {
        pods.adopt(pod);
    }
    let (listener, url, stop) = (pods.clone(), config.cri.clone(), token.clone());
    tasks.spawn("containerd-events", async move {
        if let Err(error) = events::listen(&url, stop, |happened| listener.happened(happened)).await {
            tracing::error!(%error, "no events from containerd: pods are looked at every second instead");
        }
    });
    let (mut pulls, waiting) = (shared.images.settled(), pods.clone());
    tasks.spawn("images", async move {
        while pulls.changed().await.is_ok() {
            waiting.images_changed();
        }
    });
    let settled = pods.clone();
    tasks.spawn(
        "report",
        shared.reporter.clone().run(
            api.clone(),
            config.node_name.clone(),
            token.clone(),
            move |uid, stopped, outcome| {
                settled.settled(uid, stopped, outcome);
            },
        ),
    );

    let Some(registration) = first(registration).await else { return Ok(()) };
    network::start(&config, &registration, api.clone(), tasks).await?;
    wait_for_network(&shared.cri, &token).await;
    keep_tidy(&config, &shared.cri, &pods, tasks);
    tasks.spawn("pods", async move {
        let open = || api.clone().watch_pods(config.node_name.clone());
        follow("pods", shutdown, open, |feed| pods.take(feed)).await;
    });
    Ok(())
}

/// Logs within bounds, and nothing kept that nobody needs.
fn keep_tidy(config: &Config, cri: &Cri, pods: &Arc<Pods>, tasks: &Tasks) {
    let logs = rotate::Bounds {
        size: config.log_max_size,
        files: usize::try_from(config.log_max_files).unwrap_or(usize::MAX),
    };
    tasks.spawn("log-rotation", rotate::run(cri.clone(), logs, tasks.token().clone()));
    let bounds = Bounds { high: config.image_gc_high, low: config.image_gc_low, min_age: gc::MIN_AGE };
    let (cri, data_dir) = (cri.clone(), config.data_dir.clone());
    let collector = Collector { cri, pods: pods.clone(), data_dir, bounds };
    tasks.spawn("garbage", collector.run(tasks.token().clone()));
}

/// The node with its CSI drivers and pressures, as they come and go. Waits a moment for drivers that are there: a node
/// that starts anew must not be without them in between.
async fn described(
    node: Node,
    registry: &Registry,
    mut pressures: watch::Receiver<Pressures>,
    pods: Arc<Pods>,
    tasks: &Tasks,
) -> watch::Receiver<Node> {
    let mut known = registry.watch();
    if tokio::time::timeout(DRIVERS, known.wait_for(|known| known.settled)).await.is_err() {
        tracing::warn!("some CSI drivers do not answer: the node registers without them, and again when they do");
    }
    let describe = move |known: &mut watch::Receiver<Known>, pressures: &mut watch::Receiver<Pressures>| {
        let node = facts::with_drivers(&node, &known.borrow_and_update().drivers);
        facts::with_pressures(node, &pressures.borrow_and_update())
    };
    let (sender, receiver) = watch::channel(describe(&mut known, &mut pressures));
    tasks.spawn("node-facts", async move {
        loop {
            let drivers = tokio::select! {
                Ok(()) = known.changed() => true,
                Ok(()) = pressures.changed() => false,
                else => return,
            };
            let described = describe(&mut known, &mut pressures);
            let news = sender.send_if_modified(|now| {
                let news = *now != described;
                *now = described;
                news
            });
            tracing::debug!(news, drivers, "what the node says of itself changed");
            if drivers {
                pods.drivers_changed();
            }
        }
    });
    receiver
}

/// Undoes what an agent before this one left, as soon as the drivers let it.
async fn clean(volumes: Arc<VolumeManager>) {
    for wait in waits() {
        match volumes.clean().await {
            Ok(()) => return,
            Err(error) => tracing::warn!(%error, "volumes of an earlier agent cannot be taken down yet; trying again"),
        }
        tokio::time::sleep(wait).await;
    }
}

/// None when the agent ends before.
async fn first(mut registered: watch::Receiver<Option<Registration>>) -> Option<Registration> {
    registered.wait_for(Option::is_some).await.ok()?.clone()
}

/// Tries until it succeeds; None when the agent ends before.
async fn until<T, E, F, Fut>(token: &CancellationToken, what: &str, mut call: F) -> Option<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
    E: std::fmt::Display,
{
    let trying = async {
        for wait in waits() {
            match call().await {
                Ok(value) => return Some(value),
                Err(error) => tracing::warn!(%error, "waiting until {what}"),
            }
            tokio::time::sleep(wait).await;
        }
        None
    };
    token.run_until_cancelled(trying).await.flatten()
}

/// All pods of which something is on the node: in the runtime, or a folder with volumes.
async fn found(shared: &Shared, token: &CancellationToken) -> Vec<FoundPod> {
    let in_runtime = until(token, "the container runtime tells its pods", || shared.cri.pods()).await;
    let mut pods = in_runtime.unwrap_or_default();
    match shared.volumes.pods() {
        Ok(folders) => {
            for reference in folders {
                pods.entry(reference.uid.clone()).or_insert(FoundPod { reference, grace: None });
            }
        }
        Err(error) => tracing::error!(%error, "cannot read the pods' folders: volumes of unknown pods stay mounted"),
    }
    pods.into_values().collect()
}

async fn wait_for_network(cri: &Cri, token: &CancellationToken) {
    let ready = tokio::time::timeout(NETWORK, until(token, "the container runtime has a pod network", || cri.ready()));
    if ready.await.is_err() {
        tracing::error!(
            "the container runtime has not taken up the pod network within {NETWORK:?}: \
             does its conf_dir name cni/net.d in --data-dir, and its bin_dir the CNI plugins?"
        );
    }
}
