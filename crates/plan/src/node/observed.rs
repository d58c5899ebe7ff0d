//! What the node shows of one pod.

use jiff::Timestamp;

use super::probe::Kind;

/// All that the container runtime has of one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runtime {
    /// Its sandboxes.
    pub sandboxes: Vec<Sandbox>,
    /// Its containers, of all sandboxes, running or not.
    pub containers: Vec<Container>,
}

/// What holds a pod's network and other namespaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// The runtime's id.
    pub id: String,
    /// Counts the pod's sandboxes from 0.
    pub attempt: u32,
    /// Whether containers can run in it.
    pub ready: bool,
    /// The pod's address.
    pub ip: Option<String>,
}

/// One run of one of the pod's containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// The runtime's id.
    pub id: String,
    /// Name in the pod's spec.
    pub name: String,
    /// Counts the runs of this container from 0.
    pub attempt: u32,
    /// The sandbox that it was made in.
    pub sandbox: String,
    /// Runs that ended too early in a row before this one (see [`super::restart`]).
    pub crashes: u32,
    /// The image as asked for.
    pub image: String,
    /// The image's digest.
    pub image_id: String,
    /// What it does.
    pub state: ContainerState,
}

/// What a container does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// Made, not started.
    Created,
    /// Runs.
    Running {
        /// Since when.
        started_at: Timestamp,
    },
    /// Ended.
    Exited {
        /// When it started.
        started_at: Timestamp,
        /// When it ended.
        finished_at: Timestamp,
        /// Its exit code; 128 plus the signal's number after a signal.
        code: i32,
        /// The runtime's word for it, such as Completed, Error or OOMKilled.
        reason: String,
        /// The runtime's sentence.
        message: String,
    },
    /// The runtime cannot say: it may run.
    Unknown,
}

impl Container {
    /// Whether a process of it may run.
    pub fn may_run(&self) -> bool {
        matches!(self.state, ContainerState::Running { .. } | ContainerState::Unknown)
    }
}

impl Runtime {
    /// The sandbox that containers run in: the newest that is ready.
    pub fn current(&self) -> Option<&Sandbox> {
        self.sandboxes.iter().filter(|sandbox| sandbox.ready).max_by_key(|sandbox| sandbox.attempt)
    }

    /// The runs of a container, newest first.
    pub fn runs<'a>(&'a self, name: &str) -> Vec<&'a Container> {
        let mut runs: Vec<_> = self.containers.iter().filter(|run| run.name == name).collect();
        runs.sort_by_key(|run| std::cmp::Reverse(run.attempt));
        runs
    }

    /// Whether there is nothing of the pod.
    pub fn is_empty(&self) -> bool {
        self.sandboxes.is_empty() && self.containers.is_empty()
    }
}

/// What the probes say of one run of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdicts {
    /// The startup probe has succeeded.
    pub started: bool,
    /// The readiness probe holds.
    pub ready: bool,
    /// Why the container must be ended: its startup or liveness probe has failed for good.
    pub fatal: Option<Fatal>,
}

/// A probe that failed for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fatal {
    /// Which one.
    pub probe: Kind,
    /// What its last try said.
    pub message: String,
}

/// What is under way for one run of a container. It is kept by the agent that does it and forgotten with it: the next
/// agent finds hooks that it does not know the end of as not begun, and runs them again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effort {
    /// Its postStart hook.
    pub post_start: Hook,
    /// Its preStop hook.
    pub pre_stop: Hook,
    /// The moment of SIGKILL, while its stop is under way.
    pub kill_at: Option<Timestamp>,
}

/// How far a hook is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Hook {
    /// Not begun.
    #[default]
    Idle,
    /// It runs.
    Running {
        /// Since when.
        since: Timestamp,
    },
    /// It has ended.
    Ended {
        /// When it began.
        since: Timestamp,
        /// Why it failed, if it did.
        failure: Option<String>,
    },
}

impl Hook {
    /// When it began.
    pub fn since(&self) -> Option<Timestamp> {
        match self {
            Hook::Idle => None,
            Hook::Running { since } | Hook::Ended { since, .. } => Some(*since),
        }
    }
}

/// The pod's volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Volumes {
    /// Not looked at since the agent started, or partly mounted.
    Unknown,
    /// All mounted.
    Mounted,
    /// None mounted, nothing of them left on the node.
    Absent,
}
