//! OrderedReady: one after the other, upwards and downwards. And a set that is deleted in order.

use std::collections::BTreeMap;

use model::identity::Ordinal;
use pb::{
    ObjectExt,
    objects::{Pod, StatefulSet},
};

use crate::{
    Findings,
    update::is_outdated,
    world::{
        Actor, Key, ORDERED, Step, changed, goes_in_order, has_finalizer, in_order, in_range, key, ordinal, phase,
        range, spec, title, window,
    },
};

/// A pod is created when fewer lower ordinals of the range than the window are missing or not available: with a window of
/// one, all of them are there. No second one comes in the same commit. That a wider window is filled from below is not
/// looked at: a lower ordinal may have been obstructed when it was decided.
pub(crate) fn created_in_order(step: &Step<'_>, findings: &mut Findings) {
    let mut created: BTreeMap<Key, u32> = BTreeMap::new();
    for pod in step.created_pods() {
        let Some(set) = step.after.set_of(pod) else { continue };
        if set.is_terminating() {
            findings.add(title(pod), "was created although its set is being deleted");
        }
        let Some(due) = ordinal(set, pod) else { continue };
        if step.by == Actor::SetController && !in_range(set, due) {
            findings.add(title(pod), "was created although it is out of range");
        }
        if !in_order(set) {
            continue;
        }
        *created.entry(key(set)).or_default() += 1;
        let before = step.before.pods_of(set);
        let lower: Vec<_> = range(set).into_iter().filter(|lower| *lower < due).collect();
        let available = |lower: &Ordinal| before.get(lower).is_some_and(|pod| step.before.is_available(set, pod));
        let waiting: Vec<_> = lower.iter().filter(|lower| !available(lower)).collect();
        if let Some(lowest) = waiting.first().filter(|_| waiting.len() >= window(set)) {
            findings.add(title(pod), format!("was created while ordinal {lowest} was not available"));
        }
    }
    for ((namespace, name), count) in created.into_iter().filter(|(_, count)| *count > 1) {
        findings.add(format!("StatefulSet {namespace}/{name}"), format!("{count} pods were created in one commit"));
    }
}

/// The controller asks a pod out of range to go only when no higher one out of range is left and all in range are
/// available; a broken one only when no lower one is broken too (DN-2 to DN-4).
pub(crate) fn removed_in_order(step: &Step<'_>, findings: &mut Findings) {
    if step.by != Actor::SetController {
        return;
    }
    for pod in step.pods_asked_to_go() {
        let Some(set) = step.before.set_of(pod).filter(|set| in_order(set) && !set.is_terminating()) else { continue };
        let Some(due) = ordinal(set, pod).filter(|due| !in_range(set, *due)) else { continue };
        if crate::update::recreates(step.before, set, pod) {
            continue;
        }
        let pods = step.before.pods_of(set);
        let condemned: Vec<_> = pods.keys().filter(|ordinal| !in_range(set, **ordinal)).collect();
        if let Some(higher) = condemned.last().filter(|highest| ***highest > due) {
            findings.add(title(pod), format!("was scaled away while ordinal {higher} was still there"));
        }
        let unavailable = |ordinal: &Ordinal| !pods.get(ordinal).is_some_and(|pod| step.before.is_available(set, pod));
        if let Some(down) = range(set).iter().find(|ordinal| unavailable(ordinal)) {
            findings.add(title(pod), format!("was scaled away while ordinal {down} was not available"));
        }
        // What has ended is no member any more: it goes in its turn, and nobody waits for it.
        let ended =
            |ordinal: &Ordinal| pods.get(ordinal).is_some_and(|pod| matches!(phase(pod), "Failed" | "Succeeded"));
        // Nor for one of an older template: nothing would heal it where it is.
        let outdated = |ordinal: &Ordinal| pods.get(ordinal).is_some_and(|pod| is_outdated(step.before, set, pod));
        let down = |ordinal: &Ordinal| unavailable(ordinal) && !ended(ordinal) && !outdated(ordinal);
        let lower = condemned.into_iter().find(|ordinal| **ordinal < due && down(ordinal));
        if let Some(lower) = lower.filter(|_| down(&due)) {
            findings.add(title(pod), format!("is broken and was scaled away while ordinal {lower} is broken too"));
        }
    }
}

/// A set that is deleted in order loses its highest pod first, each gone before the next, by its controller alone; any
/// other set that is being deleted loses none by its controller.
pub(crate) fn deleted_in_order(step: &Step<'_>, findings: &mut Findings) {
    if !matches!(step.by, Actor::SetController | Actor::Collector) {
        return;
    }
    for pod in step.pods_asked_to_go() {
        let Some(set) = step.before.set_of(pod).filter(|set| set.is_terminating()) else { continue };
        match step.by {
            Actor::Collector if goes_in_order(set) => {
                findings.add(title(pod), "was collected although the set's pods go in order");
            }
            Actor::Collector if !has_finalizer(set, "foregroundDeletion") => {
                findings.add(title(pod), "was collected although its set leaves its pods behind");
            }
            Actor::SetController if goes_in_order(set) => in_its_turn(step, set, pod, findings),
            Actor::SetController => findings.add(title(pod), "was taken away by the controller of a deleted set"),
            _ => {}
        }
    }
    let released = changed(&step.before.sets, &step.after.sets)
        .filter(|(was, is)| has_finalizer(*was, ORDERED) && !has_finalizer(*is, ORDERED))
        .map(|(was, _)| was);
    let gone = step.before.sets.iter().filter(|(key, set)| goes_in_order(set) && !step.after.sets.contains_key(*key));
    // Who no longer wants an order need not wait for it.
    let wanted = |set: &&StatefulSet| spec(set).is_some_and(|spec| spec.deletion_order == "Ordered");
    for set in released.chain(gone.map(|(_, set)| set.as_ref())).filter(wanted) {
        let left = step.before.pods_of(set).len();
        if left > 0 {
            findings.add(title(set), format!("was let go while {left} of its pods were there"));
        }
    }
}

fn in_its_turn(step: &Step<'_>, set: &StatefulSet, pod: &Pod, findings: &mut Findings) {
    let Some(due) = ordinal(set, pod) else { return };
    let highest = step.before.pods_of(set).keys().next_back().copied();
    if let Some(highest) = highest.filter(|highest| *highest > due) {
        findings.add(title(pod), format!("was taken away while ordinal {highest} of the deleted set was still there"));
    }
}
