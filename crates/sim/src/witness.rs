//! The witness: follows the store commit by commit, runs `check` on each, and keeps the hash of the history.

use std::sync::Arc;

use check::{Actor, Objects, Step, Violation, World};
use jiff::Timestamp;
use pb::{Kind, Object, ObjectExt};
use store::{Event, Key, Kv, MemStore, Prefix, Revision, objects};

use crate::wire::Authors;

/// Follows the store.
pub struct Witness {
    store: MemStore,
    authors: Authors,
    seen: Revision,
    world: World,
    hash: u64,
    /// The process that leads, where there are several.
    pub leader: Option<usize>,
    /// Commits seen.
    pub commits: usize,
}

impl Witness {
    /// Starts with an empty store.
    pub fn new(store: &MemStore, authors: &Authors) -> Self {
        Self {
            store: store.clone(),
            authors: Arc::clone(authors),
            seen: 1,
            world: World::default(),
            hash: 0xcbf2_9ce4_8422_2325,
            leader: None,
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
        let (store, authors) = (store.clone(), Arc::clone(authors));
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
            let author = self.authors.lock().get(&revision).copied().unwrap_or(Actor::Other.into());
            // What was right when it was decided is right: every guard held until it was done.
            self.world.now = author.decided.unwrap_or(now);
            let before = self.world.clone();
            for event in &events {
                self.apply(event);
            }
            let by = author.by;
            self.note(&[by as u8]);
            let step = Step { before: &before, after: &self.world, by };
            if let (Some(process), Some(leader)) = (author.process, self.leader)
                && process != leader
            {
                let what = format!("process {process} wrote revision {revision} while {leader} was the leader");
                let object = events.first().map_or("", |event| key_of(event).as_str());
                violations.push(check::witnessed("I18", object, what));
            }
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
            let gone = put(&mut self.world.sets, name, value);
            self.bury(gone);
        } else if of(Kind::Pod) {
            let gone = put(&mut self.world.pods, name, value);
            self.bury(gone);
        } else if of(Kind::PersistentVolumeClaim) {
            let gone = put(&mut self.world.claims, name, value);
            self.bury(gone);
        } else if of(Kind::ControllerRevision) {
            let gone = put(&mut self.world.revisions, name, value);
            self.bury(gone);
        } else if of(Kind::PersistentVolume) {
            put(&mut self.world.volumes, name, value);
        } else if of(Kind::VolumeSnapshot) {
            put(&mut self.world.snapshots, name, value);
        } else if of(Kind::PodDisruptionBudget) {
            put(&mut self.world.budgets, name, value);
        }
    }

    fn bury(&mut self, uid: Option<String>) {
        if let Some(uid) = uid {
            Arc::make_mut(&mut self.world.gone).insert(uid);
        }
    }
}

fn key_of(event: &Event) -> &Key {
    match event {
        Event::Put(kv) => &kv.key,
        Event::Delete(key, _) => key,
    }
}

/// Takes in a change; gives the uid of an object that is gone for it.
fn put<T: Object>(into: &mut Objects<T>, name: check::Key, value: Option<&Kv>) -> Option<String> {
    let now = value.and_then(|kv| objects::decode::<T>(kv).ok());
    let uid = now.as_ref().map(|now| now.uid().to_owned());
    let was = match now {
        Some(now) => into.insert(name, Arc::new(now)),
        None => into.remove(&name),
    };
    was.map(|was| was.uid().to_owned()).filter(|was| Some(was) != uid.as_ref())
}
