//! The driver `local`: volumes on their node.
//!
//! A volume's data lives in the data directory of the one node that the volume was made on, and its topology says so.
//! Each node's driver makes the volumes of its node. Without a node the process has no data directory: it answers
//! CreateVolume for any node and makes nothing, which is for nodes that run nothing either.

use std::path::PathBuf;

use anyhow::Context;
use runtime::CancellationToken;

use crate::driver::{Endpoint, Policy};
pub use crate::{
    disk::Disk,
    driver::{Driver, serve},
    id::{BadVolumeId, VolumeId},
};

/// The driver's name: what a class names as its provisioner.
pub const NAME: &str = "local";

/// The topology key of the driver's volumes. Its value is the node's name.
pub const TOPOLOGY_KEY: &str = "topology.local.berth.dev/node";

pub(crate) static POLICY: Policy = Policy {
    name: NAME,
    service: "csi-local",
    context_node: "local.berth.dev/node",
    context_instance: "local.berth.dev/instance",
    topology_key: Some(TOPOLOGY_KEY),
    attaches: false,
};

/// Flags of `berth csi-local`.
#[derive(clap::Args, Clone, Debug)]
pub struct Config {
    #[command(flatten)]
    #[allow(missing_docs, reason = "flattened")]
    pub endpoint: Endpoint,
    /// Name of the node whose volumes this process holds. Without it the process only makes volumes (controller side).
    #[arg(long, requires = "data_dir")]
    pub node_name: Option<String>,
    /// Directory that holds the node's volumes.
    #[arg(long, value_name = "DIR", requires = "node_name")]
    pub data_dir: Option<PathBuf>,
    /// Volumes that the node can have mounted; 0: no bound.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub max_volumes: u32,
    #[command(flatten)]
    #[allow(missing_docs, reason = "flattened")]
    pub telemetry: runtime::telemetry::TelemetryArgs,
}

/// Serves the driver until shutdown.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let driver = match (config.node_name, config.data_dir) {
        (Some(node), Some(dir)) => {
            let disk = Disk::open(&dir).with_context(|| format!("prepare --data-dir {}", dir.display()))?;
            Driver::on_node(node, disk).with_max_volumes(config.max_volumes)
        }
        _ => Driver::controller_only(),
    };
    config.endpoint.run(driver, shutdown).await
}
