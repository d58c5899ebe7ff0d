//! A stand-in for the `berth` binary: the lab's commands for real, and roles that only listen where they are told.
//!
//! It lets this crate test the lab with real etcd, containerd and network namespaces, without the other crates.

use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;

#[derive(Parser)]
enum Berth {
    /// The lab itself.
    #[command(subcommand)]
    Lab(lab::Command),
    /// Any role: listens on `--listen` or `--endpoint`, and waits for its end. `apply` is done at once.
    #[command(external_subcommand)]
    Role(Vec<String>),
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    match Berth::parse() {
        Berth::Lab(command) => command.run(async |_, _| Ok(())).await,
        Berth::Role(args) => role(&args),
    }
}

fn role(args: &[String]) -> Result<ExitCode> {
    if args.first().is_some_and(|command| command == "apply") {
        return Ok(ExitCode::SUCCESS);
    }
    let value = |flag: &str| {
        let at = args.iter().position(|arg| arg == flag)?;
        args.get(at + 1)
    };
    if let Some(address) = value("--listen") {
        let listener = TcpListener::bind(address).with_context(|| format!("bind {address}"))?;
        for connection in listener.incoming() {
            connection?;
        }
    } else if let Some(endpoint) = value("--endpoint") {
        let path = endpoint.strip_prefix("unix://").context("no unix:// URL")?;
        if std::path::Path::new(path).exists() {
            std::fs::remove_file(path)?;
        }
        for connection in UnixListener::bind(path)?.incoming() {
            connection?;
        }
    }
    bail!("a role needs --listen or --endpoint")
}
