//! The API service: the front door of users and the only door of node agents.
//!
//! Stateless: everything it knows is a cache of the store, so any number of replicas may run. What it decides: whether a
//! request is valid and what the server owns in an object ([`object`], [`write`], [`apply`], [`delete`]), what readers
//! and watchers are shown ([`read`], [`watch`], [`view`]), and what a node is told and believed ([`node`]). What it must never
//! do: write without a guard, take the unknown for the absent, or let a slow reader grow a buffer.

mod admission;
mod apply;
mod caches;
mod cluster_ip;
mod config;
mod delete;
mod delete_collection;
mod error;
mod evict;
mod feed;
mod foresee;
mod merge;
mod node;
mod object;
mod patch;
mod policy;
mod priority;
mod read;
mod remove_ordinal;
mod scale;
mod select;
mod service;
mod streams;
mod undo;
mod view;
mod volumes;
mod watch;
mod why;
mod window;
mod write;

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use pb::{agent::v1::node_service_server::NodeServiceServer, api::v1::api_service_server::ApiServiceServer};
use runtime::{
    CancellationToken, Server, Tasks,
    backoff::Backoff,
    channel::{self, Channel},
};
use store::Store;

pub use cluster_ip::{BadServiceCidr, ServiceCidr};
pub use config::{Config, Settings};
pub use node::cidr::{BadNetwork, Network};
pub use policy::{BadPrefix, Policy};
pub use service::{Api, Nodes};

use crate::{caches::Caches, node::EndpointsTable, node::bundles::Index, streams::Agents};

/// How long the background tasks may take to end.
const DRAIN: Duration = Duration::from_secs(2);
/// The largest message that is taken: an apply of many manifests.
const LARGEST_MESSAGE: usize = 16 << 20;

/// What all requests share.
pub struct Shared {
    store: Arc<dyn Store>,
    settings: Settings,
    caches: Caches,
    index: Arc<Index>,
    endpoints: Arc<EndpointsTable>,
    agents: Agents,
    volume_manager: Channel,
    stop: CancellationToken,
}

impl Shared {
    /// Starts to follow a store, and makes what every cluster has; waits for a store that is away. The tasks live as
    /// long as their owner.
    ///
    /// # Errors
    /// When what every cluster has is refused, or the volume manager has no address.
    pub async fn start(store: Arc<dyn Store>, settings: Settings, tasks: &Tasks) -> anyhow::Result<Arc<Self>> {
        let volume_manager = channel::connect(&settings.volumes).context("--volumes")?;
        let shared = Arc::new(Self {
            volume_manager,
            caches: Caches::start(&store, tasks),
            store,
            settings,
            index: Arc::default(),
            endpoints: Arc::default(),
            agents: Agents::default(),
            stop: tasks.token().clone(),
        });
        tasks.spawn("index pods by node", node::index(shared.clone()));
        tasks.spawn("tabulate endpoints", node::tabulate(shared.clone()));
        shared.caches.synced().await;
        let mut failures = 0;
        while let Err(error) = shared.bootstrap().await {
            // The store may be away for a while; anything else does not pass by itself.
            if !matches!(error, error::Error::Store(_)) {
                return Err(error).context("make the namespace and the storage class that every cluster has");
            }
            failures += 1;
            tracing::warn!(%error, failures, "cannot make what every cluster has; trying again");
            tokio::time::sleep(Backoff::RECONNECT.after(failures)).await;
        }
        Ok(shared)
    }

    /// The server of both services, on top of this.
    pub fn server(self: &Arc<Self>, server: Server) -> Server {
        let api = ApiServiceServer::new(Api(self.clone())).max_decoding_message_size(LARGEST_MESSAGE);
        let nodes = NodeServiceServer::new(Nodes(self.clone())).max_decoding_message_size(LARGEST_MESSAGE);
        server.service(api).service(nodes)
    }
}

/// Runs the API service until the token is cancelled.
///
/// # Errors
/// When the flags name no store, or the address is taken.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let settings = config.settings();
    anyhow::ensure!(
        !settings.service_cidr.overlaps(settings.pod_cidr),
        "--service-cidr {} overlaps --pod-cidr {}: choose ranges that share no address",
        settings.service_cidr,
        settings.pod_cidr
    );
    let store = config.etcd.connect().await?;
    let tasks = Tasks::new(&shutdown);
    let started = shutdown.run_until_cancelled(Shared::start(store, settings, &tasks)).await;
    let served = match started {
        Some(shared) => shared?.server(Server::new("api", config.common.listen)).serve(shutdown).await,
        None => Ok(()),
    };
    tasks.finish(DRAIN).await;
    served
}
