//! A set that is being deleted, and, if that was asked for, its pods one after the other (deletionOrder: Ordered).
//!
//! The highest ordinal goes first, and each is gone before the next is asked to go. A pod that is not available does
//! not stop the others: what is to be gone need not be well. Claims keep the owners that the retention policy gives
//! them. The garbage collector leaves a set with the finalizer alone, and takes the rest when it is off.

use model::mutant::{Mutant, planted};

use super::{
    action::{Action, DeleteReason, Op},
    claims,
    draft::{Draft, RestsOn},
    wait::{Wait, WaitReason},
};

/// Takes the pods of a deleted set away in order; without order that is the garbage collector's.
pub(super) fn process(draft: &mut Draft<'_>) {
    let set = &draft.snapshot.set;
    if !set.ordered_deletion {
        let pod = set.name.pod(set.ordinals.start);
        draft.waits.push(Wait { ordinal: None, pod, reason: WaitReason::SetDeleting });
        return;
    }
    let in_range = draft.members.replicas.iter().map(|(ordinal, pod)| (*ordinal, *pod));
    let mut pods: Vec<_> = in_range.chain(draft.members.condemned.iter().copied()).collect();
    pods.sort_by_key(|(ordinal, _)| std::cmp::Reverse(*ordinal));
    if planted(Mutant::TeardownAnyOrder) {
        pods.reverse();
    }
    // Who no longer wants an order need not wait for it.
    let [(highest, pod), below @ ..] = pods.as_slice() else { return release(draft) };
    if !set.wants_ordered_deletion {
        return release(draft);
    }
    for (ordinal, pod) in &pods {
        claims::fix_owners(draft, *ordinal, Some(&pod.uid));
    }
    if pod.terminating {
        draft.wait(*highest, WaitReason::PodLeaving);
    } else {
        draft.delete_pod(pod, *highest, DeleteReason::SetDeleted, RestsOn::Itself);
    }
    if let Some((next, _)) = below.first() {
        draft.wait(*next, WaitReason::SuccessorNotGone { successor: pod.name.clone() });
    }
}

fn release(draft: &mut Draft<'_>) {
    let guards = vec![draft.set_unchanged()];
    draft.actions.push(Action { op: Op::ReleaseSet, guards });
}
