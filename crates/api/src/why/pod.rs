//! What a pod's own surroundings say: its node, its claims, its containers, its events.

use pb::{
    ObjectExt,
    objects::{Condition, ContainerStatus, Event, Pod},
};

use super::{advice::way_out, explain::Answer};
use crate::volumes::claims_named;

/// Events that are shown of one object.
const EVENTS: usize = 3;

impl Answer<'_> {
    /// What the pod's own surroundings say. Of a pod that nothing holds up, only what is wrong all the same.
    pub(super) fn pod_facts(&mut self, pod: &Pod, troubled: bool) {
        let object = format!("pod/{}", pod.name());
        let spec = pod.spec.clone().unwrap_or_default();
        if let Some(node) = self.facts.nodes.iter().find(|node| node.name() == spec.node_name) {
            let ready = node.status.iter().flat_map(|status| &status.conditions).find(|c| c.r#type == "Ready");
            if let Some(down) = ready.filter(|ready| ready.status != "True") {
                let message = format!("node {} of {} is not ready: {}", node.name(), pod.name(), down.message);
                let advice = way_out(node.name());
                self.add(format!("node/{}", node.name()), "NodeNotReady", message, down.last_transition_time, advice);
            }
        }
        if !troubled {
            return;
        }
        for name in claims_named(pod) {
            self.claim(name, Some(pod));
        }
        let status = pod.status.clone().unwrap_or_default();
        for container in status.init_container_statuses.iter().chain(&status.container_statuses) {
            if let Some((reason, message)) = trouble(container) {
                let advice = format!("`berth logs {} -c {}` shows what it wrote", pod.name(), container.name);
                self.add(object.clone(), &reason, message, None, advice);
            }
        }
        self.events("Pod", pod.name());
    }

    /// The last warnings about an object.
    pub(super) fn events(&mut self, kind: &str, name: &str) {
        let mine = |event: &&&Event| {
            event.involved_object.as_ref().is_some_and(|o| o.kind == kind && o.name == name)
                && event.r#type == "Warning"
        };
        let mut events: Vec<_> = self.facts.events.iter().filter(mine).copied().collect();
        events.sort_by_key(|event| std::cmp::Reverse(event.last_timestamp.map(|time| (time.seconds, time.nanos))));
        // An event often only repeats what the object's own conditions say.
        let said = |message: &str| self.reasons.iter().any(|reason| reason.message.contains(message));
        let news: Vec<_> = events.into_iter().filter(|event| !said(&event.message)).take(EVENTS).collect();
        let object = format!("{}/{name}", kind.to_ascii_lowercase());
        for event in news {
            self.add(object.clone(), &event.reason, event.message.clone(), event.last_timestamp, String::new());
        }
    }
}

pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().map_or("Pending", |status| status.phase.as_str())
}

pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a Condition> {
    pod.status.as_ref()?.conditions.iter().find(|condition| condition.r#type == kind)
}

pub fn is_true(pod: &Pod, kind: &str) -> bool {
    condition(pod, kind).is_some_and(|condition| condition.status == "True")
}

/// What is wrong with a container, if anything.
fn trouble(container: &ContainerStatus) -> Option<(String, String)> {
    let name = &container.name;
    let state = container.state.clone().unwrap_or_default();
    let ended = container.last_state.as_ref().and_then(|last| last.terminated.as_ref());
    let restarts = match (container.restart_count, ended) {
        (0, _) | (_, None) => String::new(),
        (count, Some(end)) => {
            format!(
                "; it was started again {count} times, and ended last with exit code {} {}",
                end.exit_code, end.reason
            )
        }
    };
    if let Some(waiting) = state.waiting.filter(|waiting| !waiting.reason.is_empty()) {
        let message = format!("container {name} has not started: {} {}", waiting.reason, waiting.message);
        return Some((waiting.reason, message.trim_end().to_owned() + &restarts));
    }
    if let Some(end) = state.terminated {
        let message = format!("container {name} ended with exit code {} {}", end.exit_code, end.message);
        return Some(("ContainerEnded".to_owned(), message.trim_end().to_owned() + &restarts));
    }
    if !container.ready || !restarts.is_empty() {
        let ready = if container.ready { "is ready" } else { "runs, but its readiness probe does not hold" };
        return Some(("ContainerNotReady".to_owned(), format!("container {name} {ready}{restarts}")));
    }
    None
}
