//! How a member is lost, and what it means that it is back.

use std::{collections::BTreeSet, fmt, fs, time::Duration};

use anyhow::{Context, Result, ensure};
use pb::{ObjectExt, objects::Pod};
use tokio::time::Instant;

use super::stage::Stage;
use crate::{LabGuard, client::is_ready};

/// The process that holds a pod's namespaces, which is no part of the application.
const PAUSE: &str = "pause";

/// A way to lose a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// SIGKILL for all of its processes; the pod stays and its container is started again.
    Processes,
    /// The same, and its node's agent dies with it.
    ProcessesAndAgent,
    /// The pod is deleted without a moment to say goodbye, and another one takes its place.
    Pod,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Processes => "kill -9",
            Self::ProcessesAndAgent => "kill -9, and its node's agent",
            Self::Pod => "deleted by force",
        })
    }
}

impl Loss {
    /// Loses a member and waits until it is ready again.
    pub async fn strike(self, lab: &LabGuard, stage: &Stage, name: &str, deadline: Instant) -> Result<()> {
        let before = stage.member(name).await?;
        match self {
            Self::Processes | Self::ProcessesAndAgent => {
                if self == Self::ProcessesAndAgent {
                    let node = before.spec.as_ref().map_or("", |spec| spec.node_name.as_str());
                    lab.lab.kill(&format!("agent@{node}"))?;
                }
                let killed = kill_processes(name)?;
                ensure!(killed > 0, "{name} has no process that could be killed");
            }
            Self::Pod => drop(stage.berth(&["delete", "pod", name, "--force", "--wait=false"]).await?),
        }
        let back = |now: &Pod| {
            let another = match self {
                Self::Processes | Self::ProcessesAndAgent => {
                    now.uid() == before.uid() && restarts(now) > restarts(&before)
                }
                Self::Pod => now.uid() != before.uid(),
            };
            another && is_ready(now) && !now.is_terminating()
        };
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
        stage.client.until(name, left, back).await.with_context(|| format!("{name} does not come back"))?;
        Ok(())
    }
}

fn restarts(pod: &Pod) -> i32 {
    let containers = pod.status.iter().flat_map(|status| &status.container_statuses);
    containers.map(|container| container.restart_count).sum()
}

/// Sends SIGKILL to every process of a pod's containers, and says to how many. The lab's nodes share this machine's
/// process table.
fn kill_processes(pod: &str) -> Result<usize> {
    let mut doomed = BTreeSet::new();
    for entry in fs::read_dir("/proc").context("read the process table")?.flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // A process that ends while we look needs no more.
        let read = |file: &str| fs::read_to_string(format!("/proc/{id}/{file}")).unwrap_or_default();
        let contained =
            read("status").lines().any(|line| line.starts_with("NSpid:") && line.split_whitespace().count() > 2);
        if contained && read("comm").trim() != PAUSE && read("root/etc/hostname").trim() == pod {
            doomed.insert(id);
        }
    }
    if !doomed.is_empty() {
        let ids: Vec<String> = doomed.iter().map(u32::to_string).collect();
        // The end of a container's first process ends the others, possibly before kill comes to them.
        std::process::Command::new("kill").arg("-KILL").args(&ids).output().context("run kill")?;
    }
    Ok(doomed.len())
}
