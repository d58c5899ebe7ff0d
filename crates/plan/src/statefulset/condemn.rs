//! The pods out of range, the highest ordinal first: their claims' owners, then the pods themselves (DN-1 to DN-5).
//!
//! Holds I8: under OrderedReady only the highest pod is removed, after the one above it is gone and while every pod in
//! range is available. The owners of claims are right before any of these pods is deleted (RET-2). Disruption budgets are
//! asked before a healthy pod goes.

use model::{
    identity::Ordinal,
    mutant::{Mutant, planted},
};

use super::{
    action::DeleteReason,
    budgets, claims,
    draft::{Draft, RestsOn},
    snapshot::PodView,
    wait::WaitReason,
};

/// Removes what is out of range. Says whether the next step may be taken.
pub(super) fn process(draft: &mut Draft<'_>) -> bool {
    let condemned = draft.members.condemned.clone();
    for (ordinal, pod) in condemned.iter().filter(|_| !planted(Mutant::NoOwnersBeforeRemoval)) {
        claims::fix_owners(draft, *ordinal, Some(&pod.uid));
    }
    if !draft.in_order() || planted(Mutant::CondemnAllAtOnce) {
        for (ordinal, pod) in condemned.iter().filter(|(_, pod)| !pod.terminating) {
            budgets::disrupt(draft, pod, *ordinal, |draft| {
                draft.delete_pod(pod, *ordinal, DeleteReason::ScaledAway, RestsOn::Itself);
            });
        }
        return true;
    }
    match condemned.first() {
        Some((ordinal, pod)) => {
            remove_highest(draft, *ordinal, pod);
            false
        }
        None => true,
    }
}

/// A pod that is not available may go only if it is the lowest of the unavailable ones (DN-4): otherwise a broken
/// cluster would lose one member after the other. A pod that has ended is no member any more and never will be: it goes,
/// and nobody waits for it. Nor for one that is outdated: nothing will heal it where it is, and what was wrong with its
/// template is put right by now, perhaps.
fn remove_highest(draft: &mut Draft<'_>, ordinal: Ordinal, pod: &PodView) {
    if pod.terminating {
        return;
    }
    let healthy = pod.is_ready() && pod.is_available(draft.snapshot);
    let ended = pod.phase.is_terminal();
    let lowest = first_unavailable(draft);
    let alone = lowest.is_none_or(|lowest| lowest == ordinal);
    let given_up = ended || (alone && draft.is_outdated(pod));
    if healthy || given_up || lowest == Some(ordinal) {
        budgets::disrupt(draft, pod, ordinal, |draft| {
            draft.delete_pod(pod, ordinal, DeleteReason::ScaledAway, RestsOn::Peers);
        });
        return;
    }
    let reason = match lowest {
        Some(lowest) => WaitReason::PeerNotReady { peer: draft.snapshot.set.name.pod(lowest) },
        // Its condition says Ready and its phase does not say Running: the node is still to make up its mind.
        None => WaitReason::NotReady { phase: pod.phase, trouble: pod.trouble.clone() },
    };
    draft.wait(ordinal, reason);
}

/// The lowest ordinal in range that is missing or unavailable, else the lowest out of range that may yet come back.
fn first_unavailable(draft: &Draft<'_>) -> Option<Ordinal> {
    let members = &draft.members;
    let unavailable = |pod: &PodView| pod.is_unavailable(draft.snapshot);
    let ordinals = &draft.snapshot.set.ordinals;
    let in_range = ordinals.iter().find(|ordinal| members.replicas.get(ordinal).is_none_or(|pod| unavailable(pod)));
    let comes_back = |pod: &PodView| unavailable(pod) && !pod.phase.is_terminal() && !draft.is_outdated(pod);
    let out_of_range = || members.condemned.iter().rev().find(|(_, pod)| comes_back(pod)).map(|(ordinal, _)| *ordinal);
    in_range.or_else(out_of_range)
}
