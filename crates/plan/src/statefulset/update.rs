//! Pods that are not at the update revision, the highest ordinal first: deleted, to come back anew (UPD-1 to UPD-8).
//!
//! Runs only after the set has its size. Never touches an index below the partition.

use model::identity::Ordinal;

use super::{
    action::DeleteReason,
    draft::Draft,
    snapshot::{MaxUnavailable, PodView, Strategy},
    wait::WaitReason,
};

/// Replaces outdated pods as far as the strategy lets it. Answers how many it deleted.
pub(super) fn process(draft: &mut Draft<'_>) -> i32 {
    match draft.snapshot.set.strategy {
        Strategy::Recreate => 0,
        Strategy::OnDelete => {
            explain_on_delete(draft);
            0
        }
        Strategy::Rolling { partition, max_unavailable } => {
            let partition = partition.unwrap_or(0);
            match max_unavailable {
                None => one_at_a_time(draft, partition),
                Some(bound) => within_budget(draft, partition, bound),
            }
        }
    }
}

/// The classic walk (UPD-4): from the top, the first outdated pod is deleted, an unavailable one ends the walk.
fn one_at_a_time(draft: &mut Draft<'_>, partition: u32) -> i32 {
    for index in (partition..draft.snapshot.set.ordinals.count).rev() {
        let ordinal = draft.ordinal(index);
        // A pod that the plan has only just asked for is neither deleted at once nor available.
        let Some(pod) = draft.members.replicas.get(&ordinal).copied() else { return 0 };
        if is_outdated(draft, pod) && !pod.terminating {
            replace(draft, pod, ordinal);
            return 1;
        }
        if pod.is_unavailable(draft.snapshot) {
            return 0;
        }
    }
    0
}

/// Several at a time (MU-2, MU-3): as many as the bound leaves, counted over the whole set.
fn within_budget(draft: &mut Draft<'_>, partition: u32, bound: MaxUnavailable) -> i32 {
    let replicas = draft.snapshot.set.ordinals.count;
    let available = draft.members.replicas.values().filter(|pod| !pod.is_unavailable(draft.snapshot)).count();
    let unavailable = replicas.saturating_sub(u32::try_from(available).unwrap_or(u32::MAX));
    let allowed = bound.of(replicas);
    let ordinals = (partition..replicas).rev().map(|index| draft.ordinal(index));
    let outdated: Vec<_> = ordinals.filter_map(|ordinal| outdated(draft, ordinal)).collect();
    if unavailable >= allowed {
        let held_up = outdated.iter().find_map(|(ordinal, pod)| pod.map(|_| *ordinal));
        if let Some(ordinal) = held_up {
            draft.wait(ordinal, WaitReason::UpdateBudget { unavailable, allowed });
        }
        return 0;
    }
    let budget = usize::try_from(allowed - unavailable).unwrap_or(usize::MAX);
    let mut deleted = 0;
    for (ordinal, pod) in outdated.into_iter().take(budget) {
        // A pod that the plan has only just asked for takes its share of the budget and is replaced later.
        if let Some(pod) = pod {
            replace(draft, pod, ordinal);
            deleted += 1;
        }
    }
    deleted
}

/// The pod of an ordinal if it is outdated and not on its way out; without a pod if it will be so once it is made.
fn outdated<'a>(draft: &Draft<'a>, ordinal: Ordinal) -> Option<(Ordinal, Option<&'a PodView>)> {
    let outdated = match draft.members.replicas.get(&ordinal) {
        Some(pod) => is_outdated(draft, pod) && !pod.terminating,
        None => *draft.revisions.of_new_pod(&draft.snapshot.set, ordinal) != draft.revisions.update,
    };
    outdated.then(|| (ordinal, draft.members.replicas.get(&ordinal).copied()))
}

/// Whether a pod is not what it would be if it were made now.
pub(super) fn is_outdated(draft: &Draft<'_>, pod: &PodView) -> bool {
    pod.revision.as_ref() != Some(&draft.revisions.update)
}

fn replace(draft: &mut Draft<'_>, pod: &PodView, ordinal: Ordinal) {
    let why = DeleteReason::Outdated { from: pod.revision.clone(), to: draft.revisions.update.clone() };
    draft.delete_pod(pod, ordinal, why);
}

fn explain_on_delete(draft: &mut Draft<'_>) {
    let outdated = draft.members.replicas.iter().filter(|(_, pod)| is_outdated(draft, pod) && !pod.terminating);
    let outdated: Vec<_> = outdated.map(|(ordinal, _)| *ordinal).collect();
    for ordinal in outdated {
        draft.wait(ordinal, WaitReason::UpdateOnDelete);
    }
}
