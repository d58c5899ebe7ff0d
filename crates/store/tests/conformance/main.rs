//! One suite for every store, and what etcd's own trouble must not do to it.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "tests say what they expect")]

mod differential;
mod faults;
mod proxy;
mod suite;

use std::time::Duration;

use store::{MemStore, Store, testing::EtcdProcess};

/// A store under test, and the hands that it needs from outside.
pub struct Subject {
    pub store: std::sync::Arc<dyn Store>,
    kind: Kind,
}

enum Kind {
    Mem(MemStore),
    Etcd(store::EtcdStore, #[expect(dead_code, reason = "keeps the process alive")] EtcdProcess),
}

impl Subject {
    fn mem() -> Self {
        let store = MemStore::new();
        Self { store: std::sync::Arc::new(store.clone()), kind: Kind::Mem(store) }
    }

    async fn etcd() -> Self {
        let etcd = EtcdProcess::start().await.unwrap();
        let store = etcd.store().await.unwrap();
        Self { store: std::sync::Arc::new(store.clone()), kind: Kind::Etcd(store, etcd) }
    }

    pub async fn compact(&self, revision: store::Revision) -> store::Result<()> {
        match &self.kind {
            Kind::Mem(store) => store.compact(revision),
            Kind::Etcd(store, _) => store.compact(revision).await,
        }
    }

    /// Lets time pass for leases: at once in memory, by waiting in etcd, where the condition waited for is the
    /// caller's.
    pub fn pass(&self, time: Duration) {
        match &self.kind {
            Kind::Mem(store) => store.advance(time),
            Kind::Etcd(..) => {}
        }
    }
}

macro_rules! both {
    ($($name:ident),* $(,)?) => {
        mod mem {
            $(#[tokio::test] async fn $name() { crate::suite::$name(crate::Subject::mem()).await; })*
        }
        mod etcd {
            $(#[tokio::test] async fn $name() { crate::suite::$name(crate::Subject::etcd().await).await; })*
        }
    };
}

both!(
    absent_guard,
    mod_revision_guard,
    create_revision_guard,
    prefix_guard,
    guards_without_a_present,
    conflict_changes_nothing,
    one_revision_per_transaction,
    nothing_to_do_takes_no_revision,
    delete_and_make_again,
    limits_are_refused,
    pages_are_pinned,
    pages_at_odd_revisions,
    watch_tells_everything_once,
    watch_from_the_past,
    watch_keeps_transactions_whole,
    watch_of_the_future,
    watch_of_a_prefix_is_no_neighbours,
    compaction,
    compaction_at_the_edge_of_a_watch,
    lease_end_deletes_and_is_told,
    lease_renewal,
    lease_revoked,
    lease_that_ended_takes_no_keys,
    lease_moves_with_the_last_put,
    values_are_bytes,
);
