//! The status that follows from what is observed.

mod conditions;
mod container;

pub use conditions::CONDITIONS;
use container::View;
use pb::objects::{ContainerStatus, PodIp, PodSpec, PodStatus};

use super::{
    lifecycle::{Action, Snapshot, Wanted},
    observed::Container,
    progress,
};

/// The reason of a pod whose activeDeadlineSeconds are over.
const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";

/// The status of the pod, while `actions` are about to be done.
pub(super) fn of(snapshot: &Snapshot<'_>, actions: &[Action]) -> PodStatus {
    let none = PodSpec::default();
    let spec = snapshot.pod.spec.as_ref().unwrap_or(&none);
    let current = snapshot.runtime.current();
    let ended = progress::has_ended(snapshot);
    let is_initialized = ended || current.is_some_and(|sandbox| progress::initialized(snapshot, sandbox));

    let view = View { snapshot, actions, spec, ended };
    let init: Vec<_> = spec.init_containers.iter().map(|c| view.container(c, true, false)).collect();
    let waits_for_init = !is_initialized && !spec.init_containers.is_empty();
    let main: Vec<_> = spec.containers.iter().map(|c| view.container(c, false, waits_for_init)).collect();

    let phase = phase(snapshot, spec, &main, is_initialized);
    let ip = current.and_then(|sandbox| sandbox.ip.clone());
    // A pod on its way out keeps the address by which it was known.
    let leaving = ended || snapshot.wanted != Wanted::Run;
    let ip = ip.or_else(|| leaving.then(|| snapshot.before.pod_ip.clone())).unwrap_or_default();
    let (reason, message) = reason(snapshot);
    let before = conditions::Told { spec, main: &main, init: &init, is_initialized, phase: &phase };
    PodStatus {
        observed_generation: snapshot.pod.metadata.as_ref().map_or(0, |meta| meta.generation),
        conditions: conditions::of(snapshot, &before),
        message,
        reason,
        host_ip: snapshot.host_ip.to_owned(),
        pod_ips: if ip.is_empty() { Vec::new() } else { vec![PodIp { ip: ip.clone() }] },
        pod_ip: ip,
        start_time: Some(snapshot.before.start_time.unwrap_or_else(|| snapshot.now.into())),
        qos_class: model::qos::class(spec).name().to_owned(),
        phase,
        init_container_statuses: init,
        container_statuses: main,
        ..PodStatus::default()
    }
}

/// One word and a sentence on why the pod is as it is.
fn reason(snapshot: &Snapshot<'_>) -> (String, String) {
    let before = snapshot.before;
    if progress::is_terminal(&before.phase) {
        return (before.reason.clone(), before.message.clone());
    }
    let runs_late = progress::is_overdue(snapshot) && !progress::has_run_out(snapshot);
    if (snapshot.wanted == Wanted::Run && runs_late) || overdue_before(snapshot) {
        let message = "the pod ran longer than its activeDeadlineSeconds";
        return (DEADLINE_EXCEEDED.to_owned(), message.to_owned());
    }
    let failure = snapshot.failures.values().next();
    failure.map(|failure| (failure.reason.clone(), failure.message.clone())).unwrap_or_default()
}

fn phase(snapshot: &Snapshot<'_>, spec: &PodSpec, main: &[ContainerStatus], is_initialized: bool) -> String {
    if progress::is_terminal(&snapshot.before.phase) {
        return snapshot.before.phase.clone();
    }
    let exit = |status: &ContainerStatus| Some(status.state.as_ref()?.terminated.as_ref()?.exit_code);
    let all_ended = !main.is_empty() && main.iter().all(|status| exit(status).is_some());
    let outcome = || if main.iter().all(|status| exit(status) == Some(0)) { "Succeeded" } else { "Failed" };
    // What never ran cannot have succeeded, and what is being stopped does not come up any more.
    let unchanged = || if snapshot.before.phase.is_empty() { "Pending" } else { &snapshot.before.phase };
    let empty = !snapshot.runtime.containers.iter().any(Container::may_run);
    let phase = match snapshot.wanted {
        Wanted::Stop { .. } if all_ended && empty => outcome(),
        Wanted::Stop { .. } => unchanged(),
        // No pod has ended while a process of it runs.
        Wanted::Run if progress::has_ended(snapshot) && !empty => unchanged(),
        Wanted::Run if progress::has_run_out(snapshot) && !overdue_before(snapshot) => {
            if progress::init_failed(snapshot, spec) { "Failed" } else { outcome() }
        }
        Wanted::Run if progress::has_ended(snapshot) => "Failed",
        Wanted::Run if !is_initialized => "Pending",
        Wanted::Run if main.iter().any(|status| !has_run(status)) => "Pending",
        Wanted::Run => "Running",
    };
    phase.to_owned()
}

/// Whether the pod was ended for its time: what its containers made of that does not count.
fn overdue_before(snapshot: &Snapshot<'_>) -> bool {
    snapshot.before.reason == DEADLINE_EXCEEDED
}

fn has_run(status: &ContainerStatus) -> bool {
    let state = status.state.as_ref();
    let waits = state.is_some_and(|state| state.waiting.is_some());
    !waits || status.last_state.is_some()
}

/// Whether a change of status should be told at once: somebody else acts on it. The rest may wait a moment for company.
pub fn is_urgent(told: &PodStatus, now: &PodStatus) -> bool {
    let ready = |status: &PodStatus| status.conditions.iter().any(|c| c.r#type == "Ready" && c.status == "True");
    ready(told) != ready(now) || (told.phase != now.phase && progress::is_terminal(&now.phase))
}
