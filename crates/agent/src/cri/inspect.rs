//! What the runtime says of running containers beyond their state: processes on the host, and what they use.

use k8s_cri::v1 as cri;
use serde_json::Value;
use tonic::Status;

use super::{Cri, LOOK, label, within};

/// What a container uses, as the runtime has measured it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// The container's id.
    pub id: String,
    /// Namespace, name and uid of its pod, and its own name.
    pub names: [String; 4],
    /// When the processor time was read, in nanoseconds.
    pub at: i64,
    /// Processor time since the container started, in nanoseconds.
    pub cpu: u64,
    /// Bytes of memory that cannot be taken back at will.
    pub memory: u64,
}

impl Cri {
    /// The first process of a running container, on the host; None if it does not run.
    pub async fn container_pid(&self, id: &str) -> Result<Option<i32>, Status> {
        let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
        let status = within(LOOK, self.runtime.clone().container_status(request)).await?;
        let running = status.status.is_some_and(|s| s.state == cri::ContainerState::ContainerRunning as i32);
        Ok(status.info.get("info").filter(|_| running).and_then(|info| pid(info)))
    }

    /// The process that holds a sandbox's namespaces, on the host; None if there is none.
    pub async fn sandbox_pid(&self, id: &str) -> Result<Option<i32>, Status> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
        let status = within(LOOK, self.runtime.clone().pod_sandbox_status(request)).await?;
        let ready = status.status.is_some_and(|s| s.state == cri::PodSandboxState::SandboxReady as i32);
        Ok(status.info.get("info").filter(|_| ready).and_then(|info| pid(info)))
    }

    /// What the running containers of this node use.
    pub async fn measure(&self) -> Result<Vec<Measured>, Status> {
        let label_selector = [(label::NODE.to_owned(), self.node.to_string())].into();
        let filter = cri::ContainerStatsFilter { label_selector, ..Default::default() };
        let request = cri::ListContainerStatsRequest { filter: Some(filter) };
        let listed = within(LOOK, self.runtime.clone().list_container_stats(request)).await?;
        Ok(listed.stats.into_iter().filter_map(measured).collect())
    }
}

fn pid(info: &str) -> Option<i32> {
    let info: Value = serde_json::from_str(info).ok()?;
    i32::try_from(info.get("pid")?.as_i64()?).ok().filter(|pid| *pid > 0)
}

/// None for a container of which nothing is measured: it has ended.
fn measured(stats: cri::ContainerStats) -> Option<Measured> {
    let attributes = stats.attributes?;
    let cpu = stats.cpu?;
    let text = |name| attributes.labels.get(name).cloned().unwrap_or_default();
    Some(Measured {
        names: [text(label::NAMESPACE), text(label::NAME), text(label::UID), text(label::CONTAINER)],
        at: cpu.timestamp,
        cpu: cpu.usage_core_nano_seconds?.value,
        memory: stats.memory?.working_set_bytes?.value,
        id: attributes.id,
    })
}
