//! The status of one container.

use pb::objects::{
    Container as ContainerSpec, ContainerState as StateStatus, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, PodSpec,
};

use crate::node::{
    lifecycle::{Action, Snapshot, Step, Wanted},
    observed::{Container, ContainerState},
    progress, restart,
};

/// The exit code of a run whose end nobody saw: as if by SIGKILL.
const LOST_CODE: i32 = 137;

/// What the statuses of containers follow from.
pub(super) struct View<'a> {
    pub snapshot: &'a Snapshot<'a>,
    pub actions: &'a [Action],
    pub spec: &'a PodSpec,
    pub ended: bool,
}

impl View<'_> {
    /// The status of one container.
    pub(super) fn container(&self, spec: &ContainerSpec, init: bool, waits_for_init: bool) -> ContainerStatus {
        let runs = self.snapshot.runtime.runs(&spec.name);
        let before = progress::before(self.snapshot, &spec.name);
        let Some(run) = runs.first().filter(|run| run.state != ContainerState::Created) else {
            return self.without_run(spec, before, runs.get(1).copied(), waits_for_init);
        };
        let previous = runs.get(1).and_then(|run| terminated(run)).map(ended_state);
        let told = |status: &ContainerStatus| match status.container_id == container_id(&run.id) {
            true => status.last_state.clone(),
            false => end_of(status),
        };
        let last_state = previous.or_else(|| before.and_then(told));
        let started = progress::has_started(self.snapshot, spec, run);
        let verdicts = self.snapshot.verdicts.get(&run.id);
        let holds = spec.readiness_probe.is_none() || verdicts.is_some_and(|v| v.ready);
        let in_current = self.snapshot.runtime.current().is_some_and(|sandbox| sandbox.id == run.sandbox);
        let ready = match init && !progress::is_sidecar(spec) {
            true => matches!(run.state, ContainerState::Exited { code: 0, .. }),
            false => started && holds && in_current,
        };
        let mut status = ContainerStatus {
            name: spec.name.clone(),
            state: Some(StateStatus::default()),
            last_state,
            ready,
            restart_count: i32::try_from(run.attempt).unwrap_or(i32::MAX),
            image: spec.image.clone(),
            image_id: run.image_id.clone(),
            container_id: container_id(&run.id),
            started: Some(started),
        };
        let state = status.state.get_or_insert_default();
        match &run.state {
            ContainerState::Running { started_at } => {
                state.running = Some(ContainerStateRunning { started_at: Some((*started_at).into()) });
            }
            ContainerState::Exited { code, .. } => {
                let end = terminated(run);
                match self.back_off(spec, run, *code, init) {
                    Some(waiting) => {
                        state.waiting = Some(waiting);
                        status.last_state = end.map(ended_state);
                    }
                    None => state.terminated = end,
                }
            }
            ContainerState::Created | ContainerState::Unknown => {
                state.waiting = Some(ContainerStateWaiting {
                    reason: "Unknown".into(),
                    message: "the container runtime cannot tell the state of the container".into(),
                });
            }
        }
        status
    }

    /// The wait of a container that has ended and is to run again, once there is one.
    fn back_off(&self, spec: &ContainerSpec, run: &Container, code: i32, init: bool) -> Option<ContainerStateWaiting> {
        let policy = progress::policy(self.spec, spec, init).name;
        if self.ended || self.snapshot.wanted != Wanted::Run || !restart::wanted(policy, code) {
            return None;
        }
        if let Some(failure) = self.snapshot.failures.get(&Step::Container(run.name.clone())) {
            return Some(ContainerStateWaiting { reason: failure.reason.clone(), message: failure.message.clone() });
        }
        if restart::due(run)? <= self.snapshot.now {
            return None;
        }
        let wait = restart::delay(restart::crashes(run)?).as_secs();
        let message = format!("waits {wait} s before starting container {} again", run.name);
        Some(ContainerStateWaiting { reason: "CrashLoopBackOff".into(), message })
    }

    fn without_run(
        &self,
        spec: &ContainerSpec,
        before: Option<&ContainerStatus>,
        previous: Option<&Container>,
        waits_for_init: bool,
    ) -> ContainerStatus {
        let known = before.filter(|status| !status.container_id.is_empty());
        // Ended and gone from the runtime: what was told of it stays true.
        if let Some(status) = known
            && (self.ended || self.snapshot.wanted != Wanted::Run)
        {
            let mut status = status.clone();
            if let Some(end) = lost(&status) {
                status.state = Some(ended_state(end));
            }
            status.ready = status.ready && status.state.as_ref().is_some_and(|s| s.terminated.is_some());
            status.started = Some(false);
            return status;
        }
        let last_state = previous.and_then(terminated).map(ended_state).or_else(|| known.and_then(end_of));
        ContainerStatus {
            name: spec.name.clone(),
            state: Some(StateStatus { waiting: Some(self.waiting(spec, waits_for_init)), ..Default::default() }),
            last_state,
            ready: false,
            restart_count: known.map_or(0, |status| status.restart_count),
            image: spec.image.clone(),
            image_id: String::new(),
            container_id: known.map(|status| status.container_id.clone()).unwrap_or_default(),
            started: Some(false),
        }
    }

    fn waiting(&self, spec: &ContainerSpec, waits_for_init: bool) -> ContainerStateWaiting {
        let failures = self.snapshot.failures;
        let own = failures.get(&Step::Container(spec.name.clone()));
        let shared = || failures.get(&Step::Volumes).or_else(|| failures.get(&Step::Sandbox));
        let pending = if waits_for_init { "PodInitializing" } else { "ContainerCreating" };
        match own.or_else(shared) {
            Some(failure) => ContainerStateWaiting { reason: failure.reason.clone(), message: failure.message.clone() },
            None if self.actions.contains(&Action::MountVolumes) => {
                ContainerStateWaiting { reason: pending.into(), message: "volumes are being mounted".into() }
            }
            None => ContainerStateWaiting { reason: pending.into(), message: String::new() },
        }
    }
}

fn container_id(id: &str) -> String {
    format!("containerd://{id}")
}

fn ended_state(end: ContainerStateTerminated) -> StateStatus {
    StateStatus { terminated: Some(end), ..Default::default() }
}

/// The end that a status tells of: of its run, or of the one before.
fn end_of(status: &ContainerStatus) -> Option<StateStatus> {
    let end = status.state.as_ref().and_then(|state| state.terminated.clone());
    end.or_else(|| lost(status)).map(ended_state).or_else(|| status.last_state.clone())
}

/// The end of a run that was told as running and that the container runtime does not have any more.
fn lost(status: &ContainerStatus) -> Option<ContainerStateTerminated> {
    let running = status.state.as_ref()?.running.as_ref()?;
    Some(ContainerStateTerminated {
        exit_code: LOST_CODE,
        reason: "ContainerStatusUnknown".into(),
        message: "the container was running and could not be found any more: how it ended is not known".into(),
        started_at: running.started_at,
        container_id: status.container_id.clone(),
        ..Default::default()
    })
}

fn terminated(run: &Container) -> Option<ContainerStateTerminated> {
    let ContainerState::Exited { started_at, finished_at, code, reason, message } = &run.state else { return None };
    Some(ContainerStateTerminated {
        exit_code: *code,
        signal: if (129..=192).contains(code) { code - 128 } else { 0 },
        reason: match (reason.as_str(), code) {
            ("", 0) => "Completed".into(),
            ("", _) => "Error".into(),
            (reason, _) => reason.into(),
        },
        message: message.clone(),
        started_at: Some((*started_at).into()),
        finished_at: Some((*finished_at).into()),
        container_id: container_id(&run.id),
    })
}
