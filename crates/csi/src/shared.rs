//! The driver `shared`: volumes in a directory that all nodes reach, such as a mount of a file server.
//!
//! Each node runs the driver upon the same directory, and each can be asked to make volumes: what is true is in the
//! directory alone. A volume is attached to a node before it is staged there, and the attachments are kept beside its
//! data, so that a volume for one node is never staged on two. Directories can be used on many nodes at once, images on
//! one.

use std::path::PathBuf;

use anyhow::Context;
use runtime::CancellationToken;

use crate::driver::{Endpoint, Policy};
pub use crate::{
    disk::Disk,
    driver::{Driver, serve},
};

/// The driver's name: what a class names as its provisioner.
pub const NAME: &str = "shared";

pub(crate) static POLICY: Policy = Policy {
    name: NAME,
    service: "csi-shared",
    context_node: "shared.berth.dev/node",
    context_instance: "shared.berth.dev/instance",
    topology_key: None,
    attaches: true,
};

/// Flags of `berth csi-shared`.
#[derive(clap::Args, Clone, Debug)]
pub struct Config {
    #[command(flatten)]
    #[allow(missing_docs, reason = "flattened")]
    pub endpoint: Endpoint,
    /// Name of this node.
    #[arg(long)]
    pub node_name: String,
    /// Directory that holds the volumes: the same one on every node.
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Volumes that can be attached to the node; 0: no bound.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub max_volumes: u32,
    #[command(flatten)]
    #[allow(missing_docs, reason = "flattened")]
    pub telemetry: runtime::telemetry::TelemetryArgs,
}

/// Serves the driver until shutdown.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let disk = Disk::open(&config.data_dir);
    let disk = disk.with_context(|| format!("prepare --data-dir {}", config.data_dir.display()))?;
    let driver = Driver::on_shared(&config.node_name, disk)?.with_max_volumes(config.max_volumes);
    config.endpoint.run(driver, shutdown).await
}
