//! Stories from Kubernetes' issues that need a store: caches that lag behind it, claims that go while they are wanted.
//!
//! Those that a plan alone can show stand in `crates/plan/tests/regressions.rs`.

#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping it")]

mod support;

use std::{collections::BTreeMap, sync::Arc};

use controller::{
    host::{Host, SystemHost},
    observed::Observed,
    step::{self, StatusPolicy},
    write::Fault,
};
use pb::{Object, ObjectExt, objects::*};
use plan::statefulset::{Action, Op, Plan};
use store::{Key, MemStore, Txn};
use support::{NAMESPACE, Rig, set, steps::Steps};

type Claims = BTreeMap<String, PersistentVolumeClaim>;
type Sets = BTreeMap<String, StatefulSet>;

/// Steps until the next one does such an action, and sees that without doing it.
async fn until_next(steps: &Steps, name: &str, is_it: fn(&Op) -> bool) -> (Observed, Plan) {
    loop {
        let seen = steps.see(name);
        if seen.1.actions.iter().any(|action| is_it(&action.op)) {
            return seen;
        }
        assert!(!seen.1.actions.is_empty(), "{name} does nothing: {:?}", seen.1.waits);
        assert!(steps.act(&seen).await.is_none());
    }
}

fn creates_pod(op: &Op) -> bool {
    matches!(op, Op::CreatePod(_))
}

fn uids<T: Object>(objects: &BTreeMap<String, T>) -> Vec<(String, String)> {
    objects.iter().map(|(name, object)| (name.clone(), object.uid().to_owned())).collect()
}

fn three_ready(pods: &BTreeMap<String, Pod>) -> bool {
    let is_ready = |pod: &Pod| {
        let conditions = pod.status.iter().flat_map(|status| &status.conditions);
        conditions.into_iter().any(|condition| condition.r#type == "Ready" && condition.status == "True")
    };
    pods.len() == 3 && pods.values().all(is_ready)
}

/// After a restart a controller read from an API server that was behind: it saw pods as they had been before, and made
/// and deleted pods that were no longer its business, so that one identity ran twice. Here two controllers saw the same;
/// the one that slept finds that each of its actions is refused by the store.
#[tokio::test]
async fn issue_59848_who_slept_on_an_old_state_changes_nothing() {
    let mut rig = Rig::start(Arc::new(MemStore::new()));
    rig.put(&set("web", 3)).await;
    rig.complete("web", 3).await;
    rig.pause().await;
    // A pod is to be replaced; the sleeper saw that its place is empty.
    vanish::<Pod>(&rig, "web-1").await;
    let sleeper = Steps::over(rig.store.clone()).await;
    let to_create = until_next(&sleeper, "web", creates_pod).await;
    // And that another is to be scaled away.
    rig.resume("b");
    rig.until("all pods are ready again", three_ready).await;
    rig.pause().await;
    rig.scale("web", 2).await;
    let other = Steps::over(rig.store.clone()).await;
    let to_delete = until_next(&other, "web", |op| matches!(op, Op::DeletePod { .. })).await;
    // Meanwhile the set is as large as before again, and complete.
    rig.scale("web", 3).await;
    rig.resume("c");
    rig.complete("web", 3).await;
    rig.until("all pods are ready", three_ready).await;
    rig.pause().await;

    let (pods, claims) = (uids::<Pod>(&rig.list().await), uids::<PersistentVolumeClaim>(&rig.list().await));
    for (sleeper, stale) in [(&sleeper, &to_create), (&other, &to_delete)] {
        // Each action for itself, as if those before it were done.
        for action in &stale.1.actions {
            let alone = Plan { actions: vec![action.clone()], ..stale.1.clone() };
            let done = step::act(&stale.0, &alone, StatusPolicy::Now, &sleeper.around).await;
            assert!(matches!(done.fault, Some(Fault::Conflict)), "{:?} was done", action.op);
        }
    }
    assert_eq!(uids::<Pod>(&rig.list().await), pods);
    assert_eq!(uids::<PersistentVolumeClaim>(&rig.list().await), claims);
    assert!(rig.list::<Pod>().await.values().all(|pod| !pod.is_terminating()));
    rig.stop().await;
}

/// A claim that was on its way out was given to a new pod, which then waited for it for ever. Here the pod waits until
/// the claim is gone and gets a new one; and a claim that begins to go between plan and write stops the write.
#[tokio::test]
async fn issue_83282_a_pod_gets_a_new_claim_when_the_old_one_is_going() {
    let mut rig = Rig::start(Arc::new(MemStore::new()));
    rig.put(&set("web", 2)).await;
    rig.complete("web", 2).await;
    let before = rig.get::<PersistentVolumeClaim>("www-web-1").await.unwrap();
    rig.pause().await;
    vanish::<Pod>(&rig, "web-1").await;
    let sleeper = Steps::over(rig.store.clone()).await;
    let seen = until_next(&sleeper, "web", creates_pod).await;
    rig.change("www-web-1", |claim: &mut PersistentVolumeClaim| {
        claim.meta_mut().deletion_timestamp = Some(Time::from(SystemHost.now()));
        claim.meta_mut().finalizers.push("example.com/hold".into());
    })
    .await;
    assert!(matches!(sleeper.act(&seen).await, Some(Fault::Conflict)), "the claim is not what it was");
    assert!(rig.get::<Pod>("web-1").await.is_none());

    rig.resume("b");
    rig.until("the set waits for the claim", |sets: &Sets| {
        sets["web"]
            .status
            .as_ref()
            .and_then(|status| status.blocked_on.as_ref())
            .is_some_and(|blocked| blocked.ordinal == Some(1) && blocked.reason == "ClaimTerminating")
    })
    .await;
    assert!(rig.get::<Pod>("web-1").await.is_none());
    vanish::<PersistentVolumeClaim>(&rig, "www-web-1").await;
    rig.complete("web", 2).await;
    let after = rig.get::<PersistentVolumeClaim>("www-web-1").await.unwrap();
    assert_ne!(after.uid(), before.uid());
    rig.stop().await;
}

/// Two sets whose names and claim templates join to the same claim names shared the claims, and the deletion of one took
/// the other's data.
#[tokio::test]
async fn issue_41153_two_sets_never_share_a_claim() {
    let named = |name: &str, template: &str| {
        let mut set = set(name, 1);
        let spec = set.spec.as_mut().unwrap();
        template.clone_into(&mut spec.volume_claim_templates[0].metadata.as_mut().unwrap().name);
        spec.persistent_volume_claim_retention_policy =
            Some(PersistentVolumeClaimRetentionPolicy { when_deleted: "Delete".into(), when_scaled: "Delete".into() });
        set
    };
    let rig = Rig::start(Arc::new(MemStore::new()));
    rig.put(&named("petset", "alpha-beta")).await;
    rig.complete("petset", 1).await;
    let claims = uids::<PersistentVolumeClaim>(&rig.list().await);
    assert_eq!(claims.len(), 1);

    rig.put(&named("beta-petset", "alpha")).await;
    rig.until("the other set says what it waits for", |sets: &Sets| {
        let status = sets["beta-petset"].status.as_ref();
        status.and_then(|status| status.blocked_on.as_ref()).is_some_and(|blocked| blocked.reason == "ClaimTaken")
    })
    .await;
    assert!(rig.get::<Pod>("beta-petset-0").await.is_none());
    vanish::<StatefulSet>(&rig, "beta-petset").await;
    rig.until("what the other set had is gone", |revisions: &BTreeMap<String, ControllerRevision>| {
        revisions.keys().all(|name| name.starts_with("petset-"))
    })
    .await;
    assert_eq!(uids::<PersistentVolumeClaim>(&rig.list().await), claims, "nobody's data went with it");
    vanish::<StatefulSet>(&rig, "petset").await;
    rig.until("the claim goes with its own set", Claims::is_empty).await;
    rig.stop().await;
}

/// Controllers that did not see the first revision yet made a second one of the same template.
#[tokio::test]
async fn issue_80698_two_controllers_make_one_revision() {
    let rig = Rig::without_controller(Arc::new(MemStore::new()));
    rig.put(&set("web", 1)).await;
    let (one, other) = (Steps::over(rig.store.clone()).await, Steps::over(rig.store.clone()).await);
    let is_revision = |action: &Action| matches!(action.op, Op::CreateRevision { .. });
    let (mut first, mut second) = (one.see("web"), other.see("web"));
    for seen in [&mut first, &mut second] {
        seen.1.actions.retain(is_revision);
        assert_eq!(seen.1.actions.len(), 1);
    }
    assert!(one.act(&first).await.is_none());
    assert!(matches!(other.act(&second).await, Some(Fault::Conflict)));
    assert_eq!(rig.list::<ControllerRevision>().await.len(), 1);
    rig.stop().await;
}

/// A pod that no node could take kept its claim, which a user had deleted to free it from where its volume was; and the
/// claim, on its way out, kept the pod from being placed.
#[tokio::test]
async fn issue_74374_a_pod_that_waits_for_a_node_gets_a_new_claim_when_its_old_one_is_deleted() {
    let rig = Rig::start(Arc::new(MemStore::new()));
    rig.placer.full.store(true, std::sync::atomic::Ordering::SeqCst);
    rig.put(&set("web", 1)).await;
    rig.until("web-0 waits for a node", |pods: &BTreeMap<String, Pod>| pods.len() == 1).await;
    let pod = rig.get::<Pod>("web-0").await.unwrap();
    let claim = rig.get::<PersistentVolumeClaim>("www-web-0").await.unwrap();
    rig.change("www-web-0", |claim: &mut PersistentVolumeClaim| {
        claim.meta_mut().deletion_timestamp = Some(Time::from(SystemHost.now()));
    })
    .await;
    rig.until("there is another claim", |claims: &Claims| {
        claims.get("www-web-0").is_some_and(|now| now.uid() != claim.uid() && !now.is_terminating())
    })
    .await;
    assert_eq!(rig.get::<Pod>("web-0").await.unwrap().uid(), pod.uid(), "nobody touched the pod");
    rig.stop().await;
}

async fn vanish<T: Object>(rig: &Rig, name: &str) {
    let key = Key::object(T::KIND, NAMESPACE, name);
    rig.store.txn(Txn { guards: Vec::new(), ops: vec![store::Op::Delete(key)] }).await.unwrap();
}
