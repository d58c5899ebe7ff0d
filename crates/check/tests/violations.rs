//! Each invariant is broken once, on purpose: a check that cannot fail checks nothing.

#![allow(clippy::expect_used, reason = "a test that cannot set itself up fails")]

use std::{collections::BTreeSet, sync::Arc};

use check::{Actor, INVARIANTS, Step, World};
use jiff::Timestamp;
use pb::objects::{ControllerRevision, PersistentVolumeClaim, Pod, StatefulSet};
use serde_json::{Value, json};

fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("the object above is one")
}

fn owner() -> Value {
    json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "S", "controller": true}])
}

fn set(replicas: u32) -> StatefulSet {
    of(json!({
        "metadata": {"name": "web", "namespace": "ns", "uid": "S", "generation": 2},
        "spec": {
            "replicas": replicas, "podManagementPolicy": "OrderedReady",
            "template": {"spec": {"containers": [{"name": "c", "image": "new"}]}},
        },
        "status": {"observedGeneration": 2, "currentRevision": "web-new", "updateRevision": "web-new"},
    }))
}

fn revision(name: &str, number: i64) -> ControllerRevision {
    of(json!({
        "metadata": {"name": format!("web-{name}"), "namespace": "ns", "uid": name, "ownerReferences": owner()},
        "data": {"spec": {"containers": [{"name": "c", "image": name}]}}, "revision": number,
    }))
}

fn pod(ordinal: u32, revision: &str, ready: bool) -> Pod {
    let condition = json!({
        "type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": "1969-01-01T00:00:00Z",
    });
    of(json!({
        "metadata": {
            "name": format!("web-{ordinal}"), "namespace": "ns", "uid": format!("p{ordinal}"), "ownerReferences": owner(),
            "labels": {"controller-revision-hash": format!("web-{revision}")},
        },
        "spec": {
            "nodeName": "n", "containers": [{"name": "c", "image": revision}],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": format!("data-web-{ordinal}")}}],
        },
        "status": {"phase": "Running", "conditions": [condition]},
    }))
}

fn going(mut pod: Pod) -> Pod {
    pod.metadata.get_or_insert_default().deletion_timestamp = Some(Timestamp::UNIX_EPOCH.into());
    pod
}

fn claim(ordinal: u32, owners: Value) -> PersistentVolumeClaim {
    of(json!({
        "metadata": {
            "name": format!("data-web-{ordinal}"), "namespace": "ns", "uid": format!("c{ordinal}"),
            "ownerReferences": owners,
        },
    }))
}

fn world(set: StatefulSet, pods: impl IntoIterator<Item = Pod>) -> World {
    let claims = (0..4).map(|ordinal| claim(ordinal, json!([])));
    World::of(Timestamp::UNIX_EPOCH, [set], pods, claims, [revision("old", 1), revision("new", 2)])
}

fn broken(before: &World, after: &World, by: Actor) -> BTreeSet<&'static str> {
    check::step(&Step { before, after, by }).into_iter().map(|violation| violation.id).collect()
}

#[test]
fn every_invariant_has_a_name_and_a_rule() {
    let names: BTreeSet<_> = INVARIANTS.iter().map(|invariant| invariant.id).collect();
    assert_eq!(names.len(), INVARIANTS.len());
    assert!(INVARIANTS.iter().all(|invariant| !invariant.rule.is_empty()));
}

#[test]
fn a_step_that_is_allowed_breaks_nothing() {
    let before = world(set(2), [pod(0, "new", true)]);
    let after = world(set(2), [pod(0, "new", true), pod(1, "new", false)]);
    assert_eq!(broken(&before, &after, Actor::SetController), BTreeSet::new());
}

#[test]
fn one_pod_for_life() {
    let before = world(set(1), [pod(0, "new", true)]);
    let mut moved = pod(0, "new", true);
    moved.spec.get_or_insert_default().node_name = "other".to_owned();
    assert_eq!(broken(&before, &world(set(1), [moved]), Actor::Other), ["I1"].into());
    let mut twin = pod(0, "new", true);
    twin.metadata.get_or_insert_default().uid = "twin".to_owned();
    assert!(broken(&before, &world(set(1), [twin]), Actor::Other).contains("I1"));
}

#[test]
fn order() {
    let before = world(set(2), [pod(0, "new", false)]);
    let after = world(set(2), [pod(0, "new", false), pod(1, "new", false)]);
    assert_eq!(broken(&before, &after, Actor::SetController), ["I7"].into());

    let before = world(set(0), [pod(0, "new", true), pod(1, "new", true)]);
    let after = world(set(0), [going(pod(0, "new", true)), pod(1, "new", true)]);
    assert_eq!(broken(&before, &after, Actor::SetController), ["I8"].into());
    assert_eq!(broken(&before, &after, Actor::User), BTreeSet::new(), "a user may");
}

#[test]
fn updates() {
    let before = world(set(2), [pod(0, "old", true), pod(1, "old", true)]);
    let lower_first = world(set(2), [going(pod(0, "old", true)), pod(1, "old", true)]);
    assert_eq!(broken(&before, &lower_first, Actor::SetController), ["I9"].into());

    let before = world(set(2), [pod(0, "new", true), pod(1, "new", true)]);
    let up_to_date = world(set(2), [pod(0, "new", true), going(pod(1, "new", true))]);
    assert_eq!(broken(&before, &up_to_date, Actor::SetController), ["I9"].into());
}

#[test]
fn revisions() {
    let after = world(set(1), [pod(0, "old", false)]);
    assert_eq!(broken(&world(set(1), []), &after, Actor::SetController), ["I10"].into());

    let before = world(set(1), []);
    let mut fallen = before.clone();
    let revision = fallen.revisions.values_mut().find(|revision| revision.revision == 2).expect("there is one");
    Arc::make_mut(revision).revision = 1;
    assert_eq!(broken(&before, &fallen, Actor::SetController), ["I11", "I11/number"].into());
}

#[test]
fn claims() {
    let at = |claims: Vec<PersistentVolumeClaim>, pods: Vec<Pod>| {
        World::of(Timestamp::UNIX_EPOCH, [set(1)], pods, claims, [revision("new", 1)])
    };
    let before = at(vec![claim(0, json!([]))], vec![]);
    assert_eq!(broken(&before, &at(vec![], vec![]), Actor::Other), ["I6"].into());
    assert_eq!(broken(&before, &at(vec![], vec![]), Actor::User), BTreeSet::new(), "a user may");

    let before = at(vec![claim(0, owner())], vec![]);
    assert_eq!(broken(&before, &at(vec![], vec![]), Actor::Other), ["I6"].into(), "its owner is there");
    let orphan = json!([{"apiVersion": "v1", "kind": "Pod", "name": "web-0", "uid": "gone", "controller": true}]);
    let before = at(vec![claim(0, orphan)], vec![]);
    assert_eq!(broken(&before, &at(vec![], vec![]), Actor::Other), BTreeSet::new(), "the policy deletes it");

    let before = at(vec![claim(0, json!([]))], vec![pod(0, "new", true)]);
    let gone = at(vec![], vec![pod(0, "new", true)]);
    assert_eq!(broken(&before, &gone, Actor::User), ["I6"].into(), "a pod uses it");

    let by_pod = json!([{"apiVersion": "v1", "kind": "Pod", "name": "web-0", "uid": "p0", "controller": true}]);
    let owned = at(vec![claim(0, by_pod)], vec![pod(0, "new", true)]);
    assert_eq!(broken(&before, &owned, Actor::SetController), ["I6/owner"].into());
}

#[test]
fn status() {
    let before = world(set(1), []);
    let mut after = before.clone();
    for set in after.sets.values_mut() {
        let status = Arc::make_mut(set).status.get_or_insert_default();
        (status.ready_replicas, status.observed_generation) = (1, 1);
    }
    assert_eq!(broken(&before, &after, Actor::SetController), ["I22", "I22/observed"].into());
    let settled: BTreeSet<_> = check::settled(&before).into_iter().map(|violation| violation.id).collect();
    assert_eq!(settled, ["I25"].into(), "a pod is missing");
    let there = world(set(1), [pod(0, "new", true)]);
    let settled: BTreeSet<_> = check::settled(&there).into_iter().map(|violation| violation.id).collect();
    assert_eq!(settled, ["I22/true"].into(), "the status does not count it");
}

#[test]
fn what_a_user_asked_for_stays() {
    let before = world(set(2), []);
    let mut scaled = set(2);
    scaled.spec.get_or_insert_default().replicas = Some(5);
    assert_eq!(broken(&before, &world(scaled.clone(), []), Actor::SetController), ["I13"].into());
    assert_eq!(broken(&before, &world(scaled, []), Actor::User), BTreeSet::new(), "a user may");
    let before = world(set(1), [going(pod(0, "new", true))]);
    assert_eq!(broken(&before, &world(set(1), [pod(0, "new", true)]), Actor::SetController), ["I13/deletion"].into());
}

#[test]
fn what_was_deleted_stays_deleted() {
    let mut before = world(set(1), []);
    before.sets.clear();
    Arc::make_mut(&mut before.gone).insert("S".to_owned());
    let back = world(set(1), []);
    assert_eq!(broken(&before, &back, Actor::SetController), ["I27", "I27/update"].into());
}

#[test]
fn a_pod_is_made_with_claims_that_stay() {
    let before = world(set(1), []);
    let mut after = world(set(1), [pod(0, "new", false)]);
    after.claims.clear();
    assert!(broken(&before, &after, Actor::SetController).contains("I6/use"));
}

#[test]
fn a_set_that_goes_in_order_loses_its_highest_pod_first() {
    let mut deleted = set(2);
    deleted.spec.get_or_insert_default().deletion_order = "Ordered".to_owned();
    let meta = deleted.metadata.get_or_insert_default();
    meta.deletion_timestamp = Some(Timestamp::UNIX_EPOCH.into());
    meta.finalizers.push("berth.dev/ordered-deletion".to_owned());
    let both = || [pod(0, "new", true), pod(1, "new", true)];
    let before = world(deleted.clone(), both());
    let lowest = world(deleted.clone(), [going(pod(0, "new", true)), pod(1, "new", true)]);
    let highest = world(deleted.clone(), [pod(0, "new", true), going(pod(1, "new", true))]);
    assert_eq!(broken(&before, &lowest, Actor::SetController), ["I8/deletion"].into());
    assert_eq!(broken(&before, &highest, Actor::SetController), BTreeSet::new());
    assert_eq!(broken(&before, &highest, Actor::Collector), ["I8/deletion"].into(), "it is the controller's");
    let mut let_go = before.clone();
    let_go.sets.clear();
    assert_eq!(broken(&before, &let_go, Actor::SetController), ["I8/deletion"].into(), "its pods are there");
}

#[test]
fn budgets() {
    let budget: pb::objects::PodDisruptionBudget = of(json!({
        "metadata": {"name": "b", "namespace": "ns"}, "spec": {"minAvailable": 2, "selector": {}},
    }));
    let with = |pods: [Pod; 2]| {
        let mut world = world(set(2), pods);
        world.budgets.insert(("ns".to_owned(), "b".to_owned()), Arc::new(budget.clone()));
        world
    };
    let before = with([pod(0, "old", true), pod(1, "old", true)]);
    let after = with([pod(0, "old", true), going(pod(1, "old", true))]);
    assert_eq!(broken(&before, &after, Actor::SetController), ["I9/budget"].into());
    assert_eq!(broken(&before, &after, Actor::Evictor), ["I9/budget"].into());
    assert_eq!(broken(&before, &after, Actor::User), BTreeSet::new(), "who deletes a pod asks nobody");
}

#[test]
fn recreate() {
    let mut set = set(2);
    let spec = set.spec.get_or_insert_default();
    spec.update_strategy.get_or_insert_default().r#type = "Recreate".to_owned();
    spec.pod_management_policy = "Parallel".to_owned();
    let before = world(set.clone(), [going(pod(0, "old", true))]);
    let after = world(set, [going(pod(0, "old", true)), pod(1, "new", false)]);
    assert_eq!(broken(&before, &after, Actor::SetController), ["I9/recreate"].into());
}

#[test]
fn a_revision_in_use_is_kept() {
    let before = world(set(1), [pod(0, "old", true)]);
    let mut after = before.clone();
    after.revisions.retain(|(_, name), _| name != "web-old");
    assert_eq!(broken(&before, &after, Actor::SetController), ["I11/live"].into());
}

/// A claim of the set below: what it asks for, what it has, and what its status says beside.
fn stored(ordinal: u32, size: &str, capacity: &str, status: Value) -> PersistentVolumeClaim {
    let mut claim = claim(ordinal, json!([]));
    let mut stored = json!({"capacity": {"storage": capacity}});
    stored.as_object_mut().expect("an object").extend(status.as_object().cloned().unwrap_or_default());
    claim.metadata.get_or_insert_default().annotations =
        [("berth.dev/made-for".to_owned(), "web/data".to_owned()), (REVISION.to_owned(), "web-old".to_owned())].into();
    claim.spec = of(json!({"volumeName": format!("v{ordinal}"), "resources": {"requests": {"storage": size}}}));
    claim.status = of(stored);
    claim
}

const REVISION: &str = "apps.berth.dev/revision";

fn storing(policy: Value, pods: Vec<Pod>, claims: Vec<PersistentVolumeClaim>) -> World {
    let mut set = set(3);
    let spec = set.spec.get_or_insert_default();
    spec.volume_claim_templates = of(json!([{"metadata": {"name": "data"}}]));
    spec.volume_policy = of(policy);
    World::of(Timestamp::UNIX_EPOCH, [set], pods, claims, [revision("old", 1), revision("new", 2)])
}

#[test]
fn claims_grow_one_after_the_other_and_never_shrink() {
    let at = |sizes: [&str; 2]| {
        let claims = (0..).zip(sizes).map(|(ordinal, size)| stored(ordinal, size, "1Gi", json!({})));
        storing(json!({}), vec![], claims.collect())
    };
    let (still, one, both) = (at(["1Gi", "1Gi"]), at(["1Gi", "2Gi"]), at(["2Gi", "2Gi"]));
    assert_eq!(broken(&still, &one, Actor::SetController), [].into());
    assert_eq!(broken(&one, &both, Actor::SetController), ["I6/growing"].into());
    assert_eq!(broken(&one, &both, Actor::User), [].into(), "a user may");
    assert_eq!(broken(&one, &still, Actor::Other), ["I6/size"].into());
}

#[test]
fn a_pod_is_replaced_after_its_claims_have_grown() {
    let at = |size: &str, left| {
        let mut world = storing(
            json!({}),
            vec![pod(0, "new", true), pod(1, "new", true), left],
            vec![stored(2, size, size, json!({}))],
        );
        for set in world.sets.values_mut() {
            let set = Arc::make_mut(set);
            let templates = &mut set.spec.get_or_insert_default().volume_claim_templates;
            templates[0].spec = of(json!({"resources": {"requests": {"storage": "2Gi"}}}));
        }
        world
    };
    let old = || pod(2, "old", true);
    assert_eq!(broken(&at("1Gi", old()), &at("1Gi", going(old())), Actor::SetController), ["I9/growth"].into());
    assert_eq!(broken(&at("2Gi", old()), &at("2Gi", going(old())), Actor::SetController), [].into());
}

#[test]
fn no_pod_is_made_with_a_claim_that_is_held() {
    let at = |phase: &str, pods| {
        let claim = stored(0, "1Gi", "1Gi", json!({"operation": {"type": "Move", "phase": phase}}));
        storing(json!({}), pods, vec![claim])
    };
    let made = || vec![pod(0, "new", false)];
    assert_eq!(broken(&at("Copying", vec![]), &at("Copying", made()), Actor::SetController), ["I6/use"].into());
    assert_eq!(broken(&at("Done", vec![]), &at("Done", made()), Actor::SetController), [].into());
}

#[test]
fn volumes_are_given_up_by_the_policy_alone_and_with_their_pod() {
    let lost = |since: &str| {
        let condition = json!({"type": "VolumeLost", "status": "True", "lastTransitionTime": since});
        stored(2, "1Gi", "1Gi", json!({"conditions": [condition]}))
    };
    let gone = |claim: PersistentVolumeClaim| {
        let mut claim = claim;
        claim.metadata.get_or_insert_default().deletion_timestamp = Some(Timestamp::UNIX_EPOCH.into());
        claim
    };
    let (well, down) = (|ordinal| pod(ordinal, "new", true), |ordinal| pod(ordinal, "new", false));
    let policy = || json!({"onNodeLost": "Recreate", "recreateAfterSeconds": 60});
    let long_ago = || lost("1969-12-31T23:00:00Z");
    let step = |policy: Value, claim: PersistentVolumeClaim, peer: Pod, left: Pod| {
        let before = storing(policy.clone(), vec![well(0), peer.clone(), down(2)], vec![claim.clone()]);
        let after = storing(policy, vec![well(0), peer, left], vec![gone(claim)]);
        broken(&before, &after, Actor::SetController)
    };
    assert_eq!(step(policy(), long_ago(), well(1), going(down(2))), [].into());
    assert_eq!(step(json!({}), long_ago(), well(1), going(down(2))), ["I6"].into(), "no policy says so");
    assert_eq!(step(policy(), lost("1969-12-31T23:59:30Z"), well(1), going(down(2))), ["I6"].into(), "too early");
    assert_eq!(step(policy(), long_ago(), down(1), going(down(2))), ["I6"].into(), "too few others");
    assert_eq!(step(policy(), long_ago(), well(1), down(2)), ["I6"].into(), "the pod was kept");
}

#[test]
fn data_is_in_a_snapshot_before_a_pod_of_another_revision_gets_it() {
    let at = |pods| storing(json!({"snapshotBeforeUpdate": true}), pods, vec![stored(0, "1Gi", "1Gi", json!({}))]);
    let made = || vec![pod(0, "new", false)];
    assert_eq!(broken(&at(vec![]), &at(made()), Actor::SetController), ["I6/revision"].into());
    let snapshot = of::<pb::objects::VolumeSnapshot>(json!({
        "metadata": {"name": "s", "namespace": "ns", "annotations": {REVISION: "web-new"}},
        "spec": {"source": {"persistentVolumeClaimName": "data-web-0"}}, "status": {"readyToUse": true},
    }));
    let kept = |world: World| {
        let snapshots = [(("ns".to_owned(), "s".to_owned()), Arc::new(snapshot.clone()))];
        World { snapshots: snapshots.into(), ..world }
    };
    assert_eq!(broken(&kept(at(vec![])), &kept(at(made())), Actor::SetController), [].into());
}
