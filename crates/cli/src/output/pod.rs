//! A pod in one word, as kubectl says it.

use pb::objects::{ContainerState, ContainerStatus, Pod};

/// Containers that are ready, and all of them; sidecars are among them, other init containers are not.
pub fn ready_containers(pod: &Pod) -> (usize, usize) {
    let sidecars = pod.spec.iter().flat_map(|spec| &spec.init_containers).filter(|one| is_sidecar(pod, &one.name));
    let all = pod.spec.as_ref().map_or(0, |spec| spec.containers.len()) + sidecars.count();
    let status = pod.status.as_ref();
    let main = status.iter().flat_map(|status| &status.container_statuses).filter(|status| status.ready).count();
    let init = status.iter().flat_map(|status| &status.init_container_statuses);
    (main + init.filter(|status| is_sidecar(pod, &status.name) && status.ready).count(), all)
}

/// Whether an init container runs on beside the others.
fn is_sidecar(pod: &Pod, name: &str) -> bool {
    let init = pod.spec.iter().flat_map(|spec| &spec.init_containers);
    init.filter(|container| container.name == name).any(|container| container.restart_policy == "Always")
}

/// Whether the containers after this one need not wait for it any more.
fn has_started(pod: &Pod, container: &ContainerStatus) -> bool {
    is_sidecar(pod, &container.name) && container.started == Some(true)
}

/// What is up with the pod: its phase, or what keeps it from being better.
pub fn reason(pod: &Pod) -> String {
    let status = pod.status.clone().unwrap_or_default();
    if pod.metadata.as_ref().is_some_and(|meta| meta.deletion_timestamp.is_some()) {
        return if status.reason == "NodeLost" { "Unknown" } else { "Terminating" }.to_owned();
    }
    let init_total = pod.spec.as_ref().map_or(0, |spec| spec.init_containers.len());
    for (done, container) in status.init_container_statuses.iter().enumerate() {
        match container.state.as_ref() {
            Some(ContainerState { terminated: Some(ended), .. }) if ended.exit_code == 0 => {}
            _ if has_started(pod, container) => {}
            Some(state) => {
                return match of_state(state).filter(|reason| reason != "PodInitializing") {
                    Some(reason) => format!("Init:{reason}"),
                    None => format!("Init:{done}/{init_total}"),
                };
            }
            None => return format!("Init:{done}/{init_total}"),
        }
    }
    // The first container that is not well speaks for the pod.
    let unwell = status.container_statuses.iter().find_map(|c| c.state.as_ref().and_then(of_state));
    let phase = if status.phase.is_empty() { "Pending" } else { &status.phase };
    match unwell {
        Some(reason) => reason,
        None if !status.reason.is_empty() => status.reason,
        None => phase.to_owned(),
    }
}

/// Why a container does not run; None if it does.
fn of_state(state: &ContainerState) -> Option<String> {
    if let Some(waiting) = state.waiting.as_ref().filter(|waiting| !waiting.reason.is_empty()) {
        return Some(waiting.reason.clone());
    }
    let ended = state.terminated.as_ref()?;
    Some(match (ended.reason.as_str(), ended.signal, ended.exit_code) {
        ("", 0, code) => format!("ExitCode:{code}"),
        ("", signal, _) => format!("Signal:{signal}"),
        (reason, ..) => reason.to_owned(),
    })
}
