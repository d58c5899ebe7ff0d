//! The volume manager: which volumes claims have, and new ones where they have none.
//!
//! Decisions are `plan::volume`'s. [`VolumeManager`] answers Prepare from memory and Provision with one call to a
//! driver, and writes no object: whoever asks writes the pair of claim and volume in one transaction with the pod. The
//! only thing written here, by the leader, is the release of volumes whose claims are gone.
//!
//! Must never: say that a claim has no volume because a cache lags (what a cache does not show is looked up in the
//! store); have two calls for one volume in flight at a driver (I4).

mod drivers;
mod reclaim;
mod service;

use std::sync::Arc;

use pb::{
    Kind,
    objects::{PersistentVolume, PersistentVolumeClaim, StorageClass},
    volumes::v1::volume_service_server::VolumeServiceServer,
};
use runtime::{Cache, CancellationToken, CommonArgs, EtcdArgs, Server, Tasks, channel::BadAddress, reflect};
use store::{Prefix, Store};

use drivers::Drivers;

/// Flags of `berth volumes`.
#[derive(clap::Args, Clone, Debug)]
pub struct Config {
    #[command(flatten)]
    #[allow(missing_docs, reason = "flattened")]
    pub common: CommonArgs,
    #[command(flatten)]
    #[allow(missing_docs, reason = "flattened")]
    pub etcd: EtcdArgs,
    /// Controller sockets of the CSI drivers.
    #[arg(long, value_name = "unix:///PATH,...", value_delimiter = ',', required = true)]
    pub csi: Vec<String>,
}

/// Serves until shutdown.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let store = config.etcd.connect().await?;
    let server = Server::new("volumes", config.common.listen);
    let tasks = Tasks::new(&shutdown);
    let manager = VolumeManager::start(Arc::clone(&store), &config.csi, &tasks)?;
    let bound = server.service(VolumeServiceServer::new(manager.clone())).bind().await?;
    manager.reclaim(bound.identity(), &tasks);
    let result = bound.serve(shutdown).await;
    tasks.finish(std::time::Duration::from_secs(2)).await;
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
    drivers: Drivers,
}

impl VolumeManager {
    /// Starts the caches and gets to know the drivers on these sockets (`unix:///path`). Answers as soon as the caches
    /// have read the store once.
    pub fn start(store: Arc<dyn Store>, drivers: &[String], tasks: &Tasks) -> Result<Self, BadAddress> {
        let inner = Inner {
            claims: reflect(Arc::clone(&store), Prefix::kind(Kind::PersistentVolumeClaim), tasks),
            volumes: reflect(Arc::clone(&store), Prefix::kind(Kind::PersistentVolume), tasks),
            classes: reflect(Arc::clone(&store), Prefix::kind(Kind::StorageClass), tasks),
            drivers: Drivers::meet(drivers, tasks)?,
            store,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Releases volumes whose claims are gone, whenever this process leads.
    pub fn reclaim(&self, identity: String, tasks: &Tasks) {
        let (manager, shutdown) = (self.clone(), tasks.token().clone());
        tasks.spawn_graceful("reclaim", async move {
            let store = Arc::clone(&manager.inner.store);
            let work = |leadership| reclaim::run(manager.clone(), leadership);
            runtime::leader::lead(store, "volumes", &identity, &shutdown, work).await;
        });
    }
}
