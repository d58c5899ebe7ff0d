//! Claims are the data: they stay.

use pb::{
    Object, ObjectExt,
    objects::{OwnerReference, PersistentVolumeClaim, Pod, StatefulSet},
};

use crate::{
    Findings,
    volumes::{is_held, wrongly_given_up},
    world::{Actor, Step, World, has_ended, has_finalizer, in_range, node, ordinal, spec, title},
};

/// A claim is asked to go only when all of its owners are gone or going, and goes only when no pod uses it.
pub(crate) fn kept(step: &Step<'_>, findings: &mut Findings) {
    for (key, before) in &step.before.claims {
        let after = step.after.claims.get(key).filter(|after| after.uid() == before.uid());
        let asked = !before.is_terminating() && after.is_none_or(|after| after.is_terminating());
        if asked && step.by != Actor::User {
            if step.by == Actor::SetController {
                if let Some(why) = wrongly_given_up(step, before) {
                    findings.add(title(before.as_ref()), format!("was deleted by the set controller although {why}"));
                }
            } else if let Some(why) = wrongly_deleted(step, before) {
                findings.add(title(before.as_ref()), format!("was deleted although {why}"));
            }
        }
        if after.is_none()
            && let Some(user) = user_of(step, before)
        {
            findings.add(title(before.as_ref()), format!("is gone while {user} uses it"));
        }
    }
}

fn wrongly_deleted(step: &Step<'_>, claim: &PersistentVolumeClaim) -> Option<String> {
    let owners = &claim.meta().owner_references;
    if owners.is_empty() {
        return Some("it has no owner".to_owned());
    }
    let before = step.before;
    // A set that is deleted in the foreground takes its dependents first. Any other owner that is still there, though
    // on its way out, still owns.
    let keeps = |set: &StatefulSet| !set.is_terminating() || !has_finalizer(set, "foregroundDeletion");
    let alive = |uid: &str| {
        let sets = before.sets.values().any(|set| set.uid() == uid && keeps(set));
        sets || before.pods.values().any(|pod| pod.uid() == uid)
    };
    let owner =
        owners.iter().find(|owner| alive(&owner.uid) || !matches!(owner.kind.as_str(), "StatefulSet" | "Pod"))?;
    Some(format!("its owner {} {} is there", owner.kind, owner.name))
}

/// A pod that has not ended and mounts the claim.
fn user_of(step: &Step<'_>, claim: &PersistentVolumeClaim) -> Option<String> {
    let mut pods = step.after.pods.values().map(AsRef::as_ref);
    pods.find(|pod| uses(pod, claim) && !node(pod).is_empty() && !has_ended(pod)).map(title)
}

fn uses(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    pod.namespace() == claim.namespace() && mounted(pod).any(|name| name == claim.name())
}

/// The claims that a pod names.
fn mounted(pod: &Pod) -> impl Iterator<Item = &str> {
    let volumes = pod.spec.iter().flat_map(|spec| &spec.volumes);
    volumes.filter_map(|volume| volume.persistent_volume_claim.as_ref()).map(|source| source.claim_name.as_str())
}

/// A pod is made together with its claims, or with such as are there and stay.
pub(crate) fn usable(step: &Step<'_>, findings: &mut Findings) {
    for pod in step.created_pods() {
        for name in mounted(pod) {
            match step.after.claims.get(&(pod.namespace().to_owned(), name.to_owned())) {
                Some(claim) if claim.is_terminating() => {
                    findings.add(title(pod), format!("was created with the claim {name}, which is being deleted"));
                }
                Some(claim) if is_held(claim) => {
                    findings.add(title(pod), format!("was created with the claim {name}, whose data is being moved"));
                }
                Some(_) => {}
                None => findings.add(title(pod), format!("was created without its claim {name}")),
            }
        }
    }
}

/// Nothing is left of claims whose only owners are gone; one that a pod uses goes with that pod (PVC-12).
pub(crate) fn none_left_over(world: &World, findings: &mut Findings) {
    for claim in world.claims.values() {
        let owners = &claim.meta().owner_references;
        let orphaned = !owners.is_empty() && owners.iter().all(|owner| world.gone.contains(&owner.uid));
        let used = claim.is_terminating() && world.pods.values().any(|pod| uses(pod, claim));
        if orphaned && !used {
            findings.add(title(claim.as_ref()), "is left over: its owners are gone");
        }
    }
}

/// Who owns a claim by the retention policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Nobody,
    Set,
    Pod,
}

/// The table of KEP-1847: who owns the claims of an ordinal.
fn due(set: &StatefulSet, in_range: bool) -> Due {
    let policy = spec(set).and_then(|spec| spec.persistent_volume_claim_retention_policy.as_ref());
    let deletes = |field: fn(&pb::objects::PersistentVolumeClaimRetentionPolicy) -> &str| {
        policy.is_some_and(|policy| field(policy) == "Delete")
    };
    match (deletes(|policy| &policy.when_scaled), deletes(|policy| &policy.when_deleted)) {
        (true, _) if !in_range => Due::Pod,
        (_, true) => Due::Set,
        _ => Due::Nobody,
    }
}

/// A claim gets its pod as owner only when that pod is out of range and the policy deletes (RET-3), and its set only
/// when the policy deletes with the set.
pub(crate) fn owned_by_policy(step: &Step<'_>, findings: &mut Findings) {
    if step.by == Actor::User {
        return;
    }
    for (key, after) in &step.after.claims {
        let before = step.before.claims.get(key).filter(|before| before.uid() == after.uid());
        if before.is_some_and(|before| std::sync::Arc::ptr_eq(before, after)) {
            continue;
        }
        let had = |uid: &str| before.is_some_and(|claim| claim.meta().owner_references.iter().any(|o| o.uid == uid));
        for owner in after.meta().owner_references.iter().filter(|owner| !had(&owner.uid)) {
            if let Some(why) = not_due(step.before, after, owner) {
                findings.add(title(after.as_ref()), format!("got {} as owner although {why}", owner.name));
            }
        }
    }
}

fn not_due(before: &World, claim: &PersistentVolumeClaim, owner: &OwnerReference) -> Option<&'static str> {
    let owner_key = (claim.namespace().to_owned(), owner.name.clone());
    match owner.kind.as_str() {
        "Pod" => {
            let pod = before.pods.get(&owner_key).filter(|pod| pod.uid() == owner.uid)?;
            let set = before.set_of(pod.as_ref())?;
            if ordinal(set, pod).is_some_and(|ordinal| in_range(set, ordinal)) {
                return Some("that pod is in range");
            }
            (due(set, false) != Due::Pod).then_some("whenScaled is not Delete")
        }
        "StatefulSet" => {
            let set = before.sets.get(&owner_key).filter(|set| set.uid() == owner.uid)?;
            let deletes = due(set, true) == Due::Set;
            (!deletes).then_some("whenDeleted is not Delete")
        }
        _ => None,
    }
}

/// Before a pod is scaled away its claims have the owners that the policy gives them (RET-2): a crash afterwards can
/// neither lose a claim nor forget to collect it.
pub(crate) fn owned_before_removal(step: &Step<'_>, findings: &mut Findings) {
    if step.by != Actor::SetController {
        return;
    }
    for pod in step.pods_asked_to_go() {
        let Some(set) = step.before.set_of(pod).filter(|set| !set.is_terminating()) else { continue };
        let Some(away) = ordinal(set, pod).filter(|ordinal| !in_range(set, *ordinal)) else { continue };
        if crate::update::recreates(step.before, set, pod) {
            continue;
        }
        for claim in step.before.claims_of(set, away) {
            if let Some(why) = wrong_owners(set, Some(pod), claim, due(set, false)) {
                findings.add(title(claim), format!("{why}, and its pod was scaled away"));
            }
        }
    }
}

/// What is wrong with a claim's owners. References to earlier objects of the same names and to others stay out of it.
fn wrong_owners(set: &StatefulSet, pod: Option<&Pod>, claim: &PersistentVolumeClaim, due: Due) -> Option<String> {
    let owners = &claim.meta().owner_references;
    let is_set = |owner: &&OwnerReference| owner.kind == "StatefulSet" && owner.name == set.name();
    let pod_name = pod.map(ObjectExt::name);
    let is_pod = |owner: &&OwnerReference| owner.kind == "Pod" && Some(owner.name.as_str()) == pod_name;
    let of_earlier = owners.iter().any(|owner| {
        (is_set(&owner) && owner.uid != set.uid())
            || (is_pod(&owner) && Some(owner.uid.as_str()) != pod.map(ObjectExt::uid))
    });
    let foreign = owners.iter().any(|owner| owner.controller == Some(true) && !is_set(&owner) && !is_pod(&owner));
    if of_earlier || foreign || claim.is_terminating() {
        return None;
    }
    let has = match (owners.iter().any(|owner| is_set(&owner)), owners.iter().any(|owner| is_pod(&owner))) {
        (false, false) => Due::Nobody,
        (true, false) => Due::Set,
        (false, true) => Due::Pod,
        (true, true) => return Some("has both its set and its pod as owners".to_owned()),
    };
    (has != due).then(|| format!("is owned by {has:?} and should be by {due:?}").to_lowercase())
}

/// In a settled set the claims of its pods have the owners that the policy gives them (RET-5).
pub(crate) fn settled_owners(world: &World, findings: &mut Findings) {
    for set in world.sets.values().filter(|set| !set.is_terminating()) {
        for (ordinal, pod) in world.pods_of(set) {
            for claim in world.claims_of(set, ordinal) {
                if let Some(why) = wrong_owners(set, Some(pod), claim, due(set, in_range(set, ordinal))) {
                    findings.add(title(claim), why);
                }
            }
        }
    }
}
