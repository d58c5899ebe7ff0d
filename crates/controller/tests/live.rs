//! The controller as it runs: caches, queue, leadership, over a store in memory; nodes that obey at once.

mod support;

use std::{collections::BTreeMap, sync::Arc, sync::atomic::Ordering};

use pb::{Object, ObjectExt, objects::*};
use store::MemStore;
use support::{Rig, history, make_ready, set};

type Pods = BTreeMap<String, Pod>;

fn uid(pods: &Pods, name: &str) -> String {
    pods.get(name).map(|pod| pod.uid().to_owned()).unwrap_or_default()
}

#[tokio::test]
async fn pods_come_in_order_with_claims_volumes_and_a_service() {
    let store = MemStore::new();
    let rig = Rig::start(Arc::new(store.clone()));
    rig.put(&set("web", 3)).await;
    rig.complete("web", 3).await;

    let pods: Pods = rig.list().await;
    assert_eq!(pods.keys().collect::<Vec<_>>(), ["web-0", "web-1", "web-2"]);
    let web_1 = &pods["web-1"];
    let spec = web_1.spec.as_ref().unwrap();
    assert_eq!((spec.hostname.as_str(), spec.subdomain.as_str(), spec.node_name.as_str()), ("web-1", "web-svc", "n1"));
    assert_eq!(spec.volumes[0].persistent_volume_claim.as_ref().unwrap().claim_name, "www-web-1");
    let claim: PersistentVolumeClaim = rig.get("www-web-1").await.unwrap();
    assert_eq!(claim.status.as_ref().unwrap().phase, "Bound");
    assert_eq!(rig.list::<PersistentVolume>().await.len(), 3);
    let service: Service = rig.get("web-svc").await.unwrap();
    assert_eq!(service.spec.as_ref().unwrap().cluster_ip, "None");
    assert_eq!(service.meta().owner_references[0].name, "web");

    // Each ordinal: one commit with all that belongs to it, one for its readiness; each after the one before.
    let history = history(&store, 0).await;
    let writes = |name: &str| -> Vec<i64> {
        let key = format!("/berth/pods/default/{name}");
        history.iter().filter(|(_, keys)| keys.contains(&key)).map(|(revision, _)| *revision).collect()
    };
    let order: Vec<i64> = ["web-0", "web-1", "web-2"].into_iter().flat_map(writes).collect();
    assert_eq!(order.len(), 6, "{history:#?}");
    assert!(order.is_sorted(), "{history:#?}");
    assert_eq!(history[&order[2]].len(), 3, "pod, claim and volume together: {history:#?}");
    rig.stop().await;
}

#[tokio::test]
async fn a_settled_set_is_written_nothing_to() {
    let store = MemStore::new();
    let rig = Rig::start(Arc::new(store.clone()));
    rig.put(&set("web", 2)).await;
    rig.complete("web", 2).await;
    // Events are still on their way; nothing else may be written, also not by a controller that starts anew.
    let settled = store.revision();
    rig.stop().await;
    let rig = Rig::start(Arc::new(store.clone()));
    rig.put(&set("other", 1)).await;
    rig.complete("other", 1).await;
    let history = history(&store, settled).await;
    let of_web = |key: &String| key.contains("web") && !key.contains("/events/");
    assert!(!history.values().flatten().any(of_web), "{history:#?}");
    rig.stop().await;
}

#[tokio::test]
async fn scaling_down_goes_from_the_top_and_keeps_claims() {
    let store = MemStore::new();
    let rig = Rig::start(Arc::new(store.clone()));
    rig.put(&set("web", 3)).await;
    rig.complete("web", 3).await;
    let volume = |claim: &PersistentVolumeClaim| claim.spec.as_ref().unwrap().volume_name.clone();
    let before = volume(&rig.get("www-web-2").await.unwrap());
    let since = store.revision();
    rig.scale("web", 1).await;
    rig.complete("web", 1).await;
    let gone: Vec<String> =
        history(&store, since).await.into_values().flatten().filter(|key| key.starts_with("-/berth/pods/")).collect();
    assert_eq!(gone, ["-/berth/pods/default/web-2", "-/berth/pods/default/web-1"]);
    assert_eq!(rig.list::<PersistentVolumeClaim>().await.len(), 3);
    rig.scale("web", 3).await;
    rig.complete("web", 3).await;
    assert_eq!(volume(&rig.get("www-web-2").await.unwrap()), before, "the data is back");
    rig.stop().await;
}

#[tokio::test]
async fn deleted_failed_and_succeeded_pods_are_replaced() {
    let rig = Rig::start(Arc::new(MemStore::new()));
    rig.put(&set("web", 3)).await;
    rig.complete("web", 3).await;
    let before: Pods = rig.list().await;
    let replaced = |name: &'static str| {
        let old = uid(&before, name);
        move |pods: &Pods| !uid(pods, name).is_empty() && uid(pods, name) != old
    };
    rig.delete_pod("web-1").await;
    rig.until("web-1 is replaced", replaced("web-1")).await;
    rig.complete("web", 3).await;
    for (name, phase) in [("web-0", "Failed"), ("web-2", "Succeeded")] {
        rig.change(name, |pod: &mut Pod| {
            make_ready(pod, false);
            pod.status.as_mut().unwrap().phase = phase.into();
        })
        .await;
        rig.until("the ended pod is replaced", replaced(name)).await;
    }
    rig.complete("web", 3).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_full_cluster_leaves_the_pod_unbound_with_the_reason() {
    let rig = Rig::start(Arc::new(MemStore::new()));
    rig.placer.full.store(true, Ordering::SeqCst);
    rig.put(&set("web", 1)).await;
    rig.until("web-0 is there", |pods: &Pods| pods.contains_key("web-0")).await;
    let pod: Pod = rig.get("web-0").await.unwrap();
    let condition = &pod.status.as_ref().unwrap().conditions[0];
    assert_eq!((condition.r#type.as_str(), condition.status.as_str()), ("PodScheduled", "False"));
    assert_eq!(condition.reason, "Unschedulable");
    assert_eq!(condition.message, "0/1 nodes are available");
    let claim: PersistentVolumeClaim = rig.get("www-web-0").await.unwrap();
    assert_eq!(claim.status.as_ref().unwrap().phase, "Pending");
    // Nothing of it runs anywhere: it goes at once.
    rig.scale("web", 0).await;
    rig.until("web-0 is gone", |pods: &Pods| pods.is_empty()).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_standby_takes_over_and_the_old_leader_can_write_nothing() {
    let store = MemStore::new();
    let mut rig = Rig::start(Arc::new(store.clone()));
    rig.put(&set("web", 2)).await;
    rig.complete("web", 2).await;
    rig.controller("b");
    // The leader's key goes, as if its lease had ended while it was paused.
    let key = store::Key::leader(controller::ROLE);
    let txn = store::Txn { guards: Vec::new(), ops: vec![store::Op::Delete(key.clone())] };
    store.commit(&txn).unwrap();
    rig.scale("web", 4).await;
    rig.complete("web", 4).await;
    let holder = store.inspect(|model| model.get(&key).cloned()).unwrap();
    assert_eq!(holder.value, "b");
    rig.stop().await;
}

#[tokio::test]
async fn parallel_sets_do_not_wait() {
    let rig = Rig::start(Arc::new(MemStore::new()));
    let mut web = set("web", 40);
    web.spec.as_mut().unwrap().pod_management_policy = "Parallel".into();
    let template = web.spec.as_mut().unwrap().template.as_mut().unwrap();
    template.metadata.as_mut().unwrap().labels.insert("slow".into(), "yes".into());
    rig.put(&web).await;
    rig.until("all are there, none is ready", |pods: &Pods| pods.len() == 40).await;
    rig.stop().await;
}
