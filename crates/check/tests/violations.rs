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
    World::of(Timestamp::UNIX_EPOCH, [set], pods, [], [revision("old", 1), revision("new", 2)])
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
