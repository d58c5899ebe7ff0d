//! One step about one set: plan, then do what the plan says, one guarded transaction for each action.
//!
//! The step remembers nothing and decides nothing: every precondition of an action becomes a guard of its transaction,
//! and a guard that fails ends the step. It can be dropped or crash between any two calls; the next step starts from
//! what is stored. It knows no runtime: the simulator runs it with futures that are ready at once.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use model::mutant::{Mutant, planted};
use plan::statefulset::{Action, Guard, Op, Plan};
use store::Store;

use crate::{
    apply::Apply,
    events::Note,
    host::Host,
    observed::Observed,
    ports::{Placer, Volumes},
    priorities::Priorities,
    tried::Tried,
    write::{Fault, Wrote},
};

/// Pods that are created or deleted at the same time under Parallel.
const AT_ONCE: usize = 16;

/// What steps act on.
#[derive(Clone)]
pub struct Surroundings {
    /// The store.
    pub store: Arc<dyn Store>,
    /// Chooses nodes.
    pub placer: Arc<dyn Placer>,
    /// Finds and makes volumes.
    pub volumes: Arc<dyn Volumes>,
    /// What pods' priorities are.
    pub priorities: Priorities,
    /// Time and identities.
    pub host: Arc<dyn Host>,
    /// The leader's election key, compared by every transaction.
    pub fence: Option<store::Guard>,
    /// Claims whose creation did not come to pass.
    pub tried: Tried,
}

/// Whether a step may write the set's status. Statuses are not on the way of an ordinal: while a set moves, changes
/// are gathered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusPolicy {
    /// Only if the set is settled and nothing else is left to write.
    WhenSettled,
    /// Now.
    Now,
}

/// What became of the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusOutcome {
    /// The stored status is right.
    Right,
    /// It was written.
    Written,
    /// It differs and waits.
    Deferred,
}

/// What a step did.
#[derive(Debug)]
pub struct Done {
    /// What the caches must show before the next step about this set.
    pub wrote: Wrote,
    /// What became of the status.
    pub status: StatusOutcome,
    /// What to tell people.
    pub notes: Vec<Note>,
    /// After how long to step again although nothing happened.
    pub again_after: Option<Duration>,
    /// Whether to step again, later each time, although nothing happened.
    pub obstructed: bool,
    /// What ended the step early.
    pub fault: Option<Fault>,
}

/// Decides about a set.
pub fn plan(observed: &Observed, host: &dyn Host) -> Plan {
    plan::statefulset::plan(&observed.snapshot(host.now()))
}

/// Does what a plan says.
pub async fn act(observed: &Observed, plan: &Plan, status: StatusPolicy, around: &Surroundings) -> Done {
    let apply = Apply::new(observed, around);
    let mut done = Done {
        wrote: Wrote::default(),
        status: StatusOutcome::Right,
        notes: Vec::new(),
        again_after: plan.requeue_after,
        obstructed: plan.is_obstructed(),
        fault: None,
    };
    let is_status = |action: &Action| matches!(action.op, Op::UpdateStatus(_));
    let settled = plan.waits.is_empty() && plan.actions.iter().all(is_status);

    let mut left = plan.actions.as_slice();
    while let Some(first) = left.first() {
        let together = left.iter().take_while(|next| are_neighbours(first, next)).count().max(1);
        let (group, rest) = left.split_at(together);
        left = rest;
        if is_status(first) {
            if settled || status == StatusPolicy::Now {
                done.status = StatusOutcome::Written;
            } else {
                done.status = StatusOutcome::Deferred;
                continue;
            }
        } else if done.fault.is_some() {
            continue;
        }
        // In the order of the plan, so that the same step makes the same history.
        let actions: Vec<_> = group.iter().map(|action| apply.action(action)).collect();
        let mut results = stream::iter(actions).buffered(AT_ONCE);
        while let Some(result) = results.next().await {
            match result {
                Ok(made) => {
                    if !planted(Mutant::ForgetOwnWrites) {
                        done.wrote.merge(&made.wrote);
                    }
                    done.notes.extend(made.notes);
                }
                Err(failure) => {
                    done.notes.extend(failure.notes);
                    done.fault.get_or_insert(failure.fault);
                    if is_status(first) {
                        done.status = StatusOutcome::Deferred;
                    }
                }
            }
        }
    }
    done
}

/// Whether actions do not depend on each other. Those that rest on other pods go one after the other: should one fail,
/// what comes after it in the order of ordinals is not done either (I7, I9).
fn are_neighbours(first: &Action, next: &Action) -> bool {
    let rests_on_others = |action: &Action| action.guards.iter().any(|guard| matches!(guard, Guard::PodsUnchanged(_)));
    let alike = matches!(
        (&first.op, &next.op),
        (Op::CreatePod(_), Op::CreatePod(_)) | (Op::DeletePod { .. }, Op::DeletePod { .. })
    );
    alike && !rests_on_others(first) && !rests_on_others(next)
}
