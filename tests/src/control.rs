//! A control plane of real processes over a real etcd, with hollow nodes.

use std::{net::TcpListener, path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use pb::objects::Node;
use store::testing::EtcdProcess;
use tempfile::TempDir;

use crate::{
    client::Client,
    process::{Process, berth_bin},
};

/// How long everything may take to come up.
const START: Duration = Duration::from_secs(30);

/// The processes, killed when this is dropped.
pub struct ControlPlane {
    /// The services and the hollow agent.
    pub processes: Vec<Process>,
    /// The store beneath.
    pub etcd: EtcdProcess,
    /// A user.
    pub client: Client,
    _folder: TempDir,
}

impl ControlPlane {
    /// Starts etcd, every service and so many hollow nodes, and waits until all nodes are known.
    pub async fn start(nodes: u32) -> Result<Self> {
        Self::start_with(nodes, &[]).await
    }

    /// The same, with variables in the services' environment.
    pub async fn start_with(nodes: u32, environment: &[(&str, &str)]) -> Result<Self> {
        let folder = TempDir::with_prefix("berth-control-")?;
        let etcd = EtcdProcess::start().await.context("start etcd")?;
        let [api, controller, scheduler, volumes, agent] = free_ports()?;
        let at = |port: u16| format!("127.0.0.1:{port}");
        let http = |port: u16| format!("http://127.0.0.1:{port}");
        let socket = folder.path().join("csi.sock");
        let unix = format!("unix://{}", socket.display());
        let agent_data = folder.path().join("agent").display().to_string();
        let count = nodes.to_string();

        let berth = berth_bin()?;
        let start = |role: &str, args: &[&str]| start_role(&berth, role, args, environment, folder.path());
        let processes = vec![
            start("csi-local", &["--endpoint", &unix])?,
            start("api", &["--listen", &at(api), "--etcd", &etcd.url])?,
            start("volumes", &["--listen", &at(volumes), "--etcd", &etcd.url, "--csi", &unix])?,
            start("scheduler", &["--listen", &at(scheduler), "--etcd", &etcd.url, "--volumes", &http(volumes)])?,
            start(
                "controller",
                &[
                    "--listen",
                    &at(controller),
                    "--etcd",
                    &etcd.url,
                    "--scheduler",
                    &http(scheduler),
                    "--volumes",
                    &http(volumes),
                ],
            )?,
            start(
                "agent",
                &[
                    "--listen",
                    &at(agent),
                    "--api",
                    &http(api),
                    "--node-name",
                    "hollow",
                    "--hollow",
                    &count,
                    "--data-dir",
                    &agent_data,
                ],
            )?,
        ];
        let plane = Self { processes, etcd, client: Client::new(&http(api))?, _folder: folder };
        plane.wait_for_nodes(nodes).await?;
        Ok(plane)
    }

    async fn wait_for_nodes(&self, nodes: u32) -> Result<()> {
        let all_known = async {
            loop {
                if let Ok((known, _)) = self.client.list::<Node>("").await
                    && known.len() >= nodes as usize
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(START, all_known).await.is_err() {
            let logs: Vec<String> =
                self.processes.iter().map(|p| format!("--- {}\n{}", p.name(), p.log_tail())).collect();
            bail!("the nodes were not known after {START:?}\n{}", logs.join("\n"));
        }
        Ok(())
    }

    /// The process of a role.
    pub fn process(&mut self, role: &str) -> Result<&mut Process> {
        let found = self.processes.iter_mut().find(|process| process.name() == role);
        found.with_context(|| format!("there is no {role}"))
    }
}

fn start_role(berth: &Path, role: &str, args: &[&str], environment: &[(&str, &str)], folder: &Path) -> Result<Process> {
    let mut command = vec![role.to_owned()];
    command.extend(args.iter().map(|arg| (*arg).to_owned()));
    Process::start(role, berth, &command, environment, folder)
}

/// Ports that were free a moment ago.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let listeners: Vec<TcpListener> = (0..N).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}
