//! A lab that is there: what tests and the smaller commands do with it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::cleanup::LabId;
use crate::layout::{Layout, NodeIndex, config_file};
use crate::spec::Config;
use crate::state::{Phase, ProcessState, State};
use crate::system::{ProcessId, marked, wait_until};

/// A lab that was brought up and not yet taken down.
#[derive(Debug, Clone)]
pub struct Lab {
    config: Config,
}

impl Lab {
    /// The lab in this folder; none if there is none. A folder of another lab is an error.
    pub fn open(id: &LabId) -> Result<Option<Self>> {
        let path = config_file(&id.dir);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        let config: Config = serde_json::from_slice(&bytes).with_context(|| {
            format!("{} is damaged or of another version: run `berth lab down`, then `up`", path.display())
        })?;
        let lab = Self { config };
        lab.refuse_other(id)?;
        Ok(Some(lab))
    }

    /// Before anything is removed: the folder must not be another lab's. A file that cannot be read proves nothing.
    pub(crate) fn refuse_other_folder(id: &LabId) -> Result<()> {
        let config = std::fs::read(config_file(&id.dir)).ok();
        match config.and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
            Some(config) => Self { config }.refuse_other(id),
            None => Ok(()),
        }
    }

    fn refuse_other(&self, id: &LabId) -> Result<()> {
        let name = &self.layout().name;
        if *name != id.name {
            bail!("{} belongs to lab {name}: pass --name {name}", id.dir.display());
        }
        Ok(())
    }

    pub(crate) fn new(config: Config) -> Self {
        Self { config }
    }

    /// Names, addresses and paths.
    pub fn layout(&self) -> &Layout {
        &self.config.layout
    }

    /// Everything that `up` decided.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The API service's URL on this machine.
    pub fn server(&self) -> String {
        format!("http://{}", self.layout().api())
    }

    /// What the supervisor last wrote; none before it wrote for the first time.
    pub fn state(&self) -> Result<Option<State>> {
        State::read(&self.layout().state_file())
    }

    /// The supervisor, if it lives.
    pub fn supervisor(&self) -> Result<Option<ProcessId>> {
        Ok(self.state()?.map(|state| state.supervisor).filter(|s| s.alive() && marked(s.pid, &self.layout().name)))
    }

    /// One process as the supervisor last wrote it.
    pub fn process(&self, name: &str) -> Result<ProcessState> {
        let state = self.state()?.context("the lab has no supervisor yet")?;
        if let Some(process) = state.process(name) {
            return Ok(process.clone());
        }
        let names: Vec<_> = state.processes.iter().map(|p| p.name.as_str()).collect();
        bail!("no process {name:?} in the lab; there are {}", names.join(", "))
    }

    /// Sends SIGKILL to a process and returns which one it was.
    pub fn kill(&self, name: &str) -> Result<ProcessId> {
        let process = self.process(name)?;
        let Some(id) = process.process.filter(|id| id.alive()) else {
            bail!("{name} does not run at the moment (it is {})", process.phase);
        };
        if !marked(id.pid, &self.layout().name) {
            bail!("process {} is not the lab's {name} any more", id.pid);
        }
        id.signal(Signal::SIGKILL)?;
        Ok(id)
    }

    /// Waits until another process than `old` runs under this name and is ready.
    pub async fn restarted(&self, name: &str, old: ProcessId, limit: Duration) -> Result<()> {
        wait_until(&format!("{name} restarts"), limit, || {
            let process = self.process(name)?;
            match process.process {
                Some(new) if new != old && process.phase == Phase::Ready => Ok(()),
                Some(new) if new != old => bail!("it is {}", process.phase),
                _ => bail!("{} was not replaced", old.pid),
            }
        })
        .await
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Result<NodeIndex> {
        let lab = self.layout();
        lab.all_nodes()
            .find(|node| node.name() == name)
            .with_context(|| format!("no node {name:?}; the lab has node-1 to node-{}", lab.nodes))
    }

    /// A command that runs in a node's network namespace.
    pub fn command_on(&self, node: NodeIndex, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.layout().netns(node))).arg("--").arg(program.as_ref());
        command
    }

    /// The log of a process.
    pub fn log(&self, name: &str) -> PathBuf {
        self.layout().log(name)
    }
}
