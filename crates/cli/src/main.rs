//! The `berth` binary: every service is a role of it, and so is the client.

mod roles;

use std::process::ExitCode;

use clap::Parser;

/// Stateful services whose replicas keep their name, their address and their volumes for life.
#[derive(Parser, Debug)]
#[command(name = "berth", version, propagate_version = true, infer_long_args = true)]
struct Berth {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Run a whole cluster on this machine
    #[command(subcommand)]
    Lab(lab::Command),
    #[command(flatten)]
    Role(roles::Role),
}

#[tokio::main]
async fn main() -> ExitCode {
    let result = match Berth::parse().command {
        Command::Lab(command) => command.run(async |_, _| Ok(())).await,
        Command::Role(role) => role.run().await,
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
