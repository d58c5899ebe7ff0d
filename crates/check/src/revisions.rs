//! Revisions: distinct, growing, not too many, and the right one for each pod.

use std::collections::BTreeMap;

use pb::{
    Object, ObjectExt,
    objects::{ControllerRevision, Pod, PodTemplateSpec, StatefulSet},
};

use crate::{
    Findings,
    update::overrides_differ,
    world::{Actor, Step, World, changed, index, ordinal, partition, spec, strategy, title},
};

/// Label of a pod: the name of its revision.
pub(crate) const REVISION_LABEL: &str = "controller-revision-hash";
/// DEF: revisionHistoryLimit.
const DEFAULT_HISTORY: i32 = 10;

/// No two revisions of a set have the same number or the same template.
pub(crate) fn distinct(world: &World, findings: &mut Findings) {
    for (_, revisions) in by_set(world) {
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

/// The revisions that sets control.
fn by_set(world: &World) -> impl Iterator<Item = (&StatefulSet, Vec<&ControllerRevision>)> {
    let mut by_set: BTreeMap<&str, (&StatefulSet, Vec<&ControllerRevision>)> = BTreeMap::new();
    for revision in world.revisions.values() {
        if let Some(set) = world.set_of(revision.as_ref()) {
            by_set.entry(set.uid()).or_insert_with(|| (set, Vec::new())).1.push(revision);
        }
    }
    by_set.into_values()
}

/// The number of a revision only grows, a new one has the highest, and its template never changes (REV-13).
pub(crate) fn never_falls(step: &Step<'_>, findings: &mut Findings) {
    for (before, after) in changed(&step.before.revisions, &step.after.revisions) {
        if after.revision < before.revision {
            findings.add(title(after), format!("fell from number {} to {}", before.revision, after.revision));
        }
        if after.data != before.data {
            findings.add(title(after), "changed its template");
        }
    }
    for (key, made) in step.after.revisions.iter().filter(|_| step.by == Actor::SetController) {
        if step.before.revisions.contains_key(key) {
            continue;
        }
        let Some(set) = step.after.set_of(made.as_ref()) else { continue };
        let of_set = |one: &&&ControllerRevision| step.before.set_of(**one).is_some_and(|of| of.uid() == set.uid());
        let others: Vec<_> = step.before.revisions.values().map(AsRef::as_ref).collect();
        let highest = others.iter().filter(of_set).max_by_key(|one| one.revision);
        if let Some(highest) = highest.filter(|highest| highest.revision >= made.revision) {
            let what = format!("is new and has number {}; {} has {}", made.revision, highest.name(), highest.revision);
            findings.add(title(made.as_ref()), what);
        }
    }
}

/// A revision that something still needs is not deleted: the current one, the one that was complete last, and those of
/// pods (REV-11).
pub(crate) fn needed_are_kept(step: &Step<'_>, findings: &mut Findings) {
    if step.by != Actor::SetController {
        return;
    }
    for (key, gone) in step.before.revisions.iter().filter(|(key, _)| !step.after.revisions.contains_key(*key)) {
        let Some(set) = step.before.set_of(gone.as_ref()) else { continue };
        let status = set.status.clone().unwrap_or_default();
        let of_pod = |pod: &Pod| pod.meta().labels.get(REVISION_LABEL) == Some(&key.1);
        if status.current_revision == key.1 || status.complete_revision == key.1 {
            findings.add(title(gone.as_ref()), "was deleted although the set's status names it");
        } else if let Some(pod) = step.before.pods_of(set).into_values().find(|pod| of_pod(pod)) {
            findings.add(title(gone.as_ref()), format!("was deleted although {} was made from it", pod.name()));
        }
    }
}

/// In a settled set there is no more history than the limit, and the newest revision is the present template.
pub(crate) fn history(world: &World, findings: &mut Findings) {
    for (set, revisions) in by_set(world).filter(|(set, _)| !set.is_terminating()) {
        let status = set.status.clone().unwrap_or_default();
        let pods = world.pods_of(set);
        let live = |one: &ControllerRevision| {
            let named = [&status.current_revision, &status.update_revision, &status.complete_revision];
            let of_pod = |pod: &&&Pod| pod.meta().labels.get(REVISION_LABEL).is_some_and(|name| name == one.name());
            named.into_iter().any(|name| name == one.name()) || pods.values().any(|pod| of_pod(&pod))
        };
        let old = revisions.iter().filter(|one| !live(one)).count();
        let limit = spec(set).and_then(|spec| spec.revision_history_limit).unwrap_or(DEFAULT_HISTORY);
        if usize::try_from(limit).is_ok_and(|limit| old > limit) {
            findings.add(title(set), format!("keeps {old} old revisions; its limit is {limit}"));
        }
        let newest = revisions.iter().max_by_key(|one| one.revision);
        let template = spec(set).and_then(|spec| spec.template.as_ref());
        if let Some(newest) = newest.filter(|newest| !same(newest.data.as_ref(), template)) {
            findings.add(title(set), format!("its newest revision {} is not its present template", newest.name()));
        }
    }
}

/// A new pod is at the revision that REV-12 gives its ordinal, and has its ordinal's overrides.
pub(crate) fn due_revision(step: &Step<'_>, findings: &mut Findings) {
    for pod in step.created_pods() {
        let Some(set) = step.before.set_of(pod) else { continue };
        let Some(name) = pod.meta().labels.get(REVISION_LABEL) else {
            findings.add(title(pod), "has no label that names its revision");
            continue;
        };
        let Some(revision) = step.before.revision(set, name) else {
            findings.add(title(pod), format!("is at revision {name}, which does not exist"));
            continue;
        };
        let image = |template: Option<&PodTemplateSpec>| {
            let spec = template.and_then(|template| template.spec.as_ref());
            spec.map(|spec| spec.containers.iter().map(|container| container.image.clone()).collect::<Vec<_>>())
        };
        let its_own = pod.spec.as_ref().map(|spec| spec.containers.iter().map(|c| c.image.clone()).collect());
        if its_own != image(revision.data.as_ref()) {
            findings.add(title(pod), format!("says that it is of revision {name} and has other images"));
        }
        if overrides_differ(set, pod) {
            findings.add(title(pod), "has not the overrides of its ordinal");
        }
        // A pause freezes the frontier of the update, and what is behind it depends on the other pods.
        if spec(set).is_some_and(|spec| spec.paused) {
            continue;
        }
        let current = set.status.as_ref().map(|status| &status.current_revision).filter(|name| !name.is_empty());
        let current = current.filter(|name| step.before.revision(set, name).is_some());
        let due = match current.filter(|_| keeps_back(set, pod)) {
            Some(current) => current == name,
            None => same(revision.data.as_ref(), spec(set).and_then(|spec| spec.template.as_ref())),
        };
        if !due {
            findings.add(title(pod), format!("is at revision {name}, which is not the one that its ordinal is due"));
        }
    }
}

/// Whether the ordinal is below the partition.
fn keeps_back(set: &StatefulSet, pod: &Pod) -> bool {
    let index = ordinal(set, pod).and_then(|ordinal| index(set, ordinal));
    strategy(set) == "RollingUpdate" && index.is_some_and(|index| index < partition(set))
}

/// Equal once defaults are filled in: an older version may have stored fewer.
pub(crate) fn same(one: Option<&PodTemplateSpec>, other: Option<&PodTemplateSpec>) -> bool {
    let defaulted = |template: Option<&PodTemplateSpec>| {
        template.cloned().map(|mut template| {
            model::default::pod_template(&mut template);
            template
        })
    };
    one == other || defaulted(one) == defaulted(other)
}
