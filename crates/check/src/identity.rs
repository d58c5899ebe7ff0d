//! One pod for an identity, as far as the store can tell.

use pb::ObjectExt;

use crate::{
    Findings,
    world::{Actor, Step, phase, title},
};

/// A pod keeps its node for life, and is replaced only after it was asked to go or had ended.
pub(crate) fn one_pod_for_life(step: &Step<'_>, findings: &mut Findings) {
    for (key, after) in &step.after.pods {
        let Some(before) = step.before.pods.get(key) else { continue };
        let node = |pod: &pb::objects::Pod| pod.spec.as_ref().map(|spec| spec.node_name.clone()).unwrap_or_default();
        if before.uid() == after.uid() {
            let (was, is) = (node(before), node(after));
            if !was.is_empty() && was != is {
                findings.add(title(after), format!("moved from node {was} to {is:?} without a new uid"));
            }
        } else {
            let what = format!("uid {} was replaced by {} in one commit", before.uid(), after.uid());
            findings.add(title(after), what);
        }
    }
    for (key, before) in &step.before.pods {
        let gone = !step.after.pods.contains_key(key);
        let ended = matches!(phase(before), "Failed" | "Succeeded");
        let unbound = before.spec.as_ref().is_none_or(|spec| spec.node_name.is_empty());
        if gone && step.by == Actor::SetController && !before.is_terminating() && !ended && !unbound {
            findings.add(title(before), "was removed by the controller while it may still run");
        }
    }
}
