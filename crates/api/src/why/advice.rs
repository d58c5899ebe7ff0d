//! What to do about a wait, since when it lasts, and who has to move first.

use jiff::Timestamp;
use model::{identity::PodName, validate::OUT_OF_SERVICE};
use pb::{
    Object, ObjectExt,
    objects::{Node, Pod, Time},
};
use plan::statefulset::{Wait, WaitReason};

use super::{explain::Facts, pod::condition};

/// Since when a pod's wait lasts, if its conditions tell.
pub fn since(pod: &Pod, reason: &WaitReason) -> Option<Time> {
    let changed = |kind| condition(pod, kind).and_then(|condition| condition.last_transition_time);
    match reason {
        WaitReason::NodeUnbound { .. } => changed("PodScheduled").or(pod.meta().creation_timestamp),
        WaitReason::NotReady { .. } | WaitReason::MinReadySeconds { .. } => {
            changed("Ready").or(pod.meta().creation_timestamp)
        }
        WaitReason::PodTerminating | WaitReason::PodLeaving => {
            let grace = pod.meta().deletion_grace_period_seconds.unwrap_or_default();
            pod.meta().deletion_timestamp.map(|end| Time { seconds: end.seconds - grace, nanos: end.nanos })
        }
        _ => None,
    }
}

/// The pod that has to move first.
pub fn waits_for(reason: &WaitReason) -> Option<&PodName> {
    match reason {
        WaitReason::PredecessorNotReady { predecessor } => Some(predecessor),
        WaitReason::PeerNotReady { peer } => Some(peer),
        WaitReason::SuccessorNotGone { successor } => Some(successor),
        WaitReason::OlderNotGone { older } => Some(older),
        WaitReason::DisruptionBudget(refusal) => refusal.unhealthy.first(),
        _ => None,
    }
}

/// What to do about a wait; empty if it passes by itself.
pub fn advice(wait: &Wait, pod: Option<&Pod>, facts: &Facts<'_>) -> String {
    let name = &wait.pod;
    match &wait.reason {
        WaitReason::NodeUnbound { .. } => placement(pod),
        WaitReason::NotReady { .. } => {
            format!("`berth describe pod {name}` shows its probes and events, `berth logs {name}` what it wrote")
        }
        WaitReason::ClaimTerminating { claim } => {
            format!("`berth describe pvc {claim}` says what keeps it; it goes when no pod uses it")
        }
        WaitReason::PodTerminating | WaitReason::PodLeaving if overdue(pod, facts.now) => match lost(pod, facts) {
            Some(node) => way_out(node.name()),
            None => format!(
                "it should have stopped by now: look at its node; `berth delete pod {name} --grace-period=0` forgets it, \
             which is safe only if nothing of it runs any more"
            ),
        },
        WaitReason::DisruptionBudget(refusal) => {
            format!("{}; with spec.budgetPolicy: Ignore the set asks no budget", refusal.advice())
        }
        WaitReason::ClaimHeld { claim, .. } => {
            format!("it goes on by itself; `berth volume describe {claim}` says how far it is")
        }
        WaitReason::ClaimGrowing { claim, .. } => format!("`berth volume describe {claim}` says how far it is"),
        WaitReason::SnapshotPending { snapshot, .. } => {
            format!("`berth describe vs {snapshot}` says what the driver says")
        }
        WaitReason::VolumeLost { node: Some(node), .. } => way_out(node.as_str()),
        WaitReason::UpdateOnDelete => format!("`berth delete pod {name}` replaces it"),
        WaitReason::Paused => match facts.set {
            Some(set) => format!("`berth rollout resume sts/{}` goes on with the update", set.name()),
            None => String::new(),
        },
        WaitReason::UpdateBudget { .. } => {
            "make the unavailable pods ready, or raise updateStrategy.rollingUpdate.maxUnavailable".to_owned()
        }
        _ => String::new(),
    }
}

/// What lets a pod onto a node, by words of what the scheduler says keeps it away.
const WAYS_IN: [(&str, &str); 7] = [
    ("were unschedulable", "let pods come again (`berth uncordon NODE`)"),
    ("untolerated taint", "take the taint off (`berth taint node NODE KEY-`), or give the pod a toleration"),
    ("node affinity/selector", "label a node (`berth label node NODE KEY=VALUE`), or ask for less of it"),
    ("affinity rules", "look at the other pods of its place, or prefer instead of requiring"),
    ("topology spread", "add a node where there are few of its kind, or allow more skew"),
    ("free ports", "free the port of the node, or ask for another"),
    ("were not ready", "bring back the nodes that are not ready (`berth get nodes`)"),
];

/// What to do about a pod that has no node.
fn placement(pod: Option<&Pod>) -> String {
    let message = pod.and_then(|pod| condition(pod, "PodScheduled")).map(|condition| condition.message.as_str());
    let told = |(words, _): &&(&str, &str)| message.is_some_and(|message| message.contains(words));
    let ways: Vec<&str> = WAYS_IN.iter().filter(told).map(|(_, way)| *way).collect();
    let ways =
        if ways.is_empty() { "make room, or add a node (`berth get nodes`)".to_owned() } else { ways.join("; or ") };
    let nominated = pod.and_then(|pod| pod.status.as_ref()).map(|status| status.nominated_node_name.as_str());
    match nominated.filter(|node| !node.is_empty()) {
        Some(node) => {
            format!("less important pods of node {node} were asked to go for it; it comes when they are gone")
        }
        None => format!("{ways}; the scheduler binds the pod as soon as one fits"),
    }
}

/// What to do about a node of which nothing is heard (NL-3).
pub fn way_out(node: &str) -> String {
    format!(
        "bring node {node} and its agent back; if the machine is off, `berth taint node {node} \
         {OUT_OF_SERVICE}=off:NoExecute` lets its pods come elsewhere at once; if it never returns, `berth delete node \
         {node}`"
    )
}

/// The node of a pod, if nothing is heard of it.
fn lost<'a>(pod: Option<&Pod>, facts: &Facts<'a>) -> Option<&'a Node> {
    let name = &pod?.spec.as_ref()?.node_name;
    let node = facts.nodes.iter().find(|node| node.name() == name)?;
    (!is_ready(node)).then_some(*node)
}

fn overdue(pod: Option<&Pod>, now: Timestamp) -> bool {
    pod.and_then(|pod| pod.meta().deletion_timestamp).is_some_and(|end| end.timestamp() < now)
}

/// Whether the agent of a node is heard of.
pub fn is_ready(node: &Node) -> bool {
    let mut conditions = node.status.iter().flat_map(|status| &status.conditions);
    conditions.any(|condition| condition.r#type == "Ready" && condition.status == "True")
}
