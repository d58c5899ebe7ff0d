//! The contract of a store.
//!
//! Revisions are etcd's: one number for the whole store, raised by one with every transaction that changes anything.

use std::{collections::BTreeSet, pin::Pin, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;

use crate::key::{Key, Prefix};

/// A revision of the whole store. 0 stands before everything.
pub type Revision = i64;

/// A stored value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kv {
    /// Where it stands.
    pub key: Key,
    /// What it is.
    pub value: Bytes,
    /// When the key came to be. A key that was deleted and made again has another one.
    pub create_revision: Revision,
    /// When it was last written.
    pub mod_revision: Revision,
    /// The lease that it ends with.
    pub lease: Option<LeaseId>,
}

/// A lease: keys that hang on it go when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

/// A condition of a transaction: what the decision behind it was based on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guard {
    /// There is no such key.
    Absent(Key),
    /// The key exists and was last written at this revision.
    ModRevision(Key, Revision),
    /// The key exists and came to be at this revision: still the same object (or the same leader).
    CreateRevision(Key, Revision),
    /// No key of this prefix that exists was written after this revision. Deletions are not noticed: guard those
    /// keys one by one.
    PrefixNotNewer(Prefix, Revision),
}

impl Guard {
    /// Keys that are compared one by one at most, which leaves room for as many other guards in a transaction.
    pub const ONE_BY_ONE: usize = Txn::MAX / 2;

    /// That keys are still at the revisions at which they were read: the last [`Guard::ONE_BY_ONE`] each by itself, those
    /// before them, if there are any, as the range that `range` gives for them, with the revision that it was read at. A
    /// range does not notice deletions: put those keys last whose deletion counts.
    pub fn unchanged(
        keys: Vec<(Key, Revision)>,
        range: impl FnOnce(&[(Key, Revision)]) -> (Prefix, Revision),
    ) -> Vec<Guard> {
        let (apart, one_by_one) = keys.split_at(keys.len().saturating_sub(Self::ONE_BY_ONE));
        let mut guards: Vec<_> = one_by_one.iter().map(|(key, at)| Guard::ModRevision(key.clone(), *at)).collect();
        if !apart.is_empty() {
            let (prefix, revision) = range(apart);
            guards.push(Guard::PrefixNotNewer(prefix, revision));
        }
        guards
    }
}

/// A change that a transaction makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes a value; a lease makes it end with the lease.
    Put(Key, Bytes, Option<LeaseId>),
    /// Deletes a key; no change if there is none.
    Delete(Key),
}

impl Op {
    /// The key that the change is about.
    pub fn key(&self) -> &Key {
        match self {
            Op::Put(key, ..) | Op::Delete(key) => key,
        }
    }
}

/// Changes that happen together, or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// All must hold. At most [`Txn::MAX`].
    pub guards: Vec<Guard>,
    /// At most [`Txn::MAX`], each on another key.
    pub ops: Vec<Op>,
}

impl Txn {
    /// Guards, and changes, that one transaction may have (etcd's default bound).
    pub const MAX: usize = 128;

    /// Bytes of keys and values that one transaction may have (etcd's default bound, less room for its envelope).
    pub const MAX_BYTES: usize = 1536 * 1024 - 16 * 1024;

    /// Whether a store can take it at all: the bounds, and each change on another key.
    ///
    /// # Errors
    /// [`Error::Refused`], which says what to make smaller.
    pub fn check(&self) -> Result<()> {
        let refused = |why: String| Err(Error::Refused(why));
        if self.guards.len() > Self::MAX {
            return refused(format!("{} guards in one transaction, at most {}", self.guards.len(), Self::MAX));
        }
        if self.ops.len() > Self::MAX {
            return refused(format!(
                "{} changes in one transaction, at most {}; make several transactions",
                self.ops.len(),
                Self::MAX
            ));
        }
        let mut keys = BTreeSet::new();
        let mut bytes = 0;
        for op in &self.ops {
            if op.key().as_str().is_empty() {
                return refused("a change without a key".to_owned());
            }
            if !keys.insert(op.key()) {
                return refused(format!("two changes of {} in one transaction", op.key()));
            }
            bytes += op.key().as_str().len();
            if let Op::Put(_, value, _) = op {
                bytes += value.len();
            }
        }
        if bytes > Self::MAX_BYTES {
            return refused(format!(
                "{bytes} bytes in one transaction, at most {}; make the objects smaller or make several transactions",
                Self::MAX_BYTES
            ));
        }
        Ok(())
    }
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TxnOutcome {
    /// Done, at this revision.
    Committed(Revision),
    /// A guard did not hold and nothing was changed. Plan again; do not retry.
    Conflict,
}

/// Which page of a prefix to read.
#[derive(Clone, Debug, Default)]
pub struct PageRequest {
    /// At most so many; the store's bound if 0.
    pub limit: usize,
    /// Only keys after this one.
    pub after: Option<Key>,
    /// As of this revision; the present if None. Give the first page's revision for all further pages.
    pub revision: Option<Revision>,
}

/// A page of values, in order of their keys.
#[derive(Clone, Debug)]
pub struct Page {
    /// The values.
    pub items: Vec<Kv>,
    /// The revision that the page shows.
    pub revision: Revision,
    /// Whether there are keys after the last one.
    pub more: bool,
}

/// A change that a watch tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Written.
    Put(Kv),
    /// Deleted, at this revision.
    Delete(Key, Revision),
}

/// What a watch yields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchItem {
    /// All changes of one revision within the prefix (never split, never repeated, in order of revisions).
    Events(Revision, Vec<Event>),
    /// Everything up to this revision has been told.
    Progress(Revision),
}

/// The stream of a watch. Ends after an error; ends never otherwise until dropped.
pub type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchItem>> + Send>>;

/// Why a store did not answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The revision asked for is gone: list again.
    #[error("revision {requested} has been compacted; list again")]
    Compacted {
        /// What was asked for.
        requested: Revision,
        /// The oldest that there is; 0 if the store did not say.
        oldest: Revision,
    },
    /// No member answered within the deadline. For a write: it was found not to have happened.
    #[error("the store is not reachable: {0}; check that etcd runs and that --etcd names it")]
    Unavailable(String),
    /// A write may or may not have happened, and reading back did not tell. Decide again from what is there.
    #[error("the result of the write is unknown: {0}")]
    Unknown(String),
    /// The lease has ended.
    #[error("lease {0:?} has ended")]
    LeaseEnded(LeaseId),
    /// The store refuses the request for good (too large, too many operations).
    #[error("the store refuses the request: {0}")]
    Refused(String),
}

/// A result of the store.
pub type Result<T> = std::result::Result<T, Error>;

/// A store of values under keys.
///
/// Every call has a deadline within the implementation (5 s unless configured), fails over between endpoints and is
/// cancel-safe in the sense that dropping the future leaves an unknown result at worst.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Reads one value, linearizably.
    async fn get(&self, key: &Key) -> Result<Option<Kv>>;

    /// Reads a page of a prefix, linearizably if no revision is given.
    async fn list(&self, prefix: &Prefix, page: PageRequest) -> Result<Page>;

    /// Makes changes under conditions. A write whose result is unknown is resolved by reading back: every value put
    /// carries what makes it recognisable, so an outcome is given whenever the store answers at all.
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome>;

    /// Tells every change under a prefix after a revision. Reconnects by itself and resumes without gap or
    /// repetition; yields [`Error::Compacted`] if that is impossible.
    async fn watch(&self, prefix: &Prefix, after: Revision) -> Result<WatchStream>;

    /// Grants a lease; the store may make it longer (etcd: at least 2 s by default).
    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId>;

    /// Renews a lease; gives its new length, counted from when the request was sent at the latest. Writes nothing.
    async fn renew_lease(&self, lease: LeaseId) -> Result<Duration>;

    /// Ends a lease and deletes its keys.
    async fn revoke_lease(&self, lease: LeaseId) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use pb::Kind;

    use super::*;

    #[test]
    fn many_keys_are_compared_as_a_range() {
        let keys = |count: usize| -> Vec<_> {
            (0..count).map(|at| (Key::object(Kind::Pod, "default", &format!("web-{at}")), 7)).collect()
        };
        let range = |apart: &[(Key, Revision)]| {
            assert_eq!(apart.len(), 3);
            (Prefix::kind(Kind::Pod), 9)
        };
        assert_eq!(Guard::unchanged(keys(Guard::ONE_BY_ONE), |_| unreachable!()).len(), Guard::ONE_BY_ONE);
        let guards = Guard::unchanged(keys(Guard::ONE_BY_ONE + 3), range);
        assert_eq!(guards.len(), Guard::ONE_BY_ONE + 1);
        assert_eq!(guards.last(), Some(&Guard::PrefixNotNewer(Prefix::kind(Kind::Pod), 9)));
        assert_eq!(guards.first(), Some(&Guard::ModRevision(Key::object(Kind::Pod, "default", "web-3"), 7)));
    }
}
