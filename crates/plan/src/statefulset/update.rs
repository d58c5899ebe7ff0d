//! Outdated pods that are available, the highest ordinal first: deleted, to come back anew (UPD-1 to UPD-8, MU-1 to
//! MU-5).
//!
//! Runs only after the set has its size, after the claims of a pod have grown, and asks disruption budgets. Never touches an index below the partition.
//! Outdated pods that are not available are no part of this: `heal` has replaced them already.

use model::mutant::{Mutant, planted};

use super::{
    budgets,
    draft::{Draft, RestsOn},
    snapshot::{MaxUnavailable, PodView, Strategy},
    wait::{Growing, WaitReason},
};

/// Replaces outdated pods as far as the strategy lets it.
pub(super) fn process(draft: &mut Draft<'_>) {
    let set = &draft.snapshot.set;
    let Strategy::Rolling { partition, max_unavailable } = set.strategy else { return };
    if set.paused && !planted(Mutant::IgnorePause) {
        return;
    }
    let partition = partition.unwrap_or(0);
    match max_unavailable {
        None => one_at_a_time(draft, partition),
        Some(bound) => within_budget(draft, partition, bound),
    }
}

/// The classic walk (UPD-4): from the top, the first outdated pod is deleted, an unavailable one ends the walk.
fn one_at_a_time(draft: &mut Draft<'_>, partition: u32) {
    let count = draft.snapshot.set.ordinals.count;
    for index in (partition..count).rev() {
        let from_below = planted(Mutant::UpdateFromLowest);
        let ordinal = draft.ordinal(if from_below { partition + (count - 1 - index) } else { index });
        // A pod that the plan has only just asked for is neither deleted at once nor available.
        let Some(pod) = draft.members.replicas.get(&ordinal).copied() else { return };
        if draft.is_outdated(pod) && !pod.terminating {
            if grows_first(draft, index) {
                return;
            }
            budgets::disrupt(draft, pod, ordinal, |draft| draft.replace(pod, ordinal, RestsOn::Peers));
            return;
        }
        if pod.is_unavailable(draft.snapshot) {
            return;
        }
    }
}

/// Several at a time (MU-2 to MU-5): as many as the bound leaves, counted over the whole set.
fn within_budget(draft: &mut Draft<'_>, partition: u32, bound: MaxUnavailable) {
    let snapshot = draft.snapshot;
    let replicas = snapshot.set.ordinals.count;
    let available = |pod: &PodView| !pod.is_unavailable(snapshot);
    let count = draft.members.replicas.values().filter(|pod| available(pod)).count();
    let unavailable = replicas.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX));
    let unavailable = if planted(Mutant::IgnoreUnavailable) { 0 } else { unavailable };
    let allowed = bound.of(replicas);
    let from_the_top = (partition..replicas).rev().map(|index| draft.ordinal(index));
    let pods = from_the_top.filter_map(|ordinal| Some((ordinal, *draft.members.replicas.get(&ordinal)?)));
    let outdated: Vec<_> = pods.filter(|(_, pod)| available(pod) && draft.is_outdated(pod)).collect();
    let budget = usize::try_from(allowed.saturating_sub(unavailable)).unwrap_or(usize::MAX);
    for (ordinal, pod) in outdated.iter().take(budget) {
        let index = snapshot.set.ordinals.index_of(*ordinal);
        if index.is_some_and(|index| grows_first(draft, index))
            || !budgets::disrupt(draft, pod, *ordinal, |draft| draft.replace(pod, *ordinal, RestsOn::Peers))
        {
            break;
        }
    }
    if let Some((ordinal, _)) = outdated.first().filter(|_| budget == 0) {
        draft.wait(*ordinal, WaitReason::UpdateBudget { unavailable, allowed });
    }
}

/// Whether a claim has to grow before the pod at this index is replaced (VCT-3): its own, or one above it.
fn grows_first(draft: &mut Draft<'_>, index: u32) -> bool {
    let Some(claim) = draft.growth.holds(index).cloned().filter(|_| !planted(Mutant::UpdateBeforeGrowth)) else {
        return false;
    };
    let ordinal = draft.ordinal(index);
    // Of its own claim it is told already.
    if !claim.as_str().ends_with(&format!("-{ordinal}")) {
        draft.wait(ordinal, WaitReason::ClaimGrowing { claim, state: Growing::Underway });
    }
    true
}
