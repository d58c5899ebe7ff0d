//! What the end-to-end tests and the benchmark share.
//!
//! [`control`] runs etcd and the services as processes with hollow nodes, for what is about the control plane alone;
//! the lab (crate `lab`) runs everything with real nodes. [`client`] is a user's view of either.

pub mod applications;
pub mod canary;
pub mod census;
pub mod client;
pub mod control;
pub mod dice;
pub mod inventory;
pub mod process;
pub mod scripted;

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use lab::{Lab, LabArgs};
use pb::objects::Node;

use crate::{client::Client, process::berth_bin};

/// For a killed process to be there again.
const RESTART: Duration = Duration::from_secs(30);

/// What is worth reading in a log after a failure.
const COMPLAINTS: [&str; 4] = ["WARN", "ERROR", "panicked", "level=error"];
/// So many lines of it.
const SHOWN: usize = 12;

/// The addresses that a node's pods get; empty as long as it has none.
fn pod_range(node: &Node) -> &str {
    node.spec.as_ref().map_or("", |spec| spec.pod_cidr.as_str())
}

/// The lab of the default name, taken down when this is dropped.
pub struct LabGuard {
    /// The lab.
    pub lab: Lab,
}

impl LabGuard {
    /// Brings a lab of three nodes up.
    pub fn up() -> Result<Self> {
        Self::up_with(&[])
    }

    /// The same, with variables in the environment of all its processes.
    pub fn up_with(environment: &[(&str, &str)]) -> Result<Self> {
        let mut up = Command::new(berth_bin()?);
        up.args(["lab", "up", "--nodes", "3"]).envs(environment.iter().copied());
        let status = up.status().context("start berth")?;
        ensure!(status.success(), "berth lab up ended with {status}");
        let lab = Lab::open(&default_lab().id()?)?.context("the lab is not there after `lab up`")?;
        Ok(Self { lab })
    }

    /// Lets this machine reach the pods by their addresses. The routes go with the lab's bridge.
    pub async fn reach_pods(&self, client: &Client) -> Result<()> {
        for node in self.lab.layout().all_nodes() {
            let object = client.until::<Node>(&node.name(), RESTART, |node| !pod_range(node).is_empty()).await?;
            let via = self.lab.layout().node_ip(node).to_string();
            let ran = Command::new("ip").args(["route", "replace", pod_range(&object), "via", &via]).status()?;
            ensure!(ran.success(), "no route to the pods of {}: {ran}", node.name());
        }
        Ok(())
    }

    /// The last warnings and errors of every process, for a test that failed.
    pub fn complaints(&self) -> String {
        let mut told = String::new();
        let Ok(logs) = std::fs::read_dir(self.lab.layout().dir.join("log")) else { return told };
        let mut logs: Vec<_> = logs.flatten().map(|entry| entry.path()).collect();
        logs.sort();
        for log in logs {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<&str> = text
                .lines()
                .filter(|line| !line.contains("lacks fixes") && COMPLAINTS.iter().any(|word| line.contains(word)))
                .collect();
            if !lines.is_empty() {
                let tail = lines[lines.len().saturating_sub(SHOWN)..].join("\n");
                told.push_str(&format!("--- {}\n{tail}\n", log.display()));
            }
        }
        told
    }

    /// Kills a process with SIGKILL and waits until its successor is ready.
    pub async fn kill_and_wait(&self, process: &str) -> Result<()> {
        let killed = self.lab.kill(process)?;
        self.lab.restarted(process, killed, RESTART).await
    }
}

impl Drop for LabGuard {
    fn drop(&mut self) {
        // `lab down` removes the logs with everything else; a test that failed is explained by nothing but them.
        let logs = self.lab.layout().dir.join("log");
        let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab-logs");
        if let Err(error) = copy_files(&logs, &kept) {
            eprintln!("keep the logs in {}: {error}", kept.display());
        }
        let down = berth_bin().and_then(|berth| Ok(Command::new(berth).args(["lab", "down"]).status()?));
        if !matches!(&down, Ok(status) if status.success()) {
            eprintln!("berth lab down: {down:?}");
        }
    }
}

/// An error if anything of the lab is left on this machine.
pub fn nothing_is_left() -> Result<()> {
    let left = lab::leftovers(&default_lab().id()?)?;
    ensure!(left.is_empty(), "the lab left behind: {left:?}");
    Ok(())
}

fn copy_files(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

fn default_lab() -> LabArgs {
    #[derive(clap::Parser)]
    struct Defaults {
        #[command(flatten)]
        lab: LabArgs,
    }
    <Defaults as clap::Parser>::parse_from(["lab"]).lab
}
