//! One pod for an identity, as far as the store can tell; and nothing comes back from the dead.

use pb::{Kind, Object, ObjectExt};

use crate::{
    Findings,
    world::{Actor, Objects, Step, World, changed, has_ended, node, title},
};

/// A pod keeps its node for life, and is replaced only after it was asked to go or had ended.
pub(crate) fn one_pod_for_life(step: &Step<'_>, findings: &mut Findings) {
    for (key, after) in &step.after.pods {
        let Some(before) = step.before.pods.get(key) else { continue };
        if before.uid() == after.uid() {
            let (was, is) = (node(before), node(after));
            if !was.is_empty() && was != is {
                findings.add(title(after.as_ref()), format!("moved from node {was} to {is:?} without a new uid"));
            }
        } else {
            let what = format!("uid {} was replaced by {} in one commit", before.uid(), after.uid());
            findings.add(title(after.as_ref()), what);
        }
    }
    if !matches!(step.by, Actor::SetController | Actor::Collector) {
        return;
    }
    for (key, before) in &step.before.pods {
        let gone = !step.after.pods.contains_key(key);
        if gone && !before.is_terminating() && !has_ended(before) && !node(before).is_empty() {
            findings.add(title(before.as_ref()), "was removed by the controller while it may still run");
        }
    }
}

/// A claim that has a volume keeps it, and no volume is anybody else's.
pub(crate) fn volume_for_life(step: &Step<'_>, findings: &mut Findings) {
    for (was, is) in changed(&step.before.claims, &step.after.claims) {
        let volume = |claim: &pb::objects::PersistentVolumeClaim| {
            claim.spec.as_ref().map(|spec| spec.volume_name.clone()).unwrap_or_default()
        };
        if !volume(was).is_empty() && volume(was) != volume(is) {
            findings.add(title(is), format!("was bound to volume {} and is now to {:?}", volume(was), volume(is)));
        }
    }
}

/// A claim has one volume, however often the making of it was tried.
pub(crate) fn one_volume(world: &World, findings: &mut Findings) {
    let mut of_claim = std::collections::BTreeMap::new();
    for volume in world.volumes.values() {
        let claim = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()).map(|claim| claim.uid.as_str());
        let Some(claim) = claim.filter(|uid| !uid.is_empty()) else { continue };
        if let Some(other) = of_claim.insert(claim, volume.name()) {
            findings.add(title(volume.as_ref()), format!("was made for a claim that has {other} already"));
        }
    }
}

/// A uid that was gone does not come back.
pub(crate) fn stays_gone(step: &Step<'_>, findings: &mut Findings) {
    fn of<T: Object>(step: &Step<'_>, of: impl Fn(&World) -> &Objects<T>, findings: &mut Findings) {
        for (key, object) in of(step.after) {
            let is_new = of(step.before).get(key).is_none_or(|before| before.uid() != object.uid());
            if is_new && step.before.gone.contains(object.uid()) {
                findings.add(title(object.as_ref()), format!("uid {} was deleted and is back", object.uid()));
            }
        }
    }
    of(step, |world| &world.sets, findings);
    of(step, |world| &world.pods, findings);
    of(step, |world| &world.claims, findings);
    of(step, |world| &world.revisions, findings);
}

/// What a controller changes must be there: nothing of these kinds is made but by whoever may make it.
pub(crate) fn made_by_its_maker(step: &Step<'_>, findings: &mut Findings) {
    let controller = matches!(step.by, Actor::SetController | Actor::Collector | Actor::Evictor);
    for (key, set) in step.after.sets.iter().filter(|_| controller) {
        if !step.before.sets.contains_key(key) {
            findings.add(title(set.as_ref()), "was made by a controller, which only ever changes sets");
        }
    }
    for (key, pod) in step.after.pods.iter().filter(|_| step.by != Actor::User && step.by != Actor::SetController) {
        if !step.before.pods.contains_key(key) {
            let what = format!("a {} was made by {:?}, which only ever changes it", Kind::Pod, step.by);
            findings.add(title(pod.as_ref()), what);
        }
    }
}
