//! A status never claims what is not so; and what is called settled is really there.

use pb::{
    Object, ObjectExt,
    objects::{Pod, StatefulSet},
};

use crate::{
    Findings,
    revisions::REVISION_LABEL,
    update::{is_outdated, overrides_differ},
    world::{
        Actor, Step, World, changed, has_ended, in_range, index, ordinal, partition, phase, range, ready_since, spec,
        strategy, title,
    },
};

/// The inequalities of STAT-12, and no generation observed before its time.
pub(crate) fn coherent(world: &World, findings: &mut Findings) {
    for set in world.sets.values() {
        let Some(status) = &set.status else { continue };
        let counts = [
            ("readyReplicas", status.ready_replicas),
            ("currentReplicas", status.current_replicas),
            ("updatedReplicas", status.updated_replicas),
            ("availableReplicas", status.available_replicas),
        ];
        for (field, count) in counts {
            if count < 0 || count > status.replicas {
                findings.add(title(set.as_ref()), format!("status.{field} is {count} of {} replicas", status.replicas));
            }
        }
        if status.available_replicas > status.ready_replicas {
            let what = format!("{} available of {} ready", status.available_replicas, status.ready_replicas);
            findings.add(title(set.as_ref()), what);
        }
        if status.observed_generation > set.meta().generation {
            let what = format!("observed generation {} of {}", status.observed_generation, set.meta().generation);
            findings.add(title(set.as_ref()), what);
        }
    }
}

/// observedGeneration and collisionCount only grow.
pub(crate) fn never_falls(step: &Step<'_>, findings: &mut Findings) {
    for (before, after) in changed(&step.before.sets, &step.after.sets) {
        let Some(before) = &before.status else { continue };
        let after_status = after.status.clone().unwrap_or_default();
        if after_status.observed_generation < before.observed_generation {
            let (was, is) = (before.observed_generation, after_status.observed_generation);
            findings.add(title(after), format!("observedGeneration fell from {was} to {is}"));
        }
        if after_status.collision_count.unwrap_or(0) < before.collision_count.unwrap_or(0) {
            findings.add(title(after), "collisionCount fell");
        }
    }
}

/// An update counts as complete only when all pods of the range, and no others, are updated and available. The
/// controller's time may be later than it was when it counted; no pod became less available by that alone.
pub(crate) fn complete_means_available(step: &Step<'_>, findings: &mut Findings) {
    if step.by != Actor::SetController {
        return;
    }
    for (before, after) in changed(&step.before.sets, &step.after.sets) {
        let status = after.status.clone().unwrap_or_default();
        let was = before.status.clone().unwrap_or_default();
        let is_new = !status.complete_revision.is_empty() && was.complete_revision != status.complete_revision;
        let all = usize::try_from(status.available_replicas) == Ok(range(after).len())
            && status.updated_replicas == status.available_replicas
            && status.replicas == status.available_replicas;
        if is_new && !all {
            findings.add(title(after), format!("calls {} complete, and it is not", status.complete_revision));
        }
    }
}

/// The counts are those of the pods.
pub(crate) fn is_true(world: &World, findings: &mut Findings) {
    for set in world.sets.values().filter(|set| !set.is_terminating()) {
        let status = set.status.clone().unwrap_or_default();
        counts(world, set, &status, findings);
        if status.observed_generation != set.meta().generation {
            findings.add(title(set.as_ref()), "has not observed its latest generation");
        }
    }
}

/// Compares the counts of a status with the pods that a set has.
pub(crate) fn counts(
    world: &World,
    set: &StatefulSet,
    status: &pb::objects::StatefulSetStatus,
    findings: &mut Findings,
) {
    let pods = world.pods_of(set);
    let count = |test: &dyn Fn(&Pod) -> bool| pods.values().filter(|pod| test(pod)).count();
    let at = |pod: &Pod, revision: &str| {
        !pod.is_terminating() && pod.meta().labels.get(REVISION_LABEL).is_some_and(|name| name == revision)
    };
    let counts = [
        ("replicas", status.replicas, pods.len()),
        ("readyReplicas", status.ready_replicas, count(&|pod| phase(pod) == "Running" && ready_since(pod).is_some())),
        ("availableReplicas", status.available_replicas, count(&|pod| world.is_ready_long_enough(set, pod))),
        (
            "updatedReplicas",
            status.updated_replicas,
            count(&|pod| at(pod, &status.update_revision) && !overrides_differ(set, pod)),
        ),
    ];
    for (field, said, is) in counts {
        if usize::try_from(said) != Ok(is) {
            findings.add(title(set), format!("status.{field} says {said} and it is {is}"));
        }
    }
}

/// Every ordinal in range has an available pod of the template that it is due, and no other pod is left.
pub(crate) fn complete(world: &World, findings: &mut Findings) {
    for set in world.sets.values() {
        if set.is_terminating() {
            findings.add(title(set.as_ref()), "is being deleted and does not go");
            continue;
        }
        let pods = world.pods_of(set);
        for due in range(set) {
            match pods.get(&due) {
                Some(pod) if !world.is_available(set, pod) => {
                    let why = if has_ended(pod) { "has ended" } else { "is not available" };
                    findings.add(title(*pod), why);
                }
                Some(pod) if must_be_updated(set, pod) && is_outdated(world, set, pod) => {
                    findings.add(title(*pod), "is outdated");
                }
                Some(_) => {}
                None => findings.add(title(set.as_ref()), format!("has no pod of ordinal {due}")),
            }
        }
        for (ordinal, _) in pods.iter().filter(|(ordinal, _)| !in_range(set, **ordinal)) {
            findings.add(title(set.as_ref()), format!("still has {}-{ordinal}, which is out of range", set.name()));
        }
    }
}

fn must_be_updated(set: &StatefulSet, pod: &Pod) -> bool {
    let index = ordinal(set, pod).and_then(|ordinal| index(set, ordinal));
    let paused = spec(set).is_some_and(|spec| spec.paused);
    match strategy(set) {
        "OnDelete" => false,
        "Recreate" => !paused,
        _ => !paused && index.is_some_and(|index| index >= partition(set)),
    }
}

/// Nothing is left of what is gone: no pod or revision whose only owners are gone.
pub(crate) fn nothing_is_left_over(world: &World, findings: &mut Findings) {
    fn of<'a, T: Object>(world: &World, objects: impl Iterator<Item = &'a T>, findings: &mut Findings) {
        for object in objects {
            let owners = &object.meta().owner_references;
            if !owners.is_empty() && owners.iter().all(|owner| world.gone.contains(&owner.uid)) {
                findings.add(title(object), "is left over: its owners are gone");
            }
        }
    }
    of(world, world.pods.values().map(AsRef::as_ref), findings);
    of(world, world.revisions.values().map(AsRef::as_ref), findings);
}
