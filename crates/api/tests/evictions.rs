//! Evictions: a deletion that disruption budgets must allow.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use common::*;
use pb::{Object as _, ObjectExt, api::v1::*, objects::*};
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt;

over_both_stores!(
    a_budget_lets_go_as_many_as_it_allows,
    evictions_at_once_never_take_one_pod_too_many,
    a_pod_that_serves_nobody_is_held_by_its_policy_alone,
    every_budget_of_a_pod_must_allow,
    an_eviction_checks_what_it_is_told,
    percentages_are_of_what_the_set_shall_have,
    many_pods_are_compared_as_a_range,
);

async fn ready(h: &Harness, name: &str, is: bool) -> Pod {
    let mut pod = match h.get::<Pod>(name).await {
        Ok(pod) => pod,
        Err(_) => h.create(pod(name, "n1")).await.unwrap(),
    };
    let status = pod.status.get_or_insert_default();
    status.phase = "Running".into();
    let condition =
        Condition { r#type: "Ready".into(), status: if is { "True" } else { "False" }.into(), ..Default::default() };
    status.conditions = vec![condition];
    let request =
        UpdateRequest { object: Some(pod.into_any()), subresource: "status".into(), ..UpdateRequest::default() };
    let updated = h.api().update(request).await.unwrap().into_inner();
    Pod::from_any(updated.object.unwrap()).unwrap()
}

async fn budget(h: &Harness, name: &str, spec: Value) {
    let mut spec = spec;
    spec["selector"] = json!({"matchLabels": {"app": "nginx"}});
    let manifest =
        json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": name}, "spec": spec});
    h.apply(&[manifest]).await.unwrap();
}

async fn evict(h: &Harness, pod: &str) -> Result<EvictResponse, Status> {
    let request = EvictRequest { pod: pod.into(), ..EvictRequest::default() };
    Ok(h.api().evict(request).await?.into_inner())
}

fn code(answer: Result<EvictResponse, Status>) -> Option<Code> {
    answer.err().map(|status| status.code())
}

async fn a_budget_lets_go_as_many_as_it_allows(h: &Harness) {
    for name in ["db-0", "db-1", "db-2"] {
        ready(h, name, true).await;
    }
    budget(h, "db", json!({"minAvailable": 2})).await;
    let answer = evict(h, "db-2").await.unwrap();
    let pod = answer.pod.unwrap();
    assert!(!answer.gone && pod.is_terminating());
    let condition = pod.status.unwrap().conditions.into_iter().find(|c| c.r#type == "DisruptionTarget").unwrap();
    assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("True", "EvictionByEvictionAPI"));
    let stored = h.get::<Pod>("db-2").await.unwrap();
    assert!(stored.status.unwrap().conditions.iter().any(|c| c.r#type == "DisruptionTarget"));
    let events = h.list(ListRequest { kind: "Event".into(), namespace: "default".into(), ..Default::default() }).await;
    let event = Event::from_any(events.items[0].clone()).unwrap();
    assert_eq!((event.reason.as_str(), event.involved_object.unwrap().name.as_str()), ("Evicted", "db-2"));

    let refused = evict(h, "db-1").await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(
        refused.message(),
        "pod default/db-1 is not evicted: disruption budget db (minAvailable 2) needs 2 of 3 pods healthy and has 2; \
         when db-2 is ready again it goes on; `berth why db-2` says what holds that up"
    );
    let details = refused.get_error_details();
    assert_eq!(details.quota_failure().unwrap().violations[0].subject, "poddisruptionbudget default/db");
    assert!(details.retry_info().unwrap().retry_delay.is_some());
    assert!(!h.get::<Pod>("db-1").await.unwrap().is_terminating(), "a refused pod is left alone");
    // One that is on its way out already is not refused.
    assert!(evict(h, "db-2").await.is_ok());

    ready(h, "db-3", true).await;
    assert!(evict(h, "db-1").await.is_ok());
    h.delete("poddisruptionbudget", "db").await.unwrap();
    assert!(evict(h, "db-0").await.is_ok());
}

async fn evictions_at_once_never_take_one_pod_too_many(h: &Harness) {
    let names: Vec<String> = (0..6).map(|number| format!("db-{number}")).collect();
    for name in &names {
        ready(h, name, true).await;
    }
    budget(h, "db", json!({"maxUnavailable": 2})).await;
    let answers = futures::future::join_all(names.iter().map(|name| evict(h, name))).await;
    let codes: Vec<_> = answers.into_iter().map(code).collect();
    let (went, refused): (Vec<_>, Vec<_>) = codes.into_iter().partition(Option::is_none);
    assert_eq!(went.len(), 2, "{refused:?}");
    assert!(refused.iter().all(|code| matches!(code, Some(Code::ResourceExhausted | Code::Aborted))), "{refused:?}");
    let mut healthy = 0;
    for name in &names {
        healthy += usize::from(!h.get::<Pod>(name).await.unwrap().is_terminating());
    }
    assert_eq!(healthy, 4);
}

async fn a_pod_that_serves_nobody_is_held_by_its_policy_alone(h: &Harness) {
    ready(h, "db-0", true).await;
    ready(h, "db-1", false).await;
    h.create(pod("db-2", "")).await.unwrap();
    budget(h, "db", json!({"minAvailable": 2})).await;
    // It has not started: nothing is lost with it.
    assert!(evict(h, "db-2").await.unwrap().gone);
    assert_eq!(code(evict(h, "db-1").await), Some(Code::ResourceExhausted), "too few others are healthy");
    budget(h, "db", json!({"minAvailable": 2, "unhealthyPodEvictionPolicy": "AlwaysAllow"})).await;
    assert_eq!(code(evict(h, "db-0").await), Some(Code::ResourceExhausted));
    assert_eq!(code(evict(h, "db-1").await), None);
    ready(h, "db-3", false).await;
    budget(h, "db", json!({"minAvailable": 1, "unhealthyPodEvictionPolicy": "IfHealthyBudget"})).await;
    assert_eq!(code(evict(h, "db-3").await), None, "as many as must be are healthy without it");
}

async fn every_budget_of_a_pod_must_allow(h: &Harness) {
    ready(h, "db-0", true).await;
    ready(h, "db-1", true).await;
    budget(h, "loose", json!({"maxUnavailable": 1})).await;
    budget(h, "strict", json!({"maxUnavailable": 0})).await;
    let refused = evict(h, "db-0").await.unwrap_err();
    assert!(refused.message().contains("budget strict (maxUnavailable 0) needs 2 of 2"), "{}", refused.message());
    assert!(refused.message().contains("raise maxUnavailable of strict"), "{}", refused.message());
    budget(h, "strict", json!({"maxUnavailable": "50%"})).await;
    assert_eq!(code(evict(h, "db-0").await), None);
    assert_eq!(code(evict(h, "db-1").await), Some(Code::ResourceExhausted));
}

async fn an_eviction_checks_what_it_is_told(h: &Harness) {
    let pod = ready(h, "db-0", true).await;
    let ask = async |request: EvictRequest| h.api().evict(request).await.map(tonic::Response::into_inner);
    let request = EvictRequest { pod: "db-0".into(), ..EvictRequest::default() };
    let dry = ask(EvictRequest { dry_run: true, ..request.clone() }).await.unwrap();
    assert!(dry.pod.unwrap().is_terminating());
    assert!(!h.get::<Pod>("db-0").await.unwrap().is_terminating());
    let other = ask(EvictRequest { uid: "other".into(), ..request.clone() }).await.unwrap_err();
    assert_eq!(other.code(), Code::Aborted);
    let negative = ask(EvictRequest { grace_period_seconds: Some(-1), ..request.clone() }).await.unwrap_err();
    assert_eq!(violations(&negative)[0].0, "gracePeriodSeconds");
    assert_eq!(evict(h, "nobody").await.unwrap_err().code(), Code::NotFound);
    // An eviction never forgets a pod that may still run.
    let uid = pod.uid().to_owned();
    let answer = ask(EvictRequest { grace_period_seconds: Some(0), uid, ..request }).await.unwrap();
    assert!(!answer.gone);
    assert_eq!(answer.pod.unwrap().meta().deletion_grace_period_seconds, Some(1));
}

async fn percentages_are_of_what_the_set_shall_have(h: &Harness) {
    h.apply(&[nginx(), web()]).await.unwrap();
    let set = h.get::<StatefulSet>("web").await.unwrap();
    for name in ["web-0", "web-1"] {
        let mut pod = pod(name, "n1");
        pod.meta_mut().owner_references = vec![OwnerReference {
            api_version: "apps/v1".into(),
            kind: "StatefulSet".into(),
            name: "web".into(),
            uid: set.uid().into(),
            controller: Some(true),
            ..Default::default()
        }];
        h.create(pod).await.unwrap();
        ready(h, name, true).await;
    }
    // 60% of three, rounded up, are two: the third pod counts although it does not exist yet.
    budget(h, "web", json!({"minAvailable": "60%"})).await;
    let refused = evict(h, "web-0").await.unwrap_err();
    assert!(refused.message().contains("needs 2 of 3 pods healthy and has 2"), "{}", refused.message());
    let scale = UpdateScaleRequest { name: "web".into(), replicas: 1, ..Default::default() };
    h.api().update_scale(scale).await.unwrap();
    assert_eq!(code(evict(h, "web-1").await), None, "one of one is enough");
}

async fn many_pods_are_compared_as_a_range(h: &Harness) {
    let names: Vec<String> = (0..80).map(|number| format!("db-{number}")).collect();
    for name in &names {
        ready(h, name, true).await;
    }
    budget(h, "db", json!({"maxUnavailable": 1})).await;
    assert_eq!(code(evict(h, "db-7").await), None);
    assert_eq!(code(evict(h, "db-8").await), Some(Code::ResourceExhausted));
}
