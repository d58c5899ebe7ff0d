//! What the supervisor knows of its processes, kept in the lab's folder for everyone else to read.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::system::ProcessId;

/// The supervisor and all its processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The supervisor that wrote this.
    pub supervisor: ProcessId,
    /// Every process, by name, in the order in which people want to read them.
    pub processes: Vec<ProcessState>,
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessState {
    /// `role` or `role@node`.
    pub name: String,
    /// Its node; none for the control plane.
    pub node: Option<String>,
    /// What it is at.
    pub phase: Phase,
    /// The process, while there is one.
    pub process: Option<ProcessId>,
    /// Milliseconds since 1970 at the start of the present run.
    pub started_ms: u64,
    /// From start to ready in the present run, in milliseconds.
    pub ready_after_ms: Option<u64>,
    /// How many runs came before the present one.
    pub restarts: u32,
    /// How the last run ended.
    pub last_exit: Option<String>,
    /// Where its output goes.
    pub log: PathBuf,
}

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Waits for others to be ready before its first start.
    Waiting,
    /// Runs, and is not ready yet.
    Starting,
    /// Runs and is ready.
    Ready,
    /// Has ended and waits for its restart.
    Backoff,
    /// Was meant to end, and has.
    Done,
    /// Was stopped with the supervisor.
    Stopped,
}

impl Phase {
    /// Whether the lab needs nothing more of this process to be whole.
    pub fn settled(self) -> bool {
        matches!(self, Self::Ready | Self::Done)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Waiting => "waiting",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Backoff => "backoff",
            Self::Done => "done",
            Self::Stopped => "stopped",
        })
    }
}

impl State {
    /// Reads the state file; none if there is none yet.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .with_context(|| format!("{} is damaged: run `berth lab down`, then `up`", path.display())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// The process of this name.
    pub fn process(&self, name: &str) -> Option<&ProcessState> {
        self.processes.iter().find(|p| p.name == name)
    }

    /// The processes that the lab still waits for.
    pub fn unsettled(&self) -> Vec<&ProcessState> {
        self.processes.iter().filter(|p| !p.phase.settled()).collect()
    }

    /// The restarts of every process, by name.
    pub fn restarts(&self) -> BTreeMap<String, u32> {
        self.processes.iter().map(|p| (p.name.clone(), p.restarts)).collect()
    }
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
