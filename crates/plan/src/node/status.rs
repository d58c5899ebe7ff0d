//! The status that follows from what is observed.

use jiff::Timestamp;
use pb::objects::{
    Condition, Container as ContainerSpec, ContainerState as StateStatus, ContainerStateRunning,
    ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, PodIp, PodSpec, PodStatus, Time,
};

use super::{
    lifecycle::{Action, Snapshot, Step, Wanted},
    observed::{Container, ContainerState, Sandbox},
    restart,
};

/// Whether the pod has ended and never runs again: it is so if it was so, or if all its containers have ended and its
/// restartPolicy starts none again.
pub(super) fn has_ended(snapshot: &Snapshot<'_>) -> bool {
    if is_terminal(&snapshot.before.phase) {
        return true;
    }
    let Some(spec) = &snapshot.pod.spec else { return false };
    let ended = |container: &ContainerSpec| ended_for_good(snapshot, &container.name, &spec.restart_policy);
    let init_failed = spec.restart_policy == "Never"
        && spec.init_containers.iter().any(|c| last_exit(snapshot, &c.name).is_some_and(|code| code != 0));
    init_failed || (!spec.containers.is_empty() && spec.containers.iter().all(ended))
}

fn is_terminal(phase: &str) -> bool {
    phase == "Succeeded" || phase == "Failed"
}

/// The exit code of a container whose newest run has ended.
fn last_exit(snapshot: &Snapshot<'_>, name: &str) -> Option<i32> {
    match snapshot.runtime.runs(name).first() {
        Some(run) => match run.state {
            ContainerState::Exited { code, .. } => Some(code),
            _ => None,
        },
        None => {
            let state = before(snapshot, name)?.state.as_ref()?;
            state.terminated.as_ref().map(|terminated| terminated.exit_code)
        }
    }
}

fn ended_for_good(snapshot: &Snapshot<'_>, name: &str, policy: &str) -> bool {
    last_exit(snapshot, name).is_some_and(|code| !restart::wanted(policy, code))
}

/// Whether a container without a run in the present sandbox shall be started there.
pub(super) fn shall_run(snapshot: &Snapshot<'_>, name: &str, policy: &str) -> bool {
    !ended_for_good(snapshot, name, policy)
}

/// The number of the next run of a container.
pub(super) fn next_attempt(snapshot: &Snapshot<'_>, name: &str) -> u32 {
    let seen = snapshot.runtime.runs(name).first().map(|run| run.attempt);
    let told = before(snapshot, name)
        .filter(|status| !status.container_id.is_empty())
        .and_then(|status| u32::try_from(status.restart_count).ok());
    seen.max(told).map_or(0, |attempt| attempt.saturating_add(1))
}

/// Whether the init container has succeeded in this sandbox.
pub(super) fn init_done(snapshot: &Snapshot<'_>, sandbox: &Sandbox, container: &ContainerSpec) -> bool {
    let runs = snapshot.runtime.runs(&container.name);
    let newest = runs.first().filter(|run| run.sandbox == sandbox.id);
    newest.is_some_and(|run| matches!(run.state, ContainerState::Exited { code: 0, .. }))
}

/// Whether all init containers have succeeded in this sandbox. A container that was made in it proves that.
pub(super) fn initialized(snapshot: &Snapshot<'_>, sandbox: &Sandbox) -> bool {
    let Some(spec) = &snapshot.pod.spec else { return false };
    let made = |container: &ContainerSpec| {
        snapshot.runtime.runs(&container.name).first().is_some_and(|run| run.sandbox == sandbox.id)
    };
    spec.containers.iter().any(made) || spec.init_containers.iter().all(|c| init_done(snapshot, sandbox, c))
}

fn before<'a>(snapshot: &Snapshot<'a>, name: &str) -> Option<&'a ContainerStatus> {
    let status = snapshot.before;
    status.container_statuses.iter().chain(&status.init_container_statuses).find(|status| status.name == name)
}

/// The status of the pod, while `actions` are about to be done.
pub(super) fn of(snapshot: &Snapshot<'_>, actions: &[Action]) -> PodStatus {
    let none = PodSpec::default();
    let spec = snapshot.pod.spec.as_ref().unwrap_or(&none);
    let current = snapshot.runtime.current();
    let ended = has_ended(snapshot);
    let is_initialized = ended || current.is_some_and(|sandbox| initialized(snapshot, sandbox));

    let view = View { snapshot, actions, ended };
    let init: Vec<_> = spec.init_containers.iter().map(|c| view.container(c, spec, true, false)).collect();
    let pending_reason =
        if is_initialized || spec.init_containers.is_empty() { "ContainerCreating" } else { "PodInitializing" };
    let main: Vec<_> =
        spec.containers.iter().map(|c| view.container(c, spec, false, pending_reason == "PodInitializing")).collect();

    let phase = phase(snapshot, spec, &main, &init, is_initialized);
    let ip = current.and_then(|sandbox| sandbox.ip.clone());
    // A pod on its way out keeps the address by which it was known.
    let leaving = ended || snapshot.wanted != Wanted::Run;
    let ip = ip.or_else(|| leaving.then(|| snapshot.before.pod_ip.clone())).unwrap_or_default();
    let failure = snapshot.failures.iter().next().map(|(_, failure)| failure);
    PodStatus {
        observed_generation: snapshot.pod.metadata.as_ref().map_or(0, |meta| meta.generation),
        conditions: conditions(snapshot, &main, &init, is_initialized, &phase),
        message: failure.map(|f| f.message.clone()).unwrap_or_default(),
        reason: failure.map(|f| f.reason.clone()).unwrap_or_default(),
        host_ip: snapshot.host_ip.to_owned(),
        pod_ips: if ip.is_empty() { Vec::new() } else { vec![PodIp { ip: ip.clone() }] },
        pod_ip: ip,
        start_time: Some(snapshot.before.start_time.unwrap_or_else(|| snapshot.now.into())),
        phase,
        init_container_statuses: init,
        container_statuses: main,
        ..PodStatus::default()
    }
}

struct View<'a> {
    snapshot: &'a Snapshot<'a>,
    actions: &'a [Action],
    ended: bool,
}

impl View<'_> {
    fn container(&self, spec: &ContainerSpec, pod: &PodSpec, init: bool, waits_for_init: bool) -> ContainerStatus {
        let runs = self.snapshot.runtime.runs(&spec.name);
        let before = before(self.snapshot, &spec.name);
        let Some(run) = runs.first().filter(|run| run.state != ContainerState::Created) else {
            return self.without_run(spec, before, runs.get(1).copied(), waits_for_init);
        };
        let previous = runs.get(1).and_then(|run| terminated(run)).map(ended_state);
        let told = |status: &ContainerStatus| match status.container_id == container_id(&run.id) {
            true => status.last_state.clone(),
            false => end_of(status),
        };
        let last_state = previous.or_else(|| before.and_then(told));
        let running = matches!(run.state, ContainerState::Running { .. });
        let verdicts = self.snapshot.verdicts.get(&run.id);
        let started = running && (spec.startup_probe.is_none() || verdicts.is_some_and(|v| v.started));
        let holds = spec.readiness_probe.is_none() || verdicts.is_some_and(|v| v.ready);
        let in_current = self.snapshot.runtime.current().is_some_and(|sandbox| sandbox.id == run.sandbox);
        let ready = match init {
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
                match self.back_off(run, pod, *code, init) {
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
    fn back_off(&self, run: &Container, pod: &PodSpec, code: i32, init: bool) -> Option<ContainerStateWaiting> {
        let policy = match (init, pod.restart_policy.as_str()) {
            (true, "Always" | "") => "OnFailure",
            (_, policy) => policy,
        };
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
    end.map(ended_state).or_else(|| status.last_state.clone())
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

fn phase(
    snapshot: &Snapshot<'_>,
    spec: &PodSpec,
    main: &[ContainerStatus],
    init: &[ContainerStatus],
    is_initialized: bool,
) -> String {
    if is_terminal(&snapshot.before.phase) {
        return snapshot.before.phase.clone();
    }
    let exit = |status: &ContainerStatus| Some(status.state.as_ref()?.terminated.as_ref()?.exit_code);
    let all_ended = !main.is_empty() && main.iter().all(|status| exit(status).is_some());
    let outcome = || if main.iter().all(|status| exit(status) == Some(0)) { "Succeeded" } else { "Failed" };
    let phase = match snapshot.wanted {
        Wanted::Stop { .. } if all_ended => outcome(),
        // What never ran cannot have succeeded, and what is being stopped does not come up any more.
        Wanted::Stop { .. } if snapshot.before.phase.is_empty() => "Pending",
        Wanted::Stop { .. } => &snapshot.before.phase,
        Wanted::Run if spec.restart_policy == "Never" && init.iter().any(|s| exit(s).is_some_and(|code| code != 0)) => {
            "Failed"
        }
        Wanted::Run if !is_initialized => "Pending",
        Wanted::Run if all_ended && has_ended(snapshot) => outcome(),
        Wanted::Run if main.iter().any(|status| !has_run(status)) => "Pending",
        Wanted::Run => "Running",
    };
    phase.to_owned()
}

fn has_run(status: &ContainerStatus) -> bool {
    let state = status.state.as_ref();
    let waits = state.is_some_and(|state| state.waiting.is_some());
    !waits || status.last_state.is_some()
}

fn conditions(
    snapshot: &Snapshot<'_>,
    main: &[ContainerStatus],
    init: &[ContainerStatus],
    is_initialized: bool,
    phase: &str,
) -> Vec<Condition> {
    let unready = |statuses: &[ContainerStatus]| {
        let names: Vec<_> = statuses.iter().filter(|s| !s.ready).map(|s| s.name.as_str()).collect();
        names.join(", ")
    };
    let (waiting_init, waiting) = (unready(init), unready(main));
    let runs = phase == "Running" && !main.is_empty();
    let ready = match (runs && waiting.is_empty(), is_terminal(phase)) {
        (true, _) => Ok(()),
        (false, true) => Err(("PodCompleted", String::new())),
        (false, false) => Err(("ContainersNotReady", format!("containers with unready status: [{waiting}]"))),
    };
    let initialized = match is_initialized {
        true => Ok(()),
        false => Err(("ContainersNotInitialized", format!("containers with incomplete status: [{waiting_init}]"))),
    };
    let ours =
        [("PodScheduled", Ok(())), ("Initialized", initialized), ("ContainersReady", ready.clone()), ("Ready", ready)];
    let foreign = snapshot.before.conditions.iter().filter(|c| !ours.iter().any(|(name, _)| *name == c.r#type));
    let generation = snapshot.pod.metadata.as_ref().map_or(0, |meta| meta.generation);
    let ours = ours.iter().map(|(name, holds)| condition(snapshot, name, holds, generation));
    ours.chain(foreign.cloned()).collect()
}

fn condition(snapshot: &Snapshot<'_>, name: &str, holds: &Result<(), (&str, String)>, generation: i64) -> Condition {
    let status = if holds.is_ok() { "True" } else { "False" };
    let before = snapshot.before.conditions.iter().find(|c| c.r#type == name && c.status == status);
    let (reason, message) = holds.as_ref().err().map_or(("", ""), |(reason, message)| (reason, message.as_str()));
    Condition {
        r#type: name.into(),
        status: status.into(),
        observed_generation: generation,
        last_probe_time: None,
        last_transition_time: before.and_then(|c| c.last_transition_time).or_else(|| Some(time(snapshot.now))),
        reason: reason.into(),
        message: message.into(),
    }
}

fn time(at: Timestamp) -> Time {
    at.into()
}

/// Whether a change of status should be told at once: somebody else acts on it. The rest may wait a moment for company.
pub fn is_urgent(told: &PodStatus, now: &PodStatus) -> bool {
    let ready = |status: &PodStatus| status.conditions.iter().any(|c| c.r#type == "Ready" && c.status == "True");
    ready(told) != ready(now) || (told.phase != now.phase && is_terminal(&now.phase))
}
