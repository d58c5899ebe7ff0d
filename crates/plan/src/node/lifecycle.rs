//! The actions that are due.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use pb::objects::{Container as ContainerSpec, Pod, PodStatus};

use super::{
    observed::{Container, ContainerState, Runtime, Sandbox, Verdicts, Volumes},
    restart, status,
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
    /// End a container: SIGTERM, the grace period, SIGKILL.
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
    /// Nothing of the pod is left on the node.
    pub stopped: bool,
}

/// Decides.
pub fn decide(snapshot: &Snapshot<'_>) -> Plan {
    let mut steps = Steps { snapshot, actions: Vec::new(), wake: None };
    let stopped = match snapshot.wanted {
        Wanted::Stop { grace } => steps.stop(grace),
        Wanted::Run => {
            match snapshot.runtime.current() {
                _ if status::has_ended(snapshot) => steps.wind_down(),
                Some(sandbox) => steps.run_in(sandbox),
                None => steps.make_sandbox(),
            }
            false
        }
    };
    let Steps { actions, wake, .. } = steps;
    Plan { status: status::of(snapshot, &actions), actions, wake, stopped }
}

struct Steps<'a> {
    snapshot: &'a Snapshot<'a>,
    actions: Vec<Action>,
    wake: Option<Timestamp>,
}

impl<'a> Steps<'a> {
    /// Adds an action, unless its step failed and its time has not come.
    fn due(&mut self, action: Action) {
        match self.snapshot.failures.get(&action.step()) {
            Some(failure) if failure.retry_at > self.snapshot.now => self.wake_at(failure.retry_at),
            _ => self.actions.push(action),
        }
    }

    fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |before| before.min(at)));
    }

    /// Ends containers that may run; tells whether there were any.
    fn stop_containers(&mut self, grace: Duration, why: &str, of: impl Fn(&Container) -> bool) -> bool {
        let runtime: &'a Runtime = self.snapshot.runtime;
        let mut any = false;
        for run in runtime.containers.iter().filter(|run| run.may_run() && of(run)) {
            any = true;
            self.due(Action::StopContainer { id: run.id.clone(), name: run.name.clone(), grace, why: why.to_owned() });
        }
        any
    }

    /// Takes the pod down; tells whether nothing of it is left.
    fn stop(&mut self, grace: Duration) -> bool {
        if self.stop_containers(grace, "the pod is being deleted", |_| true) {
            return false;
        }
        let runtime: &'a Runtime = self.snapshot.runtime;
        for sandbox in &runtime.sandboxes {
            self.due(Action::DiscardSandbox { id: sandbox.id.clone() });
        }
        let homeless = |run: &&Container| !runtime.sandboxes.iter().any(|sandbox| sandbox.id == run.sandbox);
        for run in runtime.containers.iter().filter(homeless) {
            self.due(Action::RemoveContainer { id: run.id.clone(), name: run.name.clone() });
        }
        if self.snapshot.volumes != Volumes::Absent {
            self.due(Action::UnmountVolumes);
        }
        runtime.is_empty() && self.snapshot.volumes == Volumes::Absent
    }

    /// The pod has ended by itself: its containers stay for their logs, all else goes.
    fn wind_down(&mut self) {
        if self.stop_containers(grace(self.snapshot.pod), "the pod has ended", |_| true) {
            return;
        }
        let runtime: &'a Runtime = self.snapshot.runtime;
        for sandbox in runtime.sandboxes.iter().filter(|sandbox| sandbox.ready) {
            self.due(Action::StopSandbox { id: sandbox.id.clone() });
        }
        if self.snapshot.volumes != Volumes::Absent {
            self.due(Action::UnmountVolumes);
        }
    }

    /// There is no sandbox to run in.
    fn make_sandbox(&mut self) {
        let why = "its sandbox has ended";
        if self.stop_containers(grace(self.snapshot.pod), why, |_| true) {
            return;
        }
        let runtime: &'a Runtime = self.snapshot.runtime;
        if runtime.sandboxes.is_empty() {
            // Both at once: no process of the pod runs before its containers start.
            self.mount_volumes();
            self.due(Action::RunSandbox { attempt: self.sandbox_attempt() });
        }
        for sandbox in &runtime.sandboxes {
            self.due(Action::DiscardSandbox { id: sandbox.id.clone() });
        }
    }

    fn sandbox_attempt(&self) -> u32 {
        self.snapshot.runtime.sandboxes.iter().map(|sandbox| sandbox.attempt.saturating_add(1)).max().unwrap_or(0)
    }

    /// Tells whether they are mounted.
    fn mount_volumes(&mut self) -> bool {
        let mounted = self.snapshot.volumes == Volumes::Mounted;
        if !mounted && !self.actions.contains(&Action::MountVolumes) {
            self.due(Action::MountVolumes);
        }
        mounted
    }

    fn run_in(&mut self, sandbox: &'a Sandbox) {
        let runtime: &'a Runtime = self.snapshot.runtime;
        let grace = grace(self.snapshot.pod);
        self.stop_containers(grace, "its sandbox was replaced", |run| run.sandbox != sandbox.id);
        for other in runtime.sandboxes.iter().filter(|other| other.id != sandbox.id) {
            if !runtime.containers.iter().any(|run| run.sandbox == other.id && run.may_run()) {
                self.due(Action::DiscardSandbox { id: other.id.clone() });
            }
        }
        let Some(spec) = self.snapshot.pod.spec.as_ref() else { return };
        self.remove_old_runs(spec.init_containers.iter().chain(&spec.containers));
        if status::initialized(self.snapshot, sandbox) {
            for container in &spec.containers {
                self.run_container(container, sandbox, &spec.restart_policy);
            }
        } else if let Some(container) =
            spec.init_containers.iter().find(|container| !status::init_done(self.snapshot, sandbox, container))
        {
            self.run_init(container, sandbox, &spec.restart_policy);
        }
    }

    /// Keeps the newest run and the one before.
    fn remove_old_runs(&mut self, containers: impl Iterator<Item = &'a ContainerSpec>) {
        for container in containers {
            for run in self.snapshot.runtime.runs(&container.name).into_iter().skip(2).filter(|run| !run.may_run()) {
                self.due(Action::RemoveContainer { id: run.id.clone(), name: run.name.clone() });
            }
        }
    }

    fn run_init(&mut self, container: &ContainerSpec, sandbox: &Sandbox, policy: &str) {
        // An init container of a pod that restarts always is repeated until it succeeds, not for ever.
        let policy = if policy == "Never" { "Never" } else { "OnFailure" };
        match self.snapshot.runtime.runs(&container.name).first() {
            Some(run) if run.sandbox == sandbox.id => self.tend(run, sandbox, policy),
            before => self.start(container, sandbox, before.map_or(0, |run| run.crashes)),
        }
    }

    fn run_container(&mut self, container: &ContainerSpec, sandbox: &Sandbox, policy: &str) {
        match self.snapshot.runtime.runs(&container.name).first() {
            Some(run) if run.sandbox == sandbox.id => self.tend(run, sandbox, policy),
            Some(run) if run.may_run() => {} // Being stopped above.
            before => {
                if status::shall_run(self.snapshot, &container.name, policy) {
                    self.start(container, sandbox, before.map_or(0, |run| run.crashes));
                }
            }
        }
    }

    /// What the newest run of a container needs.
    fn tend(&mut self, run: &Container, sandbox: &Sandbox, policy: &str) {
        let grace = grace(self.snapshot.pod);
        let stop = |why: &str| Action::StopContainer {
            id: run.id.clone(),
            name: run.name.clone(),
            grace,
            why: why.to_owned(),
        };
        match &run.state {
            // Made by an agent that ended before it could start it.
            ContainerState::Created => self.due(Action::RemoveContainer { id: run.id.clone(), name: run.name.clone() }),
            ContainerState::Unknown => self.due(stop("the container runtime lost track of it")),
            ContainerState::Running { .. } => {
                if let Some(why) = self.snapshot.verdicts.get(&run.id).and_then(|verdicts| verdicts.fatal.as_ref()) {
                    self.due(stop(why));
                }
            }
            ContainerState::Exited { code, .. } => {
                if !restart::wanted(policy, *code) {
                    return;
                }
                match restart::due(run) {
                    Some(at) if at > self.snapshot.now => self.wake_at(at),
                    _ => {
                        let attempt = run.attempt.saturating_add(1);
                        let crashes = restart::crashes(run).unwrap_or(0);
                        self.start_run(&run.name, attempt, crashes, sandbox);
                    }
                }
            }
        }
    }

    /// Starts a container that has no run in this sandbox.
    fn start(&mut self, container: &ContainerSpec, sandbox: &Sandbox, crashes: u32) {
        let attempt = status::next_attempt(self.snapshot, &container.name);
        self.start_run(&container.name, attempt, crashes, sandbox);
    }

    fn start_run(&mut self, name: &str, attempt: u32, crashes: u32, sandbox: &Sandbox) {
        if self.mount_volumes() {
            let (name, sandbox) = (name.to_owned(), sandbox.id.clone());
            self.due(Action::StartContainer { name, attempt, crashes, sandbox });
        }
    }
}
