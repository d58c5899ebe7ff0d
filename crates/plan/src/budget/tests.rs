//! The arithmetic of budgets, as tables.

use serde_json::{Value, json};

use super::*;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn budget(spec: Value) -> PodDisruptionBudget {
    let mut budget = json!({"metadata": {"name": "db", "namespace": "n", "uid": "b"}, "spec": spec});
    if budget["spec"]["selector"].is_null() {
        budget["spec"]["selector"] = json!({"matchLabels": {"tier": "db"}});
    }
    serde_json::from_value(budget).unwrap()
}

fn set(name: &str, replicas: i32) -> StatefulSet {
    let set = json!({
        "metadata": {"name": name, "namespace": "n", "uid": name},
        "spec": {"replicas": replicas, "template": {"metadata": {"labels": {"tier": "db"}}}},
    });
    serde_json::from_value(set).unwrap()
}

/// A pod of the set in its name: `a-0` of `a`; `alone` of none. `fares`: healthy, broken, pending, failed, going.
fn pod(name: &str, fares: &str) -> Pod {
    let (phase, ready) = match fares {
        "pending" => ("Pending", "False"),
        "failed" => ("Failed", "False"),
        "broken" => ("Running", "False"),
        _ => ("Running", "True"),
    };
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "n", "uid": name, "labels": {"tier": "db"}},
        "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]},
    });
    if let Some((owner, _)) = name.rsplit_once('-') {
        pod["metadata"]["ownerReferences"] =
            json!([{"kind": "StatefulSet", "name": owner, "uid": owner, "controller": true}]);
    }
    if fares == "going" {
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    serde_json::from_value(pod).unwrap()
}

fn counted(spec: Value, pods: &[(&str, &str)], sets: &[(&str, i32)]) -> Budget {
    let pods: Vec<Pod> = pods.iter().map(|(name, fares)| pod(name, fares)).collect();
    let sets: Vec<StatefulSet> = sets.iter().map(|(name, replicas)| set(name, *replicas)).collect();
    Budget::of(&budget(spec), &pods.iter().collect::<Vec<_>>(), &sets.iter().collect::<Vec<_>>())
}

/// expected, desired, healthy, allowed
fn numbers(budget: &Budget) -> [u32; 4] {
    let numbers = budget.numbers();
    [numbers.expected, numbers.desired, numbers.healthy, numbers.allowed()]
}

const THREE: &[(&str, &str)] = &[("a-0", "healthy"), ("a-1", "healthy"), ("a-2", "healthy")];

#[test]
fn bounds_are_counted_from_what_there_should_be() {
    let table = [
        // A number of pods is compared with the pods that there are.
        (json!({"minAvailable": 2}), 3, [3, 2, 3, 1]),
        (json!({"minAvailable": 2}), 9, [3, 2, 3, 1]),
        (json!({"minAvailable": 5}), 3, [3, 5, 3, 0]),
        (json!({"minAvailable": 0}), 3, [3, 0, 3, 3]),
        // Everything else is a part of what the sets shall have, rounded up.
        (json!({"minAvailable": "50%"}), 3, [3, 2, 3, 1]),
        (json!({"minAvailable": "34%"}), 3, [3, 2, 3, 1]),
        (json!({"minAvailable": "33%"}), 3, [3, 1, 3, 2]),
        (json!({"minAvailable": "100%"}), 3, [3, 3, 3, 0]),
        (json!({"minAvailable": "50%"}), 6, [6, 3, 3, 0]),
        (json!({"maxUnavailable": 1}), 3, [3, 2, 3, 1]),
        (json!({"maxUnavailable": 1}), 5, [5, 4, 3, 0]),
        (json!({"maxUnavailable": 9}), 3, [3, 0, 3, 3]),
        (json!({"maxUnavailable": 0}), 3, [3, 3, 3, 0]),
        (json!({"maxUnavailable": "34%"}), 3, [3, 1, 3, 2]),
        (json!({"maxUnavailable": "1%"}), 3, [3, 2, 3, 1]),
        // A set that is on its way down needs the fewer, and one that shall have none needs none.
        (json!({"maxUnavailable": 1}), 1, [1, 0, 3, 3]),
        (json!({"maxUnavailable": 1}), 0, [0, 0, 3, 3]),
    ];
    for (spec, replicas, expected) in table {
        assert_eq!(numbers(&counted(spec.clone(), THREE, &[("a", replicas)])), expected, "{spec} of {replicas}");
    }
}

#[test]
fn sets_and_pods_without_a_set_add_up() {
    let one = json!({"maxUnavailable": 1});
    let pods = [("a-0", "healthy"), ("b-0", "healthy"), ("alone", "healthy"), ("gone-0", "healthy")];
    // b shall have two; alone has no set, and the set of gone-0 does not exist.
    assert_eq!(numbers(&counted(one.clone(), &pods, &[("a", 1), ("b", 2)])), [5, 4, 4, 0]);
    // A set whose pods are all away counts all the same.
    assert_eq!(numbers(&counted(one.clone(), &pods[..1], &[("a", 1), ("b", 2)])), [3, 2, 1, 0]);
    assert_eq!(numbers(&counted(one, &[], &[])), [0, 0, 0, 0]);
}

#[test]
fn only_pods_that_are_ready_and_stay_are_healthy() {
    let pods = [("a-0", "healthy"), ("a-1", "broken"), ("a-2", "pending"), ("a-3", "failed"), ("a-4", "going")];
    let budget = counted(json!({"minAvailable": 1}), &pods, &[("a", 5)]);
    assert_eq!(numbers(&budget), [5, 1, 1, 0]);
    let health = |name: &str| budget.health_of(&name.into());
    assert_eq!((health("a-0"), health("a-1")), (Some(Health::Healthy), Some(Health::Unhealthy)));
    for away in ["a-2", "a-3", "a-4"] {
        assert_eq!(health(away), Some(Health::Away), "{away}");
    }
    assert_eq!(health("a-5"), None);
}

#[test]
fn who_may_go() {
    let pods = [("a-0", "healthy"), ("a-1", "healthy"), ("a-2", "broken"), ("a-3", "pending")];
    let always = |mut spec: Value| {
        spec["unhealthyPodEvictionPolicy"] = json!("AlwaysAllow");
        spec
    };
    let table = [
        (json!({"minAvailable": 1}), [true, true, true, true]),
        (json!({"minAvailable": 2}), [false, false, true, true]),
        (json!({"minAvailable": 3}), [false, false, false, true]),
        (always(json!({"minAvailable": 2})), [false, false, true, true]),
        (always(json!({"minAvailable": 3})), [false, false, true, true]),
        (json!({}), [false, false, false, true]),
    ];
    for (spec, allowed) in table {
        let budget = counted(spec.clone(), &pods, &[("a", 4)]);
        let may = |name: &str| may_go([&budget], &name.into(), &BTreeSet::new()).is_ok();
        assert_eq!(["a-0", "a-1", "a-2", "a-3"].map(may), allowed, "{spec}");
    }
}

#[test]
fn an_allowed_disruption_names_what_it_rests_on() {
    let budget = counted(json!({"minAvailable": 1}), THREE, &[("a", 3)]);
    let gone: BTreeSet<PodName> = ["a-1".into()].into();
    let grounds = may_go([&budget], &"a-2".into(), &gone).unwrap();
    assert_eq!(grounds.pods.iter().map(|pod| pod.pod.as_str()).collect::<Vec<_>>(), ["a-0"]);
    assert_eq!(grounds.budgets.iter().map(|budget| budget.name.as_str()).collect::<Vec<_>>(), ["db"]);
    let gone = ["a-0".into(), "a-1".into()].into();
    let refusal = may_go([&budget], &"a-2".into(), &gone).unwrap_err();
    assert_eq!(refusal.to_string(), "disruption budget db (minAvailable 1) needs 1 of 3 pods healthy and has 1");
    assert_eq!(may_go([&budget], &"stranger".into(), &gone).unwrap(), Grounds::default());
}

#[test]
fn every_budget_must_let_go() {
    let (loose, strict) = (
        counted(json!({"maxUnavailable": 2}), THREE, &[("a", 3)]),
        counted(json!({"maxUnavailable": 0}), THREE, &[("a", 3)]),
    );
    assert!(may_go([&loose], &"a-0".into(), &BTreeSet::new()).is_ok());
    let refusal = may_go([&loose, &strict], &"a-0".into(), &BTreeSet::new()).unwrap_err();
    assert_eq!(refusal.numbers, Numbers { expected: 3, desired: 3, healthy: 3 });
    assert!(refusal.advice().contains("raise maxUnavailable of db"), "{}", refusal.advice());
}

#[test]
fn a_selector_means_pods_of_its_namespace() {
    let mut elsewhere = pod("a-0", "healthy");
    elsewhere.meta_mut().namespace = "other".into();
    let other_tier = {
        let mut pod = pod("a-1", "healthy");
        pod.meta_mut().labels.clear();
        pod
    };
    let every = budget(json!({"minAvailable": 0, "selector": {}}));
    let tier = budget(json!({"minAvailable": 0}));
    let pods = [&elsewhere, &other_tier];
    assert_eq!(Budget::of(&every, &pods, &[]).pods.len(), 1);
    assert_eq!(Budget::of(&tier, &pods, &[]).pods.len(), 0);
}

#[test]
fn a_status_that_is_right_is_not_written_again() {
    let three = counted(json!({"maxUnavailable": 1}), THREE, &[("a", 3)]);
    let first = three.status(&PodDisruptionBudgetStatus::default(), 2, NOW);
    let condition = &first.conditions[0];
    assert_eq!((condition.r#type.as_str(), condition.status.as_str()), (DISRUPTION_ALLOWED, "True"));
    assert_eq!((first.disruptions_allowed, first.observed_generation), (1, 2));
    let later = NOW + jiff::SignedDuration::from_secs(5);
    assert_eq!(three.status(&first, 2, later), first);
    let two = counted(json!({"maxUnavailable": 1}), &THREE[..2], &[("a", 3)]);
    let none = two.status(&first, 2, later);
    assert_eq!(none.conditions[0].message, "2 of the 2 pods that must stay are healthy");
    assert_eq!(none.conditions[0].last_transition_time, Some(Time::from(later)));
    assert_eq!(two.status(&none, 2, NOW), none);
}

#[test]
fn what_cannot_be_read_lets_nothing_go() {
    let pods = [pod("a-0", "healthy"), pod("a-1", "broken")];
    let budget = Budget::unreadable("db", ModRevision(7), &pods.iter().collect::<Vec<_>>());
    for name in ["a-0", "a-1"] {
        let refusal = may_go([&budget], &name.into(), &BTreeSet::new()).unwrap_err();
        assert_eq!(refusal.to_string(), "disruption budget db cannot be read");
    }
}
