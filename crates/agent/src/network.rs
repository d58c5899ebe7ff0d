//! The pod network of the node.

mod cni;

use crate::{api::NodeApi, config::Config, session::Registration};
use runtime::tasks::Tasks;

/// Sets the network up and keeps it.
pub async fn start(config: &Config, registration: &Registration, _api: NodeApi, _tasks: &Tasks) -> anyhow::Result<()> {
    let cidr = registration.node.spec.as_ref().map_or("", |spec| spec.pod_cidr.as_str());
    cni::write(&config.data_dir, cidr)?;
    cni::enable_forwarding()
}
