//! etcd's data model: revisions, histories of keys, transactions, compaction and leases, as plain data.
//!
//! No clock, no task, no lock: time is [`Model::advance`]d by whoever owns the model, so the same calls give the same
//! history. The conformance suite and the differential test hold it to a real etcd; a difference is a bug here.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;

use crate::{Error, Event, Guard, Key, Kv, LeaseId, Op, Page, PageRequest, Prefix, Result, Revision, Txn, TxnOutcome};

/// The shortest lease that etcd grants with its default election timeout.
const SHORTEST_LEASE: Duration = Duration::from_secs(2);

/// How many values a page has at most when the request does not say.
pub(crate) const PAGE: usize = 500;

/// What a key was from a revision on: a value, or gone.
type History = Vec<(Revision, Option<Kv>)>;

#[derive(Clone, Debug)]
struct Lease {
    ttl: Duration,
    ends: Duration,
    keys: BTreeSet<Key>,
}

/// A whole store as a value. Cloning it is a snapshot.
#[derive(Clone, Debug)]
pub struct Model {
    revision: Revision,
    compacted: Revision,
    keys: BTreeMap<Key, History>,
    log: BTreeMap<Revision, Vec<Event>>,
    leases: BTreeMap<LeaseId, Lease>,
    now: Duration,
    last_lease: i64,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            // An empty etcd stands at revision 1; its first change is revision 2.
            revision: 1,
            compacted: 0,
            keys: BTreeMap::new(),
            log: BTreeMap::new(),
            leases: BTreeMap::new(),
            now: Duration::ZERO,
            last_lease: 0,
        }
    }
}

impl Model {
    /// The revision of the last change.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The oldest revision that can still be read; 0 if nothing was compacted.
    pub fn compacted(&self) -> Revision {
        self.compacted
    }

    /// The time that has been advanced to, from zero.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// The present value of a key.
    pub fn get(&self, key: &Key) -> Option<&Kv> {
        self.keys.get(key)?.last()?.1.as_ref()
    }

    /// A page of a prefix.
    ///
    /// # Errors
    /// [`Error::Compacted`], or [`Error::Refused`] for a revision that there never was.
    pub fn list(&self, prefix: &Prefix, page: &PageRequest) -> Result<Page> {
        let revision = match page.revision {
            None => self.revision,
            Some(revision) => {
                check_revision(revision)?;
                if revision > self.revision {
                    return Err(future_revision(revision));
                }
                if revision < self.compacted {
                    return Err(Error::Compacted { requested: revision, oldest: self.compacted });
                }
                revision
            }
        };
        let limit = if page.limit == 0 { PAGE } else { page.limit };
        let mut found = self
            .under(prefix)
            .filter(|(key, _)| page.after.as_ref().is_none_or(|after| *key > after))
            .filter_map(|(_, history)| at(history, revision));
        let items: Vec<Kv> = found.by_ref().take(limit).cloned().collect();
        Ok(Page { items, revision, more: found.next().is_some() })
    }

    fn under<'a>(&'a self, prefix: &'a Prefix) -> impl Iterator<Item = (&'a Key, &'a History)> {
        self.keys.range(Key::from_raw(prefix.as_str())..).take_while(|(key, _)| prefix.contains(key))
    }

    /// Whether a guard holds now.
    pub fn holds(&self, guard: &Guard) -> bool {
        match guard {
            Guard::Absent(key) => self.get(key).is_none(),
            Guard::ModRevision(key, revision) => self.get(key).is_some_and(|kv| kv.mod_revision == *revision),
            Guard::CreateRevision(key, revision) => self.get(key).is_some_and(|kv| kv.create_revision == *revision),
            Guard::PrefixNotNewer(prefix, revision) => {
                *revision >= 0
                    && self
                        .under(prefix)
                        .filter_map(|(_, history)| history.last()?.1.as_ref())
                        .all(|kv| kv.mod_revision <= *revision)
            }
        }
    }

    /// Makes changes under conditions.
    ///
    /// # Errors
    /// [`Error::Refused`] as [`Txn::check`] says; [`Error::LeaseEnded`] if a value is to hang on no lease.
    pub fn txn(&mut self, txn: &Txn) -> Result<TxnOutcome> {
        txn.check()?;
        if !txn.guards.iter().all(|guard| self.holds(guard)) {
            return Ok(TxnOutcome::Conflict);
        }
        for op in &txn.ops {
            if let Op::Put(_, _, Some(lease)) = op
                && !self.leases.contains_key(lease)
            {
                return Err(Error::LeaseEnded(*lease));
            }
        }
        let revision = self.revision + 1;
        let events = txn.ops.iter().filter_map(|op| match op {
            Op::Put(key, value, lease) => Some(self.put(revision, key, value.clone(), *lease)),
            Op::Delete(key) => self.delete(revision, key),
        });
        let events = events.collect();
        self.commit(revision, events);
        Ok(TxnOutcome::Committed(self.revision))
    }

    fn put(&mut self, revision: Revision, key: &Key, value: Bytes, lease: Option<LeaseId>) -> Event {
        self.detach(key);
        if let Some(lease) = lease.and_then(|lease| self.leases.get_mut(&lease)) {
            lease.keys.insert(key.clone());
        }
        let create_revision = self.get(key).map_or(revision, |kv| kv.create_revision);
        let kv = Kv { key: key.clone(), value, create_revision, mod_revision: revision, lease };
        self.keys.entry(key.clone()).or_default().push((revision, Some(kv.clone())));
        Event::Put(kv)
    }

    fn delete(&mut self, revision: Revision, key: &Key) -> Option<Event> {
        self.get(key)?;
        self.detach(key);
        self.keys.entry(key.clone()).or_default().push((revision, None));
        Some(Event::Delete(key.clone(), revision))
    }

    fn detach(&mut self, key: &Key) {
        let lease = self.get(key).and_then(|kv| kv.lease);
        if let Some(lease) = lease.and_then(|lease| self.leases.get_mut(&lease)) {
            lease.keys.remove(key);
        }
    }

    /// A transaction that changed nothing takes no revision.
    fn commit(&mut self, revision: Revision, events: Vec<Event>) {
        if !events.is_empty() {
            self.revision = revision;
            self.log.insert(revision, events);
        }
    }

    /// The changes under a prefix after a revision, in order of revisions.
    ///
    /// # Errors
    /// [`Error::Compacted`] if some of them may be gone.
    pub fn changes(&self, prefix: &Prefix, after: Revision) -> Result<Vec<(Revision, Vec<Event>)>> {
        self.check_watch(after)?;
        Ok(self.changes_from(prefix, after).collect())
    }

    /// The first changes under a prefix after a revision.
    pub(crate) fn next_change(&self, prefix: &Prefix, after: Revision) -> Option<(Revision, Vec<Event>)> {
        self.changes_from(prefix, after).next()
    }

    pub(crate) fn check_watch(&self, after: Revision) -> Result<()> {
        if after < self.compacted {
            return Err(Error::Compacted { requested: after + 1, oldest: self.compacted });
        }
        Ok(())
    }

    fn changes_from<'a>(
        &'a self,
        prefix: &'a Prefix,
        after: Revision,
    ) -> impl Iterator<Item = (Revision, Vec<Event>)> + 'a {
        self.log.range(after.saturating_add(1)..).filter_map(|(revision, events)| {
            let events: Vec<Event> = events.iter().filter(|event| prefix.contains(event_key(event))).cloned().collect();
            (!events.is_empty()).then_some((*revision, events))
        })
    }

    /// Forgets what was before a revision: no read of an older one, no watch from before it.
    ///
    /// # Errors
    /// [`Error::Compacted`] or [`Error::Refused`] if it already is, or there is no such revision yet.
    pub fn compact(&mut self, revision: Revision) -> Result<()> {
        if revision > self.revision {
            return Err(future_revision(revision));
        }
        if revision <= self.compacted {
            return Err(Error::Compacted { requested: revision, oldest: self.compacted });
        }
        self.compacted = revision;
        self.log = self.log.split_off(&(revision + 1));
        self.keys.retain(|_, history| {
            let keep = history.iter().rposition(|(written, _)| *written <= revision).unwrap_or(0);
            history.drain(..keep);
            !matches!(history.as_slice(), [] | [(_, None)])
        });
        Ok(())
    }

    /// Grants a lease from now on.
    pub fn grant_lease(&mut self, ttl: Duration) -> LeaseId {
        self.last_lease += 1;
        let ttl = whole_seconds(ttl).max(SHORTEST_LEASE);
        let id = LeaseId(self.last_lease);
        self.leases.insert(id, Lease { ttl, ends: self.now + ttl, keys: BTreeSet::new() });
        id
    }

    /// Makes a lease last its whole length from now on.
    ///
    /// # Errors
    /// [`Error::LeaseEnded`].
    pub fn renew_lease(&mut self, id: LeaseId) -> Result<Duration> {
        let lease = self.leases.get_mut(&id).ok_or(Error::LeaseEnded(id))?;
        lease.ends = self.now + lease.ttl;
        Ok(lease.ttl)
    }

    /// Ends a lease and deletes its keys; nothing happens if it has ended.
    pub fn revoke_lease(&mut self, id: LeaseId) {
        if let Some(lease) = self.leases.remove(&id) {
            let revision = self.revision + 1;
            let events = lease.keys.iter().filter_map(|key| self.delete(revision, key)).collect();
            self.commit(revision, events);
        }
    }

    /// When the next lease ends unless it is renewed.
    pub fn next_lease_end(&self) -> Option<Duration> {
        self.leases.values().map(|lease| lease.ends).min()
    }

    /// Lets time pass: leases end in the order of their ends, each in a revision of its own.
    pub fn advance(&mut self, by: Duration) {
        self.now += by;
        while let Some(id) = self
            .leases
            .iter()
            .filter(|(_, lease)| lease.ends <= self.now)
            .min_by_key(|(id, lease)| (lease.ends, **id))
            .map(|(id, _)| *id)
        {
            self.revoke_lease(id);
        }
    }
}

/// The key that an event is about.
fn event_key(event: &Event) -> &Key {
    match event {
        Event::Put(kv) => &kv.key,
        Event::Delete(key, _) => key,
    }
}

/// What a key was at a revision.
fn at(history: &History, revision: Revision) -> Option<&Kv> {
    history.iter().rev().find(|(written, _)| *written <= revision)?.1.as_ref()
}

/// Leases are whole seconds.
pub(crate) fn whole_seconds(ttl: Duration) -> Duration {
    Duration::from_secs(ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0))
}

/// A revision that a read may be pinned to.
pub(crate) fn check_revision(revision: Revision) -> Result<()> {
    if revision <= 0 {
        return Err(Error::Refused(format!("{revision} is no revision to read at; leave it out to read the present")));
    }
    Ok(())
}

pub(crate) fn future_revision(revision: Revision) -> Error {
    Error::Refused(format!("revision {revision} is in the future; the store may have been restored from a backup"))
}
