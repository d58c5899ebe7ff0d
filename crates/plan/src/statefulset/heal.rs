//! Pods that are down and outdated: replaced where they stand (FR-1 to FR-3, MU-4).
//!
//! Such a pod serves nobody, so nothing is lost with it: its replacement asks for no budget and waits for no other pod. Only
//! one that is ready and not available yet (minReadySeconds) is healthy for disruption budgets, and they are asked.
//! Without it a rollout of a broken template would stay stuck after the template was set right (#67250): the broken pod
//! is waited for, and only a pod that is available is ever updated.
//!
//! Never touches a pod below the partition, or a pod of a paused set: it would come back as it was.

use model::{
    identity::Ordinal,
    mutant::{Mutant, planted},
};

use super::{
    budgets,
    draft::{Draft, RestsOn},
    snapshot::{PodView, Strategy},
};

/// Replaces a pod in range if it is down and outdated. Under OrderedReady this is asked of those pods alone at which the
/// walk up stops.
pub(super) fn process(draft: &mut Draft<'_>, pod: &PodView, ordinal: Ordinal) {
    let down = pod.is_unavailable(draft.snapshot) || draft.in_order() && !pod.is_ready();
    let ends_anyway = pod.terminating || pod.phase.is_terminal();
    if down && !planted(Mutant::NeverHeal) && !ends_anyway && draft.is_outdated(pod) && is_in_reach(draft, ordinal) {
        budgets::disrupt(draft, pod, ordinal, |draft| draft.replace(pod, ordinal, RestsOn::Itself));
    }
}

/// Whether the set's update has come, or is to come, to this ordinal.
fn is_in_reach(draft: &Draft<'_>, ordinal: Ordinal) -> bool {
    let set = &draft.snapshot.set;
    let Strategy::Rolling { partition, .. } = set.strategy else { return false };
    !set.paused && set.ordinals.index_of(ordinal).is_some_and(|index| index >= partition.unwrap_or(0))
}
