//! What users asked for stays asked for: no controller changes a spec, or takes a deletion back.

use pb::{Object, ObjectExt, objects::StatefulSet};

use crate::{
    Findings,
    revisions::same,
    world::{Actor, ORDERED, Objects, Step, World, changed, has_finalizer, spec, title},
};

/// A set's spec, labels and finalizers are its user's. The controller may set a template back if it was told to.
pub(crate) fn kept(step: &Step<'_>, findings: &mut Findings) {
    if !matches!(step.by, Actor::SetController | Actor::Collector | Actor::Evictor) {
        return;
    }
    for (was, is) in changed(&step.before.sets, &step.after.sets) {
        if was.spec != is.spec && !is_revert(step, was, is) {
            findings.add(title(is), "a controller changed what its user asked for");
        }
        if was.spec == is.spec && was.meta().generation != is.meta().generation {
            findings.add(title(is), "a controller changed the generation of a spec that is the same");
        }
        let meta = |set: &StatefulSet| (set.meta().labels.clone(), set.meta().annotations.clone());
        if meta(was) != meta(is) {
            findings.add(title(is), "a controller changed its labels or annotations");
        }
        if step.by == Actor::Collector && was.status != is.status {
            findings.add(title(is), "its status was changed by the garbage collector");
        }
        let lost = was.meta().finalizers.iter().find(|finalizer| !has_finalizer(is, finalizer));
        let may = |finalizer: &str| was.is_terminating() && (step.by == Actor::Collector) != (finalizer == ORDERED);
        if let Some(lost) = lost.filter(|lost| !may(lost)) {
            findings.add(title(is), format!("lost its finalizer {lost} to somebody who may not take it"));
        }
    }
    for (was, is) in changed(&step.before.pods, &step.after.pods) {
        if was.status != is.status {
            findings.add(title(is), "a controller changed the status that its node reported");
        }
    }
}

/// The template of an older revision, where the user said that it may be set back.
fn is_revert(step: &Step<'_>, was: &StatefulSet, is: &StatefulSet) -> bool {
    let (Some(before), Some(after)) = (spec(was), spec(is)) else { return false };
    let mut reverted = before.clone();
    reverted.template = after.template.clone();
    let complete = was.status.as_ref().map_or("", |status| status.complete_revision.as_str());
    let stored = step.before.revision(was, complete);
    step.by == Actor::SetController
        && before.auto_revert
        && reverted == *after
        && stored.is_some_and(|revision| same(revision.data.as_ref(), after.template.as_ref()))
}

/// Once deletion was asked for, it stays asked for.
pub(crate) fn deletion_is_final(step: &Step<'_>, findings: &mut Findings) {
    fn of<T: Object>(step: &Step<'_>, of: impl Fn(&World) -> &Objects<T>, findings: &mut Findings) {
        for (was, is) in changed(of(step.before), of(step.after)) {
            if was.is_terminating() && !is.is_terminating() {
                findings.add(title(is), "its deletion was taken back");
            }
        }
    }
    of(step, |world| &world.sets, findings);
    of(step, |world| &world.pods, findings);
    of(step, |world| &world.claims, findings);
}
