//! Updates: what the set controller may take away from pods that have not ended.

use model::{identity::Ordinal, overrides};
use pb::{
    Object, ObjectExt,
    objects::{Pod, StatefulSet, int_or_string},
};

use crate::{
    Findings,
    revisions::{REVISION_LABEL, same},
    world::{
        Actor, Step, World, has_ended, in_order, in_range, index, ordinal, partition, range, replicas, spec, strategy,
        title,
    },
};

/// Annotation of a pod: digest of the overrides that it was made with.
pub(crate) const OVERRIDES: &str = "berth.dev/overrides";

/// A pod in range that has not ended is taken away only because it is outdated and an update may reach it; one that is
/// available only in its turn, the highest first, while no more than the bound are unavailable.
pub(crate) fn from_the_top(step: &Step<'_>, findings: &mut Findings) {
    if step.by != Actor::SetController {
        return;
    }
    for (set, pod, due) in taken_away(step) {
        let why = if !is_outdated(step.before, set, pod) {
            Some("although it is in range and up to date".to_owned())
        } else if strategy(set) == "Recreate" {
            paused(set).then(|| "although the set is paused".to_owned())
        } else {
            // What is not available serves nobody: it is healed in whatever turn.
            let in_turn = step.before.is_available(set, pod);
            not_reached(set, due).or_else(|| out_of_turn(step.before, set, due).filter(|_| in_turn))
        };
        if let Some(why) = why {
            findings.add(title(pod), format!("was taken away {why}"));
        }
    }
}

fn paused(set: &StatefulSet) -> bool {
    spec(set).is_some_and(|spec| spec.paused)
}

/// Why no update may reach the ordinal.
fn not_reached(set: &StatefulSet, due: Ordinal) -> Option<String> {
    if strategy(set) == "OnDelete" {
        return Some("although only a user may delete it (OnDelete)".to_owned());
    }
    if paused(set) {
        return Some("although the set is paused".to_owned());
    }
    let bound = partition(set);
    let below = index(set, due).is_none_or(|index| index < bound);
    below.then(|| format!("although it is below the partition {bound}"))
}

/// An available pod goes in its turn and within the bound.
fn out_of_turn(world: &World, set: &StatefulSet, due: Ordinal) -> Option<String> {
    let pods = world.pods_of(set);
    let available = |ordinal: &Ordinal| pods.get(ordinal).is_some_and(|pod| world.is_available(set, pod));
    let waiting = |pod: &Pod| is_outdated(world, set, pod) && !pod.is_terminating();
    let above = pods.iter().find(|(o, pod)| **o > due && in_range(set, **o) && waiting(pod));
    if let Some((above, _)) = above {
        return Some(format!("before the outdated ordinal {above}"));
    }
    let others: Vec<_> = range(set).into_iter().filter(|ordinal| *ordinal != due).collect();
    let unavailable = others.iter().filter(|ordinal| !available(ordinal)).count();
    match max_unavailable(set) {
        Some(bound) if unavailable >= bound => {
            return Some(format!("while {unavailable} others were unavailable and {bound} may be"));
        }
        None if in_order(set) && unavailable > 0 => {
            return Some(format!("while {unavailable} others were unavailable"));
        }
        // The classic walk from the top stops at a pod that is not available.
        None => {
            let bound = partition(set);
            let scanned = |o: &&Ordinal| **o > due && index(set, **o).is_some_and(|index| index >= bound);
            if let Some(above) = others.iter().filter(scanned).find(|o| !available(o)) {
                return Some(format!("while ordinal {above} above it was unavailable"));
            }
        }
        Some(_) => {}
    }
    let condemned = pods.keys().find(|ordinal| !in_range(set, **ordinal));
    condemned.filter(|_| in_order(set)).map(|ordinal| format!("while ordinal {ordinal} was still to be scaled away"))
}

/// Under Recreate nothing is made while a pod of an older template is there.
pub(crate) fn recreated_after_all_are_gone(step: &Step<'_>, findings: &mut Findings) {
    for pod in step.created_pods() {
        let Some(set) = step.before.set_of(pod).filter(|set| strategy(set) == "Recreate" && !paused(set)) else {
            continue;
        };
        let pods = step.before.pods_of(set);
        if let Some((old, _)) = pods.iter().find(|(_, pod)| is_outdated(step.before, set, pod)) {
            findings.add(title(pod), format!("was created while ordinal {old} of an older template was there"));
        }
    }
}

/// A healthy pod is taken away for an update, a scale-down or an eviction only while every disruption budget that counts
/// it has more healthy pods than it needs.
pub(crate) fn within_budgets(step: &Step<'_>, findings: &mut Findings) {
    if !matches!(step.by, Actor::SetController | Actor::Evictor) || step.before.budgets.is_empty() {
        return;
    }
    for pod in step.pods_asked_to_go().filter(|pod| crate::budget::is_healthy(pod)) {
        if step.by == Actor::SetController && !asks_budgets(step.before, pod) {
            continue;
        }
        for budget in step.before.budgets.values() {
            if let Some(why) = crate::budget::refuses(step.before, budget, pod) {
                findings.add(title(pod), format!("was taken away although budget {} {why}", budget.name()));
            }
        }
    }
}

/// Whether the set's controller has to ask before it takes a healthy pod away.
fn asks_budgets(world: &World, pod: &Pod) -> bool {
    let Some(set) = world.set_of(pod).filter(|set| !set.is_terminating()) else { return false };
    let ignores = spec(set).is_some_and(|spec| spec.budget_policy == "Ignore");
    !ignores && !recreates(world, set, pod)
}

/// Whether the strategy takes the pod away whatever the order: it is outdated under Recreate.
pub(crate) fn recreates(world: &World, set: &StatefulSet, pod: &Pod) -> bool {
    strategy(set) == "Recreate" && is_outdated(world, set, pod)
}

/// Pods in range that had not ended and that the step asked to go.
fn taken_away<'a>(step: &Step<'a>) -> impl Iterator<Item = (&'a StatefulSet, &'a Pod, Ordinal)> {
    let before = step.before;
    step.pods_asked_to_go().filter(|pod| !has_ended(pod)).filter_map(move |pod| {
        let set = before.set_of(pod).filter(|set| !set.is_terminating())?;
        let due = ordinal(set, pod).filter(|due| in_range(set, *due))?;
        // What is lost with its volumes is looked at with them.
        (!crate::volumes::gives_up(step, set, due)).then_some((set, pod, due))
    })
}

/// Whether the pod was made from another template than the set's present one, or with other overrides than its ordinal
/// has now.
pub(crate) fn is_outdated(world: &World, set: &StatefulSet, pod: &Pod) -> bool {
    let name = pod.meta().labels.get(REVISION_LABEL);
    let revision = name.and_then(|name| world.revision(set, name));
    let template = spec(set).and_then(|spec| spec.template.as_ref());
    revision.is_none_or(|revision| !same(revision.data.as_ref(), template)) || overrides_differ(set, pod)
}

/// Whether the pod has other overrides than its ordinal should.
pub(crate) fn overrides_differ(set: &StatefulSet, pod: &Pod) -> bool {
    let due = spec(set).zip(ordinal(set, pod)).map(|(spec, ordinal)| {
        let digests: Vec<_> = overrides::of(spec, ordinal).map(overrides::digest).collect();
        overrides::joined(digests.iter().map(String::as_str))
    });
    due.unwrap_or_default() != pod.meta().annotations.get(OVERRIDES).cloned().unwrap_or_default()
}

/// maxUnavailable: percentages round down; at least 1. None if it is not set.
fn max_unavailable(set: &StatefulSet) -> Option<usize> {
    let strategy = spec(set).and_then(|spec| spec.update_strategy.as_ref());
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    let bound = match rolling.and_then(|rolling| rolling.max_unavailable.as_ref())?.kind.as_ref()? {
        int_or_string::Kind::IntValue(count) => usize::try_from(*count).unwrap_or(1),
        int_or_string::Kind::StringValue(text) => {
            let percent = text.strip_suffix('%').and_then(|percent| percent.parse::<usize>().ok()).unwrap_or(0);
            replicas(set) * percent / 100
        }
    };
    Some(bound.max(1))
}
