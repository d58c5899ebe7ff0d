//! What an ordinal costs, over a real etcd: two sequential commits, and little else.

mod support;

use std::{sync::Arc, time::Instant};

use pb::Kind;
use store::{PageRequest, Prefix, Store, testing::EtcdProcess};
use support::{NAMESPACE, Rig, history, set};

const ORDINALS: i32 = 30;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ordinal_takes_two_sequential_commits() {
    let etcd = EtcdProcess::start().await.expect("etcd is installed (apt-get install etcd-server)");
    let store: Arc<dyn Store> = Arc::new(etcd.store().await.unwrap());
    let rig = Rig::start(Arc::clone(&store));
    let since = store.list(&Prefix::all(), PageRequest::default()).await.unwrap().revision;
    let started = Instant::now();
    rig.put(&set("web", ORDINALS)).await;
    rig.complete("web", ORDINALS).await;
    let took = started.elapsed();
    let history = history(store.as_ref(), since).await;
    rig.stop().await;

    let of = |kind: Kind, name: &str| -> Vec<i64> {
        let key = store::Key::object(kind, NAMESPACE, name).to_string();
        history.iter().filter(|(_, keys)| keys.contains(&key)).map(|(revision, _)| *revision).collect()
    };
    let mut on_the_way = Vec::new();
    for ordinal in 0..ORDINALS {
        let pod = of(Kind::Pod, &format!("web-{ordinal}"));
        let [created, _ready] = pod[..] else { panic!("web-{ordinal} was written at {pod:?}: {history:#?}") };
        assert_eq!(of(Kind::PersistentVolumeClaim, &format!("www-web-{ordinal}")), [created]);
        assert_eq!(history[&created].len(), 3, "pod, claim and volume in one commit");
        on_the_way.extend(pod);
    }
    assert!(on_the_way.is_sorted(), "each ordinal after the one before");

    // Beside the way: the set's status, at most every 100 ms and once at the end, the revision, the Service, events.
    let statuses = of(Kind::StatefulSet, "web").len() - 1;
    let allowed = usize::try_from(took.as_millis() / 100).unwrap() + 2;
    assert!(statuses <= allowed, "{statuses} writes of the status in {took:?}");
    let events = history.values().filter(|keys| keys.iter().all(|key| key.contains("/events/"))).count();
    let others = history.len() - on_the_way.len() - statuses - events;
    assert!(others <= 5, "set, service, revision, leader's key and little else: {history:#?}");
    println!(
        "{ORDINALS} ordinals in {took:?} ({:?} each): {} commits on the way, {statuses} of the status, {events} of events, {others} others",
        took / ORDINALS.unsigned_abs(),
        on_the_way.len()
    );
}
