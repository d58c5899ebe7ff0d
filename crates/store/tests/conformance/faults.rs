//! What etcd's trouble, and the network's, must not do to [`EtcdStore`].

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt;
use store::{
    Error, EtcdConfig, EtcdStore, Event, Guard, Op, Revision, Store, Txn, TxnOutcome, WatchStream, testing::EtcdProcess,
};

use crate::{
    proxy::{Mode, Proxy},
    suite::{PATIENCE, all, brief, changes, commit, delete, get, key, pods, put, txn},
};

/// Short attempts, so that tests do not wait long.
fn config(endpoints: &[&str]) -> EtcdConfig {
    let mut config = EtcdConfig::new(endpoints.iter().copied());
    config.attempt = Duration::from_millis(700);
    config.connect_timeout = Duration::from_millis(500);
    config
}

/// An endpoint where nobody listens.
fn dead() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// A store behind a proxy, and the same etcd without it.
struct Setup {
    etcd: EtcdProcess,
    proxy: Proxy,
    store: Arc<dyn Store>,
    direct: Arc<dyn Store>,
    etcd_store: EtcdStore,
}

impl Setup {
    async fn new() -> Self {
        let etcd = EtcdProcess::start().await.unwrap();
        let proxy = Proxy::to(etcd.address()).await;
        let store = EtcdStore::connect_with(config(&[&proxy.url])).await.unwrap();
        let etcd_store = etcd.store().await.unwrap();
        Self { etcd, proxy, store: Arc::new(store), direct: Arc::new(etcd_store.clone()), etcd_store }
    }

    /// A transaction whose answer is lost; `meanwhile` runs between its effect and the reading back.
    async fn applied_but_lost<F: Future<Output = ()>>(
        &self,
        txn: Txn,
        meanwhile: impl FnOnce(Revision) -> F,
    ) -> (Revision, store::Result<TxnOutcome>) {
        let (_, before) = all(&self.direct).await;
        let mut watch = self.direct.watch(&pods(), before).await.unwrap();
        self.proxy.now(Mode::Mute);
        let store = self.store.clone();
        let sent = tokio::spawn(async move { store.txn(txn).await });
        let (revision, _) = changes(&mut watch).await;
        assert_eq!(revision, before + 1);
        meanwhile(revision).await;
        (revision, sent.await.unwrap())
    }

    /// A transaction that does not reach etcd at first; `meanwhile` runs before it is given up.
    async fn never_arrived<F: Future<Output = ()>>(
        &self,
        txn: Txn,
        meanwhile: impl FnOnce() -> F,
    ) -> store::Result<TxnOutcome> {
        self.proxy.now(Mode::Deaf);
        let store = self.store.clone();
        let sent = tokio::spawn(async move { store.txn(txn).await });
        meanwhile().await;
        sent.await.unwrap()
    }
}

async fn nothing(_: Revision) {}

#[tokio::test]
async fn one_endpoint_of_three_is_enough() {
    let etcd = EtcdProcess::start().await.unwrap();
    let began = Instant::now();
    let store = EtcdStore::connect_with(config(&[&dead(), &dead(), &etcd.url])).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let store: Arc<dyn Store> = Arc::new(store);
    let mut slowest = Duration::ZERO;
    for i in 0..200 {
        let began = Instant::now();
        commit(&store, [], [put("a", &i.to_string())]).await;
        assert!(get(&store, "a").await.is_some());
        slowest = slowest.max(began.elapsed());
    }
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
}

#[tokio::test]
async fn silent_endpoints_are_passed_over() {
    let etcd = EtcdProcess::start().await.unwrap();
    let (first, second) = (Proxy::to(etcd.address()).await, Proxy::to(etcd.address()).await);
    first.all(Mode::Blackhole);
    second.all(Mode::Blackhole);
    let began = Instant::now();
    let store = EtcdStore::connect_with(config(&[&first.url, &second.url, &etcd.url])).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    let store: Arc<dyn Store> = Arc::new(store);
    let began = Instant::now();
    commit(&store, [Guard::Absent(key("a"))], [put("a", "1")]).await;
    assert!(began.elapsed() < Duration::from_secs(1), "the store went back to a silent endpoint");
}

#[tokio::test]
async fn deadlines_hold() {
    let s = Setup::new().await;
    let mut short = config(&[&s.proxy.url]);
    short.deadline = Duration::from_secs(1);
    let store = EtcdStore::connect_with(short.clone()).await.unwrap();
    s.proxy.all(Mode::Blackhole);

    let began = Instant::now();
    let error = store.get(&key("a")).await.expect_err("nobody answers");
    assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
    let error = store.txn(txn([Guard::Absent(key("a"))], [put("a", "1")])).await.expect_err("nobody answers");
    assert!(matches!(error, Error::Unknown(_)), "{error:?}");
    let error = store.grant_lease(Duration::from_secs(5)).await.expect_err("nobody answers");
    assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    s.proxy.all(Mode::Cut);

    // Where there is no connection at all, nothing can have happened.
    short.endpoints = vec![dead(), dead()];
    let nowhere = EtcdStore::lazy(short.clone()).await.unwrap();
    let error = nowhere.txn(txn([], [put("a", "1")])).await.expect_err("nobody listens");
    assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
    let error = EtcdStore::connect_with(short).await.err().unwrap();
    assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
}

#[tokio::test]
async fn lost_answer_of_a_creation() {
    let s = Setup::new().await;
    let create = txn([Guard::Absent(key("a"))], [put("a", "1"), put("b", "1")]);
    let (revision, outcome) = s.applied_but_lost(create, nothing).await;
    assert_eq!(outcome.unwrap(), TxnOutcome::Committed(revision));
    assert_eq!(all(&s.direct).await.1, revision, "something was written twice");
}

#[tokio::test]
async fn lost_answer_of_an_update() {
    let s = Setup::new().await;
    let first = commit(&s.direct, [], [put("a", "1"), put("b", "1")]).await;
    let update = txn([Guard::ModRevision(key("a"), first)], [put("a", "2"), delete("b")]);
    let (revision, outcome) = s.applied_but_lost(update, nothing).await;
    assert_eq!(outcome.unwrap(), TxnOutcome::Committed(revision));
    assert_eq!(all(&s.direct).await.1, revision);
}

#[tokio::test]
async fn lost_answer_of_a_write_without_guards() {
    let s = Setup::new().await;
    commit(&s.direct, [], [put("a", "1")]).await;
    let (revision, outcome) = s.applied_but_lost(txn([], [put("a", "1")]), nothing).await;
    assert_eq!(outcome.unwrap(), TxnOutcome::Committed(revision), "the same value, but a later revision");
}

#[tokio::test]
async fn lost_answer_and_overwritten_since() {
    let s = Setup::new().await;
    let create = txn([Guard::Absent(key("a"))], [put("a", "mine")]);
    let direct = s.direct.clone();
    let overwrite = |_| async move {
        for i in 0..5 {
            commit(&direct, [], [put("a", &i.to_string()), put("other", "x")]).await;
        }
    };
    let (revision, outcome) = s.applied_but_lost(create, overwrite).await;
    assert_eq!(outcome.unwrap(), TxnOutcome::Committed(revision));
}

#[tokio::test]
async fn lost_answer_and_deleted_since() {
    let s = Setup::new().await;
    let create = txn([Guard::Absent(key("a"))], [put("a", "mine")]);
    let direct = s.direct.clone();
    let remove = |_| async move {
        commit(&direct, [], [delete("a")]).await;
    };
    let (revision, outcome) = s.applied_but_lost(create, remove).await;
    assert_eq!(outcome.unwrap(), TxnOutcome::Committed(revision));
    assert_eq!(get(&s.direct, "a").await, None, "a deleted object came back");
}

#[tokio::test]
async fn lost_answer_and_history_compacted() {
    let s = Setup::new().await;
    let create = txn([Guard::Absent(key("a"))], [put("a", "mine")]);
    let (direct, etcd) = (s.direct.clone(), s.etcd_store.clone());
    let forget = |_| async move {
        let gone = commit(&direct, [], [delete("a")]).await;
        etcd.compact(gone).await.unwrap();
    };
    let (_, outcome) = s.applied_but_lost(create, forget).await;
    assert!(matches!(outcome, Err(Error::Unknown(_))), "{outcome:?}");
    assert_eq!(get(&s.direct, "a").await, None);
}

#[tokio::test]
async fn lost_answer_of_a_deletion() {
    let s = Setup::new().await;
    let first = commit(&s.direct, [], [put("a", "1"), put("b", "1")]).await;
    // Nothing tells whose deletion it was.
    let remove = txn([Guard::ModRevision(key("a"), first)], [delete("a")]);
    let (_, outcome) = s.applied_but_lost(remove, nothing).await;
    assert!(matches!(outcome, Err(Error::Unknown(_))), "{outcome:?}");
    // With a value beside it, that value tells.
    let remove = txn([Guard::ModRevision(key("b"), first)], [delete("b"), put("log", "b deleted")]);
    let (revision, outcome) = s.applied_but_lost(remove, nothing).await;
    assert_eq!(outcome.unwrap(), TxnOutcome::Committed(revision));
}

#[tokio::test]
async fn lost_answer_of_a_value_on_a_lease() {
    let s = Setup::new().await;
    let lease = s.store.grant_lease(Duration::from_secs(60)).await.unwrap();
    let hold = txn([Guard::Absent(key("a"))], [Op::Put(key("a"), "me".into(), Some(lease))]);
    let (revision, outcome) = s.applied_but_lost(hold, nothing).await;
    assert_eq!(outcome.unwrap(), TxnOutcome::Committed(revision));
}

#[tokio::test]
async fn request_that_never_arrived_is_sent_again() {
    let s = Setup::new().await;
    let first = commit(&s.direct, [], [put("a", "1"), put("b", "1")]).await;
    for (guard, op) in [
        (Guard::ModRevision(key("a"), first), put("a", "2")),
        (Guard::CreateRevision(key("b"), first), delete("b")),
        (Guard::Absent(key("c")), put("c", "1")),
        (Guard::PrefixNotNewer(pods(), first + 3), put("d", "1")),
    ] {
        let (_, before) = all(&s.direct).await;
        let outcome = s.never_arrived(txn([guard], [op]), || async {}).await;
        assert_eq!(outcome.unwrap(), TxnOutcome::Committed(before + 1));
        assert_eq!(all(&s.direct).await.1, before + 1);
    }
}

#[tokio::test]
async fn request_that_never_arrived_and_lost_the_race() {
    let s = Setup::new().await;
    let first = commit(&s.direct, [], [put("a", "1")]).await;
    let update = txn([Guard::ModRevision(key("a"), first)], [put("a", "mine")]);
    let direct = s.direct.clone();
    let other = || async move {
        commit(&direct, [], [put("a", "other")]).await;
    };
    let outcome = s.never_arrived(update, other).await;
    assert_eq!(outcome.unwrap(), TxnOutcome::Conflict);

    // The other's object may go again, and then this creation could still happen.
    let create = txn([Guard::Absent(key("b"))], [put("b", "mine")]);
    let direct = s.direct.clone();
    let other = || async move {
        commit(&direct, [], [put("b", "other")]).await;
    };
    let outcome = s.never_arrived(create, other).await;
    assert!(matches!(outcome, Err(Error::Unknown(_))), "{outcome:?}");
}

#[tokio::test]
async fn request_that_never_arrived_and_may_not_be_sent_twice() {
    let s = Setup::new().await;
    let leader = commit(&s.direct, [], [put("leader", "me"), put("a", "1")]).await;
    let write = txn([Guard::CreateRevision(key("leader"), leader)], [put("a", "2"), put("event", "x")]);
    let outcome = s.never_arrived(write, || async {}).await;
    assert!(matches!(outcome, Err(Error::Unknown(_))), "{outcome:?}");
    assert_eq!(all(&s.direct).await.1, leader);
}

#[tokio::test]
async fn request_that_arrives_late() {
    let s = Setup::new().await;
    let (_, before) = all(&s.direct).await;
    let mut watch = s.direct.watch(&pods(), before).await.unwrap();

    // Without guards of its own a write may happen after its caller was told that nothing is known.
    s.proxy.now(Mode::Late);
    let outcome = s.store.txn(txn([], [put("late", "1")])).await;
    assert!(matches!(outcome, Err(Error::Unknown(_))), "{outcome:?}");
    assert_eq!(get(&s.direct, "late").await, None);
    s.proxy.deliver_late();
    assert_eq!(brief(&changes(&mut watch).await.1), ["late=1"]);

    // With them the second copy has spent the guards, and the first does nothing.
    let handled = transactions(&s.etcd).await;
    s.proxy.now(Mode::Late);
    let outcome = s.store.txn(txn([Guard::Absent(key("a"))], [put("a", "1")])).await;
    assert_eq!(outcome.unwrap(), TxnOutcome::Committed(before + 2));
    s.proxy.deliver_late();
    // The reading back, the second copy and the late first one.
    let until = Instant::now() + PATIENCE;
    while transactions(&s.etcd).await < handled + 3 {
        assert!(Instant::now() < until, "the late request was not handled");
    }
    assert_eq!(all(&s.direct).await.1, before + 2);
}

/// How many transactions a member has answered.
async fn transactions(etcd: &EtcdProcess) -> u64 {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(etcd.address()).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text.lines()
        .filter(|line| line.starts_with("grpc_server_handled_total") && line.contains("\"Txn\""))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64)
        .sum()
}

#[tokio::test]
async fn watch_survives_cut_connections() {
    let s = Setup::new().await;
    let (_, start) = all(&s.direct).await;
    let mut watch = s.store.watch(&pods(), start).await.unwrap();
    for round in 0..10 {
        let direct = s.direct.clone();
        let writer = tokio::spawn(async move {
            for i in round * 30..(round + 1) * 30 {
                commit(&direct, [], [put("a", &i.to_string()), put("b", &i.to_string())]).await;
            }
        });
        for i in round * 30..(round + 1) * 30 {
            let (revision, events) = changes(&mut watch).await;
            assert_eq!((revision, brief(&events)), (start + 1 + i, vec![format!("a={i}"), format!("b={i}")]));
            if i % 30 == round {
                s.proxy.now(Mode::Cut);
            }
        }
        writer.await.unwrap();
    }
    assert!(s.proxy.connections() > 5, "the connections were not cut");
}

/// Large revisions come in pieces; a connection that ends between two pieces must not show half a revision.
#[tokio::test]
async fn watch_cut_between_the_pieces_of_a_revision() {
    let s = Setup::new().await;
    let (_, start) = all(&s.direct).await;
    let value = "x".repeat(11 * 1024);
    let ops: Vec<Op> = (0..Txn::MAX).map(|i| put(&format!("n{i:03}"), &value)).collect();
    for _ in 0..12 {
        commit(&s.direct, [], ops.clone()).await;
    }
    // A revision has 1.4 MB and a piece about 2 MB: each connection ends within a piece, at another place.
    s.proxy.allow(2_300_000);
    s.proxy.now(Mode::Cut);
    let mut watch = s.store.watch(&pods(), start).await.unwrap();
    for revision in start + 1..=start + 12 {
        let (told, events) = changes(&mut watch).await;
        assert_eq!((told, events.len()), (revision, Txn::MAX));
        s.proxy.allow(2_300_000 + usize::try_from(revision).unwrap() * 170_000);
    }
    assert!(s.proxy.connections() > 4, "the connections were not cut");
}

#[tokio::test]
async fn watch_follows_the_store_to_another_member() {
    let s = Setup::new().await;
    let store: Arc<dyn Store> = Arc::new(EtcdStore::connect_with(config(&[&s.proxy.url, &s.etcd.url])).await.unwrap());
    let start = commit(&store, [], [put("a", "0")]).await;
    let mut watch = store.watch(&pods(), start).await.unwrap();
    let next = commit(&store, [], [put("a", "1")]).await;
    assert_eq!(changes(&mut watch).await.0, next);

    s.proxy.all(Mode::Blackhole);
    let began = Instant::now();
    let store_too = store.clone();
    let write = tokio::spawn(async move { commit(&store_too, [Guard::Absent(key("b"))], [put("b", "1")]).await });
    assert_eq!(brief(&changes(&mut watch).await.1), ["b=1"]);
    assert!(began.elapsed() < Duration::from_secs(3), "the watch stayed with a dead member: {:?}", began.elapsed());
    write.await.unwrap();
}

/// Nobody but the watch uses the connection, and it goes silent: pings find out.
#[tokio::test]
async fn silent_watch_is_left() {
    let s = Setup::new().await;
    let (_, start) = all(&s.direct).await;
    let mut watch = s.store.watch(&pods(), start).await.unwrap();
    commit(&s.direct, [], [put("a", "1")]).await;
    changes(&mut watch).await;
    s.proxy.now(Mode::Blackhole);
    commit(&s.direct, [], [put("a", "2")]).await;
    assert_eq!(brief(&changes(&mut watch).await.1), ["a=2"]);
}

#[tokio::test]
async fn idle_watch_is_opened_again() {
    let s = Setup::new().await;
    let mut short = config(&[&s.proxy.url]);
    short.watch_idle = Duration::from_millis(50);
    let store: Arc<dyn Store> = Arc::new(EtcdStore::connect_with(short).await.unwrap());
    let (_, start) = all(&s.direct).await;
    let mut watch = store.watch(&pods(), start).await.unwrap();
    for i in 0..5 {
        // Long enough for several openings.
        assert!(tokio::time::timeout(Duration::from_millis(200), watch.next()).await.is_err());
        commit(&s.direct, [], [put("a", &i.to_string())]).await;
        assert_eq!(brief(&changes(&mut watch).await.1), [format!("a={i}")]);
    }
}

#[tokio::test]
async fn watch_that_misses_a_compaction_says_so() {
    let s = Setup::new().await;
    let start = commit(&s.direct, [], [put("a", "1")]).await;
    let mut watch = s.store.watch(&pods(), start).await.unwrap();
    commit(&s.direct, [], [put("a", "2")]).await;
    changes(&mut watch).await;
    s.proxy.all(Mode::Cut);
    let last = commit(&s.direct, [], [put("a", "3")]).await;
    let last = commit(&s.direct, [Guard::ModRevision(key("a"), last)], [put("a", "4")]).await;
    s.etcd_store.compact(last).await.unwrap();
    s.proxy.all(Mode::Forward);
    s.proxy.now(Mode::Cut);
    let item = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
    assert!(matches!(item, Err(Error::Compacted { requested, .. }) if requested == start + 2), "{item:?}");
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn etcd_killed_and_started_again() {
    let mut s = Setup::new().await;
    let start = commit(&s.store, [], [put("a", "0")]).await;
    let mut watch = s.store.watch(&pods(), start).await.unwrap();
    for i in 1..=3 {
        s.etcd.kill9();
        let store = s.store.clone();
        let next = txn([Guard::ModRevision(key("a"), start + i - 1)], [put("a", &i.to_string())]);
        let write = tokio::spawn(async move { store.txn(next).await });
        s.etcd.restart().await.unwrap();
        assert_eq!(write.await.unwrap().unwrap(), TxnOutcome::Committed(start + i), "a write waits for etcd");
        assert_eq!(changes(&mut watch).await.0, start + i);
    }
}

/// One writer counts up under guards while members die, the one in use first. Every acknowledged step is there, none
/// twice, and a watch sees them all.
#[tokio::test(flavor = "multi_thread")]
async fn members_of_three_die_in_turn() {
    let mut members = EtcdProcess::start_cluster(3).await.unwrap();
    let endpoints: Vec<String> = members.iter().map(|member| member.url.clone()).collect();
    let store: Arc<dyn Store> = Arc::new(EtcdStore::connect(endpoints).await.unwrap());
    let first = commit(&store, [], [put("count", "0")]).await;
    let mut watch = store.watch(&pods(), first).await.unwrap();
    let (stop, stopped) = tokio::sync::watch::channel(false);

    let writing = store.clone();
    let writer = tokio::spawn(async move {
        let (mut last, mut count, mut unknown, mut slowest) = (first, 0_u64, 0, Duration::ZERO);
        while !*stopped.borrow() {
            let began = Instant::now();
            let next = txn([Guard::ModRevision(key("count"), last)], [put("count", &(count + 1).to_string())]);
            match writing.txn(next).await {
                Ok(TxnOutcome::Committed(revision)) => (last, count) = (revision, count + 1),
                Ok(TxnOutcome::Conflict) => panic!("nobody else writes, so step {} cannot conflict", count + 1),
                Err(Error::Unknown(_) | Error::Unavailable(_)) => {
                    unknown += 1;
                    let kv = loop {
                        if let Ok(kv) = writing.get(&key("count")).await {
                            break kv.unwrap();
                        }
                    };
                    let there: u64 = std::str::from_utf8(&kv.value).unwrap().parse().unwrap();
                    assert!(there == count || there == count + 1, "{there} after {count}");
                    (last, count) = (kv.mod_revision, there);
                }
                Err(error) => panic!("{error}"),
            }
            slowest = slowest.max(began.elapsed());
        }
        (count, unknown, slowest)
    });

    for member in &mut members {
        // Some steps between the faults.
        let mut steps = 0;
        while steps < 20 {
            changes(&mut watch).await;
            steps += 1;
        }
        member.kill9();
        steps = 0;
        while steps < 20 {
            changes(&mut watch).await;
            steps += 1;
        }
        member.restart().await.unwrap();
    }
    stop.send_replace(true);
    let (count, unknown, slowest) = writer.await.unwrap();
    println!("{count} steps, {unknown} unknown, slowest {slowest:?}");
    assert!(count >= 120);
    assert!(slowest < Duration::from_secs(6), "{slowest:?}");
    let kv = get(&store, "count").await.unwrap();
    assert_eq!(kv.value, count.to_string());
    // From the start again: one event per step.
    let mut replay: WatchStream = store.watch(&pods(), first).await.unwrap();
    for i in 1..=count {
        let (_, events) = changes(&mut replay).await;
        assert!(matches!(&events[..], [Event::Put(kv)] if kv.value == i.to_string()));
    }
}
