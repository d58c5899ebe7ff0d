//! A status never claims what is not so.

use pb::{Object, ObjectExt, objects::StatefulSet};

use crate::{
    Findings,
    world::{Step, World, in_range, phase, ready_since, replicas, title},
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
                findings.add(title(set), format!("status.{field} is {count} of {} replicas", status.replicas));
            }
        }
        if status.available_replicas > status.ready_replicas {
            let what = format!("{} available of {} ready", status.available_replicas, status.ready_replicas);
            findings.add(title(set), what);
        }
        if status.observed_generation > set.meta().generation {
            let what = format!("observed generation {} of {}", status.observed_generation, set.meta().generation);
            findings.add(title(set), what);
        }
    }
}

/// observedGeneration and collisionCount only grow.
pub(crate) fn never_falls(step: &Step<'_>, findings: &mut Findings) {
    for (key, after) in &step.after.sets {
        let before = step.before.sets.get(key).filter(|before| before.uid() == after.uid());
        let Some(before) = before.and_then(|set| set.status.as_ref()) else { continue };
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

/// The counts are those of the pods.
pub(crate) fn is_true(world: &World, findings: &mut Findings) {
    for set in world.sets.values().filter(|set| !set.is_terminating()) {
        let pods = world.pods_of(set);
        let status = set.status.clone().unwrap_or_default();
        let ready = |pod: &&&pb::objects::Pod| phase(pod) == "Running" && ready_since(pod).is_some();
        let counts = [
            ("replicas", status.replicas, pods.len()),
            ("readyReplicas", status.ready_replicas, pods.values().filter(ready).count()),
            (
                "availableReplicas",
                status.available_replicas,
                pods.values().filter(|pod| world.is_available(set, pod)).count(),
            ),
        ];
        for (field, said, is) in counts {
            if usize::try_from(said) != Ok(is) {
                findings.add(title(set), format!("status.{field} says {said} and it is {is}"));
            }
        }
        if status.observed_generation != set.meta().generation {
            findings.add(title(set), "has not observed its latest generation");
        }
    }
}

/// Every ordinal in range has an available pod, and no other pod is left.
pub(crate) fn complete(world: &World, findings: &mut Findings) {
    for set in world.sets.values().filter(|set| !set.is_terminating()) {
        let pods = world.pods_of(set);
        let available = pods.iter().filter(|(o, pod)| in_range(set, **o) && world.is_available(set, pod)).count();
        if u32::try_from(available) != Ok(replicas(set)) {
            findings.add(title(set), format!("has {available} available pods of {}", replicas(set)));
        }
        for (ordinal, _) in pods.iter().filter(|(ordinal, _)| !in_range(set, **ordinal)) {
            findings.add(title(set), out_of_range(set, *ordinal));
        }
    }
}

fn out_of_range(set: &StatefulSet, ordinal: model::identity::Ordinal) -> String {
    format!("still has {}-{ordinal}, which is out of range", set.name())
}
