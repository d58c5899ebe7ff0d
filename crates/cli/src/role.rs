//! The roles of a cluster, each a process of its own.

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;
use runtime::{shutdown, telemetry, telemetry::TelemetryArgs};

/// A role of a cluster.
#[derive(Subcommand, Debug)]
pub enum Role {
    /// Serve the API: the front door of users and node agents
    #[command(next_help_heading = "Options of the role")]
    Api(api::Config),
    /// Run the controller: makes what is so for sets, nodes and garbage
    #[command(next_help_heading = "Options of the role")]
    Controller(controller::Config),
    /// Run the scheduler: finds a node for every pod
    #[command(next_help_heading = "Options of the role")]
    Scheduler(scheduler::Config),
    /// Run the volume manager: finds or makes a volume for every claim
    #[command(next_help_heading = "Options of the role")]
    Volumes(volumes::Config),
    /// Run the built-in CSI driver for volumes on a node
    #[command(next_help_heading = "Options of the role")]
    CsiLocal(csi::local::Config),
    /// Run the built-in CSI driver for volumes in a directory that all nodes reach
    #[command(next_help_heading = "Options of the role")]
    CsiShared(csi::shared::Config),
    /// Run the node agent: runs the pods of this node
    #[command(next_help_heading = "Options of the role")]
    Agent(agent::Config),
}

impl Role {
    /// Runs until SIGTERM or SIGINT.
    pub async fn run(self) -> Result<ExitCode> {
        let (name, args) = self.identity();
        // Held until the end: dropping it flushes the last spans.
        let _telemetry = telemetry::init(name, &args)?;
        let stop = shutdown::on_signal()?;
        match self {
            Role::Api(config) => api::run(config, stop).await?,
            Role::Controller(config) => controller::run(config, stop).await?,
            Role::Scheduler(config) => scheduler::run(config, stop).await?,
            Role::Volumes(config) => volumes::run(config, stop).await?,
            Role::CsiLocal(config) => csi::local::run(config, stop).await?,
            Role::CsiShared(config) => csi::shared::run(config, stop).await?,
            Role::Agent(config) => agent::run(config, stop).await?,
        }
        Ok(ExitCode::SUCCESS)
    }

    fn identity(&self) -> (&'static str, TelemetryArgs) {
        match self {
            Role::Api(config) => ("api", config.common.telemetry.clone()),
            Role::Controller(config) => ("controller", config.common.telemetry.clone()),
            Role::Scheduler(config) => ("scheduler", config.common.telemetry.clone()),
            Role::Volumes(config) => ("volumes", config.common.telemetry.clone()),
            Role::CsiLocal(config) => ("csi-local", config.telemetry.clone()),
            Role::CsiShared(config) => ("csi-shared", config.telemetry.clone()),
            Role::Agent(config) => ("agent", config.common.telemetry.clone()),
        }
    }
}
