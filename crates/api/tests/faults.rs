//! What the API service does when what is around it fails: etcd away, a slow reader, an object that nobody can read.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::sync::Arc;

use common::*;
use pb::{agent::v1::WatchPodsRequest, api::v1::*, objects::*};
use store::{Key, MemStore, Op, Txn, testing::EtcdProcess};
use tonic::Code;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_lives_through_a_restart_of_etcd() {
    let mut etcd = EtcdProcess::start().await.unwrap();
    let store = Arc::new(etcd.store().await.unwrap());
    let h = Harness::over(store, None).await;
    let mut watch = h.watch(WatchRequest { kind: "ConfigMap".into(), ..Default::default() }).await;
    assert_eq!(next(&mut watch).await.r#type(), EventType::Bookmark);
    for at in 0..3 {
        h.create(config_map(&format!("a{at}"), &[])).await.unwrap();
        etcd.restart().await.unwrap();
        h.create(config_map(&format!("b{at}"), &[])).await.unwrap();
        assert_eq!(told(&next(&mut watch).await).1, format!("a{at}"));
        assert_eq!(told(&next(&mut watch).await).1, format!("b{at}"));
    }
    etcd.kill9();
    let refused = h.create(config_map("c", &[])).await.unwrap_err();
    assert!(matches!(refused.code(), Code::Unavailable | Code::Unknown), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_can_read_is_not_absent() {
    let store = Arc::new(MemStore::new());
    let h = Harness::over(store.clone(), None).await;
    let kept = h.create(pod("web-0", "n1")).await.unwrap();
    let key = Key::object(pb::Kind::Pod, "default", "web-1");
    let garbage = Op::Put(key.clone(), vec![0xff; 9].into(), None);
    let revision = match store.commit(&Txn { ops: vec![garbage], ..Default::default() }).unwrap() {
        store::TxnOutcome::Committed(revision) => revision,
        store::TxnOutcome::Conflict => panic!(),
    };
    let watch = h.watch(WatchRequest {
        kind: "Pod".into(),
        resource_version: (revision - 1).to_string(),
        ..Default::default()
    });
    let told = watch.await.message().await.unwrap_err();
    assert_eq!(told.code(), Code::DataLoss);
    let read = h.get::<Pod>("web-1").await.unwrap_err();
    assert_eq!(read.code(), Code::DataLoss);
    assert!(read.message().contains(key.as_str()), "{}", read.message());
    let list = h.api().list(ListRequest { kind: "Pod".into(), ..Default::default() }).await.unwrap_err();
    assert_eq!(list.code(), Code::DataLoss);
    // Nobody knows whose pod it is: no node may be told that it has all of its pods.
    let pods = h.nodes().watch_pods(WatchPodsRequest { node_name: "n1".into() }).await.unwrap_err();
    assert_eq!(pods.code(), Code::DataLoss);
    assert_eq!(h.get::<Pod>("web-0").await.unwrap(), kept);
    let again = h.create(pod("web-1", "n1")).await.unwrap_err();
    assert_eq!(again.code(), Code::DataLoss, "{again}");
    assert_eq!(h.delete("pod", "web-1").await.unwrap_err().code(), Code::DataLoss);
    let force =
        DeleteRequest { kind: "pod".into(), name: "web-1".into(), grace_period_seconds: Some(0), ..Default::default() };
    assert!(h.api().delete(force).await.unwrap().into_inner().gone);
    assert_eq!(h.list(ListRequest { kind: "Pod".into(), ..Default::default() }).await.items.len(), 1);
}
