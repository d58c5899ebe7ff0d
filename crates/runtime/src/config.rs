//! Flags that services share.

use std::{net::SocketAddr, sync::Arc};

use clap::Args;
use store::Store;

use crate::telemetry::TelemetryArgs;

/// Flags of every service.
#[derive(Args, Clone, Debug)]
pub struct CommonArgs {
    /// Address to serve gRPC, health, reflection and /metrics on.
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: SocketAddr,
    #[command(flatten)]
    #[allow(missing_docs, reason = "flattened")]
    pub telemetry: TelemetryArgs,
}

/// Where the store is.
#[derive(Args, Clone, Debug)]
pub struct EtcdArgs {
    /// The members of etcd.
    #[arg(
        long,
        value_name = "URL,...",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:2379",
        env = "BERTH_ETCD"
    )]
    pub etcd: Vec<String>,
}

impl EtcdArgs {
    /// A store over the members.
    pub async fn connect(&self) -> anyhow::Result<Arc<dyn Store>> {
        todo_connect(&self.etcd).await
    }
}

async fn todo_connect(_etcd: &[String]) -> anyhow::Result<Arc<dyn Store>> {
    anyhow::bail!("not connected to EtcdStore yet")
}
