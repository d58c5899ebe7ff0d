//! How far a pod is: what has started, what is done, what has ended for good.

use jiff::{SignedDuration, Timestamp};
pub(super) use model::qos::is_sidecar;
use pb::objects::{Container as ContainerSpec, ContainerStatus, PodSpec};

use super::{
    lifecycle::Snapshot,
    observed::{Container, ContainerState, Hook, Sandbox},
    restart,
};

/// When a container that has ended runs again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policy<'a> {
    /// Always, OnFailure or Never.
    pub name: &'a str,
    /// Whether a run in an earlier sandbox says nothing about the present one.
    pub anew_in_each_sandbox: bool,
}

/// The policy of a container of the pod.
pub(super) fn policy<'a>(spec: &'a PodSpec, container: &ContainerSpec, init: bool) -> Policy<'a> {
    let name = match (init, spec.restart_policy.as_str()) {
        (true, _) if is_sidecar(container) => "Always",
        // An init container of a pod that restarts always is repeated until it succeeds, not for ever.
        (true, "Always" | "") => "OnFailure",
        (_, name) => name,
    };
    Policy { name, anew_in_each_sandbox: init }
}

/// A container of the pod by its name.
pub(super) fn spec_of<'a>(snapshot: &Snapshot<'a>, name: &str) -> Option<&'a ContainerSpec> {
    let spec = snapshot.pod.spec.as_ref()?;
    spec.containers.iter().chain(&spec.init_containers).find(|container| container.name == name)
}

/// Whether the run is of a sidecar before which another container was started that may still run.
pub(super) fn outlives_another(snapshot: &Snapshot<'_>, run: &Container) -> bool {
    let Some(spec) = &snapshot.pod.spec else { return false };
    let mut inits = spec.init_containers.iter();
    let Some(_) = inits.find(|container| container.name == run.name).filter(|found| is_sidecar(found)) else {
        return false;
    };
    let runs = |container: &ContainerSpec| {
        snapshot.runtime.containers.iter().any(|other| other.name == container.name && other.may_run())
    };
    inits.chain(&spec.containers).any(runs)
}

/// When the pod's time is over, by activeDeadlineSeconds.
pub(super) fn deadline(snapshot: &Snapshot<'_>) -> Option<Timestamp> {
    let seconds = snapshot.pod.spec.as_ref()?.active_deadline_seconds?;
    let start = Timestamp::from(snapshot.before.start_time.as_ref()?);
    start.checked_add(SignedDuration::from_secs(seconds)).ok()
}

/// Whether the pod's time is over.
pub(super) fn is_overdue(snapshot: &Snapshot<'_>) -> bool {
    deadline(snapshot).is_some_and(|at| at <= snapshot.now)
}

/// Whether the pod has ended and never runs again: it is so if it was so, if all its containers have ended and its
/// restartPolicy starts none again, or if its time is over. Sidecars do not count.
pub(super) fn has_ended(snapshot: &Snapshot<'_>) -> bool {
    is_terminal(&snapshot.before.phase) || is_overdue(snapshot) || has_run_out(snapshot)
}

/// Whether no container is left that could run.
pub(super) fn has_run_out(snapshot: &Snapshot<'_>) -> bool {
    let Some(spec) = &snapshot.pod.spec else { return false };
    let ended = |container: &ContainerSpec| ended_for_good(snapshot, &container.name, &spec.restart_policy);
    init_failed(snapshot, spec) || (!spec.containers.is_empty() && spec.containers.iter().all(ended))
}

/// Whether an init container has failed that is not repeated.
pub(super) fn init_failed(snapshot: &Snapshot<'_>, spec: &PodSpec) -> bool {
    let failed = |c: &ContainerSpec| last_exit(snapshot, &c.name).is_some_and(|code| code != 0);
    spec.restart_policy == "Never" && spec.init_containers.iter().any(|c| !is_sidecar(c) && failed(c))
}

pub(super) fn is_terminal(phase: &str) -> bool {
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

/// Whether the container's start is complete: it runs, its postStart hook has succeeded, and its startup probe.
pub(super) fn has_started(snapshot: &Snapshot<'_>, spec: &ContainerSpec, run: &Container) -> bool {
    let hook = || match snapshot.efforts.get(&run.id).map(|effort| &effort.post_start) {
        Some(Hook::Ended { failure, .. }) => failure.is_none(),
        _ => false,
    };
    let has_hook = spec.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.post_start.is_some());
    let probed = || snapshot.verdicts.get(&run.id).is_some_and(|said| said.started);
    matches!(run.state, ContainerState::Running { .. })
        && (!has_hook || hook())
        && (spec.startup_probe.is_none() || probed())
}

/// Whether what comes after the init container of this index may start in this sandbox, or has.
pub(super) fn passed(snapshot: &Snapshot<'_>, sandbox: &Sandbox, index: usize) -> bool {
    let Some(spec) = &snapshot.pod.spec else { return false };
    let in_sandbox = |container: &ContainerSpec| {
        snapshot.runtime.runs(&container.name).into_iter().next().filter(|run| run.sandbox == sandbox.id)
    };
    let after = spec.init_containers.iter().skip(index.saturating_add(1)).chain(&spec.containers);
    let done = |container: &ContainerSpec| match in_sandbox(container) {
        Some(run) if is_sidecar(container) => has_started(snapshot, container, run),
        Some(run) => matches!(run.state, ContainerState::Exited { code: 0, .. }),
        None => false,
    };
    after.into_iter().any(|container| in_sandbox(container).is_some())
        || spec.init_containers.get(index).is_some_and(done)
}

/// Whether all init containers are done in this sandbox.
pub(super) fn initialized(snapshot: &Snapshot<'_>, sandbox: &Sandbox) -> bool {
    let inits = snapshot.pod.spec.as_ref().map_or(0, |spec| spec.init_containers.len());
    (0..inits).all(|index| passed(snapshot, sandbox, index))
}

/// What was told of a container.
pub(super) fn before<'a>(snapshot: &Snapshot<'a>, name: &str) -> Option<&'a ContainerStatus> {
    let status = snapshot.before;
    status.container_statuses.iter().chain(&status.init_container_statuses).find(|status| status.name == name)
}
