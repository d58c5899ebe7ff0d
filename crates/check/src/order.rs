//! OrderedReady: one after the other, upwards and downwards.

use std::collections::BTreeMap;

use model::identity::Ordinal;
use pb::{ObjectExt, objects::StatefulSet};

use crate::{
    Findings,
    update::is_outdated,
    world::{Actor, Key, Step, in_order, in_range, key, ordinal, ordinals, spec, strategy, title},
};

/// A pod is created only when every lower ordinal of the range is available, but for as many as may start beside it
/// (`maxConcurrentStart`), and not more than those in one commit.
pub(crate) fn created_in_order(step: &Step<'_>, findings: &mut Findings) {
    let mut created: BTreeMap<Key, usize> = BTreeMap::new();
    for pod in step.created_pods() {
        let Some(set) = step.after.set_of(pod).filter(|set| in_order(set)) else { continue };
        let Some(due) = ordinal(set, pod) else { continue };
        *created.entry(key(set)).or_default() += 1;
        let before = step.before.pods_of(set);
        let ordinals = ordinals(set);
        let ready = |lower: &Ordinal| before.get(lower).is_some_and(|pod| step.before.is_available(set, pod));
        let mut behind = ordinals.iter().take_while(|lower| *lower < due).filter(|lower| !ready(lower));
        if let Some(lower) = behind.nth(window(set) - 1) {
            findings.add(title(pod), format!("was created while ordinal {lower} was not available"));
        }
    }
    let too_many = |(key, count): &(Key, usize)| step.after.sets.get(key).is_some_and(|set| *count > window(set));
    for ((namespace, name), count) in created.into_iter().filter(too_many) {
        findings.add(format!("StatefulSet {namespace}/{name}"), format!("{count} pods were created in one commit"));
    }
}

/// How many pods may be on their way at a time.
fn window(set: &StatefulSet) -> usize {
    let window = spec(set).and_then(|spec| spec.max_concurrent_start).unwrap_or(1);
    usize::try_from(window).unwrap_or(1).max(1)
}

/// The controller asks a pod out of range to go only when no higher one out of range is left. Recreate takes all
/// outdated ones at once.
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
            let recreated = strategy(set) == "Recreate" && is_outdated(step.before, set, pod);
            if let Some(higher) = higher.filter(|_| asked && !recreated) {
                findings.add(title(**pod), format!("was scaled away while ordinal {higher} was still there"));
            }
        }
    }
}
