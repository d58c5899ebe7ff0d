//! What disruption budgets say to a deletion that can wait: of an outdated pod, of a pod out of range.
//!
//! A pod that is not healthy serves nobody: to delete it is no disruption, and no budget is asked. Pods that have ended
//! and pods of a set that is going are not asked about either. The pods that the plan already deletes count as gone, so
//! that the deletions of one plan are within the budgets together; the pods that stay become guards, so that the
//! deletions of two deciders are.

use std::collections::BTreeSet;

use model::{
    identity::{Ordinal, PodName},
    mutant::{Mutant, planted},
};

use super::{
    action::{Action, Guard, Op},
    draft::Draft,
    snapshot::PodView,
    wait::WaitReason,
};
use crate::budget::{self, Grounds, Health, Refusal};

/// Lets `delete` ask for the deletion of a pod if every budget lets it go, or notes which one does not. Says whether the
/// pod goes.
pub(super) fn disrupt<'a>(
    draft: &mut Draft<'a>,
    pod: &PodView,
    ordinal: Ordinal,
    delete: impl FnOnce(&mut Draft<'a>),
) -> bool {
    if draft.deletes(&pod.name) {
        // It goes anyway; the step only says why, too.
        delete(draft);
        return true;
    }
    match ask(draft, pod) {
        Ok(grounds) => {
            delete(draft);
            if let Some(deletion) = draft.actions.last_mut() {
                deletion.guards.extend(guards(grounds));
            }
            true
        }
        Err(refusal) => {
            draft.wait(ordinal, WaitReason::DisruptionBudget(refusal));
            false
        }
    }
}

fn ask(draft: &Draft<'_>, pod: &PodView) -> Result<Grounds, Refusal> {
    if draft.snapshot.set.ignores_budgets || planted(Mutant::IgnoreBudgets) {
        return Ok(Grounds::default());
    }
    let budgets = draft.snapshot.budgets.iter().filter(|one| one.health_of(&pod.name) == Some(Health::Healthy));
    budget::may_go(budgets, &pod.name, &leaving(draft))
}

/// Pods that the plan deletes.
fn leaving(draft: &Draft<'_>) -> BTreeSet<PodName> {
    let deleted = |action: &Action| match &action.op {
        Op::DeletePod { pod, .. } => Some(pod.clone()),
        _ => None,
    };
    draft.actions.iter().filter_map(deleted).collect()
}

fn guards(grounds: Grounds) -> Vec<Guard> {
    let Grounds { budgets, pods } = grounds;
    let mut guards: Vec<_> = budgets.into_iter().map(Guard::BudgetUnchanged).collect();
    if !pods.is_empty() {
        guards.push(Guard::PodsUnchanged(pods));
    }
    guards
}
