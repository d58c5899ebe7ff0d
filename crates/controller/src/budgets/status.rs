//! Writes the status of budgets. A budget whose status is right is not written to.

use std::time::Duration;

use pb::{Object, objects::*};
use plan::budget::Budget;
use runtime::queue::Queue;
use store::Key;

use super::{counted, follow};
use crate::{
    caches::Caches,
    metrics,
    step::Surroundings,
    write::{Draft, Fault},
};

/// For how long changes are gathered: a disruption compares the budget, so each write is in the way of those that are
/// decided at the moment.
const GATHERED: Duration = Duration::from_millis(100);

/// Keeps the status of all budgets right until dropped.
pub async fn run(caches: Caches, around: Surroundings) {
    let queue = Queue::new();
    let due = |budget: &PodDisruptionBudget| queue.add_after(Key::of(budget), GATHERED);
    tokio::join!(follow(&caches, due), work(&caches, &around, &queue));
}

async fn work(caches: &Caches, around: &Surroundings, queue: &Queue<Key>) {
    while let Some(work) = queue.take().await {
        match write(caches, around, &work).await {
            Ok(()) => work.forget(),
            Err(fault) => {
                match &fault {
                    Fault::Conflict => metrics::get().conflicts.inc(),
                    _ => metrics::get().failures.inc(),
                };
                tracing::debug!(budget = %*work, error = %fault, "the status of the budget is looked at again");
                work.retry();
            }
        }
    }
}

async fn write(caches: &Caches, around: &Surroundings, key: &Key) -> Result<(), Fault> {
    let Some(stored) = caches.budgets.get(key) else { return Ok(()) };
    let counted = counted(caches, key.namespace(), std::slice::from_ref(&stored)).pop();
    let due = counted.and_then(|counted| with_status(&stored, &counted, Time::from(around.host.now())));
    let Some(budget) = due else { return Ok(()) };
    let mut draft = Draft::new([store::objects::unchanged(stored.as_ref())]);
    draft.put(&budget);
    draft.commit(around.store.as_ref(), around.fence.as_ref()).await.map(drop)
}

/// The budget as it should be written; None if its status is right.
pub fn with_status(stored: &PodDisruptionBudget, counted: &Budget, now: Time) -> Option<PodDisruptionBudget> {
    let before = stored.status.clone().unwrap_or_default();
    let status = counted.status(&before, stored.meta().generation, now.timestamp());
    (stored.status.as_ref() != Some(&status)).then(|| PodDisruptionBudget { status: Some(status), ..stored.clone() })
}
