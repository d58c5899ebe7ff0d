//! What the pods themselves are waiting for, and what waits for them. Decides nothing.

use model::identity::Ordinal;

use super::{draft::Draft, snapshot::Strategy, wait::WaitReason};

/// Adds the waits that follow from the state of the pods.
pub(super) fn explain(draft: &mut Draft<'_>) {
    let snapshot = draft.snapshot;
    let troubled = draft.members.replicas.iter().filter_map(|(ordinal, pod)| Some((*ordinal, pod.trouble(snapshot)?)));
    let troubled: Vec<_> = troubled.collect();
    let lowest = troubled.first().map(|(ordinal, _)| *ordinal);
    for (ordinal, reason) in troubled {
        draft.wait(ordinal, reason);
    }
    held_back(draft);
    for (ordinal, pod) in draft.members.condemned.clone() {
        if pod.terminating {
            draft.wait(ordinal, WaitReason::PodTerminating);
        }
    }
    if draft.in_order() {
        explain_order(draft, lowest);
    }
    draft.waits.sort_by_key(|wait| wait.ordinal);
}

/// Outdated pods that a person holds back: by the strategy or by a pause.
fn held_back(draft: &mut Draft<'_>) {
    let set = &draft.snapshot.set;
    let (reason, from) = match set.strategy {
        Strategy::Rolling { partition, .. } if set.paused => (WaitReason::Paused, partition.unwrap_or(0)),
        Strategy::Recreate if set.paused => (WaitReason::Paused, 0),
        Strategy::OnDelete => (WaitReason::UpdateOnDelete, 0),
        Strategy::Rolling { .. } | Strategy::Recreate => return,
    };
    let outdated = draft.members.replicas.iter().filter(|(_, pod)| draft.is_outdated(pod) && !pod.terminating);
    let ordinals = outdated.map(|(ordinal, _)| *ordinal);
    let ordinals: Vec<_> = ordinals.filter(|o| set.ordinals.index_of(*o).is_some_and(|index| index >= from)).collect();
    ordinals.into_iter().for_each(|ordinal| draft.wait(ordinal, reason.clone()));
}

/// Under OrderedReady the next pod to come, or else the next to go, waits for others.
fn explain_order(draft: &mut Draft<'_>, lowest_troubled: Option<Ordinal>) {
    let set = &draft.snapshot.set;
    let missing = set.ordinals.iter().find(|o| !draft.members.replicas.contains_key(o) && !draft.creates(*o));
    let next_to_go = draft.members.condemned.first().copied();
    match (missing, lowest_troubled, next_to_go) {
        (Some(missing), Some(lowest), _) if lowest < missing => {
            draft.wait(missing, WaitReason::PredecessorNotReady { predecessor: set.name.pod(lowest) });
        }
        (None, Some(lowest), Some((ordinal, _))) => {
            draft.wait(ordinal, WaitReason::PeerNotReady { peer: set.name.pod(lowest) });
        }
        (None, None, Some((ordinal, pod))) if pod.terminating || draft.deletes(&pod.name) => {
            let below = draft.members.condemned.get(1).map(|(below, _)| *below);
            if let Some(below) = below {
                draft.wait(below, WaitReason::SuccessorNotGone { successor: set.name.pod(ordinal) });
            }
        }
        _ => {}
    }
}
