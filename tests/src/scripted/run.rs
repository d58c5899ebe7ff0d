//! Scripted drivers on the nodes of a lab, installed as their users would: a process on each node with a socket in the
//! node's registry folder. A driver that dies is started again.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result};
use lab::layout::MARKER;
use tokio::{process::Command, task::JoinHandle};

use super::{script::Script, state::State};
use crate::LabGuard;

/// Before a driver that died is started again.
const AGAIN: Duration = Duration::from_millis(200);

/// The drivers of one name, ended when this is dropped.
pub struct Drivers {
    /// What all of them know.
    pub state: State,
    /// What goes wrong with them.
    pub script: Script,
    tasks: Vec<JoinHandle<()>>,
}

impl Drivers {
    /// Starts a driver on every node.
    pub fn start(lab: &LabGuard, name: &str, program: &Path) -> Result<Self> {
        let layout = lab.lab.layout();
        let folder = layout.dir.join(name);
        let state = State::open(&folder)?;
        let mut tasks = Vec::new();
        for node in layout.all_nodes() {
            let log = std::fs::File::options()
                .create(true)
                .append(true)
                .open(layout.log(&format!("{name}@{}", node.name())))
                .context("open a driver's log")?;
            let mut command = Command::new(program);
            let path = |path: PathBuf| path.display().to_string();
            command
                .args(["--name", name, "--node", &node.name(), "--folder", &path(folder.clone())])
                .args(["--endpoint", &path(layout.csi_socket(node, name))])
                .args(["--registration", &path(layout.registration_socket(node, name))])
                // So that the lab's end is its end, too, whatever becomes of the test.
                .env(MARKER, layout.name.as_str())
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .kill_on_drop(true);
            tasks.push(tokio::spawn(keep_running(command)));
        }
        Ok(Self { script: Script::of(&folder), state, tasks })
    }
}

async fn keep_running(mut command: Command) {
    loop {
        match command.spawn() {
            Ok(mut child) => drop(child.wait().await),
            Err(error) => eprintln!("start a driver: {error}"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

impl Drop for Drivers {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}
