//! The data of an ordinal between two revisions: kept in snapshots, and taken back (VOL-4 to VOL-6).
//!
//! With `volumePolicy.snapshotBeforeUpdate` a pod of another revision gets a claim only when there is a snapshot of what
//! the one before left in it. Each claim says of which revision the last pod was that had it; each snapshot says before
//! which rollout it was made, so that the one of an earlier rollout of the same revision is never taken for it. With
//! `restoreOnRevert` a pod of the revision that the set was reverted to gets back what was there before the rollout that
//! failed. A claim for which there is no snapshot from before stays as it is: it was made in that rollout.
//!
//! Runs while the ordinal has no pod. Never deletes a snapshot.

use model::{
    identity::{ClaimName, Ordinal, RevisionName},
    mutant::{Mutant, planted},
};

use super::{
    action::NewSnapshot,
    draft::Draft,
    snapshot::{ClaimView, OperationPhase, SnapshotView},
    wait::WaitReason,
};

/// What a claim needs before a pod of another revision may have it.
enum Need {
    Nothing,
    Take(NewSnapshot),
    TakeBack(String),
    Wait(WaitReason),
}

/// Sees to the claims of an ordinal before its pod is made from `revision`. Says whether it can be.
pub(super) fn process(draft: &mut Draft<'_>, ordinal: Ordinal, revision: &RevisionName, claims: &[ClaimName]) -> bool {
    if !draft.snapshot.set.volume_policy.snapshot_before_update {
        return true;
    }
    let mut ready = true;
    let mut taken_back = Vec::new();
    for name in claims {
        let Some(claim) = draft.claim(name) else { continue };
        match need(draft, ordinal, revision, claim) {
            Need::Nothing => continue,
            Need::Take(new) => {
                let (snapshot, of) = (new.name.clone(), new.claim.clone());
                draft.create_snapshot(claim, new);
                draft.wait(ordinal, WaitReason::SnapshotPending { snapshot, claim: of, trouble: String::new() });
            }
            Need::TakeBack(snapshot) => taken_back.push((claim, snapshot)),
            Need::Wait(reason) => draft.wait(ordinal, reason),
        }
        ready = false;
    }
    // All together, or the pod would find one volume of before and another of after.
    if !taken_back.is_empty() && draft.waits.iter().all(|wait| wait.ordinal != Some(ordinal)) {
        draft.restore_claims(ordinal, taken_back);
    }
    ready || planted(Mutant::UpdateWithoutSnapshot)
}

fn need(draft: &Draft<'_>, ordinal: Ordinal, revision: &RevisionName, claim: &ClaimView) -> Need {
    // Of a claim that says nothing nobody knows better than that it had the pods of before.
    let last = claim.revision.as_ref().unwrap_or(&draft.revisions.current);
    if last == revision {
        return Need::Nothing;
    }
    let set = &draft.snapshot.set;
    let failed = set.status.failed_revision.as_ref();
    if set.volume_policy.restore_on_revert && failed.is_some() && claim.revision.as_ref() == failed {
        return take_back(draft, last, claim);
    }
    if !claim.bound {
        return Need::Nothing;
    }
    take(draft, ordinal, revision, claim)
}

/// The snapshot of before the rollout to `failed`, if there is one.
fn take_back(draft: &Draft<'_>, failed: &RevisionName, claim: &ClaimView) -> Need {
    let of_it = |one: &&SnapshotView| one.claim == claim.name && one.before.as_ref() == Some(failed);
    let Some(from) = draft.snapshot.snapshots.values().filter(of_it).max_by_key(|one| one.rollout) else {
        return Need::Nothing;
    };
    match claim.operation.as_ref().filter(|operation| operation.restores.as_deref() == Some(from.name.as_str())) {
        Some(operation) if operation.phase == OperationPhase::Done => Need::Nothing,
        Some(operation) => {
            let operation = operation.to_string();
            Need::Wait(WaitReason::ClaimHeld { claim: claim.name.clone(), operation })
        }
        None if from.ready => Need::TakeBack(from.name.clone()),
        None => Need::Wait(pending(from)),
    }
}

fn take(draft: &Draft<'_>, ordinal: Ordinal, revision: &RevisionName, claim: &ClaimView) -> Need {
    let rollout = draft.revisions.number_of(draft.snapshot, revision);
    let plain = name(&claim.name, revision);
    let known = |name: &str| draft.snapshot.snapshots.get(name);
    let of_rollout = |one: &SnapshotView| one.rollout == Some(rollout) && one.claim == claim.name;
    // Before an earlier rollout of the same revision there was one of that name.
    let name = if known(&plain).is_none_or(of_rollout) { plain } else { format!("{plain}-{rollout}") };
    match known(&name) {
        None => Need::Take(NewSnapshot { name, claim: claim.name.clone(), ordinal, before: revision.clone(), rollout }),
        Some(there) if !of_rollout(there) || there.terminating => {
            let trouble = "there is another one of this name; delete it".to_owned();
            Need::Wait(WaitReason::SnapshotPending { snapshot: name, claim: claim.name.clone(), trouble })
        }
        Some(there) if there.ready => Need::Nothing,
        Some(there) => Need::Wait(pending(there)),
    }
}

fn pending(snapshot: &SnapshotView) -> WaitReason {
    let trouble = snapshot.error.clone();
    WaitReason::SnapshotPending { snapshot: snapshot.name.clone(), claim: snapshot.claim.clone(), trouble }
}

/// `<claim>-before-<hash of the revision>`
fn name(claim: &ClaimName, revision: &RevisionName) -> String {
    let hash = revision.as_str().rsplit_once('-').map_or(revision.as_str(), |(_, hash)| hash);
    format!("{claim}-before-{hash}")
}
