//! Ending containers in order.
//!
//! The stop of a container is its preStop hook, its stop signal, SIGKILL: all within one grace period, of which the
//! signal always gets two seconds. When all containers end together, the hooks of all begin at once; sidecars get their
//! signal when the containers before which they were started have ended, the last one first, or when the grace period
//! is over. Without grace there is neither hook nor order. Invariants: no stop signal before the hook has ended or its
//! time is over; nothing of the pod is removed while a process of it may run (I21).

use std::time::Duration;

use jiff::Timestamp;

use super::{
    lifecycle::{Action, Steps, grace},
    observed::{Container, ContainerState, Hook, Runtime, Volumes},
    progress,
};

/// What the stop signal gets even if the hook took all the time.
const LEAST: Duration = Duration::from_secs(2);

/// Why and how fast.
#[derive(Clone, Copy)]
pub(super) struct Stop<'a> {
    /// Until SIGKILL.
    pub grace: Duration,
    /// From when on it counts; from the begin of the container's own stop if there is none.
    pub since: Option<Timestamp>,
    /// For people.
    pub why: &'a str,
}

impl<'a> Steps<'a> {
    /// Takes the pod down; tells whether nothing of it is left.
    pub(super) fn stop(&mut self, grace: Duration) -> bool {
        if self.stop_all(grace, "the pod is being deleted") {
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
    pub(super) fn wind_down(&mut self) {
        if self.stop_all(grace(self.snapshot.pod), "the pod has ended") {
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

    /// Ends all containers that may run; tells whether there are any.
    pub(super) fn stop_all(&mut self, grace: Duration, why: &str) -> bool {
        let runtime: &'a Runtime = self.snapshot.runtime;
        self.leaving = true;
        let stop = Stop { grace, since: Some(self.snapshot.leaving_since.unwrap_or(self.snapshot.now)), why };
        let mut any = false;
        for run in runtime.containers.iter().filter(|run| run.may_run()) {
            any = true;
            self.stop_run(run, stop, progress::outlives_another(self.snapshot, run));
        }
        any
    }

    /// What is due for ending one run. If `others_first`, its signal waits for them.
    pub(super) fn stop_run(&mut self, run: &Container, stop: Stop<'_>, others_first: bool) {
        let now = self.snapshot.now;
        let effort = self.snapshot.efforts.get(&run.id).cloned().unwrap_or_default();
        let since = stop.since.or_else(|| effort.pre_stop.since()).unwrap_or(now);
        let until = later(since, stop.grace);
        let left = Duration::try_from(until.duration_since(now)).unwrap_or_default();
        if let Some(kill_at) = effort.kill_at {
            // Under way: only less grace than it has makes a difference, and rounding is none.
            if kill_at > later(until.max(now), LEAST) {
                self.signal(run, stop, left);
            }
            return;
        }
        if !left.is_zero() && matches!(run.state, ContainerState::Running { .. }) && self.has_pre_stop(run) {
            match effort.pre_stop {
                Hook::Idle => {
                    let (id, name) = (run.id.clone(), run.name.clone());
                    return self.due(Action::RunPreStop { id, name, limit: left, why: stop.why.to_owned() });
                }
                Hook::Running { .. } => return self.wake_at(until),
                Hook::Ended { .. } => {}
            }
        }
        if others_first && !left.is_zero() {
            return self.wake_at(until);
        }
        self.signal(run, stop, left);
    }

    fn signal(&mut self, run: &Container, stop: Stop<'_>, left: Duration) {
        let grace = if stop.grace.is_zero() { Duration::ZERO } else { left.max(LEAST) };
        let (id, name) = (run.id.clone(), run.name.clone());
        self.due(Action::StopContainer { id, name, grace, why: stop.why.to_owned() });
    }

    fn has_pre_stop(&self, run: &Container) -> bool {
        let spec = progress::spec_of(self.snapshot, &run.name);
        spec.and_then(|spec| spec.lifecycle.as_ref()).is_some_and(|lifecycle| lifecycle.pre_stop.is_some())
    }
}

fn later(at: Timestamp, by: Duration) -> Timestamp {
    at.checked_add(by).unwrap_or(Timestamp::MAX)
}
