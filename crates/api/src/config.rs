//! Flags of the API service.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use runtime::{CommonArgs, EtcdArgs};

use crate::{
    cluster_ip::ServiceCidr,
    node::cidr::Network,
    policy::{self, Policy},
};

/// The API service: validates, stores and tells; the only service that node agents talk to.
#[derive(Args, Clone, Debug)]
pub struct Config {
    #[command(flatten)]
    #[allow(missing_docs, reason = "flattened")]
    pub common: CommonArgs,
    #[command(flatten)]
    #[allow(missing_docs, reason = "flattened")]
    pub etcd: EtcdArgs,
    /// The volume manager: asked how full volumes are.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7443", env = "BERTH_VOLUMES")]
    pub volumes: String,
    /// Domain that the names of Services and pods end with.
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Network that the nodes' pod networks (one /24 each) are cut from.
    #[arg(long, value_name = "NETWORK", default_value = "10.77.0.0/16")]
    pub pod_cidr: Network,
    /// Range of the Services' virtual addresses; must not overlap the pods'.
    #[arg(long, value_name = "NETWORK", default_value = "10.96.0.0/16")]
    pub service_cidr: ServiceCidr,
    /// Seconds that a node counts as alive after its last sign of life.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(2..=3600))]
    pub node_lease_seconds: u64,
    /// Path of the nodes at or below which pods may have hostPath volumes; may be repeated. None without it.
    #[arg(long, value_name = "PREFIX", value_parser = policy::prefix)]
    pub allow_host_path: Vec<PathBuf>,
    /// Let containers be privileged: they can do all that root on the node can.
    #[arg(long)]
    pub allow_privileged: bool,
}

/// What the service needs to know beside its store.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Address of the volume manager.
    pub volumes: String,
    /// Domain that the names of Services and pods end with.
    pub cluster_domain: String,
    /// Network that the nodes' pod networks are cut from.
    pub pod_cidr: Network,
    /// Range of the Services' virtual addresses.
    pub service_cidr: ServiceCidr,
    /// How long a node counts as alive after its last sign of life.
    pub node_lease: Duration,
    /// What users may do to the nodes.
    pub policy: Policy,
}

impl Config {
    /// What the flags say.
    pub fn settings(&self) -> Settings {
        Settings {
            volumes: self.volumes.clone(),
            cluster_domain: self.cluster_domain.clone(),
            pod_cidr: self.pod_cidr,
            service_cidr: self.service_cidr,
            node_lease: Duration::from_secs(self.node_lease_seconds),
            policy: Policy { host_paths: self.allow_host_path.clone(), privileged: self.allow_privileged },
        }
    }
}
