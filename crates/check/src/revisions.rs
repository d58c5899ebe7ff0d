//! Revisions: distinct, growing, and the right one for each pod.

use std::collections::BTreeMap;

use pb::{
    Object, ObjectExt,
    objects::{ControllerRevision, Pod, PodTemplateSpec, StatefulSet},
};

use crate::{
    Findings,
    world::{Step, World, index, paused, replicas, spec, strategy, title},
};

/// Label of a pod: the name of its revision.
pub(crate) const REVISION_LABEL: &str = "controller-revision-hash";

/// No two revisions of a set have the same number or the same template.
pub(crate) fn distinct(world: &World, findings: &mut Findings) {
    let mut by_set: BTreeMap<&str, Vec<&ControllerRevision>> = BTreeMap::new();
    for revision in world.revisions.values() {
        if let Some(set) = world.set_of(revision) {
            by_set.entry(set.uid()).or_default().push(revision);
        }
    }
    for revisions in by_set.values() {
        for (at, one) in revisions.iter().enumerate() {
            for other in &revisions[at + 1..] {
                if one.revision == other.revision {
                    findings.add(title(*one), format!("has number {} like {}", one.revision, other.name()));
                }
                if one.data == other.data {
                    findings.add(title(*one), format!("stores the same template as {}", other.name()));
                }
            }
        }
    }
}

/// The number of a revision only grows, and its template never changes (REV-13).
pub(crate) fn never_falls(step: &Step<'_>, findings: &mut Findings) {
    for (key, after) in &step.after.revisions {
        let before = step.before.revisions.get(key).filter(|before| before.uid() == after.uid());
        let Some(before) = before else { continue };
        if after.revision < before.revision {
            findings.add(title(after), format!("fell from number {} to {}", before.revision, after.revision));
        }
        if after.data != before.data {
            findings.add(title(after), "changed its template");
        }
    }
}

/// A new pod is at the revision that REV-12 gives its ordinal.
pub(crate) fn due_revision(step: &Step<'_>, findings: &mut Findings) {
    for pod in step.created_pods() {
        let Some(set) = step.before.set_of(pod) else { continue };
        let Some(name) = pod.meta().labels.get(REVISION_LABEL) else {
            findings.add(title(pod), "has no label that names its revision");
            continue;
        };
        let Some(revision) = step.before.revisions.get(&(set.namespace().to_owned(), name.clone())) else {
            findings.add(title(pod), format!("is at revision {name}, which does not exist"));
            continue;
        };
        let current = set.status.as_ref().map(|status| &status.current_revision).filter(|name| !name.is_empty());
        let current =
            current.filter(|name| step.before.revisions.contains_key(&(set.namespace().to_owned(), (*name).clone())));
        let due = match current.filter(|_| keeps_back(step.before, set, pod)) {
            Some(current) => current == name,
            None => same(revision.data.as_ref(), spec(set).and_then(|spec| spec.template.as_ref())),
        };
        if !due {
            findings.add(title(pod), format!("is at revision {name}, which is not the one that its ordinal is due"));
        }
    }
}

/// Whether the ordinal is below the partition, or among those that an update without bounds, or one that is paused, has
/// not reached.
fn keeps_back(world: &World, set: &StatefulSet, pod: &Pod) -> bool {
    let update = spec(set).and_then(|spec| spec.update_strategy.as_ref());
    let bound = match update.and_then(|strategy| strategy.rolling_update.as_ref()) {
        _ if strategy(set) != "RollingUpdate" => 0,
        Some(rolling) => rolling.partition.unwrap_or(0),
        None => set.status.as_ref().map_or(0, |status| status.current_replicas),
    };
    let below = |bound: i64| index(set, pod).is_some_and(|index| i64::from(index) < bound);
    below(i64::from(bound)) || paused(set) && reached(world, set).is_none_or(|reached| below(i64::from(reached)))
}

/// The lowest index in range that has the set's present template.
fn reached(world: &World, set: &StatefulSet) -> Option<u32> {
    let wanted = spec(set).and_then(|spec| spec.template.as_ref());
    let updated = |pod: &&&Pod| {
        let name = pod.meta().labels.get(REVISION_LABEL);
        let revision = name.and_then(|name| world.revisions.get(&(set.namespace().to_owned(), name.clone())));
        revision.is_some_and(|revision| same(revision.data.as_ref(), wanted))
    };
    let pods = world.pods_of(set);
    pods.values().filter(updated).filter_map(|pod| index(set, pod)).filter(|index| *index < replicas(set)).min()
}

/// Equal once defaults are filled in: an older version may have stored fewer.
pub(crate) fn same(one: Option<&PodTemplateSpec>, other: Option<&PodTemplateSpec>) -> bool {
    let defaulted = |template: Option<&PodTemplateSpec>| {
        template.cloned().map(|mut template| {
            model::default::pod_template(&mut template);
            template
        })
    };
    defaulted(one) == defaulted(other)
}
