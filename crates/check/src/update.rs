//! Rolling updates: what the set controller may take away from pods in range.

use pb::{
    Object, ObjectExt,
    objects::{Pod, StatefulSet, int_or_string},
};

use crate::{
    Findings,
    revisions::{REVISION_LABEL, same},
    world::{Actor, Step, World, in_order, in_range, key, ordinal, phase, replicas, spec, start, title},
};

/// A pod in range that has not ended is taken away only because it is outdated, at or above the partition, with no
/// outdated one above it; under OrderedReady also only while fewer pods than maxUnavailable are unavailable.
pub(crate) fn from_the_top(step: &Step<'_>, findings: &mut Findings) {
    if step.by != Actor::SetController {
        return;
    }
    for (set, pod) in taken_away(step) {
        let Some(due) = ordinal(set, pod) else { continue };
        let index = due.index(start(set)).map_or(0, i64::from);
        if !is_outdated(step.before, set, pod) {
            findings.add(title(pod), "was taken away although it is in range and up to date");
        } else if index < partition(set) {
            findings.add(title(pod), format!("was taken away although it is below the partition {}", partition(set)));
        }
        let pods = step.before.pods_of(set);
        let waiting = |pod: &Pod| is_outdated(step.before, set, pod) && !pod.is_terminating();
        let above = pods.iter().find(|(o, pod)| **o > due && in_range(set, **o) && waiting(pod));
        if let Some((above, _)) = above {
            findings.add(title(pod), format!("was taken away before the outdated ordinal {above}"));
        }
        let others =
            (0..replicas(set)).map(|index| model::identity::Ordinal(start(set).0 + index)).filter(|o| *o != due);
        let available =
            |o: &model::identity::Ordinal| pods.get(o).is_some_and(|pod| step.before.is_available(set, pod));
        let unavailable = i64::try_from(others.filter(|o| !available(o)).count()).unwrap_or(i64::MAX);
        if in_order(set) && unavailable >= max_unavailable(set) {
            findings.add(title(pod), format!("was taken away while {unavailable} others were unavailable"));
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

/// Whether the pod's revision stores another template than the set's present one.
fn is_outdated(world: &World, set: &StatefulSet, pod: &Pod) -> bool {
    let name = pod.meta().labels.get(REVISION_LABEL);
    let revision = name.and_then(|name| world.revisions.get(&(set.namespace().to_owned(), name.clone())));
    revision.is_none_or(|revision| !same(revision.data.as_ref(), spec(set).and_then(|spec| spec.template.as_ref())))
}

fn partition(set: &StatefulSet) -> i64 {
    let strategy = spec(set).and_then(|spec| spec.update_strategy.as_ref());
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    rolling.and_then(|rolling| rolling.partition).map_or(0, i64::from)
}

/// Percentages round down; at least 1.
fn max_unavailable(set: &StatefulSet) -> i64 {
    let strategy = spec(set).and_then(|spec| spec.update_strategy.as_ref());
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    let bound = rolling.and_then(|rolling| rolling.max_unavailable.as_ref()).and_then(|bound| bound.kind.as_ref());
    let bound = match bound {
        Some(int_or_string::Kind::IntValue(count)) => i64::from(*count),
        Some(int_or_string::Kind::StringValue(text)) => {
            let percent = text.strip_suffix('%').and_then(|percent| percent.parse::<i64>().ok()).unwrap_or(0);
            i64::from(replicas(set)) * percent / 100
        }
        None => 1,
    };
    bound.max(1)
}
