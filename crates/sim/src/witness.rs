//! The witness: follows the store commit by commit, runs `check` on each, and keeps the hash of the history.

use check::{Actor, Step, Violation, World};
use jiff::Timestamp;
use pb::{Kind, Object, ObjectExt};
use store::{Event, Kv, MemStore, Prefix, Revision, objects};

use crate::wire::Authors;

/// Follows the store.
pub struct Witness {
    store: MemStore,
    authors: Authors,
    seen: Revision,
    world: World,
    hash: u64,
    /// Commits seen.
    pub commits: usize,
}

impl Witness {
    /// Starts with an empty store.
    pub fn new(store: &MemStore, authors: &Authors) -> Self {
        Self {
            store: store.clone(),
            authors: std::sync::Arc::clone(authors),
            seen: 1,
            world: World::default(),
            hash: 0xcbf2_9ce4_8422_2325,
            commits: 0,
        }
    }

    /// The hash of the history so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Takes a choice into the hash.
    pub fn note(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// A witness of another store with the same past.
    pub fn fork(&self, store: &MemStore, authors: &Authors) -> Self {
        let (store, authors) = (store.clone(), std::sync::Arc::clone(authors));
        Self { store, authors, world: self.world.clone(), ..*self }
    }

    /// Looks at every commit since the last time.
    pub fn look(&mut self, now: Timestamp) -> Vec<Violation> {
        self.look_also(now, |_| Vec::new())
    }

    /// Looks at every commit since the last time, also with eyes of the caller's own.
    pub fn look_also(&mut self, now: Timestamp, mut also: impl FnMut(&Step<'_>) -> Vec<Violation>) -> Vec<Violation> {
        let changes = self.store.inspect(|model| model.changes(&Prefix::all(), self.seen)).unwrap_or_default();
        let mut violations = Vec::new();
        for (revision, events) in changes {
            let before = self.world.clone();
            self.world.now = now;
            for event in &events {
                self.apply(event);
            }
            let by = self.authors.lock().get(&revision).copied().unwrap_or(Actor::Other);
            self.note(&[by as u8]);
            let before = World { now, ..before };
            let step = Step { before: &before, after: &self.world, by };
            violations.extend(check::step(&step));
            violations.extend(also(&step));
            self.seen = revision;
            self.commits += 1;
        }
        violations
    }

    /// Looks at the present as at one in which nothing is left to do.
    pub fn settled(&mut self, now: Timestamp) -> Vec<Violation> {
        self.world.now = now;
        check::settled(&self.world)
    }

    /// The present.
    pub fn world(&self) -> &World {
        &self.world
    }

    fn apply(&mut self, event: &Event) {
        let (key, value) = match event {
            Event::Put(kv) => (&kv.key, Some(kv)),
            Event::Delete(key, _) => (key, None),
        };
        self.note(key.as_str().as_bytes());
        self.note(value.map_or(&[], |kv| &kv.value));
        let name = (key.namespace().to_owned(), key.name().to_owned());
        let of = |kind: Kind| Prefix::kind(kind).contains(key);
        if of(Kind::StatefulSet) {
            put(&mut self.world.sets, name, value);
        } else if of(Kind::Pod) {
            put(&mut self.world.pods, name, value);
        } else if of(Kind::PersistentVolumeClaim) {
            put(&mut self.world.claims, name, value);
        } else if of(Kind::ControllerRevision) {
            put(&mut self.world.revisions, name, value);
        }
    }
}

fn put<T: Object>(into: &mut std::collections::BTreeMap<check::Key, T>, name: check::Key, value: Option<&Kv>) {
    match value.map(objects::decode::<T>) {
        Some(Ok(object)) => {
            debug_assert_eq!(object.name(), name.1);
            into.insert(name, object);
        }
        Some(Err(_)) | None => {
            into.remove(&name);
        }
    }
}
