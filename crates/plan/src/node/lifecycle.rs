//! The actions that are due.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use pb::objects::{Pod, PodStatus};

use super::{
    observed::{Effort, Runtime, Verdicts, Volumes},
    progress, status,
};

/// Kubernetes' default for terminationGracePeriodSeconds.
const DEFAULT_GRACE: Duration = Duration::from_secs(30);

/// All that a decision about one pod rests on.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot<'a> {
    /// The moment of the decision.
    pub now: Timestamp,
    /// The pod, with its spec as far as it is known.
    pub pod: &'a Pod,
    /// Whether it shall run.
    pub wanted: Wanted,
    /// What the container runtime has of it.
    pub runtime: &'a Runtime,
    /// Its volumes on this node.
    pub volumes: Volumes,
    /// What the probes say, by the runtime's id of the container.
    pub verdicts: &'a BTreeMap<String, Verdicts>,
    /// What is under way, by the runtime's id of the container.
    pub efforts: &'a BTreeMap<String, Effort>,
    /// Since when plans are about taking everything down ([`Plan::leaving`]).
    pub leaving_since: Option<Timestamp>,
    /// Steps whose last try failed.
    pub failures: &'a BTreeMap<Step, Failure>,
    /// The status as it was last decided, or as the API has it.
    pub before: &'a PodStatus,
    /// The node's address.
    pub host_ip: &'a str,
}

/// What is to become of the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// It shall run.
    Run,
    /// It shall be gone, after at most this time for its containers to end by themselves.
    Stop {
        /// Between SIGTERM and SIGKILL.
        grace: Duration,
    },
}

impl Wanted {
    /// What a pod that the API knows asks for.
    pub fn of(pod: &Pod) -> Self {
        let meta = pod.metadata.as_ref();
        if meta.is_none_or(|meta| meta.deletion_timestamp.is_none()) {
            return Wanted::Run;
        }
        let asked = meta.and_then(|meta| meta.deletion_grace_period_seconds).and_then(|s| u64::try_from(s).ok());
        Wanted::Stop { grace: asked.map_or_else(|| grace(pod), Duration::from_secs) }
    }
}

/// The time that the pod's containers get to end by themselves.
pub fn grace(pod: &Pod) -> Duration {
    let seconds = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    seconds.and_then(|s| u64::try_from(s).ok()).map_or(DEFAULT_GRACE, Duration::from_secs)
}

/// What can fail, and is not tried again before its time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Mounting the volumes.
    Volumes,
    /// Making the sandbox.
    Sandbox,
    /// Starting or stopping the container of this name.
    Container(String),
    /// Taking the pod down.
    TearDown,
}

/// How a step failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// One word, as in a container's waiting reason.
    pub reason: String,
    /// What went wrong and what to do.
    pub message: String,
    /// Not before this moment again.
    pub retry_at: Timestamp,
}

/// Something to do now. The actions of one plan do not depend on each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Mount all volumes. Idempotent.
    MountVolumes,
    /// Unmount all volumes and remove what they left on the node.
    UnmountVolumes,
    /// Make the pod's network and namespaces.
    RunSandbox {
        /// Its number.
        attempt: u32,
    },
    /// End a sandbox and give its network back; its containers stay for their logs and states.
    StopSandbox {
        /// The runtime's id.
        id: String,
    },
    /// End a sandbox and remove it with its containers, none of which runs.
    DiscardSandbox {
        /// The runtime's id.
        id: String,
    },
    /// Make a container and start it.
    StartContainer {
        /// Name in the pod's spec.
        name: String,
        /// Number of this run.
        attempt: u32,
        /// Early ends in a row before it.
        crashes: u32,
        /// The sandbox that it belongs to.
        sandbox: String,
    },
    /// Begin the container's postStart hook. It is under way when this returns.
    RunPostStart {
        /// The runtime's id.
        id: String,
        /// Name in the pod's spec.
        name: String,
    },
    /// Begin the container's preStop hook. It is under way when this returns.
    RunPreStop {
        /// The runtime's id.
        id: String,
        /// Name in the pod's spec.
        name: String,
        /// It is given up after this time.
        limit: Duration,
        /// Why the container is stopped, for people.
        why: String,
    },
    /// Begin to end a container: its stop signal, the grace period, SIGKILL. In the place of a stop that is under way.
    StopContainer {
        /// The runtime's id.
        id: String,
        /// Name in the pod's spec.
        name: String,
        /// Between the signals.
        grace: Duration,
        /// Why, for people.
        why: String,
    },
    /// Remove a container that does not run.
    RemoveContainer {
        /// The runtime's id.
        id: String,
        /// Name in the pod's spec.
        name: String,
    },
}

impl Action {
    /// The step that this action is a try of.
    pub fn step(&self) -> Step {
        match self {
            Action::MountVolumes => Step::Volumes,
            Action::RunSandbox { .. } => Step::Sandbox,
            Action::StartContainer { name, .. }
            | Action::RunPostStart { name, .. }
            | Action::RunPreStop { name, .. }
            | Action::StopContainer { name, .. }
            | Action::RemoveContainer { name, .. } => Step::Container(name.clone()),
            Action::UnmountVolumes | Action::StopSandbox { .. } | Action::DiscardSandbox { .. } => Step::TearDown,
        }
    }
}

/// The decision.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What to do now, all at the same time; then observe and decide again.
    pub actions: Vec<Action>,
    /// What to report.
    pub status: PodStatus,
    /// When to look again even if nothing happens.
    pub wake: Option<Timestamp>,
    /// All containers are being ended, and one grace period counts for all of them. Its begin is the moment of the first
    /// such plan in a row; whoever asks remembers it ([`Snapshot::leaving_since`]).
    pub leaving: bool,
    /// Nothing of the pod is left on the node.
    pub stopped: bool,
}

/// Decides.
pub fn decide(snapshot: &Snapshot<'_>) -> Plan {
    let mut steps = Steps { snapshot, actions: Vec::new(), wake: None, leaving: false };
    let stopped = match snapshot.wanted {
        Wanted::Stop { grace } => steps.stop(grace),
        Wanted::Run => {
            steps.watch_deadline();
            match snapshot.runtime.current() {
                _ if progress::has_ended(snapshot) => steps.wind_down(),
                Some(sandbox) => steps.run_in(sandbox),
                None => steps.make_sandbox(),
            }
            false
        }
    };
    let Steps { actions, wake, leaving, .. } = steps;
    Plan { status: status::of(snapshot, &actions), actions, wake, leaving, stopped }
}

/// A plan in the making.
pub(super) struct Steps<'a> {
    pub(super) snapshot: &'a Snapshot<'a>,
    pub(super) actions: Vec<Action>,
    pub(super) leaving: bool,
    wake: Option<Timestamp>,
}

impl Steps<'_> {
    /// Adds an action, unless its step failed and its time has not come.
    pub(super) fn due(&mut self, action: Action) {
        match self.snapshot.failures.get(&action.step()) {
            Some(failure) if failure.retry_at > self.snapshot.now => self.wake_at(failure.retry_at),
            _ => self.actions.push(action),
        }
    }

    pub(super) fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |before| before.min(at)));
    }

    fn watch_deadline(&mut self) {
        if let Some(at) = progress::deadline(self.snapshot).filter(|at| *at > self.snapshot.now) {
            self.wake_at(at);
        }
    }
}
