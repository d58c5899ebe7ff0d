//! What goes when something else is gone, and what stays.

#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

mod support;

use std::{collections::BTreeMap, sync::Arc};

use controller::{host::Host, object::CLAIM_PROTECTION};
use pb::{Object, ObjectExt, objects::*};
use plan::statefulset::stamp;
use store::{Key, MemStore, Op, Store, Txn};
use support::{Rig, set};

type Pods = BTreeMap<String, Pod>;
type Claims = BTreeMap<String, PersistentVolumeClaim>;

async fn vanish<T: Object>(rig: &Rig, name: &str) {
    let key = Key::object(T::KIND, support::NAMESPACE, name);
    rig.store.txn(Txn { guards: Vec::new(), ops: vec![Op::Delete(key)] }).await.unwrap();
}

fn now() -> Time {
    Time::from(controller::host::SystemHost.now())
}

async fn mark<T: Object>(rig: &Rig, name: &str, finalizer: Option<&str>) {
    rig.change(name, |object: &mut T| {
        let meta = object.meta_mut();
        meta.deletion_timestamp = Some(now());
        meta.finalizers.extend(finalizer.map(str::to_owned));
    })
    .await;
}

#[tokio::test]
async fn a_deleted_set_takes_its_pods_and_leaves_the_claims() {
    let rig = Rig::start(Arc::new(MemStore::new()));
    rig.put(&set("web", 3)).await;
    rig.put(&set("other", 1)).await;
    rig.complete("web", 3).await;
    rig.complete("other", 1).await;
    vanish::<StatefulSet>(&rig, "web").await;
    rig.until("only the other set's pod is left", |pods: &Pods| pods.keys().eq(["other-0"])).await;
    rig.until("the revisions of web are gone", |r: &BTreeMap<String, ControllerRevision>| r.len() == 1).await;
    rig.until("the service of web is gone", |s: &BTreeMap<String, Service>| s.keys().eq(["other-svc"])).await;
    assert_eq!(rig.list::<PersistentVolumeClaim>().await.len(), 4);
    rig.stop().await;
}

#[tokio::test]
async fn foreground_deletion_keeps_the_set_until_its_pods_are_gone() {
    let mut rig = Rig::start(Arc::new(MemStore::new()));
    rig.put(&set("web", 2)).await;
    rig.complete("web", 2).await;
    // A pod that does not go by itself.
    rig.change("web-1", |pod: &mut Pod| pod.meta_mut().finalizers.push("example.com/hold".into())).await;
    mark::<StatefulSet>(&rig, "web", Some("foregroundDeletion")).await;
    rig.until("web-0 is gone and web-1 going", |pods: &Pods| {
        pods.len() == 1 && pods.values().all(ObjectExt::is_terminating)
    })
    .await;
    assert!(rig.get::<StatefulSet>("web").await.is_some());
    // What happens while no controller runs is found by the next one.
    rig.controller("b");
    rig.change("web-1", |pod: &mut Pod| pod.meta_mut().finalizers.clear()).await;
    rig.until("the set is gone", |sets: &BTreeMap<String, StatefulSet>| sets.is_empty()).await;
    assert!(rig.list::<Pod>().await.is_empty());
    rig.stop().await;
}

#[tokio::test]
async fn orphaned_pods_run_on_and_are_adopted_by_the_next_set_of_the_name() {
    let rig = Rig::start(Arc::new(MemStore::new()));
    let web = set("web", 2);
    rig.put(&web).await;
    rig.complete("web", 2).await;
    let uids = |pods: &Pods| pods.values().map(|pod| pod.uid().to_owned()).collect::<Vec<_>>();
    let before = uids(&rig.list().await);
    mark::<StatefulSet>(&rig, "web", Some("orphan")).await;
    rig.until("the set is gone", |sets: &BTreeMap<String, StatefulSet>| sets.is_empty()).await;
    let left: Pods = rig.list().await;
    assert_eq!(uids(&left), before);
    assert!(left.values().all(|pod| pod.meta().owner_references.is_empty()));
    let again = set("web", 2);
    rig.put(&again).await;
    rig.complete("web", 2).await;
    let adopted: Pods = rig.list().await;
    assert_eq!(uids(&adopted), before, "no pod was restarted");
    assert!(adopted.values().all(|pod| pod.meta().owner_references[0].uid == again.uid()));
    rig.stop().await;
}

#[tokio::test]
async fn claims_go_with_the_set_only_where_the_policy_says_so_and_after_the_pods() {
    let rig = Rig::start(Arc::new(MemStore::new()));
    let mut web = set("web", 2);
    web.spec.as_mut().unwrap().persistent_volume_claim_retention_policy =
        Some(PersistentVolumeClaimRetentionPolicy { when_deleted: "Delete".into(), when_scaled: "Retain".into() });
    rig.put(&web).await;
    rig.complete("web", 2).await;
    vanish::<StatefulSet>(&rig, "web").await;
    rig.until("the claims are gone", |claims: &Claims| claims.is_empty()).await;
    assert!(rig.list::<Pod>().await.is_empty());
    rig.stop().await;
}

#[tokio::test]
async fn a_claim_goes_with_the_pod_that_is_scaled_away_where_the_policy_says_so() {
    let rig = Rig::start(Arc::new(MemStore::new()));
    let mut web = set("web", 3);
    web.spec.as_mut().unwrap().persistent_volume_claim_retention_policy =
        Some(PersistentVolumeClaimRetentionPolicy { when_deleted: "Retain".into(), when_scaled: "Delete".into() });
    rig.put(&web).await;
    rig.complete("web", 3).await;
    rig.scale("web", 1).await;
    rig.until("two claims are gone", |claims: &Claims| claims.keys().eq(["www-web-0"])).await;
    rig.scale("web", 2).await;
    rig.complete("web", 2).await;
    assert_eq!(rig.list::<PersistentVolumeClaim>().await.len(), 2);
    rig.stop().await;
}

#[tokio::test]
async fn a_deleted_claim_stays_until_its_pod_is_gone_and_is_made_anew() {
    let rig = Rig::start(Arc::new(MemStore::new()));
    rig.put(&set("web", 2)).await;
    rig.complete("web", 2).await;
    let old: PersistentVolumeClaim = rig.get("www-web-1").await.unwrap();
    assert!(old.meta().finalizers.iter().any(|finalizer| finalizer == CLAIM_PROTECTION));
    mark::<PersistentVolumeClaim>(&rig, "www-web-1", None).await;
    rig.scale("web", 3).await;
    rig.complete("web", 3).await;
    let still: PersistentVolumeClaim = rig.get("www-web-1").await.unwrap();
    assert_eq!(still.uid(), old.uid(), "web-1 uses it");
    rig.delete_pod("web-1").await;
    rig.until("there is a new claim", |claims: &Claims| {
        claims.get("www-web-1").is_some_and(|claim| claim.uid() != old.uid())
    })
    .await;
    rig.complete("web", 3).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_silent_node_is_not_ready_and_its_pods_stay() {
    let store = MemStore::new();
    let rig = Rig::start(Arc::new(store.clone()));
    rig.put(&set("web", 1)).await;
    rig.complete("web", 1).await;
    let lease = store.grant_lease(std::time::Duration::from_secs(10)).await.unwrap();
    let mut node = Node::default();
    node.meta_mut().name = "n1".into();
    node.status.get_or_insert_default().conditions.push(Condition {
        r#type: "Ready".into(),
        status: "True".into(),
        ..Default::default()
    });
    let alive = Op::Put(Key::node_lease("n1"), "x".into(), Some(lease));
    let ops = vec![store::objects::put(&node), alive];
    store.commit(&Txn { guards: Vec::new(), ops }).unwrap();
    store.advance(std::time::Duration::from_secs(20));
    rig.until("n1 is unknown", |nodes: &BTreeMap<String, Node>| {
        nodes["n1"].status.as_ref().unwrap().conditions[0].status == "Unknown"
    })
    .await;
    let pod: Pod = rig.get("web-0").await.unwrap();
    assert!(!pod.is_terminating());
    rig.stop().await;
}

/// NL-3b: whoever removes a node says that nothing runs there any more.
#[tokio::test(start_paused = true)]
async fn pods_of_a_removed_node_are_forgotten_and_made_anew() {
    let rig = Rig::start(Arc::new(MemStore::new()));
    let mut node = Node::default();
    node.meta_mut().name = "n1".into();
    rig.put(&node).await;
    rig.put(&set("web", 2)).await;
    rig.complete("web", 2).await;
    let before: BTreeMap<String, Pod> = rig.list().await;

    let txn = Txn { guards: Vec::new(), ops: vec![Op::Delete(Key::of(&node))] };
    rig.store.txn(txn).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(39)).await;
    assert_eq!(rig.list::<Pod>().await, before, "the agent could still come back");
    rig.until("both pods are other ones", |pods: &BTreeMap<String, Pod>| {
        pods.len() == 2 && pods.iter().all(|(name, pod)| pod.uid() != before[name].uid())
    })
    .await;
    rig.stop().await;
}

/// The pods that went since a revision, in order.
async fn went(rig: &Rig, since: i64) -> Vec<String> {
    let history = support::history(rig.store.as_ref(), since).await;
    let gone =
        history.into_values().flatten().filter_map(|key| Some(key.strip_prefix("-/berth/pods/default/")?.to_owned()));
    gone.collect()
}

#[tokio::test]
async fn pods_of_a_set_with_an_order_go_from_the_top_and_then_the_set() {
    for foreground in [false, true] {
        let store = MemStore::new();
        let mut rig = Rig::start(Arc::new(store.clone()));
        let mut web = set("web", 3);
        web.spec.as_mut().unwrap().deletion_order = "Ordered".into();
        rig.put(&web).await;
        rig.complete("web", 3).await;
        // One in the middle takes its time.
        rig.change("web-1", |pod: &mut Pod| pod.meta_mut().finalizers.push("example.com/hold".into())).await;
        let since = store.revision();
        mark::<StatefulSet>(&rig, "web", Some(stamp::ORDERED_DELETION)).await;
        if foreground {
            rig.change("web", |set: &mut StatefulSet| set.meta_mut().finalizers.push("foregroundDeletion".into()))
                .await;
        }
        rig.until("web-2 is gone and web-1 going", |pods: &Pods| {
            pods.keys().eq(["web-0", "web-1"]) && pods["web-1"].is_terminating()
        })
        .await;
        let web_0: Pod = rig.get("web-0").await.unwrap();
        assert!(!web_0.is_terminating(), "each is gone before the next is asked to go");
        // Another controller goes on where this one stopped.
        rig.controller("b");
        rig.change("web-1", |pod: &mut Pod| pod.meta_mut().finalizers.clear()).await;
        rig.until("the set is gone", |sets: &BTreeMap<String, StatefulSet>| sets.is_empty()).await;
        assert_eq!(went(&rig, since).await, ["web-2", "web-1", "web-0"]);
        rig.until("so is its service", |services: &BTreeMap<String, Service>| services.is_empty()).await;
        assert_eq!(rig.list::<PersistentVolumeClaim>().await.len(), 3);
        rig.stop().await;
    }
}

#[tokio::test]
async fn orphaning_a_set_that_goes_in_order_saves_the_pods_that_are_left() {
    let rig = Rig::start(Arc::new(MemStore::new()));
    let mut web = set("web", 2);
    web.spec.as_mut().unwrap().deletion_order = "Ordered".into();
    rig.put(&web).await;
    rig.complete("web", 2).await;
    rig.change("web-1", |pod: &mut Pod| pod.meta_mut().finalizers.push("example.com/hold".into())).await;
    mark::<StatefulSet>(&rig, "web", Some(stamp::ORDERED_DELETION)).await;
    rig.until("web-1 is going", |pods: &Pods| pods["web-1"].is_terminating()).await;
    rig.change("web", |set: &mut StatefulSet| set.meta_mut().finalizers = vec!["orphan".into()]).await;
    rig.until("the set is gone", |sets: &BTreeMap<String, StatefulSet>| sets.is_empty()).await;
    let web_0: Pod = rig.get("web-0").await.unwrap();
    assert!(!web_0.is_terminating() && web_0.meta().owner_references.is_empty());
    rig.stop().await;
}
