//! What people are told of a set, and what they say of a machine.

#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

mod support;

use std::{collections::BTreeMap, sync::Arc, sync::atomic::Ordering};

use pb::{ObjectExt, objects::*};
use store::{Key, MemStore, Op, Txn};
use support::{Rig, set};

type Events = BTreeMap<String, Event>;
type Pods = BTreeMap<String, Pod>;

fn told<'a>(events: &'a Events, reason: &str, about: &str) -> Vec<&'a Event> {
    events.values().filter(|event| event.reason == reason && event.message.contains(about)).collect()
}

#[tokio::test]
async fn pods_and_the_claims_made_with_them_are_told_of() {
    let rig = Rig::start(Arc::new(MemStore::new()));
    rig.put(&set("web", 2)).await;
    rig.until("all four are told of", |events: &Events| {
        ["pod web-0 ", "pod web-1 ", "claim www-web-0 ", "claim www-web-1 "]
            .iter()
            .all(|about| told(events, "SuccessfulCreate", about).len() == 1)
    })
    .await;
    let events: Events = rig.list().await;
    assert!(events.values().all(|event| event.r#type == "Normal"), "{events:#?}");
    rig.stop().await;
}

#[tokio::test]
async fn a_claim_that_another_controller_owns_is_told_of_once() {
    let rig = Rig::start(Arc::new(MemStore::new()));
    let backup = OwnerReference {
        api_version: "example.com/v1".into(),
        kind: "Backup".into(),
        name: "nightly".into(),
        uid: "b".into(),
        controller: Some(true),
        ..Default::default()
    };
    rig.put(&PersistentVolumeClaim {
        metadata: Some(ObjectMeta {
            name: "www-web-0".into(),
            namespace: support::NAMESPACE.into(),
            uid: "c".into(),
            owner_references: vec![backup],
            ..Default::default()
        }),
        spec: Some(PersistentVolumeClaimSpec::default()),
        ..Default::default()
    })
    .await;
    let mut web = set("web", 1);
    web.spec.as_mut().unwrap().persistent_volume_claim_retention_policy =
        Some(PersistentVolumeClaimRetentionPolicy { when_deleted: "Delete".into(), when_scaled: "Retain".into() });
    rig.put(&web).await;
    rig.complete("web", 1).await;
    rig.scale("web", 3).await;
    rig.complete("web", 3).await;
    let last = |events: &Events| !told(events, "SuccessfulCreate", "pod web-2 ").is_empty();
    rig.until("the last pod is told of", last).await;

    let events: Events = rig.list().await;
    let [dispute] = told(&events, "ConflictingController", "")[..] else { panic!("{events:#?}") };
    assert_eq!((dispute.r#type.as_str(), dispute.count), ("Warning", 1), "not with every plan");
    assert!(dispute.message.contains("www-web-0 is controlled by backup/nightly"), "{}", dispute.message);
    rig.stop().await;
}

#[tokio::test]
async fn a_silent_machine_that_is_said_to_be_off_loses_its_pods_at_once_and_a_living_one_does_not() {
    let rig = Rig::start(Arc::new(MemStore::new()));
    let lease = Key::node_lease("n1");
    let write = |op| async { rig.store.txn(Txn { guards: Vec::new(), ops: vec![op] }).await.unwrap() };
    write(Op::Put(lease.clone(), "n1".into(), None)).await;
    let off = Taint { key: model::validate::OUT_OF_SERVICE.into(), effect: "NoExecute".into(), ..Default::default() };
    let ready = Condition { r#type: "Ready".into(), status: "True".into(), ..Default::default() };
    rig.put(&Node {
        metadata: Some(ObjectMeta { name: "n1".into(), uid: "n".into(), ..Default::default() }),
        spec: Some(NodeSpec { taints: vec![off], ..Default::default() }),
        status: Some(NodeStatus { conditions: vec![ready], ..Default::default() }),
        ..Default::default()
    })
    .await;
    rig.put(&set("web", 1)).await;
    rig.complete("web", 1).await;
    rig.scale("web", 2).await;
    rig.complete("web", 2).await;
    let uids = |pods: &Pods| pods.values().map(|pod| pod.uid().to_owned()).collect::<Vec<_>>();
    let before = uids(&rig.list::<Pod>().await);

    rig.placer.full.store(true, Ordering::SeqCst);
    let alive: Pods = rig.list().await;
    assert_eq!(uids(&alive), before, "the taint takes no pod from a node that is Ready");
    write(Op::Delete(lease)).await;
    rig.until("the pods are free to come elsewhere", |pods: &Pods| {
        !pods.is_empty() && pods.values().all(|pod| pod.spec.as_ref().unwrap().node_name.is_empty())
    })
    .await;
    rig.until("it is told why", |events: &Events| {
        ["web-0", "web-1"].iter().all(|pod| {
            events
                .values()
                .any(|event| event.reason == "NodeOutOfService" && event.involved_object.as_ref().unwrap().name == *pod)
        })
    })
    .await;
    rig.stop().await;
}

#[tokio::test]
async fn pods_leave_a_node_whose_taint_they_do_not_put_up_with_and_others_stay_as_long_as_they_said() {
    let rig = Rig::start(Arc::new(MemStore::new()));
    let lease = Key::node_lease("n1");
    rig.store.txn(Txn { guards: Vec::new(), ops: vec![Op::Put(lease, "n1".into(), None)] }).await.unwrap();
    let ready = Condition { r#type: "Ready".into(), status: "True".into(), ..Default::default() };
    let mut node = Node {
        metadata: Some(ObjectMeta { name: "n1".into(), uid: "n".into(), ..Default::default() }),
        status: Some(NodeStatus { conditions: vec![ready], ..Default::default() }),
        ..Default::default()
    };
    rig.put(&node).await;
    let tolerant = |name: &str, seconds| {
        let mut set = set(name, 1);
        let toleration = Toleration {
            key: "repair".into(),
            operator: "Exists".into(),
            toleration_seconds: seconds,
            ..Default::default()
        };
        let template = set.spec.as_mut().unwrap().template.as_mut().unwrap();
        template.spec.get_or_insert_default().tolerations = vec![toleration];
        set
    };
    for set in [set("web", 1), tolerant("short", Some(1)), tolerant("long", None)] {
        rig.put(&set).await;
        rig.complete(set.name(), 1).await;
    }
    let kept = rig.get::<Pod>("long-0").await.unwrap().uid().to_owned();
    rig.placer.full.store(true, Ordering::SeqCst);
    let taint = Taint { key: "repair".into(), effect: "NoExecute".into(), ..Default::default() };
    node.spec.get_or_insert_default().taints = vec![taint];
    let tainted_at = std::time::Instant::now();
    rig.put(&node).await;
    let waits =
        |pods: &Pods, name: &str| pods.get(name).is_some_and(|pod| pod.spec.as_ref().unwrap().node_name.is_empty());
    rig.until("web-0 left", |pods: &Pods| waits(pods, "web-0")).await;
    rig.until("short-0 left", |pods: &Pods| waits(pods, "short-0")).await;
    assert!(tainted_at.elapsed() >= std::time::Duration::from_secs(1), "it stays as long as it said");
    assert_eq!(rig.get::<Pod>("long-0").await.unwrap().uid(), kept);
    rig.until("it is told why", |events: &Events| {
        told(events, "TaintManagerEviction", "repair")
            .iter()
            .any(|e| e.involved_object.as_ref().unwrap().name == "web-0")
    })
    .await;
    rig.stop().await;
}
