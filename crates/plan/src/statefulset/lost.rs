//! Volumes whose only node is gone for good: waited for, or given up (VOL-1 to VOL-3).
//!
//! By default a set waits: the node may come back, and nobody but its user can know that the data is not needed. With
//! `volumePolicy.onNodeLost: Recreate` the data is given up when it has been lost for long enough and more than half of
//! the other pods are available, so that they can bring it back. The pod and all claims of the ordinal go in one
//! transaction: never does a pod find one of its volumes empty and another one full. This is the one place where the
//! planner deletes claims.
//!
//! Never gives up a claim while its pod is available, a claim that is held by an operation, or one of another set.

use jiff::{SignedDuration, Timestamp};
use model::{
    identity::Ordinal,
    mutant::{Mutant, planted},
};

use super::{
    claims,
    draft::Draft,
    snapshot::{ClaimView, PodView},
    status::until,
    wait::{Then, WaitReason},
};

/// Looks at the volumes of one ordinal. Says whether they are given up, and its pod with them.
pub(super) fn process(draft: &mut Draft<'_>, ordinal: Ordinal) -> bool {
    let snapshot = draft.snapshot;
    let pod = draft.members.replicas.get(&ordinal).copied();
    let claims: Vec<&ClaimView> = claims::own(draft, ordinal);
    let lost = claims.iter().filter_map(|claim| Some((*claim, claim.lost.as_ref()?)));
    let Some((claim, lost)) = lost.min_by_key(|(_, lost)| lost.since) else { return false };
    let serves = pod.is_some_and(|pod| !pod.is_unavailable(snapshot));
    if serves || claims.iter().any(|claim| claim.terminating) {
        return false;
    }
    let then = then(draft, ordinal, lost.since);
    let held = claims.iter().any(|claim| claim.is_held());
    let taken = snapshot.set.claim_templates.len() > claims.len() && claims::any_foreign(draft, ordinal);
    let gives_up = then == Then::Now && !held && !taken;
    if let Then::At(due) = then {
        draft.look_again(until(snapshot.now, due));
    }
    if !gives_up {
        let (claim, node, why) = (claim.name.clone(), lost.node.clone(), lost.message.clone());
        draft.wait(ordinal, WaitReason::VolumeLost { claim, node, why, then });
        return false;
    }
    let given_up = if planted(Mutant::GiveUpOneClaim) { &claims[..1] } else { &claims[..] };
    draft.recreate_volumes(ordinal, pod, given_up);
    true
}

/// What becomes of an ordinal whose volume was lost at `since`.
fn then(draft: &Draft<'_>, ordinal: Ordinal, since: Timestamp) -> Then {
    let snapshot = draft.snapshot;
    let Some(after) = snapshot.set.volume_policy.recreate_after_seconds else { return Then::Wait };
    let due = since.saturating_add(SignedDuration::from_secs(i64::from(after))).unwrap_or(Timestamp::MAX);
    if due > snapshot.now && !planted(Mutant::GiveUpAtOnce) {
        return Then::At(due);
    }
    let serving = |(peer, pod): &(&Ordinal, &&PodView)| **peer != ordinal && pod.is_serving(snapshot);
    let available = draft.members.replicas.iter().filter(serving).count();
    let available = u32::try_from(available).unwrap_or(u32::MAX);
    let others = snapshot.set.ordinals.count.saturating_sub(1);
    if available > others / 2 { Then::Now } else { Then::Peers { available, others } }
}
