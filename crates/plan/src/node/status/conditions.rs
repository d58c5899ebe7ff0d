//! The conditions that a node tells of.
//!
//! Conditions of other types are others' and never told by a node. Among them are those that readiness gates ask for:
//! they are read from the pod as the API has it.

use pb::objects::{Condition, ContainerStatus, PodReadinessGate, PodSpec};

use super::{Snapshot, progress};

/// The types of all conditions that a node tells of.
pub const CONDITIONS: [&str; 5] =
    ["PodScheduled", "PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"];

/// The rest of the status, as far as it is known.
pub(super) struct Told<'a> {
    pub spec: &'a PodSpec,
    pub main: &'a [ContainerStatus],
    pub init: &'a [ContainerStatus],
    pub is_initialized: bool,
    pub phase: &'a str,
}

/// Why a condition does not hold: one word and a sentence.
type Holds = Result<(), (&'static str, String)>;

/// The conditions, in the order of [`CONDITIONS`].
pub(super) fn of(snapshot: &Snapshot<'_>, told: &Told<'_>) -> Vec<Condition> {
    let has_sandbox = snapshot.runtime.current().is_some_and(|sandbox| sandbox.ip.is_some());
    let sandbox = if has_sandbox { Ok(()) } else { Err(("", String::new())) };
    let containers = containers_ready(told);
    let ready = containers.clone().and_then(|()| gates_hold(snapshot, &told.spec.readiness_gates));
    let holds: [Holds; 5] = [Ok(()), sandbox, initialized(told), containers, ready];
    let generation = snapshot.pod.metadata.as_ref().map_or(0, |meta| meta.generation);
    CONDITIONS.iter().zip(&holds).map(|(name, holds)| condition(snapshot, name, holds, generation)).collect()
}

fn is_sidecar(told: &Told<'_>, name: &str) -> bool {
    told.spec.init_containers.iter().any(|container| container.name == name && progress::is_sidecar(container))
}

fn initialized(told: &Told<'_>) -> Holds {
    if told.is_initialized {
        return Ok(());
    }
    let done = |status: &&ContainerStatus| match is_sidecar(told, &status.name) {
        true => status.started == Some(true),
        false => status.ready,
    };
    let waiting = names(told.init.iter().filter(|status| !done(status)));
    Err(("ContainersNotInitialized", format!("containers with incomplete status: [{waiting}]")))
}

fn containers_ready(told: &Told<'_>) -> Holds {
    if progress::is_terminal(told.phase) {
        return Err(("PodCompleted", String::new()));
    }
    let sidecars = told.init.iter().filter(|status| is_sidecar(told, &status.name));
    let waiting = names(sidecars.chain(told.main).filter(|status| !status.ready));
    if told.phase == "Running" && !told.main.is_empty() && waiting.is_empty() {
        return Ok(());
    }
    Err(("ContainersNotReady", format!("containers with unready status: [{waiting}]")))
}

fn gates_hold(snapshot: &Snapshot<'_>, gates: &[PodReadinessGate]) -> Holds {
    let conditions = snapshot.pod.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let problem = |gate: &PodReadinessGate| {
        let kind = &gate.condition_type;
        match conditions.iter().find(|condition| condition.r#type == *kind) {
            Some(condition) if condition.status == "True" => None,
            Some(condition) => {
                Some(format!("the status of pod readiness gate {kind:?} is not \"True\", but {:?}", condition.status))
            }
            None => Some(format!("corresponding condition of pod readiness gate {kind:?} does not exist")),
        }
    };
    let problems: Vec<_> = gates.iter().filter_map(problem).collect();
    if problems.is_empty() { Ok(()) } else { Err(("ReadinessGatesNotReady", problems.join(", "))) }
}

fn names<'a>(statuses: impl Iterator<Item = &'a ContainerStatus>) -> String {
    statuses.map(|status| status.name.as_str()).collect::<Vec<_>>().join(", ")
}

fn condition(snapshot: &Snapshot<'_>, name: &str, holds: &Holds, generation: i64) -> Condition {
    let status = if holds.is_ok() { "True" } else { "False" };
    let before = snapshot.before.conditions.iter().find(|c| c.r#type == name && c.status == status);
    let (reason, message) = holds.as_ref().err().map_or(("", ""), |(reason, message)| (*reason, message.as_str()));
    Condition {
        r#type: name.into(),
        status: status.into(),
        observed_generation: generation,
        last_probe_time: None,
        last_transition_time: before.and_then(|c| c.last_transition_time).or_else(|| Some(snapshot.now.into())),
        reason: reason.into(),
        message: message.into(),
    }
}
