//! Flags that services share.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context;
use clap::Args;
use store::{Error, EtcdConfig, EtcdStore, Store};

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
    /// A store over the members. While none of them answers the service starts all the same, says so, and serves what
    /// it can: etcd may come later.
    pub async fn connect(&self) -> anyhow::Result<Arc<dyn Store>> {
        let config = EtcdConfig::new(&self.etcd);
        let store = match EtcdStore::connect_with(config.clone()).await {
            Err(Error::Unavailable(reason)) => {
                tracing::warn!(etcd = self.etcd.join(","), reason, "etcd does not answer yet");
                EtcdStore::lazy(config).await
            }
            other => other,
        };
        Ok(Arc::new(store.with_context(|| format!("--etcd {}", self.etcd.join(",")))?))
    }
}
