//! Fenced leadership over a real etcd.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests say what they expect by unwrapping it")]

use std::{sync::Arc, time::Duration};

use runtime::{CancellationToken, Leadership, leader};
use store::{Key, Op, Store, Txn, TxnOutcome, testing::EtcdProcess};
use tokio::{sync::mpsc, time::timeout};

const SOON: Duration = Duration::from_secs(20);

/// Starts a candidate; gives the leaderships that it wins.
fn candidate(store: Arc<dyn Store>, identity: &'static str) -> (mpsc::Receiver<Leadership>, CancellationToken) {
    let (won, wins) = mpsc::channel(4);
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        leader::lead(store, "test", identity, &token, |leadership| {
            let won = won.clone();
            async move {
                let lost = leadership.lost.clone();
                won.send(leadership).await.unwrap();
                lost.cancelled().await;
            }
        })
        .await;
    });
    (wins, stop)
}

async fn write(store: &dyn Store, leadership: &Leadership) -> TxnOutcome {
    let txn = Txn {
        guards: vec![leadership.guard.clone()],
        ops: vec![Op::Put(Key::from_raw("/berth/test"), "x".into(), None)],
    };
    store.txn(txn).await.unwrap()
}

#[tokio::test]
async fn one_leads_and_a_deposed_leader_writes_nothing() {
    let etcd = EtcdProcess::start().await.unwrap();
    let store: Arc<dyn Store> = Arc::new(etcd.store().await.unwrap());

    let (mut first_wins, first_stop) = candidate(Arc::clone(&store), "host/1");
    let first = timeout(SOON, first_wins.recv()).await.unwrap().unwrap();
    assert!(matches!(write(&*store, &first).await, TxnOutcome::Committed(_)));

    let (mut second_wins, _second_stop) = candidate(Arc::clone(&store), "host/2");
    assert!(timeout(Duration::from_millis(500), second_wins.recv()).await.is_err(), "two leaders at once");

    first_stop.cancel();
    let second = timeout(leader::LEASE, second_wins.recv()).await.expect("resigning hands over at once").unwrap();
    assert!(first.lost.is_cancelled());
    assert_eq!(write(&*store, &first).await, TxnOutcome::Conflict, "the old leader is fenced by the store");
    assert!(matches!(write(&*store, &second).await, TxnOutcome::Committed(_)));
}

#[tokio::test]
async fn a_process_succeeds_its_dead_self_at_once_and_fences_it() {
    let etcd = EtcdProcess::start().await.unwrap();
    let store: Arc<dyn Store> = Arc::new(etcd.store().await.unwrap());
    let (mut wins, _stop) = candidate(Arc::clone(&store), "host/1");
    let before = timeout(SOON, wins.recv()).await.unwrap().unwrap();

    // The same identity again, as after kill -9: nobody revoked the lease.
    let (mut again, _stop) = candidate(Arc::clone(&store), "host/1");
    let after = timeout(leader::LEASE / 2, again.recv()).await.expect("no waiting for the lease").unwrap();
    assert_eq!(write(&*store, &before).await, TxnOutcome::Conflict);
    assert!(matches!(write(&*store, &after).await, TxnOutcome::Committed(_)));
}

#[tokio::test]
async fn leadership_is_lost_when_the_store_is() {
    let mut etcd = EtcdProcess::start().await.unwrap();
    let store: Arc<dyn Store> = Arc::new(etcd.store().await.unwrap());
    let (mut wins, _stop) = candidate(Arc::clone(&store), "host/1");
    let leadership = timeout(SOON, wins.recv()).await.unwrap().unwrap();
    etcd.kill9();
    timeout(leader::LEASE + Duration::from_secs(1), leadership.lost.cancelled())
        .await
        .expect("a leader that cannot renew stops by its own clock");
}
