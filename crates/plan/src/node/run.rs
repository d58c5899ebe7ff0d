//! Bringing a pod up and keeping it so.
//!
//! Init containers run one after the other; a sidecar among them counts as done when it has started, and runs on. The
//! others start when all init containers are done. A container that was made in a sandbox proves that all before it were
//! done there: nothing that ran once is waited for again.

use std::time::Duration;

use pb::objects::{Container as ContainerSpec, PodSpec, Probe};

use super::{
    lifecycle::{Action, Steps, grace},
    observed::{Container, ContainerState, Fatal, Hook, Runtime, Sandbox, Volumes},
    progress, restart,
    stop::Stop,
};

impl<'a> Steps<'a> {
    /// There is no sandbox to run in.
    pub(super) fn make_sandbox(&mut self) {
        if self.snapshot.runtime.containers.iter().any(Container::may_run) {
            self.stop_all(grace(self.snapshot.pod), "its sandbox has ended");
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

    /// Goes on in this sandbox.
    pub(super) fn run_in(&mut self, sandbox: &'a Sandbox) {
        let runtime: &'a Runtime = self.snapshot.runtime;
        let stop = Stop { grace: grace(self.snapshot.pod), since: None, why: "its sandbox was replaced" };
        for run in runtime.containers.iter().filter(|run| run.may_run() && run.sandbox != sandbox.id) {
            self.stop_run(run, stop, false);
        }
        for other in runtime.sandboxes.iter().filter(|other| other.id != sandbox.id) {
            if !runtime.containers.iter().any(|run| run.sandbox == other.id && run.may_run()) {
                self.due(Action::DiscardSandbox { id: other.id.clone() });
            }
        }
        let Some(spec) = self.snapshot.pod.spec.as_ref() else { return };
        self.remove_old_runs(spec.init_containers.iter().chain(&spec.containers));
        for (index, container) in spec.init_containers.iter().enumerate() {
            let passed = progress::passed(self.snapshot, sandbox, index);
            if progress::is_sidecar(container) || !passed {
                self.run_container(container, sandbox, progress::policy(spec, container, true));
            }
            if !passed {
                return;
            }
        }
        self.run_main(spec, sandbox);
    }

    fn run_main(&mut self, spec: &'a PodSpec, sandbox: &Sandbox) {
        for container in &spec.containers {
            self.run_container(container, sandbox, progress::policy(spec, container, false));
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

    fn run_container(&mut self, container: &'a ContainerSpec, sandbox: &Sandbox, policy: progress::Policy<'_>) {
        match self.snapshot.runtime.runs(&container.name).first() {
            Some(run) if run.sandbox == sandbox.id => self.tend(container, run, sandbox, policy.name),
            Some(run) if run.may_run() => {} // Being stopped above.
            before => {
                // What ran to its end in a sandbox that is gone has not prepared this one.
                if policy.anew_in_each_sandbox || progress::shall_run(self.snapshot, &container.name, policy.name) {
                    self.start(container, sandbox, before.map_or(0, |run| run.crashes));
                }
            }
        }
    }

    /// What the newest run of a container needs.
    fn tend(&mut self, container: &ContainerSpec, run: &Container, sandbox: &Sandbox, policy: &str) {
        let grace = grace(self.snapshot.pod);
        match &run.state {
            // Made by an agent that ended before it could start it.
            ContainerState::Created => self.due(Action::RemoveContainer { id: run.id.clone(), name: run.name.clone() }),
            ContainerState::Unknown => {
                let why = "the container runtime lost track of it";
                self.stop_run(run, Stop { grace, since: None, why }, false);
            }
            ContainerState::Running { .. } => self.tend_running(container, run),
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

    fn tend_running(&mut self, container: &ContainerSpec, run: &Container) {
        let pod_grace = grace(self.snapshot.pod);
        if let Some(Fatal { probe, message }) = self.snapshot.verdicts.get(&run.id).and_then(|said| said.fatal.as_ref())
        {
            let grace = probe.of(container).and_then(own_grace).unwrap_or(pod_grace);
            let why = format!("its {} probe failed: {message}", probe.name());
            return self.stop_run(run, Stop { grace, since: None, why: &why }, false);
        }
        if container.lifecycle.as_ref().is_none_or(|lifecycle| lifecycle.post_start.is_none()) {
            return;
        }
        match self.snapshot.efforts.get(&run.id).map(|effort| &effort.post_start) {
            None | Some(Hook::Idle) => {
                self.due(Action::RunPostStart { id: run.id.clone(), name: run.name.clone() });
            }
            Some(Hook::Ended { failure: Some(failure), .. }) => {
                let why = format!("FailedPostStartHook: {failure}");
                self.stop_run(run, Stop { grace: pod_grace, since: None, why: &why }, false);
            }
            Some(Hook::Running { .. } | Hook::Ended { failure: None, .. }) => {}
        }
    }

    /// Starts a container that has no run in this sandbox.
    fn start(&mut self, container: &ContainerSpec, sandbox: &Sandbox, crashes: u32) {
        let attempt = progress::next_attempt(self.snapshot, &container.name);
        self.start_run(&container.name, attempt, crashes, sandbox);
    }

    fn start_run(&mut self, name: &str, attempt: u32, crashes: u32, sandbox: &Sandbox) {
        if self.mount_volumes() {
            let (name, sandbox) = (name.to_owned(), sandbox.id.clone());
            self.due(Action::StartContainer { name, attempt, crashes, sandbox });
        }
    }
}

fn own_grace(probe: &Probe) -> Option<Duration> {
    probe.termination_grace_period_seconds.and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs)
}
