//! OrderedReady: one after the other, upwards and downwards.

use std::collections::BTreeMap;

use pb::ObjectExt;

use crate::{
    Findings,
    world::{Actor, Key, Step, in_order, in_range, key, ordinal, start, title},
};

/// A pod is created only when every lower ordinal of the range is available, and no second one in the same commit.
pub(crate) fn created_in_order(step: &Step<'_>, findings: &mut Findings) {
    let mut created: BTreeMap<Key, u32> = BTreeMap::new();
    for pod in step.created_pods() {
        let Some(set) = step.after.set_of(pod).filter(|set| in_order(set)) else { continue };
        let Some(due) = ordinal(set, pod) else { continue };
        *created.entry(key(set)).or_default() += 1;
        let before = step.before.pods_of(set);
        let lower = (start(set).0..due.0).map(model::identity::Ordinal);
        for lower in lower {
            let ready = before.get(&lower).is_some_and(|pod| step.before.is_available(set, pod));
            if !ready {
                findings.add(title(pod), format!("was created while ordinal {lower} was not available"));
                break;
            }
        }
    }
    for ((namespace, name), count) in created.into_iter().filter(|(_, count)| *count > 1) {
        findings.add(format!("StatefulSet {namespace}/{name}"), format!("{count} pods were created in one commit"));
    }
}

/// The controller asks a pod out of range to go only when no higher one out of range is left.
pub(crate) fn removed_in_order(step: &Step<'_>, findings: &mut Findings) {
    if step.by != Actor::SetController {
        return;
    }
    for set in step.before.sets.values().filter(|set| in_order(set) && !set.is_terminating()) {
        let before = step.before.pods_of(set);
        let condemned = before.iter().filter(|(ordinal, _)| !in_range(set, **ordinal));
        let condemned: BTreeMap<_, _> = condemned.collect();
        for (ordinal, pod) in &condemned {
            let after = step.after.pods.get(&key(**pod)).filter(|after| after.uid() == pod.uid());
            let asked = !pod.is_terminating() && after.is_none_or(ObjectExt::is_terminating);
            let higher = condemned.keys().next_back().filter(|highest| highest > &ordinal);
            if let Some(higher) = higher.filter(|_| asked) {
                findings.add(title(**pod), format!("was scaled away while ordinal {higher} was still there"));
            }
        }
    }
}
