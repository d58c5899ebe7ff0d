//! What is there now, and what changed lately, in one structure: the source of every read and every watch.
//!
//! Invariants that live here:
//! - State and log move together: a reader that takes a snapshot at revision r and follows from r misses nothing and
//!   sees nothing twice (I15). All changes of one revision become visible at once.
//! - The revision never goes backwards (I16).
//! - Memory is bounded: one log for all followers, none of them has a buffer. Who falls behind the log is told so
//!   ([`Lagged`]) and starts over.
//! - Unknown is never absent: a value that cannot be decoded keeps its place, and the last value that could be.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::{Bound, RangeBounds},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use parking_lot::RwLock;
use store::{Revision, objects::Undecodable};
use tokio::{sync::watch, time::timeout};

/// Changes that a window remembers. At the pace of a large bring-up (some thousand changes a second) a watcher that
/// loses its connection has a few seconds to come back; on a quiet system hours.
pub const LOG_BOUND: usize = 8192;

/// Before the first list.
const NOT_SYNCED: Revision = -1;

/// Values by key at one revision, and the changes that led there.
pub struct Window<K, V> {
    inner: RwLock<Inner<K, V>>,
    revision: watch::Sender<Revision>,
    /// The newest revision that this process wrote: reads wait until the window shows it.
    written: AtomicI64,
    log_bound: usize,
}

struct Inner<K, V> {
    values: BTreeMap<K, Arc<V>>,
    unknown: BTreeMap<K, Undecodable>,
    log: VecDeque<Arc<Change<K, V>>>,
    /// All changes after this revision are in the log.
    log_start: Revision,
    revision: Revision,
}

/// What a key holds after a change.
#[derive(Clone, Debug)]
pub enum New<V> {
    /// A value.
    Is(Arc<V>),
    /// Nothing.
    Gone,
    /// Something that cannot be decoded.
    Unknown(Undecodable),
}

/// One change of one key.
#[derive(Clone, Debug)]
pub struct Change<K, V> {
    /// When.
    pub revision: Revision,
    /// Where.
    pub key: K,
    /// The value before.
    pub old: Option<Arc<V>>,
    /// What is there now.
    pub new: New<V>,
}

/// Changes in order.
pub type Changes<K, V> = Vec<Arc<Change<K, V>>>;

/// The changes asked for are no longer remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lagged {
    /// What was asked for.
    pub requested: Revision,
    /// The oldest revision that can be followed from.
    pub oldest: Revision,
}

/// The window did not show this process' own last write in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behind {
    /// What it shows.
    pub shown: Revision,
    /// What was written.
    pub written: Revision,
}

impl<K: Ord + Clone, V> Default for Window<K, V> {
    fn default() -> Self {
        Self::new(LOG_BOUND)
    }
}

impl<K: Ord + Clone, V> Window<K, V> {
    /// An empty window that remembers at most so many changes.
    pub fn new(log_bound: usize) -> Self {
        Self {
            inner: RwLock::new(Inner {
                values: BTreeMap::new(),
                unknown: BTreeMap::new(),
                log: VecDeque::new(),
                log_start: NOT_SYNCED,
                revision: NOT_SYNCED,
            }),
            revision: watch::Sender::new(NOT_SYNCED),
            written: AtomicI64::new(NOT_SYNCED),
            log_bound,
        }
    }

    /// Replaces everything by what is there at a revision. Nobody can follow from before it. Refuses (false) to go
    /// backwards.
    pub fn reset(&self, revision: Revision, entries: impl IntoIterator<Item = (K, Result<V, Undecodable>)>) -> bool {
        {
            let mut inner = self.inner.write();
            if revision < inner.revision {
                return false;
            }
            inner.values.clear();
            inner.unknown.clear();
            inner.log.clear();
            for (key, entry) in entries {
                match entry {
                    Ok(value) => drop(inner.values.insert(key, Arc::new(value))),
                    Err(unknown) => drop(inner.unknown.insert(key, unknown)),
                }
            }
            inner.log_start = revision;
            inner.revision = revision;
        }
        self.revision.send_replace(revision);
        true
    }

    /// Takes all changes of one revision. Changes that are shown already are not taken again.
    pub fn apply(&self, revision: Revision, changes: impl IntoIterator<Item = (K, New<V>)>) {
        {
            let mut inner = self.inner.write();
            if revision <= inner.revision {
                return;
            }
            for (key, new) in changes {
                inner.take(revision, key, new);
            }
            inner.revision = revision;
            while inner.log.len() > self.log_bound {
                if let Some(forgotten) = inner.log.pop_front() {
                    inner.log_start = forgotten.revision;
                }
            }
        }
        self.revision.send_replace(revision);
    }

    /// Nothing changed up to this revision.
    pub fn progress(&self, revision: Revision) {
        self.apply(revision, []);
    }

    /// The value of a key; an error if it cannot be decoded.
    pub fn get(&self, key: &K) -> Result<Option<Arc<V>>, Undecodable> {
        let inner = self.inner.read();
        match inner.unknown.get(key) {
            Some(unknown) => Err(unknown.clone()),
            None => Ok(inner.values.get(key).cloned()),
        }
    }

    /// The last value of a key that could be decoded.
    pub fn last_known(&self, key: &K) -> Option<Arc<V>> {
        self.inner.read().values.get(key).cloned()
    }

    /// The values of a range in order of their keys, and the revision that they show; an error if one of them cannot
    /// be decoded.
    pub fn range(&self, range: impl RangeBounds<K> + Clone) -> Result<(Vec<Arc<V>>, Revision), Undecodable> {
        let inner = self.inner.read();
        if let Some((_, unknown)) = inner.unknown.range(range.clone()).next() {
            return Err(unknown.clone());
        }
        Ok((inner.values.range(range).map(|(_, value)| value.clone()).collect(), inner.revision))
    }

    /// The values of a range that are known, in order of their keys.
    pub fn known_in(&self, range: impl RangeBounds<K>) -> Vec<Arc<V>> {
        self.inner.read().values.range(range).map(|(_, value)| value.clone()).collect()
    }

    /// All values that are known, in order of their keys, and the revision that they show.
    pub fn known(&self) -> (Vec<(K, Arc<V>)>, Revision) {
        let inner = self.inner.read();
        let known = inner.values.iter().map(|(key, value)| (key.clone(), value.clone()));
        (known.collect(), inner.revision)
    }

    /// A value that cannot be decoded, if there is one.
    pub fn unknown(&self) -> Option<Undecodable> {
        self.inner.read().unknown.values().next().cloned()
    }

    /// The revision that is shown.
    pub fn revision(&self) -> Revision {
        *self.revision.borrow()
    }

    /// Waits until the first list is in.
    pub async fn synced(&self) {
        self.reached(0).await;
    }

    /// Waits until the window shows a revision. The caller sets the deadline.
    pub async fn reached(&self, revision: Revision) {
        let mut shown = self.revision.subscribe();
        let ended = shown.wait_for(|shown| *shown >= revision).await.is_err();
        debug_assert!(!ended, "the sender lives as long as the window");
    }

    /// Notes that this process wrote at a revision: its reads shall show it.
    pub fn wrote(&self, revision: Revision) {
        self.written.fetch_max(revision, Ordering::AcqRel);
    }

    /// Waits until the window shows everything that this process wrote before. Costs nothing when it does already.
    pub async fn caught_up(&self, within: Duration) -> Result<(), Behind> {
        let written = self.written.load(Ordering::Acquire).max(0);
        if self.revision() >= written {
            return Ok(());
        }
        timeout(within, self.reached(written)).await.map_err(|_| Behind { shown: self.revision(), written })
    }

    /// The changes after a revision, and the revision that they lead to.
    fn since(&self, after: Revision) -> Result<(Changes<K, V>, Revision), Lagged> {
        let inner = self.inner.read();
        if after < inner.log_start {
            return Err(Lagged { requested: after, oldest: inner.log_start });
        }
        let first = inner.log.partition_point(|change| change.revision <= after);
        Ok((inner.log.range(first..).cloned().collect(), inner.revision))
    }
}

impl<K: Ord + Clone, V> Inner<K, V> {
    fn take(&mut self, revision: Revision, key: K, new: New<V>) {
        self.unknown.remove(&key);
        let old = match &new {
            New::Is(value) => self.values.insert(key.clone(), value.clone()),
            New::Gone => self.values.remove(&key),
            New::Unknown(unknown) => {
                self.unknown.insert(key.clone(), unknown.clone());
                self.values.get(&key).cloned()
            }
        };
        self.log.push_back(Arc::new(Change { revision, key, old, new }));
    }
}

/// The range of keys that start with a text.
pub fn starting_with(prefix: &store::Prefix) -> (Bound<store::Key>, Bound<store::Key>) {
    let mut end = prefix.as_str().to_owned();
    // Keys are ASCII; the character after the last one ends the range.
    let last = end.pop().map_or('\u{1}', |last| char::from_u32(last as u32 + 1).unwrap_or(char::MAX));
    end.push(last);
    (Bound::Included(store::Key::from_raw(prefix.as_str())), Bound::Excluded(store::Key::from_raw(end)))
}

/// Reads a window's changes in order, at its own pace.
pub struct Follower<K, V> {
    window: Arc<Window<K, V>>,
    shown: watch::Receiver<Revision>,
    position: Revision,
}

impl<K: Ord + Clone, V> Follower<K, V> {
    /// Follows after a revision.
    pub fn new(window: Arc<Window<K, V>>, after: Revision) -> Self {
        let shown = window.revision.subscribe();
        Self { window, shown, position: after }
    }

    /// Everything up to this revision has been read.
    pub fn position(&self) -> Revision {
        self.position
    }

    /// Waits for changes and takes all there are: never none, never a part of a revision. Dropping the future loses
    /// nothing.
    pub async fn next(&mut self) -> Result<Changes<K, V>, Lagged> {
        loop {
            self.shown.mark_unchanged();
            let (changes, revision) = self.window.since(self.position)?;
            self.position = self.position.max(revision);
            if !changes.is_empty() {
                return Ok(changes);
            }
            if self.shown.changed().await.is_err() {
                debug_assert!(false, "the follower holds the window, and the window the sender");
                return Err(Lagged { requested: self.position, oldest: self.position });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(value: u32) -> New<u32> {
        New::Is(Arc::new(value))
    }

    #[tokio::test]
    async fn a_follower_sees_every_change_once_and_in_order() {
        let window = Arc::new(Window::<&str, u32>::new(100));
        assert!(window.reset(10, [("a", Ok(1))]));
        let mut follower = Follower::new(window.clone(), 10);
        window.apply(11, [("a", is(2)), ("b", is(3))]);
        window.apply(11, [("a", is(9))]);
        window.apply(13, [("a", New::Gone)]);
        let seen: Vec<_> = follower.next().await.unwrap().iter().map(|c| (c.revision, c.key)).collect();
        assert_eq!(seen, [(11, "a"), (11, "b"), (13, "a")]);
        assert_eq!(follower.position(), 13);
    }

    #[tokio::test]
    async fn who_falls_behind_the_log_is_told() {
        let window = Arc::new(Window::<u32, u32>::new(2));
        window.reset(1, []);
        let mut late = Follower::new(window.clone(), 1);
        let mut in_time = Follower::new(window.clone(), 3);
        for revision in 2..=5 {
            window.apply(revision, [(revision as u32, is(0))]);
        }
        assert_eq!(late.next().await.unwrap_err(), Lagged { requested: 1, oldest: 3 });
        assert_eq!(in_time.next().await.unwrap().len(), 2);
    }

    #[test]
    fn the_revision_never_falls() {
        let window = Window::<u32, u32>::new(2);
        assert!(window.reset(5, []));
        assert!(!window.reset(4, []));
        window.progress(3);
        assert_eq!(window.revision(), 5);
    }

    #[test]
    fn an_undecodable_value_is_neither_absent_nor_stale() {
        let window = Window::<u32, u32>::new(9);
        let bad = Undecodable {
            key: store::Key::from_raw("/berth/pods/default/web-0"),
            revision: 2,
            kind: pb::Kind::Pod,
            reason: "bad".into(),
        };
        window.reset(1, [(1, Ok(7))]);
        window.apply(2, [(1, New::Unknown(bad))]);
        assert!(window.get(&1).is_err());
        assert!(window.range(..).is_err());
        assert_eq!(window.last_known(&1).as_deref(), Some(&7));
        window.apply(3, [(1, is(8))]);
        assert_eq!(window.get(&1).unwrap().as_deref(), Some(&8));
    }
}
