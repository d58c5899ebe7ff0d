//! The scheduler: a node for every pod.
//!
//! Decisions are `plan::schedule`'s, on a ledger that is fed by the caches of nodes, pods, claims and volumes. Place answers from it,
//! and reserves what it gave until the pod is seen ([`place`]). Pods that were created without a node are bound when
//! room comes ([`bind`]), the most important first; less important pods are asked to go for them ([`preempt`]).
//!
//! No node is ever over-committed (I19): only the leader answers; every answer carries the leader's fence, so that a
//! place given by a former leader can no longer be used; and a new leader first reads all pods, so that it knows what
//! its predecessors' answers became. Within one leader the ledger counts what it promised.

mod bind;
mod feed;
mod metrics;
mod place;
mod preempt;

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use pb::{
    Kind, Object,
    objects::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, PodDisruptionBudget},
    scheduler::v1::scheduler_service_server::SchedulerServiceServer,
    volumes::v1::volume_service_client::VolumeServiceClient,
};
use plan::schedule::{ClaimName, Ledger, Placed, PodName, Request, Rules, Unschedulable, claims_of};
use runtime::{
    Cache, CancellationToken, CommonArgs, EtcdArgs, Queue, Server, Tasks,
    channel::{Channel, connect},
    reflect,
};
use store::{Guard, Prefix, Store};
use tokio::{sync::watch, time::Instant};

/// Flags of `berth scheduler`.
#[derive(clap::Args, Clone, Debug)]
pub struct Config {
    #[command(flatten)]
    #[allow(missing_docs, reason = "flattened")]
    pub common: CommonArgs,
    #[command(flatten)]
    #[allow(missing_docs, reason = "flattened")]
    pub etcd: EtcdArgs,
    /// The volume manager.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7443", env = "BERTH_VOLUMES")]
    pub volumes: String,
}

/// Serves until shutdown.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let store = config.etcd.connect().await?;
    let volumes = connect(&config.volumes)?;
    let tasks = Tasks::new(&shutdown);
    let scheduler = Scheduler::start(store, volumes, &tasks);
    let server = Server::new("scheduler", config.common.listen);
    let bound = server.service(SchedulerServiceServer::new(scheduler.clone())).bind().await?;
    scheduler.lead(bound.identity(), &tasks);
    let result = bound.serve(shutdown).await;
    tasks.finish(Duration::from_secs(2)).await;
    result
}

/// The scheduler. Clones share their state.
#[derive(Clone)]
pub struct Scheduler {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn Store>,
    nodes: Cache<Node>,
    pods: Cache<Pod>,
    claims: Cache<PersistentVolumeClaim>,
    stored_volumes: Cache<PersistentVolume>,
    namespaces: Cache<Namespace>,
    budgets: Cache<PodDisruptionBudget>,
    volumes: VolumeServiceClient<Channel>,
    state: Mutex<State>,
    /// The leader's fence, while this process leads and knows all pods.
    fence: watch::Sender<Option<Guard>>,
    /// Pods without a node that are due to be looked at.
    due: Queue<Due>,
    /// Held while a node is chosen for one of them: the more important one chooses first.
    turn: tokio::sync::Mutex<()>,
    /// What the ledger's times are counted from.
    started: Instant,
}

#[derive(Default)]
struct State {
    ledger: Ledger,
    /// Pods without a node.
    unbound: BTreeMap<PodName, Unbound>,
}

/// A pod without a node that is due. The more important comes first, then the older.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    priority: Reverse<i32>,
    created: (i64, i32),
    pod: PodName,
}

/// What is known of a pod without a node.
#[derive(Clone, Debug)]
struct Unbound {
    due: Due,
    /// The claims that it uses.
    claims: Vec<ClaimName>,
    /// Whether pods that come elsewhere may let it in.
    asks_for_peers: bool,
}

impl Unbound {
    fn of(pod: &Pod) -> Self {
        let created = pod.meta().creation_timestamp.unwrap_or_default();
        let due = Due {
            priority: Reverse(pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0)),
            created: (created.seconds, created.nanos),
            pod: PodName::of(pod),
        };
        Self { due, claims: claims_of(pod), asks_for_peers: Rules::of(pod).asks_for_peers() }
    }
}

impl Scheduler {
    /// Starts the caches and the ledger. Answers once it leads ([`Scheduler::lead`]).
    pub fn start(store: Arc<dyn Store>, volumes: Channel, tasks: &Tasks) -> Self {
        let inner = Arc::new(Inner {
            nodes: reflect(Arc::clone(&store), Prefix::kind(Kind::Node), tasks),
            pods: reflect(Arc::clone(&store), Prefix::kind(Kind::Pod), tasks),
            claims: reflect(Arc::clone(&store), Prefix::kind(Kind::PersistentVolumeClaim), tasks),
            stored_volumes: reflect(Arc::clone(&store), Prefix::kind(Kind::PersistentVolume), tasks),
            namespaces: reflect(Arc::clone(&store), Prefix::kind(Kind::Namespace), tasks),
            budgets: reflect(Arc::clone(&store), Prefix::kind(Kind::PodDisruptionBudget), tasks),
            volumes: VolumeServiceClient::new(volumes),
            state: Mutex::default(),
            fence: watch::Sender::new(None),
            due: Queue::smallest_first(),
            turn: tokio::sync::Mutex::default(),
            started: Instant::now(),
            store,
        });
        tasks.spawn("ledger", feed::run(Arc::clone(&inner)));
        Self { inner }
    }

    /// Takes part in the election of the leader under an identity that no other living process has, and does the
    /// leader's work when elected.
    pub fn lead(&self, identity: String, tasks: &Tasks) {
        let (inner, shutdown) = (Arc::clone(&self.inner), tasks.token().clone());
        tasks.spawn_graceful("binder", async move {
            let store = Arc::clone(&inner.store);
            let work = |leadership| bind::run(Arc::clone(&inner), leadership);
            runtime::leader::lead(store, "scheduler", &identity, &shutdown, work).await;
        });
    }
}

impl Inner {
    /// Finds a node for a pod in the ledger and reserves its room.
    fn choose(&self, request: &Request) -> Result<Placed, Unschedulable> {
        let (metrics, begun) = (metrics::get(), Instant::now());
        let mut state = self.state.lock();
        let placed = state.ledger.place(request, self.started.elapsed());
        metrics.choice.observe(begun.elapsed().as_secs_f64());
        metrics.reservations.set(state.ledger.counts().1.try_into().unwrap_or(i64::MAX));
        if placed.is_err() {
            metrics.unschedulable.inc();
        }
        placed
    }
}
