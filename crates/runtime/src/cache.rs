//! What a service knows of the store: a map in memory, fed by one watch.
//!
//! The cache is fed by [`crate::feed`]. Readers never see half a revision, and never see the cache go back. An object
//! that cannot be decoded is kept apart as *unknown*: it is never absent.

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use parking_lot::RwLock;
use pb::Object;
use store::{
    Event, Key, Kv, Prefix, Revision, Store,
    objects::{Undecodable, decode},
};
use tokio::sync::{broadcast, watch};

use crate::{
    feed::{Sink, feed},
    tasks::Tasks,
};

/// Changes that a subscriber may lag behind before it is told to look at everything again.
const CHANGES: usize = 8192;

/// What is known of the values under one prefix. Clones share the same map.
pub struct Cache<V> {
    shared: Arc<Shared<V>>,
}

impl<V> Clone for Cache<V> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

struct Shared<V> {
    contents: RwLock<Contents<V>>,
    /// None until the first list is in.
    revision: watch::Sender<Option<Revision>>,
    changes: broadcast::Sender<Change<V>>,
}

struct Contents<V> {
    known: BTreeMap<Key, Arc<V>>,
    unknown: BTreeMap<Key, Undecodable>,
}

/// A change of the cache.
pub enum Change<V> {
    /// A value is new or changed.
    Applied {
        /// The value before, if there was one.
        old: Option<Arc<V>>,
        /// The value now.
        new: Arc<V>,
        /// The store's revision of the change.
        revision: Revision,
    },
    /// A value is gone.
    Deleted {
        /// The value as it was last.
        old: Arc<V>,
        /// The store's revision of the deletion.
        revision: Revision,
    },
    /// Changes may have been missed: look at everything again.
    Resynced,
}

impl<V> Clone for Change<V> {
    fn clone(&self) -> Self {
        match self {
            Self::Applied { old, new, revision } => {
                Self::Applied { old: old.clone(), new: Arc::clone(new), revision: *revision }
            }
            Self::Deleted { old, revision } => Self::Deleted { old: Arc::clone(old), revision: *revision },
            Self::Resynced => Self::Resynced,
        }
    }
}

/// The changes of a cache from the moment of subscription on.
pub struct Changes<V> {
    receiver: broadcast::Receiver<Change<V>>,
}

impl<V> Changes<V> {
    /// The next change; None when the reflector has ended.
    pub async fn next(&mut self) -> Option<Change<V>> {
        match self.receiver.recv().await {
            Ok(change) => Some(change),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(Change::Resynced),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// Reflects all objects of a type under a prefix.
pub fn reflect<T: Object>(store: Arc<dyn Store>, prefix: Prefix, tasks: &Tasks) -> Cache<T> {
    reflect_with(store, prefix, tasks, decode::<T>)
}

/// Reflects all values under a prefix, decoded by a function.
pub fn reflect_with<V, F>(store: Arc<dyn Store>, prefix: Prefix, tasks: &Tasks, decode: F) -> Cache<V>
where
    V: Send + Sync + 'static,
    F: Fn(&Kv) -> Result<V, Undecodable> + Send + Sync + 'static,
{
    let (cache, reflector) = with_capacity(CHANGES, decode);
    tasks.spawn("reflector", feed(store, prefix, reflector));
    cache
}

/// A cache that nothing feeds but the caller, who decides what it sees and when: for simulations. A subscriber of it is
/// told to look at everything after every change.
pub fn by_hand<V, F>(decode: F) -> (Cache<V>, impl Sink)
where
    V: Send + Sync + 'static,
    F: Fn(&Kv) -> Result<V, Undecodable> + Send + Sync + 'static,
{
    with_capacity(1, decode)
}

fn with_capacity<V, F>(changes: usize, decode: F) -> (Cache<V>, Reflector<V, F>) {
    let shared = Arc::new(Shared {
        contents: RwLock::new(Contents { known: BTreeMap::new(), unknown: BTreeMap::new() }),
        revision: watch::Sender::new(None),
        changes: broadcast::Sender::new(changes),
    });
    (Cache { shared: Arc::clone(&shared) }, Reflector { decode, shared })
}

impl<T: Object> Cache<T> {
    /// A cache that nothing feeds: it shows what a store had at a revision. For those that keep time themselves, such
    /// as the simulator.
    pub fn showing(revision: Revision, items: Vec<Kv>) -> Self {
        let (cache, reflector) = with_capacity(1, decode::<T>);
        // An empty cache shows nothing newer.
        reflector.reset(revision, items);
        cache
    }
}

impl<V> Cache<V> {
    /// A cache that knows nothing yet.
    pub fn empty() -> Self {
        with_capacity(1, ()).0
    }

    /// The value under a key.
    pub fn get(&self, key: &Key) -> Option<Arc<V>> {
        self.shared.contents.read().known.get(key).cloned()
    }

    /// The values under a prefix, in order of their keys.
    pub fn list(&self, prefix: &Prefix) -> Vec<Arc<V>> {
        let contents = self.shared.contents.read();
        range(&contents.known, prefix).map(|(_, value)| Arc::clone(value)).collect()
    }

    /// All values, in order of their keys.
    pub fn all(&self) -> Vec<Arc<V>> {
        self.shared.contents.read().known.values().cloned().collect()
    }

    /// All values and the revision that they show, read together.
    pub fn snapshot(&self) -> (Vec<Arc<V>>, Revision) {
        let contents = self.shared.contents.read();
        (contents.known.values().cloned().collect(), self.revision())
    }

    /// Values under a prefix that could not be decoded. Nothing may be decided as if they were not there.
    pub fn undecodable(&self, prefix: &Prefix) -> Vec<Undecodable> {
        let contents = self.shared.contents.read();
        range(&contents.unknown, prefix).map(|(_, value)| value.clone()).collect()
    }

    /// The revision that the cache shows; 0 before the first list.
    pub fn revision(&self) -> Revision {
        self.shared.revision.borrow().unwrap_or(0)
    }

    /// Whether the first list is in.
    pub fn is_synced(&self) -> bool {
        self.shared.revision.borrow().is_some()
    }

    /// Waits for the first list. Returns also when the reflector has ended, since nothing will come then.
    pub async fn synced(&self) {
        self.reached(0).await;
    }

    /// Waits until the cache shows a revision or a later one. A revision is reached only by a change under the prefix
    /// or by the store's own progress, so wait for revisions of own writes to this prefix, and with a deadline.
    pub async fn reached(&self, revision: Revision) {
        let mut seen = self.shared.revision.subscribe();
        // The sender lives in `self.shared`, so waiting cannot fail while we borrow it.
        let reached = seen.wait_for(|now| now.is_some_and(|now| now >= revision)).await;
        debug_assert!(reached.is_ok());
    }

    /// The changes from now on.
    pub fn subscribe(&self) -> Changes<V> {
        Changes { receiver: self.shared.changes.subscribe() }
    }
}

/// The part of a map whose keys start with a prefix.
fn range<'a, V>(map: &'a BTreeMap<Key, V>, prefix: &'a Prefix) -> impl Iterator<Item = (&'a Key, &'a V)> {
    let start = Key::from_raw(prefix.as_str());
    map.range((Bound::Included(start), Bound::Unbounded)).take_while(|(key, _)| prefix.contains(key))
}

/// What feeds a cache.
struct Reflector<V, F> {
    decode: F,
    shared: Arc<Shared<V>>,
}

impl<V, F> Sink for Reflector<V, F>
where
    V: Send + Sync + 'static,
    F: Fn(&Kv) -> Result<V, Undecodable> + Send + Sync + 'static,
{
    fn reset(&self, revision: Revision, items: Vec<Kv>) -> bool {
        let mut contents = Contents { known: BTreeMap::new(), unknown: BTreeMap::new() };
        for kv in &items {
            self.insert(&mut contents, kv);
        }
        {
            let mut now = self.shared.contents.write();
            if self.shared.revision.borrow().is_some_and(|shown| shown > revision) {
                return false;
            }
            *now = contents;
            self.shared.revision.send_replace(Some(revision));
        }
        self.tell(Change::Resynced);
        true
    }

    fn apply(&self, revision: Revision, events: Vec<Event>) {
        let mut contents = self.shared.contents.write();
        let changes: Vec<_> =
            events.into_iter().filter_map(|event| self.change(&mut contents, revision, event)).collect();
        self.progress(revision);
        drop(contents);
        changes.into_iter().for_each(|change| self.tell(change));
    }

    fn progress(&self, revision: Revision) {
        self.shared.revision.send_if_modified(|now| {
            let ahead = now.is_none_or(|now| now < revision);
            if ahead {
                *now = Some(revision);
            }
            ahead
        });
    }
}

impl<V, F: Fn(&Kv) -> Result<V, Undecodable>> Reflector<V, F> {
    fn change(&self, contents: &mut Contents<V>, revision: Revision, event: Event) -> Option<Change<V>> {
        match event {
            Event::Put(kv) => {
                let old = contents.known.get(&kv.key).cloned();
                match self.insert(contents, &kv) {
                    Some(new) => Some(Change::Applied { old, new, revision }),
                    // It was known and is now unknown: whoever decides from it must look again.
                    None => Some(Change::Resynced),
                }
            }
            Event::Delete(key, _) => {
                contents.unknown.remove(&key);
                contents.known.remove(&key).map(|old| Change::Deleted { old, revision })
            }
        }
    }

    fn insert(&self, contents: &mut Contents<V>, kv: &Kv) -> Option<Arc<V>> {
        match (self.decode)(kv) {
            Ok(value) => {
                let value = Arc::new(value);
                contents.unknown.remove(&kv.key);
                contents.known.insert(kv.key.clone(), Arc::clone(&value));
                Some(value)
            }
            Err(unknown) => {
                tracing::error!(error = %unknown, "undecodable object");
                contents.known.remove(&kv.key);
                contents.unknown.insert(kv.key.clone(), unknown);
                None
            }
        }
    }

    fn tell(&self, change: Change<V>) {
        // Nobody listening is no error.
        drop(self.shared.changes.send(change));
    }
}
