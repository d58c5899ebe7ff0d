//! The roles: one service each, run in the foreground until SIGTERM or SIGINT.

use std::{future::Future, process::ExitCode};

use anyhow::Result;
use runtime::{
    CancellationToken, shutdown,
    telemetry::{self, TelemetryArgs},
};

/// Which service this process is.
#[derive(clap::Subcommand, Debug)]
pub enum Role {
    /// Run the API service
    Api(api::Config),
    /// Run the controller
    Controller(controller::Config),
    /// Run the scheduler
    Scheduler(scheduler::Config),
    /// Run the volume manager
    Volumes(volumes::Config),
    /// Run the CSI driver for volumes on the nodes' own disks
    CsiLocal(csi::local::Config),
    /// Run a node's agent, or many hollow ones
    Agent(agent::Config),
}

impl Role {
    /// Runs the service until it is told to stop.
    pub async fn run(self) -> Result<ExitCode> {
        match self {
            Self::Api(config) => serve("api", &config.common.telemetry.clone(), |stop| api::run(config, stop)).await,
            Self::Controller(config) => {
                serve("controller", &config.common.telemetry.clone(), |stop| controller::run(config, stop)).await
            }
            Self::Scheduler(config) => {
                serve("scheduler", &config.common.telemetry.clone(), |stop| scheduler::run(config, stop)).await
            }
            Self::Volumes(config) => {
                serve("volumes", &config.common.telemetry.clone(), |stop| volumes::run(config, stop)).await
            }
            Self::CsiLocal(config) => {
                serve("csi-local", &config.telemetry.clone(), |stop| csi::local::run(config, stop)).await
            }
            Self::Agent(config) => {
                serve("agent", &config.common.telemetry.clone(), |stop| agent::run(config, stop)).await
            }
        }
    }
}

async fn serve<F, Fut>(name: &'static str, args: &TelemetryArgs, run: F) -> Result<ExitCode>
where
    F: FnOnce(CancellationToken) -> Fut,
    Fut: Future<Output = Result<()>>,
{
    // Kept until the service has ended: dropping it sends the last spans.
    let _telemetry = telemetry::init(name, args)?;
    let stop = shutdown::on_signal()?;
    run(stop).await?;
    Ok(ExitCode::SUCCESS)
}
