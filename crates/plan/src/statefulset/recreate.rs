//! Strategy Recreate: all outdated pods go at once, and nothing comes before the last of them is gone (KEP-3541).
//!
//! Whatever the pod management policy, and pods out of range too: two versions of the software never run side by side.
//! What keeps them apart is the set: an older pod can come only from an older template, and every creation is guarded by
//! the set being unchanged. Claims stay. Never looks at readiness or budgets.

use model::mutant::{Mutant, planted};

use super::{
    claims,
    draft::{Draft, RestsOn},
    snapshot::Strategy,
    wait::WaitReason,
};

/// Takes the outdated pods away. Says whether the next step may be taken.
pub(super) fn process(draft: &mut Draft<'_>) -> bool {
    let set = &draft.snapshot.set;
    if set.strategy != Strategy::Recreate || set.paused {
        return true;
    }
    let outdated: Vec<_> = draft.members.iter().filter(|(_, pod)| draft.is_outdated(pod)).collect();
    let Some((_, last)) = outdated.first() else { return true };
    let last = last.name.clone();
    for (ordinal, pod) in outdated.iter().filter(|(_, pod)| !pod.terminating) {
        if !set.ordinals.contains(*ordinal) {
            claims::fix_owners(draft, *ordinal, Some(&pod.uid));
        }
        draft.replace(pod, *ordinal, RestsOn::Itself);
    }
    let missing = set.ordinals.iter().find(|ordinal| !draft.members.replicas.contains_key(ordinal));
    if let Some(ordinal) = missing {
        draft.wait(ordinal, WaitReason::OlderNotGone { older: last });
    }
    planted(Mutant::RecreateDoesNotWait)
}
