//! Rolling updates: what the set controller may take away from pods in range.

use model::{identity::Ordinal, overrides};
use pb::{
    Object, ObjectExt,
    objects::{Pod, StatefulSet, int_or_string},
};

use crate::{
    Findings,
    revisions::{REVISION_LABEL, same},
    world::{
        Actor, Step, World, in_order, in_range, index, key, ordinal, ordinals, paused, phase, replicas, spec, strategy,
        title,
    },
};

/// Annotation of a pod: digest of the overrides that it was made with.
const OVERRIDES_ANNOTATION: &str = "berth.dev/overrides";

/// A pod in range that has not ended is taken away only because it is outdated and at or above the partition. One that is
/// available goes only if no outdated one is above it, and only while fewer pods than maxUnavailable are unavailable;
/// where Parallel has no such bound, it goes whatever the others do.
pub(crate) fn from_the_top(step: &Step<'_>, findings: &mut Findings) {
    if step.by != Actor::SetController {
        return;
    }
    for (set, pod) in taken_away(step) {
        let Some(due) = ordinal(set, pod) else { continue };
        if !is_outdated(step.before, set, pod) {
            findings.add(title(pod), "was taken away although it is in range and up to date");
        } else if paused(set) {
            findings.add(title(pod), "was taken away although the set is paused");
        } else if strategy(set) == "OnDelete" {
            findings.add(title(pod), "was taken away although the strategy is OnDelete");
        } else if i64::from(index(set, pod).unwrap_or(0)) < partition(set) {
            findings.add(title(pod), format!("was taken away although it is below the partition {}", partition(set)));
        }
        if strategy(set) == "Recreate" || !step.before.is_available(set, pod) {
            continue;
        }
        let pods = step.before.pods_of(set);
        let waiting = |pod: &Pod| is_outdated(step.before, set, pod) && !pod.is_terminating();
        let above = pods.iter().find(|(o, pod)| **o > due && in_range(set, **o) && waiting(pod));
        if let Some((above, _)) = above {
            findings.add(title(pod), format!("was taken away before the outdated ordinal {above}"));
        }
        let available = |o: &Ordinal| pods.get(o).is_some_and(|pod| step.before.is_available(set, pod));
        let others = ordinals(set).iter().filter(|o| *o != due && !available(o)).count();
        let unavailable = i64::try_from(others).unwrap_or(i64::MAX);
        let bounded = in_order(set) || max_unavailable(set).is_some();
        if bounded && unavailable >= max_unavailable(set).unwrap_or(1) {
            findings.add(title(pod), format!("was taken away while {unavailable} others were unavailable"));
        }
    }
}

/// Two versions never run side by side.
pub(crate) fn old_before_new(step: &Step<'_>, findings: &mut Findings) {
    for pod in step.created_pods() {
        let Some(set) = step.before.set_of(pod).filter(|set| strategy(set) == "Recreate" && !paused(set)) else {
            continue;
        };
        let pods = step.before.pods_of(set);
        if let Some(older) = pods.values().find(|older| is_outdated(step.before, set, older)) {
            findings.add(title(pod), format!("was created while {} was still there", older.name()));
        }
    }
}

/// Pods in range that had not ended and that the step asked to go.
fn taken_away<'a>(step: &Step<'a>) -> impl Iterator<Item = (&'a StatefulSet, &'a Pod)> {
    let before = step.before;
    let after = step.after;
    before.pods.values().filter_map(move |pod| {
        let set = before.set_of(pod).filter(|set| !set.is_terminating())?;
        let in_range = ordinal(set, pod).is_some_and(|ordinal| in_range(set, ordinal));
        let now = after.pods.get(&key(pod)).filter(|after| after.uid() == pod.uid());
        let asked = !pod.is_terminating() && now.is_none_or(ObjectExt::is_terminating);
        let ended = matches!(phase(pod), "Failed" | "Succeeded");
        (in_range && asked && !ended).then_some((set, pod))
    })
}

/// Whether the pod's revision stores another template than the set's present one, or its ordinal has other overrides.
pub(crate) fn is_outdated(world: &World, set: &StatefulSet, pod: &Pod) -> bool {
    let name = pod.meta().labels.get(REVISION_LABEL);
    let revision = name.and_then(|name| world.revisions.get(&(set.namespace().to_owned(), name.clone())));
    let template = spec(set).and_then(|spec| spec.template.as_ref());
    revision.is_none_or(|revision| !same(revision.data.as_ref(), template)) || has_other_overrides(set, pod)
}

fn has_other_overrides(set: &StatefulSet, pod: &Pod) -> bool {
    let (Some(spec), Some(ordinal)) = (spec(set), ordinal(set, pod)) else { return false };
    let digests: Vec<_> = overrides::of(spec, ordinal).map(overrides::digest).collect();
    let wanted = overrides::joined(digests.iter().map(String::as_str));
    pod.meta().annotations.get(OVERRIDES_ANNOTATION).map_or("", String::as_str) != wanted
}

fn partition(set: &StatefulSet) -> i64 {
    let strategy = spec(set).and_then(|spec| spec.update_strategy.as_ref());
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    rolling.and_then(|rolling| rolling.partition).map_or(0, i64::from)
}

/// None if there is no bound. Percentages round down; at least 1.
fn max_unavailable(set: &StatefulSet) -> Option<i64> {
    let strategy = spec(set).and_then(|spec| spec.update_strategy.as_ref());
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    let bound = rolling.and_then(|rolling| rolling.max_unavailable.as_ref()).and_then(|bound| bound.kind.as_ref());
    let bound = match bound {
        Some(int_or_string::Kind::IntValue(count)) => i64::from(*count),
        Some(int_or_string::Kind::StringValue(text)) => {
            let percent = text.strip_suffix('%').and_then(|percent| percent.parse::<i64>().ok()).unwrap_or(0);
            i64::from(replicas(set)) * percent / 100
        }
        None => return None,
    };
    Some(bound.max(1))
}
