//! Which volumes are on nodes that are gone for good.
//!
//! A volume is lost while every node that can reach it is gone: there is no such Node object, or a person has said that the
//! machine is off (taint `node.kubernetes.io/out-of-service`). A node that is merely not Ready is not gone. [`verdict`] keeps
//! the claim's condition VolumeLost and the volume's reason NodeLost in step with that.
//!
//! Must never: call a volume lost that some node can reach; touch its data. What follows from it is decided elsewhere: sets
//! may begin anew with empty volumes, and reclaiming leaves a lost volume alone.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use pb::{
    Object,
    objects::{Node, NodeSelector, PersistentVolume, PersistentVolumeClaim},
};

use super::{
    observe::{clear_condition, in_phase, set_condition, with_status},
    reachable, selector_text,
};
use crate::schedule::{self, NODE_TOPOLOGY_KEY};

/// Condition of a claim whose volume is lost.
pub const VOLUME_LOST: &str = "VolumeLost";
/// `status.reason` of a volume that is lost.
pub const NODE_LOST: &str = "NodeLost";
/// The label that every node has, with its name.
const HOSTNAME_KEY: &str = "kubernetes.io/hostname";

/// The nodes of the cluster by name.
pub type Nodes = BTreeMap<String, Arc<Node>>;

/// What to write, together. None where nothing changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// The claim.
    pub claim: Option<Box<PersistentVolumeClaim>>,
    /// The volume.
    pub volume: Option<Box<PersistentVolume>>,
}

/// Whether a person has said that the machine is off.
pub fn is_off(node: &Node) -> bool {
    let taints = node.spec.as_ref().map(|spec| spec.taints.as_slice()).unwrap_or_default();
    taints.iter().any(|taint| taint.key == model::validate::OUT_OF_SERVICE)
}

/// The nodes that can reach a volume and are not gone, by name.
pub fn living<'a>(
    selector: Option<&'a NodeSelector>,
    nodes: &'a Nodes,
) -> impl Iterator<Item = (&'a str, &'a Node)> + 'a {
    let reached = move |name: &str, node: &Node| {
        selector.is_none_or(|selector| schedule::matches(selector, name, &node.meta().labels))
    };
    let there = nodes.iter().map(|(name, node)| (name.as_str(), &**node));
    there.filter(move |(name, node)| !is_off(node) && reached(name, node))
}

/// The nodes that a selector names: what a verdict rests on beside those that there are.
pub fn named(selector: &NodeSelector) -> impl Iterator<Item = &str> {
    let expressions = selector.node_selector_terms.iter().flat_map(|term| &term.match_expressions);
    let names =
        expressions.filter(|e| e.operator == "In" && matches!(e.key.as_str(), NODE_TOPOLOGY_KEY | HOSTNAME_KEY));
    names.flat_map(|e| e.values.iter().map(String::as_str))
}

/// Why a volume is lost; None if it is not. `nodes` are all that there are.
pub fn lost(volume: &PersistentVolume, nodes: &Nodes) -> Option<String> {
    let selector = reachable(volume)?;
    if living(Some(selector), nodes).next().is_some() {
        return None;
    }
    let names: Vec<&str> = named(selector).collect();
    let off = names.iter().any(|name| nodes.contains_key(*name));
    let who = match names.as_slice() {
        [] => format!("every node that could reach the volume ({}) is", selector_text(selector)),
        [name] => format!("node {name}, the only one with the volume, is"),
        names => format!("nodes {}, the only ones with the volume, are", names.join(", ")),
    };
    let what = if off { "out of service" } else { "gone" };
    Some(format!("{who} {what}; bring it back, or delete the claim and its pod to begin with an empty volume"))
}

/// What a claim and its volume should say. `claim` is the one that the volume belongs to, if it lives.
pub fn verdict(
    volume: &PersistentVolume,
    claim: Option<&PersistentVolumeClaim>,
    nodes: &Nodes,
    now: Timestamp,
) -> Verdict {
    let lost = lost(volume, nodes);
    let claim = claim.map(|claim| (claim, claim_after(claim, lost.as_deref(), now)));
    let after = volume_after(volume, lost.as_deref(), now);
    Verdict {
        claim: claim.filter(|(before, after)| after != *before).map(|(_, after)| Box::new(after)),
        volume: (after != *volume).then(|| Box::new(after)),
    }
}

fn claim_after(claim: &PersistentVolumeClaim, lost: Option<&str>, now: Timestamp) -> PersistentVolumeClaim {
    let has = claim.status.iter().flat_map(|status| &status.conditions).any(|c| c.r#type == VOLUME_LOST);
    match lost {
        Some(why) => with_status(claim, |s| set_condition(s, VOLUME_LOST, NODE_LOST, why.to_owned(), now)),
        None if has => with_status(claim, |status| clear_condition(status, VOLUME_LOST)),
        None => claim.clone(),
    }
}

/// A volume that nobody ever had is no loss: why it goes stays with it.
fn volume_after(volume: &PersistentVolume, lost: Option<&str>, now: Timestamp) -> PersistentVolume {
    let status = volume.status.clone().unwrap_or_default();
    if matches!(status.reason.as_str(), "NotTaken" | "Adopted" | "OperationFailed") {
        return volume.clone();
    }
    let mut after = volume.clone();
    match lost {
        Some(why) => in_phase(&mut after, &status.phase, NODE_LOST, why.to_owned(), now),
        None if status.reason == NODE_LOST => in_phase(&mut after, &status.phase, "", String::new(), now),
        None => {}
    }
    after
}

#[cfg(test)]
mod tests;
