//! [`MemStore`]: a store in memory, for tests and the simulator.
//!
//! It answers at once, never fails and starts no task; watchers are woken by the change itself. Time passes only when
//! [`MemStore::advance`] says so. The data model is [`Model`].
//!
//! A watcher that has not read a change when it is compacted gets [`Error::Compacted`]: harsher than etcd, which
//! buffers, so what works here works there.

mod model;

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use async_trait::async_trait;
use futures::Stream;
use parking_lot::Mutex;

pub use self::model::Model;
pub(crate) use self::model::{PAGE, check_revision, future_revision, whole_seconds};
use crate::{
    Error, Key, Kv, LeaseId, Page, PageRequest, Prefix, Result, Revision, Store, Txn, TxnOutcome, WatchItem,
    WatchStream,
};

/// A store in memory. Clones are the same store; [`MemStore::fork`] makes another one.
#[derive(Clone, Default)]
pub struct MemStore {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    model: Model,
    watchers: BTreeMap<u64, Watcher>,
    last_watcher: u64,
}

/// Where a watch is.
struct Watcher {
    prefix: Prefix,
    /// Everything up to here has been told.
    told: Revision,
    /// A change after `told` was compacted before it was read.
    lost: bool,
    /// To be told how far the store is.
    progress: bool,
    ended: bool,
    waker: Option<Waker>,
}

impl MemStore {
    /// An empty store at time zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// A store that goes on from a snapshot.
    pub fn from_model(model: Model) -> Self {
        Self { shared: Arc::new(Mutex::new(Shared { model, ..Shared::default() })) }
    }

    /// The present as a value.
    pub fn snapshot(&self) -> Model {
        self.shared.lock().model.clone()
    }

    /// Another store with the same past; watches are not copied.
    pub fn fork(&self) -> Self {
        Self::from_model(self.snapshot())
    }

    /// Reads of the present state, without copying it.
    pub fn inspect<T>(&self, read: impl FnOnce(&Model) -> T) -> T {
        read(&self.shared.lock().model)
    }

    /// The revision of the last change.
    pub fn revision(&self) -> Revision {
        self.inspect(Model::revision)
    }

    /// [`Store::txn`], at once.
    ///
    /// # Errors
    /// As [`Model::txn`].
    pub fn commit(&self, txn: &Txn) -> Result<TxnOutcome> {
        self.change(|model| model.txn(txn))
    }

    /// Forgets what was before a revision.
    ///
    /// # Errors
    /// As [`Model::compact`].
    pub fn compact(&self, revision: Revision) -> Result<()> {
        let mut shared = self.shared.lock();
        let Shared { model, watchers, .. } = &mut *shared;
        let unread: Vec<bool> = watchers
            .values()
            .map(|watcher| {
                watcher.told < revision
                    && (watcher.told < model.compacted()
                        || model.next_change(&watcher.prefix, watcher.told).is_some_and(|(next, _)| next <= revision))
            })
            .collect();
        model.compact(revision)?;
        for (watcher, unread) in watchers.values_mut().zip(unread) {
            if unread {
                watcher.lost = true;
            } else {
                watcher.told = watcher.told.max(revision);
            }
        }
        drop(shared);
        self.wake();
        Ok(())
    }

    /// Lets time pass; leases end.
    pub fn advance(&self, by: Duration) {
        self.change(|model| model.advance(by));
    }

    /// Tells every watcher how far the store is, as etcd does from time to time.
    pub fn tell_progress(&self) {
        self.shared.lock().watchers.values_mut().for_each(|watcher| watcher.progress = true);
        self.wake();
    }

    fn change<T>(&self, change: impl FnOnce(&mut Model) -> T) -> T {
        let result = change(&mut self.shared.lock().model);
        self.wake();
        result
    }

    fn wake(&self) {
        let wakers: Vec<Waker> =
            self.shared.lock().watchers.values_mut().filter_map(|watcher| watcher.waker.take()).collect();
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl std::fmt::Debug for MemStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemStore").field("revision", &self.revision()).finish_non_exhaustive()
    }
}

#[async_trait]
impl Store for MemStore {
    async fn get(&self, key: &Key) -> Result<Option<Kv>> {
        Ok(self.inspect(|model| model.get(key).cloned()))
    }

    async fn list(&self, prefix: &Prefix, page: PageRequest) -> Result<Page> {
        self.inspect(|model| model.list(prefix, &page))
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome> {
        self.commit(&txn)
    }

    async fn watch(&self, prefix: &Prefix, after: Revision) -> Result<WatchStream> {
        let mut shared = self.shared.lock();
        shared.last_watcher += 1;
        let id = shared.last_watcher;
        let lost = shared.model.check_watch(after).is_err();
        let watcher = Watcher { prefix: prefix.clone(), told: after, lost, progress: false, ended: false, waker: None };
        shared.watchers.insert(id, watcher);
        drop(shared);
        Ok(Box::pin(MemWatch { store: self.clone(), id }))
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId> {
        Ok(self.change(|model| model.grant_lease(ttl)))
    }

    async fn renew_lease(&self, lease: LeaseId) -> Result<Duration> {
        self.change(|model| model.renew_lease(lease))
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<()> {
        self.change(|model| model.revoke_lease(lease));
        Ok(())
    }
}

struct MemWatch {
    store: MemStore,
    id: u64,
}

impl Stream for MemWatch {
    type Item = Result<WatchItem>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut shared = self.store.shared.lock();
        let Shared { model, watchers, .. } = &mut *shared;
        let Some(watcher) = watchers.get_mut(&self.id) else { return Poll::Ready(None) };
        if watcher.ended {
            return Poll::Ready(None);
        }
        if watcher.lost {
            watcher.ended = true;
            let error = Error::Compacted { requested: watcher.told.saturating_add(1), oldest: model.compacted() };
            return Poll::Ready(Some(Err(error)));
        }
        if let Some((revision, events)) = model.next_change(&watcher.prefix, watcher.told) {
            watcher.told = revision;
            return Poll::Ready(Some(Ok(WatchItem::Events(revision, events))));
        }
        watcher.told = watcher.told.max(model.revision());
        if std::mem::take(&mut watcher.progress) && watcher.told == model.revision() {
            return Poll::Ready(Some(Ok(WatchItem::Progress(watcher.told))));
        }
        watcher.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for MemWatch {
    fn drop(&mut self) {
        self.store.shared.lock().watchers.remove(&self.id);
    }
}
