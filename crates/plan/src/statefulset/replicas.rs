//! The pods in range, the lowest ordinal first: made, made anew, waited for, repaired (UP-1 to UP-7).
//!
//! Holds I7: under OrderedReady a pod is created only when every pod before it is Running, Ready, available and not
//! terminating, and the action is guarded by the revisions at which they were. `maxConcurrentStart` widens this: so many
//! pods, less one, may be missing or on their way before it. The pods in this window are made in order, too.

use model::{
    identity::Ordinal,
    mutant::{Mutant, planted},
};

use super::{
    action::{DeleteReason, NewPod},
    claims,
    draft::{Draft, Flow, RestsOn},
    heal, lost, save,
    snapshot::{Phase, PodView},
    wait::WaitReason,
};

/// Pods that Parallel looks at in one batch at most.
const LARGEST_BATCH: u32 = 500;

/// Looks at each ordinal in range. Says whether the next step may be taken.
pub(super) fn process(draft: &mut Draft<'_>) -> bool {
    let replicas = draft.snapshot.set.ordinals.count;
    if draft.in_order() {
        return in_order(draft, replicas);
    }
    // Slow start: batches of 1, 2, 4, … so that a failure that hits every pod is not met a thousand times at once.
    let (mut first, mut batch) = (0, 1);
    while first < replicas {
        let end = first.saturating_add(batch).min(replicas);
        let mut failed = false;
        for index in first..end {
            failed |= process_one(draft, draft.ordinal(index)) == Flow::Fail;
        }
        if failed {
            return false;
        }
        first = end;
        batch = (batch * 2).min(LARGEST_BATCH);
    }
    true
}

/// From the lowest up, until as many pods are missing or not available as may start at a time.
fn in_order(draft: &mut Draft<'_>, replicas: u32) -> bool {
    let window = draft.snapshot.set.max_concurrent_start.unwrap_or(1).max(1);
    let mut held_up = 0;
    for index in 0..replicas {
        if process_one(draft, draft.ordinal(index)) != Flow::Go {
            held_up += 1;
        }
        if held_up == window + u32::from(planted(Mutant::WindowOffByOne)) {
            break;
        }
    }
    held_up == 0
}

fn process_one(draft: &mut Draft<'_>, ordinal: Ordinal) -> Flow {
    if lost::process(draft, ordinal) {
        return Flow::Stop;
    }
    let Some(pod) = draft.members.replicas.get(&ordinal).copied() else {
        return create(draft, ordinal);
    };
    let flow = keep(draft, pod, ordinal);
    heal::process(draft, pod, ordinal);
    flow
}

/// Sees to it that a pod that is there can run and is right (UP-1, UP-3 to UP-7).
fn keep(draft: &mut Draft<'_>, pod: &PodView, ordinal: Ordinal) -> Flow {
    if pod.phase.is_terminal() {
        if !pod.terminating {
            draft.delete_pod(pod, ordinal, DeleteReason::Ended(pod.phase), RestsOn::Itself);
        }
        return Flow::Stop;
    }
    if pod.phase == Phase::Pending {
        if !claims::complete(draft, ordinal, Some(&pod.uid)) {
            return Flow::Fail;
        }
        claims::fix_owners(draft, ordinal, Some(&pod.uid));
    }
    if draft.in_order() && (pod.is_unavailable(draft.snapshot) || !pod.is_ready()) {
        return Flow::Stop;
    }
    repair(draft, pod, ordinal)
}

/// Makes the pod of an ordinal that has none (UP-2).
fn create(draft: &mut Draft<'_>, ordinal: Ordinal) -> Flow {
    if let Some(claim) = claims::stale(draft, ordinal) {
        draft.wait(ordinal, WaitReason::ClaimStale { claim });
        return Flow::Stop;
    }
    let pod = draft.snapshot.set.name.pod(ordinal);
    let taken = draft.snapshot.pods.iter().any(|other| other.name == pod);
    let claims = claims::inventory(draft, ordinal, None);
    if taken || !claims.unusable.is_empty() {
        if claims::complete(draft, ordinal, None) {
            draft.wait(ordinal, WaitReason::NameTaken);
        }
        return Flow::Fail;
    }
    if !claims.held.is_empty() {
        claims.held.into_iter().for_each(|reason| draft.wait(ordinal, reason));
        return Flow::Stop;
    }
    let revision = draft.revision_of_new_pod(ordinal).clone();
    if !save::process(draft, ordinal, &revision, &claims.present) {
        return Flow::Stop;
    }
    let marks = draft.snapshot.set.volume_policy.snapshot_before_update;
    draft.create_pod(NewPod { pod, ordinal, revision, claims: claims.missing, reused: claims.present, marks });
    claims::fix_owners(draft, ordinal, None);
    if draft.in_order() { Flow::Stop } else { Flow::Go }
}

/// Puts labels, volumes and the owners of claims right (UP-7).
fn repair(draft: &mut Draft<'_>, pod: &PodView, ordinal: Ordinal) -> Flow {
    let identity = !pod.identity_fits();
    let storage = !pod.storage_fits(&draft.snapshot.set, ordinal);
    if storage && !claims::complete(draft, ordinal, Some(&pod.uid)) {
        return Flow::Fail;
    }
    claims::fix_owners(draft, ordinal, Some(&pod.uid));
    if identity || storage {
        draft.repair_pod(pod, ordinal, identity, storage);
    }
    Flow::Go
}
