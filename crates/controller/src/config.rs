//! The controller as a service: flags, connections, the server.

use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;
use pb::{
    scheduler::v1::scheduler_service_client::SchedulerServiceClient,
    volumes::v1::volume_service_client::VolumeServiceClient,
};
use runtime::{CommonArgs, EtcdArgs, channel, server::Server};
use tokio_util::sync::CancellationToken;

use crate::{
    controller::{self, Parts},
    host::SystemHost,
    ports::{RemotePlacer, RemoteVolumes},
};

/// Flags of `berth controller`.
#[derive(Args, Clone, Debug)]
pub struct Config {
    #[command(flatten)]
    #[allow(missing_docs, reason = "flattened")]
    pub common: CommonArgs,
    #[command(flatten)]
    #[allow(missing_docs, reason = "flattened")]
    pub etcd: EtcdArgs,
    /// The scheduler service.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7442", env = "BERTH_SCHEDULER")]
    pub scheduler: String,
    /// The volume manager.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7443", env = "BERTH_VOLUMES")]
    pub volumes: String,
}

/// Serves until shutdown.
pub async fn serve(config: Config, shutdown: CancellationToken) -> Result<()> {
    let scheduler = channel::connect(&config.scheduler).context("--scheduler")?;
    let volumes = channel::connect(&config.volumes).context("--volumes")?;
    // The address is taken first: it is this process's identity, and nobody else can have it.
    let server = Server::new("controller", config.common.listen).bind().await?;
    let identity = server.identity();
    let parts = Parts {
        store: config.etcd.connect().await?,
        placer: Arc::new(RemotePlacer(SchedulerServiceClient::new(scheduler))),
        volumes: Arc::new(RemoteVolumes(VolumeServiceClient::new(volumes))),
        host: Arc::new(SystemHost),
    };
    let (served, ()) = tokio::join!(server.serve(shutdown.clone()), async {
        controller::run(parts, &identity, &shutdown).await;
    });
    served
}
