//! The driver `local`: a volume is a directory on its node.
//!
//! A volume's data lives in `<data-dir>/volumes/<volume id>` of the one node that the volume was made for; staging and
//! publishing are bind mounts of that directory. The size is not enforced.
//!
//! CreateVolume touches no disk: the id follows from the name, the place from the request, so that the controller side
//! needs no state and can run anywhere. The directory comes into being when the volume is staged for the first time,
//! and a marker beside it (`<data-dir>/markers/<volume id>.json`) records that. From then on a missing directory is
//! lost data and an error, never a new empty directory (I5). The marker cannot tell a new disk from a lost one when the
//! whole data directory went with it.
//!
//! Must never: follow a symbolic link or leave the data directory on the way to a volume; delete anything inside a mount
//! (I21); have two calls for one volume in flight (I4).

mod disk;
mod id;
mod mounts;
mod service;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use pb::csi::v1::{controller_server::ControllerServer, identity_server::IdentityServer, node_server::NodeServer};
use runtime::{CancellationToken, Server};

pub use disk::{Disk, DiskError};
pub use id::{BadVolumeId, VolumeId};
pub use service::Driver;

/// The driver's name: what a class names as its provisioner.
pub const NAME: &str = "local";

/// The topology key of the driver's volumes. Its value is the node's name.
pub const TOPOLOGY_KEY: &str = "topology.local.berth.dev/node";

/// Flags of `berth csi-local`.
#[derive(clap::Args, Clone, Debug)]
pub struct Config {
    /// Socket to serve CSI on, as unix:///PATH.
    #[arg(long, value_name = "unix:///PATH")]
    pub endpoint: String,
    /// Name of the node whose volumes this process holds. Without it the process only makes volumes (controller side).
    #[arg(long, requires = "data_dir")]
    pub node_name: Option<String>,
    /// Directory that holds the node's volumes.
    #[arg(long, value_name = "DIR", requires = "node_name")]
    pub data_dir: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "flattened")]
    pub telemetry: runtime::telemetry::TelemetryArgs,
}

/// Serves the driver until shutdown.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let Some(socket) = config.endpoint.strip_prefix("unix://").filter(|path| path.starts_with('/')) else {
        bail!("--endpoint {:?} is not a socket: expected unix:///PATH", config.endpoint);
    };
    let driver = match (config.node_name, config.data_dir) {
        (Some(node), Some(dir)) => {
            let disk = Disk::open(&dir).with_context(|| format!("prepare --data-dir {}", dir.display()))?;
            Driver::on_node(node, disk)
        }
        _ => Driver::controller_only(),
    };
    serve(driver, Path::new(socket), shutdown).await
}

/// Serves a driver on a socket until shutdown.
pub async fn serve(driver: Driver, socket: &Path, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut server = Server::unix("csi-local", socket)
        .service(IdentityServer::new(driver.clone()))
        .service(ControllerServer::new(driver.clone()));
    if driver.has_node() {
        server = server.service(NodeServer::new(driver));
    }
    server.serve(shutdown).await
}
