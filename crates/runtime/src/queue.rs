//! The work queue: which keys need looking at.
//!
//! A key stands in the queue at most once; it is worked on by at most one worker; a key added while it is worked on is
//! worked on once more afterwards. Delays keep the earliest time. The queue holds keys, not events, so its size is
//! bounded by the number of objects.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Deref,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use crate::backoff::Backoff;

/// A queue of keys. Clones share it.
pub struct Queue<K: Ord + Clone> {
    shared: Arc<Shared<K>>,
}

impl<K: Ord + Clone> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

struct Shared<K> {
    state: Mutex<State<K>>,
    wake: Notify,
}

struct State<K> {
    ready: VecDeque<K>,
    /// What is in `ready`.
    queued: BTreeSet<K>,
    /// What workers hold.
    busy: BTreeSet<K>,
    /// What was added while busy.
    again: BTreeSet<K>,
    /// When a key becomes ready; the same in both orders.
    due_of: BTreeMap<K, Instant>,
    due: BTreeSet<(Instant, K)>,
    failures: BTreeMap<K, u32>,
    closed: bool,
    /// Whether the smallest key comes first, and not the one that came first.
    smallest_first: bool,
}

impl<K: Ord + Clone> Default for Queue<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Ord + Clone> Queue<K> {
    /// An empty queue.
    pub fn new() -> Self {
        let state = State {
            ready: VecDeque::new(),
            queued: BTreeSet::new(),
            busy: BTreeSet::new(),
            again: BTreeSet::new(),
            due_of: BTreeMap::new(),
            due: BTreeSet::new(),
            failures: BTreeMap::new(),
            closed: false,
            smallest_first: false,
        };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), wake: Notify::new() }) }
    }

    /// An empty queue that gives the smallest of its keys first, whenever it came.
    pub fn smallest_first() -> Self {
        let queue = Self::new();
        queue.shared.state.lock().smallest_first = true;
        queue
    }

    /// A key needs looking at.
    pub fn add(&self, key: K) {
        self.shared.state.lock().add(key);
        self.shared.wake.notify_one();
    }

    /// A key needs looking at in a while, if not before.
    pub fn add_after(&self, key: K, delay: Duration) {
        self.shared.state.lock().add_at(key, Instant::now() + delay);
        self.shared.wake.notify_one();
    }

    /// How many keys are ready.
    pub fn len(&self) -> usize {
        self.shared.state.lock().ready.len()
    }

    /// Whether no key is ready.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next key; None when the queue is closed. Hold what it gives for as long as you work on the key.
    pub async fn take(&self) -> Option<Work<K>> {
        loop {
            let next_due = {
                let mut state = self.shared.state.lock();
                if state.closed {
                    return None;
                }
                state.promote(Instant::now());
                if let Some(key) = state.pop() {
                    if !state.ready.is_empty() {
                        self.shared.wake.notify_one();
                    }
                    return Some(Work { queue: self.clone(), key, outcome: Outcome::Done });
                }
                state.due.first().map(|(at, _)| *at)
            };
            match next_due {
                Some(at) => {
                    tokio::select! {
                        () = self.shared.wake.notified() => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
                None => self.shared.wake.notified().await,
            }
        }
    }

    /// Ends the queue: workers get nothing more.
    pub fn close(&self) {
        self.shared.state.lock().closed = true;
        self.shared.wake.notify_waiters();
        // For a worker that is about to wait.
        self.shared.wake.notify_one();
    }
}

impl<K: Ord + Clone> State<K> {
    fn add(&mut self, key: K) {
        self.undelay(&key);
        if self.busy.contains(&key) {
            self.again.insert(key);
        } else if self.queued.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    fn add_at(&mut self, key: K, at: Instant) {
        if self.queued.contains(&key) || self.due_of.get(&key).is_some_and(|earlier| *earlier <= at) {
            return;
        }
        self.undelay(&key);
        self.due_of.insert(key.clone(), at);
        self.due.insert((at, key));
    }

    fn undelay(&mut self, key: &K) {
        if let Some(at) = self.due_of.remove(key) {
            self.due.remove(&(at, key.clone()));
        }
    }

    fn promote(&mut self, now: Instant) {
        while let Some((at, key)) = self.due.first().cloned() {
            if at > now {
                break;
            }
            self.add(key);
        }
    }

    fn pop(&mut self) -> Option<K> {
        let first = if self.smallest_first { self.queued.first().cloned() } else { None };
        let key = match first {
            Some(key) => {
                self.ready.retain(|ready| *ready != key);
                key
            }
            None => self.ready.pop_front()?,
        };
        self.queued.remove(&key);
        self.busy.insert(key.clone());
        Some(key)
    }

    fn finish(&mut self, key: &K, outcome: Outcome) {
        self.busy.remove(key);
        let delay = match outcome {
            Outcome::Done => None,
            Outcome::Forget => {
                self.failures.remove(key);
                None
            }
            Outcome::Retry => {
                let failures = self.failures.entry(key.clone()).or_default();
                *failures += 1;
                Some(Backoff::WORK.after(*failures))
            }
        };
        if self.again.remove(key) {
            self.add(key.clone());
        } else if let Some(delay) = delay {
            self.add_at(key.clone(), Instant::now() + delay);
        }
    }
}

#[derive(Clone, Copy)]
enum Outcome {
    Done,
    Forget,
    Retry,
}

/// A key that is being worked on. Dropping it says that the work is over for now.
pub struct Work<K: Ord + Clone> {
    queue: Queue<K>,
    key: K,
    outcome: Outcome,
}

impl<K: Ord + Clone> Work<K> {
    /// The work failed: look again, later each time.
    pub fn retry(mut self) {
        self.outcome = Outcome::Retry;
    }

    /// The work succeeded: the next failure is the first.
    pub fn forget(mut self) {
        self.outcome = Outcome::Forget;
    }
}

impl<K: Ord + Clone> Deref for Work<K> {
    type Target = K;

    fn deref(&self) -> &K {
        &self.key
    }
}

impl<K: Ord + Clone> Drop for Work<K> {
    fn drop(&mut self) {
        self.queue.shared.state.lock().finish(&self.key, self.outcome);
        self.queue.shared.wake.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_added_while_busy_is_worked_on_once_more() {
        let queue = Queue::new();
        queue.add("a");
        queue.add("a");
        let work = queue.take().await.unwrap();
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.len(), 0, "nobody else may work on it");
        drop(work);
        assert_eq!(*queue.take().await.unwrap(), "a");
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn delays_keep_the_earliest_time() {
        let queue = Queue::new();
        let start = Instant::now();
        queue.add_after("a", Duration::from_secs(5));
        queue.add_after("a", Duration::from_secs(1));
        queue.add_after("a", Duration::from_secs(3));
        drop(queue.take().await.unwrap());
        assert_eq!(start.elapsed(), Duration::from_secs(1));
        assert!(tokio::time::timeout(Duration::from_secs(60), queue.take()).await.is_err(), "only once");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_back_off_and_success_forgets() {
        let queue = Queue::new();
        queue.add(1);
        let start = Instant::now();
        queue.take().await.unwrap().retry();
        queue.take().await.unwrap().retry();
        queue.take().await.unwrap().forget();
        assert_eq!(start.elapsed(), Duration::from_millis(10 + 20));
        queue.add(1);
        queue.take().await.unwrap().retry();
        drop(queue.take().await.unwrap());
        assert_eq!(start.elapsed(), Duration::from_millis(10 + 20 + 10));
    }

    #[tokio::test(start_paused = true)]
    async fn close_wakes_every_worker() {
        let queue = Queue::<u8>::new();
        let workers: Vec<_> = (0..3)
            .map(|_| {
                tokio::spawn({
                    let queue = queue.clone();
                    async move { queue.take().await.is_none() }
                })
            })
            .collect();
        tokio::task::yield_now().await;
        queue.close();
        for worker in workers {
            assert!(worker.await.unwrap());
        }
    }
}
