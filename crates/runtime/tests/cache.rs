//! The cache over a store: it shows what is there, in order, through compaction, and never takes unknown for absent.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests say what they expect by unwrapping it")]

use std::{sync::Arc, time::Duration};

use pb::{Kind, Object, objects::ConfigMap};
use runtime::{Cache, CancellationToken, Change, Tasks, reflect};
use store::{Key, MemStore, Op, Prefix, Store, Txn, TxnOutcome, objects::put};
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(5);

fn config_map(name: &str, value: &str) -> ConfigMap {
    let mut object = ConfigMap::default();
    object.meta_mut().name = name.to_owned();
    object.meta_mut().namespace = "default".to_owned();
    object.data.insert("key".to_owned(), value.to_owned());
    object
}

async fn write(store: &dyn Store, op: Op) -> i64 {
    match store.txn(Txn { guards: Vec::new(), ops: vec![op] }).await.unwrap() {
        TxnOutcome::Committed(revision) => revision,
        TxnOutcome::Conflict => panic!("no guards, no conflict"),
    }
}

async fn reached(cache: &Cache<ConfigMap>, revision: i64) {
    timeout(SOON, cache.reached(revision)).await.expect("the cache follows");
}

fn key(name: &str) -> Key {
    Key::object(Kind::ConfigMap, "default", name)
}

#[tokio::test]
async fn shows_what_is_there_and_what_comes() {
    let store: Arc<dyn Store> = Arc::new(MemStore::new());
    write(&*store, put(&config_map("a", "1"))).await;
    let tasks = Tasks::new(&CancellationToken::new());
    let cache = reflect::<ConfigMap>(Arc::clone(&store), Prefix::kind(Kind::ConfigMap), &tasks);
    timeout(SOON, cache.synced()).await.unwrap();
    assert_eq!(cache.get(&key("a")).unwrap().data["key"], "1");

    let mut changes = cache.subscribe();
    let revision = write(&*store, put(&config_map("a", "2"))).await;
    reached(&cache, revision).await;
    let now = cache.get(&key("a")).unwrap();
    assert_eq!((now.data["key"].as_str(), now.meta().resource_version.as_str()), ("2", revision.to_string().as_str()));
    assert!(matches!(changes.next().await, Some(Change::Applied { old: Some(old), .. }) if old.data["key"] == "1"));

    let revision = write(&*store, Op::Delete(key("a"))).await;
    reached(&cache, revision).await;
    assert!(cache.get(&key("a")).is_none());
    assert!(matches!(changes.next().await, Some(Change::Deleted { old, .. }) if old.data["key"] == "2"));
}

#[tokio::test]
async fn what_cannot_be_decoded_is_unknown_not_absent() {
    let store: Arc<dyn Store> = Arc::new(MemStore::new());
    let tasks = Tasks::new(&CancellationToken::new());
    let cache = reflect::<ConfigMap>(Arc::clone(&store), Prefix::kind(Kind::ConfigMap), &tasks);
    let revision = write(&*store, Op::Put(key("bad"), vec![0xff; 7].into(), None)).await;
    reached(&cache, revision).await;
    assert!(cache.get(&key("bad")).is_none());
    assert_eq!(cache.undecodable(&Prefix::all()).len(), 1);

    let revision = write(&*store, put(&config_map("bad", "repaired"))).await;
    reached(&cache, revision).await;
    assert!(cache.undecodable(&Prefix::all()).is_empty());
    assert_eq!(cache.get(&key("bad")).unwrap().data["key"], "repaired");
}
