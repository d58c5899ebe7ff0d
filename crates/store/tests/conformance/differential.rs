//! The model against the real thing: random histories give the same answers in [`MemStore`] and in etcd.
//!
//! `PROPTEST_CASES` says how many histories; a failing one is shrunk and printed.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use proptest::{
    prelude::*,
    test_runner::{Config, TestCaseError, TestRunner},
};
use store::{
    Error, EtcdStore, Event, Guard, Key, Kv, LeaseId, MemStore, Op, Page, PageRequest, Prefix, Result, Revision, Store,
    Txn, TxnOutcome, WatchItem, testing::EtcdProcess,
};

use crate::suite::PATIENCE;

/// What happens, in terms that fit any state of the store.
#[derive(Clone, Debug)]
enum Step {
    Txn(Vec<(GuardKind, usize, At)>, Vec<(usize, Change)>),
    List { prefix: usize, limit: usize, after: Option<usize>, at: Option<At> },
    Watch { prefix: usize, after: At },
    Compact(At),
    Grant,
    Revoke(usize),
}

#[derive(Clone, Copy, Debug)]
enum GuardKind {
    Absent,
    Mod,
    Create,
    Prefix,
}

#[derive(Clone, Debug)]
enum Change {
    Put(u8),
    PutOnLease(u8, usize),
    Delete,
}

/// A revision.
#[derive(Clone, Copy, Debug)]
enum At {
    /// The one that the key or the store has now.
    Now,
    /// So many before the present one; after it if negative.
    Ago(i64),
}

const KEYS: [&str; 6] =
    ["/berth/pods/a/x", "/berth/pods/a/y", "/berth/pods/ab/x", "/berth/pods/b", "/berth/podsx/a", "/berth/q"];
const PREFIXES: [&str; 5] = ["/berth/", "/berth/pods/", "/berth/pods/a/", "/berth/pods/a", "/berth/nothing/"];

fn at() -> impl Strategy<Value = At> {
    prop_oneof![3 => Just(At::Now), 2 => (-2_i64..12).prop_map(At::Ago)]
}

fn step() -> impl Strategy<Value = Step> {
    let kind =
        prop_oneof![Just(GuardKind::Absent), Just(GuardKind::Mod), Just(GuardKind::Create), Just(GuardKind::Prefix)];
    let change = prop_oneof![
        4 => any::<u8>().prop_map(Change::Put),
        2 => (any::<u8>(), 0..4_usize).prop_map(|(value, lease)| Change::PutOnLease(value, lease)),
        3 => Just(Change::Delete),
    ];
    let guards = prop::collection::vec((kind, 0..KEYS.len(), at()), 0..3);
    let ops = prop::collection::vec((0..KEYS.len(), change), 0..4);
    prop_oneof![
        10 => (guards, ops).prop_map(|(guards, ops)| Step::Txn(guards, ops)),
        3 => (0..PREFIXES.len(), 0..4_usize, prop::option::of(0..KEYS.len()), prop::option::of(at()))
            .prop_map(|(prefix, limit, after, at)| Step::List { prefix, limit, after, at }),
        3 => (0..PREFIXES.len(), at()).prop_map(|(prefix, after)| Step::Watch { prefix, after }),
        1 => at().prop_map(Step::Compact),
        1 => Just(Step::Grant),
        1 => (0..4_usize).prop_map(Step::Revoke),
    ]
}

/// Both stores. etcd goes on from one history to the next, so its revisions stand `ahead` of the model's, and its
/// leases have other names.
struct Pair {
    mem: MemStore,
    etcd: EtcdStore,
    ahead: Revision,
    leases: Vec<(LeaseId, LeaseId)>,
}

impl Pair {
    async fn new(etcd: EtcdStore) -> Self {
        let page = etcd.list(&Prefix::all(), PageRequest::default()).await.unwrap();
        let wipe = Txn { guards: vec![], ops: page.items.into_iter().map(|kv| Op::Delete(kv.key)).collect() };
        let TxnOutcome::Committed(revision) = etcd.txn(wipe).await.unwrap() else { panic!("no guards") };
        // Neither knows of a time before.
        if let Err(error) = etcd.compact(revision).await {
            assert!(matches!(error, Error::Compacted { .. }), "{error}");
        }
        let mem = MemStore::new();
        mem.compact(mem.revision()).unwrap();
        Self { ahead: revision - mem.revision(), mem, etcd, leases: Vec::new() }
    }

    fn to_etcd(&self, revision: Revision) -> Revision {
        if revision <= 0 { revision } else { revision + self.ahead }
    }

    fn revision(&self, at: At, key: Option<(&Key, GuardKind)>) -> Revision {
        let present = key.and_then(|(key, kind)| {
            let kv = self.mem.inspect(|model| model.get(key).cloned())?;
            Some(if matches!(kind, GuardKind::Create) { kv.create_revision } else { kv.mod_revision })
        });
        match at {
            At::Now => present.unwrap_or(self.mem.revision()),
            At::Ago(ago) => (self.mem.revision() - ago).max(1),
        }
    }

    fn lease(&self, index: usize) -> Option<(LeaseId, LeaseId)> {
        (!self.leases.is_empty()).then(|| self.leases[index % self.leases.len()])
    }

    fn lease_from_etcd(&self, lease: LeaseId) -> LeaseId {
        self.leases.iter().find(|(_, etcd)| *etcd == lease).map_or(LeaseId(-1), |(mem, _)| *mem)
    }

    fn kv_from_etcd(&self, kv: Kv) -> Kv {
        Kv {
            create_revision: kv.create_revision - self.ahead,
            mod_revision: kv.mod_revision - self.ahead,
            lease: kv.lease.map(|lease| self.lease_from_etcd(lease)),
            ..kv
        }
    }

    fn error_from_etcd(&self, error: Error) -> Error {
        match error {
            Error::Compacted { requested, .. } => Error::Compacted { requested: requested - self.ahead, oldest: 0 },
            Error::LeaseEnded(lease) => Error::LeaseEnded(self.lease_from_etcd(lease)),
            other => other,
        }
    }

    /// An answer of etcd in terms of the model, and in text, to be compared.
    fn text<T: std::fmt::Debug>(&self, answer: Result<T>) -> String {
        match answer {
            Ok(answer) => format!("{answer:?}"),
            Err(Error::Compacted { requested, .. }) => format!("compacted {requested}"),
            Err(Error::Refused(_)) => "refused".to_owned(),
            Err(error) => format!("{error:?}"),
        }
    }

    fn transaction(&self, guards: &[(GuardKind, usize, At)], ops: &[(usize, Change)]) -> (Txn, Txn) {
        let (mut mem, mut etcd) = (Txn::default(), Txn::default());
        for (kind, index, at) in guards {
            let key = Key::from_raw(KEYS[*index]);
            let revision = self.revision(*at, Some((&key, *kind)));
            let there = self.to_etcd(revision);
            let prefix = Prefix::from_raw(PREFIXES[index % PREFIXES.len()]);
            let (here, there) = match kind {
                GuardKind::Absent => (Guard::Absent(key.clone()), Guard::Absent(key)),
                GuardKind::Mod => (Guard::ModRevision(key.clone(), revision), Guard::ModRevision(key, there)),
                GuardKind::Create => (Guard::CreateRevision(key.clone(), revision), Guard::CreateRevision(key, there)),
                GuardKind::Prefix => {
                    (Guard::PrefixNotNewer(prefix.clone(), revision), Guard::PrefixNotNewer(prefix, there))
                }
            };
            mem.guards.push(here);
            etcd.guards.push(there);
        }
        for (index, change) in ops {
            let key = Key::from_raw(KEYS[*index]);
            let (here, there) = match change {
                Change::Delete => (Op::Delete(key.clone()), Op::Delete(key)),
                Change::Put(value) => {
                    let put = Op::Put(key, Bytes::copy_from_slice(&[*value]), None);
                    (put.clone(), put)
                }
                Change::PutOnLease(value, lease) => {
                    let value = Bytes::copy_from_slice(&[*value]);
                    let (here, there) = self.lease(*lease).unzip();
                    (Op::Put(key.clone(), value.clone(), here), Op::Put(key, value, there))
                }
            };
            mem.ops.push(here);
            etcd.ops.push(there);
        }
        (mem, etcd)
    }

    /// Does a step in both; the two answers.
    async fn run(&mut self, step: &Step) -> (String, String) {
        match step {
            Step::Txn(guards, ops) => {
                let (here, there) = self.transaction(guards, ops);
                let here = self.mem.txn(here).await;
                let there = self.etcd.txn(there).await.map_err(|error| self.error_from_etcd(error));
                let there = there.map(|outcome| match outcome {
                    TxnOutcome::Committed(revision) => TxnOutcome::Committed(revision - self.ahead),
                    TxnOutcome::Conflict => TxnOutcome::Conflict,
                });
                (self.text(here), self.text(there))
            }
            Step::List { prefix, limit, after, at } => {
                let prefix = Prefix::from_raw(PREFIXES[*prefix]);
                let revision = at.map(|at| self.revision(at, None));
                let after = after.map(|key| Key::from_raw(KEYS[key]));
                let here = PageRequest { limit: *limit, after, revision };
                let there = PageRequest { revision: revision.map(|revision| self.to_etcd(revision)), ..here.clone() };
                let here = self.mem.list(&prefix, here).await;
                let there = self.etcd.list(&prefix, there).await.map_err(|error| self.error_from_etcd(error));
                let there = there.map(|page| Page {
                    items: page.items.into_iter().map(|kv| self.kv_from_etcd(kv)).collect(),
                    revision: page.revision - self.ahead,
                    more: page.more,
                });
                (self.text(here), self.text(there))
            }
            Step::Watch { prefix, after } => {
                let prefix = Prefix::from_raw(PREFIXES[*prefix]);
                let after = self.revision(*after, None);
                let here = self.mem.inspect(|model| model.changes(&prefix, after));
                let there = self.watched(&prefix, after, here.as_ref().map_or(1, Vec::len)).await;
                (self.text(here), self.text(there))
            }
            Step::Compact(at) => {
                let revision = self.revision(*at, None);
                let here = self.mem.compact(revision);
                let there = self.etcd.compact(self.to_etcd(revision)).await;
                (self.text(here), self.text(there.map_err(|error| self.error_from_etcd(error))))
            }
            Step::Grant => {
                let ttl = Duration::from_secs(600);
                let pair = (self.mem.grant_lease(ttl).await.unwrap(), self.etcd.grant_lease(ttl).await.unwrap());
                self.leases.push(pair);
                Default::default()
            }
            Step::Revoke(index) => {
                let Some((here, there)) = self.lease(*index) else { return Default::default() };
                (self.text(self.mem.revoke_lease(here).await), self.text(self.etcd.revoke_lease(there).await))
            }
        }
    }

    /// So many revisions of a watch in etcd.
    async fn watched(&self, prefix: &Prefix, after: Revision, count: usize) -> Result<Vec<(Revision, Vec<Event>)>> {
        let mut watch = self.etcd.watch(prefix, self.to_etcd(after)).await?;
        let mut told = Vec::new();
        while told.len() < count {
            let item = tokio::time::timeout(PATIENCE, watch.next()).await.expect("a watch is silent");
            match item.expect("a watch ended").map_err(|error| self.error_from_etcd(error))? {
                WatchItem::Events(revision, events) => {
                    let events = events.into_iter().map(|event| match event {
                        Event::Put(kv) => Event::Put(self.kv_from_etcd(kv)),
                        Event::Delete(key, revision) => Event::Delete(key, revision - self.ahead),
                    });
                    told.push((revision - self.ahead, events.collect()));
                }
                WatchItem::Progress(_) => {}
            }
        }
        Ok(told)
    }
}

async fn same_answers(etcd: EtcdStore, steps: &[Step]) -> std::result::Result<(), TestCaseError> {
    let mut pair = Pair::new(etcd).await;
    for (index, step) in steps.iter().enumerate() {
        let (mem, etcd) = pair.run(step).await;
        prop_assert_eq!(mem, etcd, "step {}: {:?}", index, step);
    }
    // What stands in the end, and how it came there.
    for step in [
        Step::List { prefix: 0, limit: 0, after: None, at: None },
        Step::Watch { prefix: 0, after: At::Ago(pair.mem.revision() - pair.mem.inspect(|m| m.compacted()).max(1)) },
    ] {
        let (mem, etcd) = pair.run(&step).await;
        prop_assert_eq!(mem, etcd, "in the end: {:?}", step);
    }
    Ok(())
}

#[test]
fn random_histories_give_the_same_answers() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let etcd = runtime.block_on(EtcdProcess::start()).unwrap();
    let store = runtime.block_on(etcd.store()).unwrap();
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 60;
    }
    TestRunner::new(config)
        .run(&prop::collection::vec(step(), 1..40), |steps| runtime.block_on(same_answers(store.clone(), &steps)))
        .unwrap();
}
