//! The volume manager: which volumes claims have, new ones where they have none, and what becomes of them.
//!
//! Decisions are `plan::volume`'s. [`VolumeManager`] answers Prepare from memory and Provision with a call to a driver;
//! whoever asks writes the pair of claim and volume in one transaction with the pod. The leader alone does everything
//! else: it attaches, expands, snapshots, moves, releases and deletes volumes.
//!
//! Must never: say that a claim has no volume because a cache lags (what a cache does not show is looked up in the
//! store); have two calls for one volume in flight at a driver (I4); take a call whose outcome is not known for done, or
//! for not done; delete a volume unless the store itself says that its claim is gone.

mod attach;
mod binder;
mod capacity;
mod data;
mod drivers;
mod expand;
mod facts;
mod known_drivers;
mod leader;
mod lookup;
mod lost;
mod memory;
mod operation;
mod orphans;
mod prepare;
mod provision;
mod reclaim;
mod service;
mod snapshot;
mod usage;
mod worker;

use std::{sync::Arc, time::Duration};

use pb::{
    Kind,
    objects::{
        CsiDriver, Node, PersistentVolume, PersistentVolumeClaim, Pod, StorageClass, VolumeAttachment, VolumeSnapshot,
    },
    volumes::v1::volume_service_server::VolumeServiceServer,
};
use runtime::{Cache, CancellationToken, CommonArgs, EtcdArgs, Server, Tasks, channel::BadAddress, reflect};
use store::{Prefix, Store};

use capacity::Capacity;
use drivers::{Deadlines, Drivers};
use facts::Index;
use memory::Memory;
use provision::Makings;

/// Flags of `berth volumes`.
#[derive(clap::Args, Clone, Debug)]
pub struct Config {
    #[command(flatten)]
    #[allow(missing_docs, reason = "flattened")]
    pub common: CommonArgs,
    #[command(flatten)]
    #[allow(missing_docs, reason = "flattened")]
    pub etcd: EtcdArgs,
    /// Controller sockets of CSI drivers that run beside the control plane. Others are reached through the agents of the
    /// nodes that they are registered on.
    #[arg(long, value_name = "unix:///PATH,...", value_delimiter = ',')]
    pub csi: Vec<String>,
    /// Seconds for which a volume that no object knows is left alone before it is adopted and deleted.
    #[arg(long, value_name = "SECONDS", env = "BERTH_ORPHAN_GRACE", default_value_t = 60)]
    pub orphan_grace: u64,
    /// Seconds that a CSI driver may take for one call that changes something. A call without an answer is repeated.
    #[arg(long, value_name = "SECONDS", env = "BERTH_CSI_TIMEOUT", default_value_t = 120)]
    pub csi_timeout: u64,
}

/// What may be set otherwise than it is by default.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long a call to a driver may take that changes something. It is made again afterwards.
    pub call: Duration,
    /// How long a volume that no object knows is left alone.
    pub orphan_grace: Duration,
    /// Time between two looks for such volumes.
    pub orphan_period: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            call: Duration::from_secs(120),
            orphan_grace: Duration::from_secs(60),
            orphan_period: Duration::from_secs(120),
        }
    }
}

/// Serves until shutdown.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let store = config.etcd.connect().await?;
    let server = Server::new("volumes", config.common.listen);
    let tasks = Tasks::new(&shutdown);
    let orphan_grace = Duration::from_secs(config.orphan_grace.max(1));
    let call = Duration::from_secs(config.csi_timeout.max(1));
    let settings = Settings { call, orphan_grace, orphan_period: orphan_grace * 2 };
    let manager = VolumeManager::start_with(Arc::clone(&store), &config.csi, settings, &tasks)?;
    let bound = server.service(VolumeServiceServer::new(manager.clone())).bind().await?;
    manager.lead(bound.identity(), &tasks);
    let result = bound.serve(shutdown).await;
    tasks.finish(Duration::from_secs(2)).await;
    result
}

/// The volume manager. Clones share their state.
#[derive(Clone)]
pub struct VolumeManager {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn Store>,
    claims: Cache<PersistentVolumeClaim>,
    volumes: Cache<PersistentVolume>,
    classes: Cache<StorageClass>,
    nodes: Cache<Node>,
    pods: Cache<Pod>,
    attachments: Cache<VolumeAttachment>,
    csi_drivers: Cache<CsiDriver>,
    snapshots: Cache<VolumeSnapshot>,
    index: Arc<Index>,
    drivers: Drivers,
    settings: Settings,
    memory: Memory,
    makings: Makings,
    capacity: Capacity,
    /// Owns what is begun for a request and must go on without it.
    tasks: Tasks,
}

impl VolumeManager {
    /// Starts the caches and gets to know the drivers on these sockets (`unix:///path`); other drivers are those that
    /// nodes have. Answers as soon as the caches have read the store once.
    pub fn start(store: Arc<dyn Store>, sockets: &[String], tasks: &Tasks) -> Result<Self, BadAddress> {
        Self::start_with(store, sockets, Settings::default(), tasks)
    }

    /// The same, with other settings.
    pub fn start_with(
        store: Arc<dyn Store>,
        sockets: &[String],
        settings: Settings,
        tasks: &Tasks,
    ) -> Result<Self, BadAddress> {
        fn cache<T: pb::Object>(store: &Arc<dyn Store>, kind: Kind, tasks: &Tasks) -> Cache<T> {
            reflect(Arc::clone(store), Prefix::kind(kind), tasks)
        }
        let nodes: Cache<Node> = cache(&store, Kind::Node, tasks);
        let deadlines = Deadlines { change: settings.call, question: settings.call.min(Duration::from_secs(5)) };
        let inner = Inner {
            claims: cache(&store, Kind::PersistentVolumeClaim, tasks),
            volumes: cache(&store, Kind::PersistentVolume, tasks),
            classes: cache(&store, Kind::StorageClass, tasks),
            pods: cache(&store, Kind::Pod, tasks),
            attachments: cache(&store, Kind::VolumeAttachment, tasks),
            csi_drivers: cache(&store, Kind::CsiDriver, tasks),
            snapshots: cache(&store, Kind::VolumeSnapshot, tasks),
            drivers: Drivers::meet(sockets, nodes.clone(), deadlines, tasks)?,
            index: Arc::default(),
            nodes,
            settings,
            memory: Memory::default(),
            makings: Makings::default(),
            capacity: Capacity::default(),
            tasks: Tasks::new(tasks.token()),
            store,
        };
        let inner = Arc::new(inner);
        tasks.spawn("free volumes", Arc::clone(&inner.index).follow(inner.volumes.clone()));
        tasks.spawn("capacity", capacity::run(Arc::clone(&inner)));
        Ok(Self { inner })
    }

    /// Waits until the caches have read the store once. The caller's deadline ends it.
    async fn ready(&self) {
        let Inner { claims, volumes, classes, nodes, pods, attachments, csi_drivers, snapshots, .. } = &*self.inner;
        tokio::join!(claims.synced(), volumes.synced(), classes.synced(), nodes.synced());
        tokio::join!(pods.synced(), attachments.synced(), csi_drivers.synced(), snapshots.synced());
    }
}
