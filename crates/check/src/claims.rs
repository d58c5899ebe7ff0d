//! Claims are the data: they stay.

use pb::{Object, ObjectExt, objects::PersistentVolumeClaim};

use crate::{
    Findings,
    world::{Actor, Step, in_range, ordinal, phase, title},
};

/// A claim is asked to go only when all of its owners are gone or going, and goes only when no pod uses it.
pub(crate) fn kept(step: &Step<'_>, findings: &mut Findings) {
    for (key, before) in &step.before.claims {
        let after = step.after.claims.get(key).filter(|after| after.uid() == before.uid());
        let asked = !before.is_terminating() && after.is_none_or(ObjectExt::is_terminating);
        if asked && step.by != Actor::User {
            if step.by == Actor::SetController {
                findings.add(title(before), "was deleted by the set controller, which never may");
            } else if let Some(why) = wrongly_deleted(step, before) {
                findings.add(title(before), format!("was deleted although {why}"));
            }
        }
        if after.is_none()
            && let Some(user) = user_of(step, before)
        {
            findings.add(title(before), format!("is gone while {user} uses it"));
        }
    }
}

fn wrongly_deleted(step: &Step<'_>, claim: &PersistentVolumeClaim) -> Option<String> {
    let owners = &claim.meta().owner_references;
    if owners.is_empty() {
        return Some("it has no owner".to_owned());
    }
    let alive = |uid: &str| {
        let sets = step.before.sets.values().any(|set| set.uid() == uid && !set.is_terminating());
        sets || step.before.pods.values().any(|pod| pod.uid() == uid && !pod.is_terminating())
    };
    let owner =
        owners.iter().find(|owner| alive(&owner.uid) || !matches!(owner.kind.as_str(), "StatefulSet" | "Pod"))?;
    Some(format!("its owner {} {} is there", owner.kind, owner.name))
}

/// A pod that has not ended and mounts the claim.
fn user_of(step: &Step<'_>, claim: &PersistentVolumeClaim) -> Option<String> {
    let uses = |pod: &&pb::objects::Pod| {
        let volumes = pod.spec.iter().flat_map(|spec| &spec.volumes);
        let mut claims = volumes.filter_map(|volume| volume.persistent_volume_claim.as_ref());
        pod.namespace() == claim.namespace() && claims.any(|source| source.claim_name == claim.name())
    };
    let bound = |pod: &&pb::objects::Pod| pod.spec.as_ref().is_some_and(|spec| !spec.node_name.is_empty());
    let running = |pod: &&pb::objects::Pod| !matches!(phase(pod), "Failed" | "Succeeded");
    step.after.pods.values().find(|pod| uses(pod) && bound(pod) && running(pod)).map(title)
}

/// A claim gets its pod as owner only when that pod is out of range and the policy deletes (RET-3).
pub(crate) fn owned_by_policy(step: &Step<'_>, findings: &mut Findings) {
    for (key, after) in &step.after.claims {
        let had = |uid: &str| {
            let before = step.before.claims.get(key);
            before.is_some_and(|claim| claim.meta().owner_references.iter().any(|owner| owner.uid == uid))
        };
        for owner in after.meta().owner_references.iter().filter(|owner| owner.kind == "Pod" && !had(&owner.uid)) {
            let pod_key = (after.namespace().to_owned(), owner.name.clone());
            let Some(pod) = step.before.pods.get(&pod_key).filter(|pod| pod.uid() == owner.uid) else { continue };
            let Some(set) = step.before.set_of(pod) else { continue };
            let policy = set.spec.as_ref().and_then(|spec| spec.persistent_volume_claim_retention_policy.as_ref());
            if policy.is_none_or(|policy| policy.when_scaled != "Delete") {
                findings.add(title(after), format!("got {} as owner although whenScaled is not Delete", owner.name));
            } else if ordinal(set, pod).is_some_and(|ordinal| in_range(set, ordinal)) {
                findings.add(title(after), format!("got {} as owner although that pod is in range", owner.name));
            }
        }
    }
}
