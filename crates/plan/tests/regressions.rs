//! Stories from Kubernetes' issues, by number: what went wrong there, and what happens here.
//!
//! What needs a store or two processes stands in `crates/controller/tests/regressions.rs`.

#![allow(clippy::expect_used, reason = "a test that cannot set itself up fails")]

#[path = "properties/cluster.rs"]
mod cluster;

use std::{collections::BTreeMap, time::Duration};

use check::Actor;
use cluster::Cluster;
use jiff::Timestamp;
use model::identity::Ordinal;
use pb::objects::{NodeSelector, Pod, StatefulSet, StatefulSetSpec};
use plan::{
    schedule::{Ledger, NODE_TOPOLOGY_KEY, Request},
    statefulset::{NewClaim, Objects, Op, Plan, Snapshot, Wait, WaitReason, plan, stamp},
};
use serde_json::{Value, json};

/// With this image no pod ever becomes ready.
const BROKEN: &str = "i:9";
/// Rounds within which each of these sets comes to rest.
const ROUNDS: usize = 60;

/// A set of three whose spec has `more`.
fn set(more: Value) -> StatefulSet {
    let mut spec = json!({
        "replicas": 3, "serviceName": "web", "selector": {"matchLabels": {"app": "web"}}, "revisionHistoryLimit": 10,
        "podManagementPolicy": "OrderedReady", "updateStrategy": {"type": "RollingUpdate"},
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}},
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}],
    });
    let more = more.as_object().cloned().unwrap_or_default();
    spec.as_object_mut().expect("the spec above is an object").extend(more);
    let set = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "web", "namespace": "ns"}, "spec": spec,
    });
    serde_json::from_value(set).expect("the manifest above is one")
}

fn rolling(policy: &str, rolling: Value) -> StatefulSet {
    let strategy = match rolling {
        Value::Null => json!({"type": "RollingUpdate"}),
        rolling => json!({"type": "RollingUpdate", "rollingUpdate": rolling}),
    };
    set(json!({"podManagementPolicy": policy, "updateStrategy": strategy}))
}

fn spec(cluster: &mut Cluster, change: impl Fn(&mut StatefulSetSpec)) {
    cluster.commit(Actor::User, |cluster| cluster.change_set(|set| change(set.spec.get_or_insert_default())));
}

fn image(cluster: &mut Cluster, image: &str) {
    spec(cluster, |spec| {
        let pod = spec.template.get_or_insert_default().spec.get_or_insert_default();
        pod.containers.iter_mut().for_each(|container| image.clone_into(&mut container.image));
    });
}

/// The controller, then the nodes, then the garbage collector, each once.
fn round(cluster: &mut Cluster) -> Plan {
    let plan = cluster.sync(None);
    for name in cluster.pod_names() {
        cluster.commit(Actor::Other, |cluster| cluster.kubelet(&name));
    }
    cluster.collect_garbage();
    cluster.pass(1);
    plan
}

/// Until nothing happens any more, be it well or not.
fn rest(cluster: &mut Cluster) {
    for _ in 0..ROUNDS {
        let before = cluster.pods();
        if round(cluster).actions.is_empty() && cluster.pods() == before {
            return;
        }
    }
    panic!("not at rest: {:#?}", cluster.plan());
}

fn at_rest(set: StatefulSet) -> Cluster {
    let mut cluster = Cluster::new(set);
    rest(&mut cluster);
    cluster
}

impl Cluster {
    /// uid and image of each pod, by name.
    fn pods(&self) -> BTreeMap<String, (String, String)> {
        let pods = self.snapshot().pods.into_iter();
        let image = |revision: Option<&str>| revision.map(|revision| self.image_of(revision)).unwrap_or_default();
        pods.map(|pod| {
            (
                pod.name.to_string(),
                (pod.uid.to_string(), image(pod.revision.as_ref().map(|revision| revision.as_str()))),
            )
        })
        .collect()
    }

    fn images(&self) -> Vec<String> {
        self.pods().into_values().map(|(_, image)| image).collect()
    }

    fn is_settled(&self) -> bool {
        check::settled(&self.world()).is_empty() && self.plan().is_settled()
    }
}

/// A template that never becomes ready stops an OrderedReady set, and setting it right does not help: the broken pod is
/// waited for until somebody deletes it.
#[test]
fn issue_67250_a_rollout_of_a_broken_template_heals_when_the_template_is_set_right() {
    for policy in ["OrderedReady", "Parallel"] {
        for bounds in [json!(null), json!({"partition": 0}), json!({"maxUnavailable": 1}), json!({"partition": 1})] {
            for good in ["i:1", "i:2"] {
                let mut cluster = at_rest(rolling(policy, bounds.clone()));
                let before = cluster.pods();
                image(&mut cluster, BROKEN);
                rest(&mut cluster);
                assert!(!cluster.is_settled(), "{policy}: the broken pod holds everything up");
                assert_eq!(cluster.images(), ["i:1", "i:1", BROKEN], "{policy}: and no other pod is touched");
                image(&mut cluster, good);
                rest(&mut cluster);
                assert!(cluster.is_settled(), "{policy} {bounds} {good}: {:#?}", cluster.plan());
                let kept = if bounds["partition"] == 1 { "i:1" } else { good };
                assert_eq!(cluster.images(), [kept, good, good], "{policy} {bounds}");
                if good == "i:1" {
                    let untouched = |name: &str| cluster.pods()[name] == before[name];
                    assert!(untouched("web-0") && untouched("web-1"), "{policy}: only the broken pod is replaced");
                }
            }
        }
    }
}

/// The first revision of a set was faulty. With maxUnavailable its pods, which were never available, used up the budget,
/// so the corrected revision reached none of them.
#[test]
fn issue_137409_a_first_revision_that_never_came_up_is_replaced_whatever_the_budget() {
    for policy in ["OrderedReady", "Parallel"] {
        for replicas in [1, 3] {
            for bound in [json!(1), json!(2), json!("34%")] {
                let mut cluster = Cluster::new(rolling(policy, json!({"maxUnavailable": bound})));
                spec(&mut cluster, |spec| spec.replicas = Some(replicas));
                image(&mut cluster, BROKEN);
                rest(&mut cluster);
                image(&mut cluster, "i:2");
                rest(&mut cluster);
                assert!(cluster.is_settled(), "{policy} {replicas} {bound}: {:#?}", cluster.plan());
                assert!(cluster.images().iter().all(|image| image == "i:2"));
            }
        }
    }
}

/// A controller that read from a server behind the others saw pods as they had been, and made or deleted pods that it
/// had no business with any more: two pods of one identity. Here every plan that was made from an older state breaks at
/// its guards.
#[test]
fn issue_59848_a_plan_from_a_stale_state_changes_no_pod() {
    for policy in ["OrderedReady", "Parallel"] {
        let mut cluster = Cluster::new(rolling(policy, json!({"partition": 0})));
        let mut history = Vec::new();
        let mut live = |cluster: &mut Cluster, rounds: usize| {
            for _ in 0..rounds {
                history.push(cluster.clone());
                round(cluster);
            }
        };
        live(&mut cluster, 12);
        spec(&mut cluster, |spec| spec.replicas = Some(1));
        live(&mut cluster, 8);
        spec(&mut cluster, |spec| spec.replicas = Some(3));
        live(&mut cluster, 8);
        image(&mut cluster, "i:2");
        live(&mut cluster, 3);
        cluster.commit(Actor::User, |cluster| cluster.terminate("web-0"));
        live(&mut cluster, 12);

        let before = cluster.pods();
        let (deleted, claims) = (cluster.terminating(), cluster.claim_names().len());
        let mut tried = 0;
        for stale in &history {
            let plan = stale.plan();
            // Each action for itself, as if all before it had been done already.
            for action in &plan.actions {
                tried += 1;
                let mut present = cluster.clone();
                present.carry_out(&Plan { actions: vec![action.clone()], ..plan.clone() }, None);
                assert_eq!(present.pods(), before, "{policy}: {action:#?}");
                assert_eq!((present.terminating(), present.claim_names().len()), (deleted, claims), "{action:#?}");
            }
        }
        assert!(tried > 20, "the story has plans to try: {tried}");
    }
}

/// With minReadySeconds an update was called complete when its pods were ready, although none had been so for long
/// enough.
#[test]
fn issue_136831_an_update_is_complete_when_its_pods_are_available() {
    for strategy in ["RollingUpdate", "OnDelete", "Recreate"] {
        let mut cluster =
            Cluster::new(set(json!({"minReadySeconds": 30, "updateStrategy": {"type": strategy}, "replicas": 1})));
        let wait = |cluster: &mut Cluster| {
            (0..4).for_each(|_| drop(round(cluster)));
            let early = cluster.plan();
            assert_eq!((early.status.ready, early.status.available), (1, 0), "{strategy}");
            let again = early.requeue_after.expect("time alone brings the rest");
            cluster.pass(i64::try_from(again.as_secs()).expect("seconds"));
            (early.status, cluster.sync(None).status)
        };
        let (_, first) = wait(&mut cluster);
        assert_eq!(first.complete_revision, first.update_revision, "{strategy}");

        image(&mut cluster, "i:2");
        cluster.sync(None);
        cluster.commit(Actor::User, |cluster| cluster.terminate("web-0"));
        let (early, late) = wait(&mut cluster);
        assert_eq!(early.current_revision, first.current_revision, "{strategy}: ready is not available");
        assert_eq!(early.complete_revision, first.current_revision, "{strategy}");
        assert_ne!(early.update_revision, early.current_revision, "{strategy}");
        assert_eq!(late.current_revision, late.update_revision, "{strategy}");
        assert_eq!(late.complete_revision, late.update_revision, "{strategy}");
    }
}

/// A claim that a user had deleted was still there, terminating, when its pod was made anew. The pod got it, it went, and
/// the pod waited for it for ever.
#[test]
fn issue_83282_no_pod_is_made_with_a_claim_that_is_going() {
    let creates = |plan: &Plan| plan.actions.iter().position(|action| matches!(action.op, Op::CreatePod(_)));
    let mut cluster = at_rest(rolling("OrderedReady", json!(null)));
    cluster.commit(Actor::User, |cluster| cluster.delete_claim("data-web-1"));
    cluster.commit(Actor::User, |cluster| cluster.terminate("web-1"));
    cluster.commit(Actor::Other, |cluster| cluster.kubelet("web-1"));
    let plan = cluster.sync(None);
    assert_eq!(creates(&plan), None);
    assert!(plan.waits.iter().any(|wait| matches!(wait.reason, WaitReason::ClaimTerminating { .. })));
    cluster.collect_garbage();
    let plan = cluster.plan();
    let Some(Op::CreatePod(new)) = creates(&plan).map(|at| &plan.actions[at].op) else { panic!("{plan:#?}") };
    assert_eq!(new.claims.len(), 1, "the pod and its new claim are made together");
    rest(&mut cluster);
    assert!(cluster.is_settled());

    // The user is quicker than the controller: the plan takes the claim for sound, and its guard does not hold.
    cluster.commit(Actor::User, |cluster| cluster.terminate("web-1"));
    cluster.commit(Actor::Other, |cluster| cluster.kubelet("web-1"));
    let plan = cluster.plan();
    let at = creates(&plan).expect("web-1 is due");
    cluster.carry_out(&plan, Some((at, &mut |cluster: &mut Cluster| cluster.delete_claim("data-web-1"))));
    assert!(!cluster.pod_names().contains(&"web-1".to_owned()));
    rest(&mut cluster);
    assert!(cluster.is_settled());

    // Claims that a pod uses are protected. Should one vanish all the same while its pod is not up, it is made anew, and
    // nobody has to touch the pod (PVC-8).
    let mut cluster = Cluster::new(rolling("OrderedReady", json!(null)));
    cluster.sync(None);
    cluster.forget_claim("data-web-0");
    assert!(cluster.claim_names().is_empty());
    cluster.sync(None);
    assert_eq!(cluster.claim_names(), ["data-web-0"]);
}

/// Two sets whose names and claim templates join to one claim name shared the claim and its data; with whenDeleted:
/// Delete, the one that was deleted took the other's data with it.
#[test]
fn issue_41153_a_claim_of_another_set_is_neither_used_nor_touched() {
    let named = |name: &str, template: &str| {
        let mut set = set(json!({
            "volumeClaimTemplates": [{"metadata": {"name": template}, "spec": {"accessModes": ["ReadWriteOnce"]}}],
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Delete"},
        }));
        let meta = set.metadata.get_or_insert_default();
        (meta.name, meta.uid, meta.resource_version) = (name.to_owned(), format!("uid-{name}"), "1".to_owned());
        set
    };
    let (one, other) = (named("petset", "alpha-beta"), named("beta-petset", "alpha"));
    let ordinal = Ordinal(0);
    let name = model::identity::SetName::from("petset").claim("alpha-beta", ordinal);
    assert_eq!(name, model::identity::SetName::from("beta-petset").claim("alpha", ordinal));
    let new = NewClaim { name: name.clone(), template: "alpha-beta".to_owned(), ordinal, owners: Vec::new() };
    let claim = stamp::claim(&one, &new).expect("the template is the set's");
    let decide = |set: &StatefulSet, claim: &pb::objects::PersistentVolumeClaim| {
        let objects = Objects { set, pods: &[], claims: &[claim], revisions: &[], service_exists: true, budgets: &[] };
        plan(&Snapshot::of(Timestamp::UNIX_EPOCH, objects))
    };
    let touches = |plan: &Plan| {
        let touch = |op: &Op| matches!(op, Op::CreatePod(_) | Op::CreateClaim(_) | Op::UpdateClaimOwners { .. });
        plan.actions.iter().filter(|action| touch(&action.op)).count()
    };

    let plan = decide(&other, &claim);
    assert_eq!(touches(&plan), 0, "{plan:#?}");
    let taken = |wait: &Wait| matches!(&wait.reason, WaitReason::ClaimTaken { claim, by } if *claim == name && by == "petset/alpha-beta");
    assert!(plan.waits.iter().any(taken), "{:#?}", plan.waits);
    assert!(plan.is_obstructed(), "it is tried again");
    // The set that it was made for takes it, also after it was deleted and made again; and so does any set a claim that
    // a person made.
    let reuses = |plan: &Plan| {
        plan.actions.iter().any(|action| matches!(&action.op, Op::CreatePod(new) if new.reused == [name.clone()]))
    };
    assert!(reuses(&decide(&one, &claim)));
    let mut by_hand = claim;
    by_hand.metadata.get_or_insert_default().annotations.clear();
    assert!(reuses(&decide(&other, &by_hand)));
}

/// A controller whose cache did not show the first revision yet made a second one of the same template, under another
/// name and with the same number.
#[test]
fn issue_80698_equal_templates_share_one_revision() {
    let mut cluster = Cluster::new(rolling("Parallel", json!(null)));
    let stale = cluster.clone();
    rest(&mut cluster);
    let revisions = |cluster: &Cluster| {
        let revisions = cluster.snapshot().revisions.into_iter();
        revisions.map(|revision| (revision.name.to_string(), revision.number)).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(revisions(&cluster).len(), 1);
    // Also where the set itself is as the stale state has it, the name is the same and is taken.
    let mut plan = stale.plan();
    plan.actions.retain(|action| matches!(action.op, Op::CreateRevision { .. }));
    assert_eq!(plan.actions.len(), 1);
    plan.actions[0].guards.retain(|guard| !matches!(guard, plan::statefulset::Guard::SetUnchanged { .. }));
    assert_eq!(cluster.carry_out(&plan, None), 0);
    assert_eq!(revisions(&cluster).len(), 1);

    let first = revisions(&cluster);
    image(&mut cluster, "i:2");
    rest(&mut cluster);
    image(&mut cluster, "i:1");
    rest(&mut cluster);
    let both = revisions(&cluster);
    assert_eq!(both.len(), 2, "going back makes no third revision");
    assert!(first.keys().all(|name| both[name] == 3), "it is the first one, renumbered: {both:?}");
}

/// Claims that were kept pin the pods of a set to where their volumes are. A spread over zones that must hold forbade just
/// that place, so a pod of an OrderedReady set, and all pods after it, stayed unscheduled for ever. Here a spread is a
/// wish: it never keeps a pod from its volume. (A spread that must hold, `topologySpreadConstraints`, is refused with its
/// path, so nobody relies on one.)
#[test]
fn issue_128832_the_spread_of_a_set_never_keeps_a_pod_from_its_volume() {
    let mut ledger = Ledger::default();
    let node = |name: &str| {
        let node = json!({
            "metadata": {"name": name, "resourceVersion": "1"},
            "status": {
                "allocatable": {"cpu": "4", "memory": "4Gi", "pods": "10"},
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        });
        serde_json::from_value::<pb::objects::Node>(node).expect("the node above is one")
    };
    let nodes = ["a", "b", "c"].map(node);
    ledger.reset_nodes(&nodes, 1);
    let pod = |ordinal: u32| {
        let pod = json!({
            "metadata": {
                "name": format!("web-{ordinal}"), "namespace": "ns", "uid": format!("u{ordinal}"),
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "S", "controller": true}],
            },
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]},
        });
        serde_json::from_value::<Pod>(pod).expect("the pod above is one")
    };
    let at = |node: &str| -> NodeSelector {
        let selector = json!({
            "nodeSelectorTerms": [{"matchExpressions": [{"key": NODE_TOPOLOGY_KEY, "operator": "In", "values": [node]}]}],
        });
        serde_json::from_value(selector).expect("the selector above is one")
    };
    let mut place = |ordinal: u32, volume: Option<&str>| {
        let reachable = volume.map(at).into_iter().collect();
        let placed = ledger.place(&Request::of(&pod(ordinal), reachable), Duration::ZERO);
        placed.map(|placed| placed.node.to_string()).expect("there is room")
    };
    // All volumes that were kept lie on one node. The next pod, which has none yet, goes elsewhere.
    for ordinal in 0..3 {
        assert_eq!(place(ordinal, Some("a")), "a");
    }
    assert_ne!(place(3, None), "a");
}
