//! What all workers of the leader have in common: a queue of keys, fed from caches, and a look at one key at a time.
//!
//! A look reads, decides with a pure planner, does at most one step and says what comes next. It is made again after
//! every change of what it depends on, and after every failure, later each time. Nothing is remembered between looks.

use std::{future::Future, time::Duration};

use runtime::{Cache, Change, Leadership, Queue};
use store::TxnOutcome;

/// What comes after a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing, until something changes.
    Done,
    /// Another look at once: there may be more to do, or somebody else wrote in between.
    Again,
    /// Another look after a time, if nothing changes before.
    After(Duration),
}

impl From<TxnOutcome> for Next {
    /// What was written comes back as a change; a conflict is looked at again.
    fn from(outcome: TxnOutcome) -> Self {
        match outcome {
            TxnOutcome::Committed(_) => Self::Done,
            TxnOutcome::Conflict => Self::Again,
        }
    }
}

/// Why a look came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Driver(#[from] crate::drivers::CallError),
}

/// One worker of the leader.
pub(crate) trait Worker: Send + Sync {
    /// What is looked at.
    type Key: Ord + Clone + std::fmt::Debug + Send + Sync;

    /// For logs.
    const NAME: &'static str;

    /// Keys looked at at the same time.
    const WIDTH: usize;

    /// Queues each key that may need a look, for as long as the caches are fed: see [`follow`].
    fn feed(&self, queue: &Queue<Self::Key>) -> impl Future<Output = ()> + Send;

    /// Looks at one key.
    fn look_at(&self, key: &Self::Key) -> impl Future<Output = Result<Next, Trouble>> + Send;
}

/// Lets a worker work until leadership is lost.
pub(crate) async fn work<W: Worker>(worker: W, leadership: Leadership) {
    let queue = Queue::new();
    let looking = (0..W::WIDTH).map(|_| look(&worker, &queue));
    let all = async { tokio::join!(worker.feed(&queue), futures::future::join_all(looking)) };
    leadership.lost.run_until_cancelled(all).await;
}

async fn look<W: Worker>(worker: &W, queue: &Queue<W::Key>) {
    while let Some(work) = queue.take().await {
        match worker.look_at(&work).await {
            Ok(Next::Done) => work.forget(),
            Ok(Next::Again) => work.retry(),
            Ok(Next::After(delay)) => {
                queue.add_after(work.clone(), delay);
                work.forget();
            }
            Err(error) => {
                tracing::warn!(worker = W::NAME, key = ?*work, %error, "trying again");
                work.retry();
            }
        }
    }
}

/// Queues the keys that a change of a cache is about: those of the object as it is and as it was. `everything` is what
/// needs a look at the start, and whenever changes may have been missed.
pub(crate) async fn follow<T, K, I>(
    cache: &Cache<T>,
    queue: &Queue<K>,
    keys: impl Fn(&T) -> I,
    everything: impl Fn() -> Vec<K>,
) where
    K: Ord + Clone,
    I: IntoIterator<Item = K>,
{
    let mut changes = cache.subscribe();
    cache.synced().await;
    let all = || everything().into_iter().for_each(|key| queue.add(key));
    all();
    while let Some(change) = changes.next().await {
        match change {
            Change::Applied { old, new, .. } => {
                old.iter().flat_map(|old| keys(old)).chain(keys(&new)).for_each(|key| queue.add(key));
            }
            Change::Deleted { old, .. } => keys(&old).into_iter().for_each(|key| queue.add(key)),
            Change::Resynced => all(),
        }
    }
}
