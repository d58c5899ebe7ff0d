//! What users may do to nodes and to each other: paths of nodes, privileges, priorities.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use common::{Harness, violations, web};
use pb::{Object as _, api::v1::*, objects::*};
use serde_json::{Value, json};
use tonic::Code;

fn class(name: &str, value: i32, default: bool) -> Value {
    json!({
        "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
        "value": value, "globalDefault": default,
    })
}

fn pod(name: &str, class: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "a", "image": "a"}], "priorityClassName": class},
    })
}

fn fields(status: &tonic::Status) -> Vec<String> {
    violations(status).into_iter().map(|(field, _)| field).collect()
}

async fn priority(h: &Harness, name: &str) -> (String, Option<i32>) {
    let spec = h.get::<Pod>(name).await.unwrap().spec.unwrap();
    (spec.priority_class_name, spec.priority)
}

#[tokio::test]
async fn nodes_are_closed_to_pods_and_to_templates() {
    let h = Harness::over_memory().await;
    let mut set = web();
    let spec = &mut set["spec"]["template"]["spec"];
    spec["volumes"] = json!([{"name": "host", "hostPath": {"path": "/srv"}}]);
    spec["containers"][0]["securityContext"] = json!({"privileged": true});
    let refused = h.apply(&[set]).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let template = "spec.template.spec";
    let places = [".volumes[0].hostPath.path", ".containers[0].securityContext.privileged"];
    assert_eq!(fields(&refused), places.map(|place| format!("{template}{place}")));

    let mut pod = common::pod("p", "");
    pod.spec.as_mut().unwrap().containers[0].security_context =
        Some(SecurityContext { privileged: Some(true), ..Default::default() });
    assert_eq!(fields(&h.create(pod).await.unwrap_err()), ["spec.containers[0].securityContext.privileged"]);
    // A set that is there does not get what a new one would not get.
    h.apply(&[web()]).await.unwrap();
    let mut opened = web();
    opened["spec"]["template"]["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
    assert!(h.apply(&[opened]).await.is_err());
}

#[tokio::test]
async fn a_pod_has_the_priority_of_its_class_and_keeps_it() {
    let h = Harness::over_memory().await;
    let refused = h.apply(&[pod("p", "high")]).await.unwrap_err();
    assert_eq!(fields(&refused), ["spec.priorityClassName"]);
    assert!(violations(&refused)[0].1.contains("create that PriorityClass first"), "{refused:?}");
    // The class may come with the pod.
    h.apply(&[class("high", 1000, false), pod("p", "high")]).await.unwrap();
    assert_eq!(priority(&h, "p").await, ("high".to_owned(), Some(1000)));
    h.apply(&[pod("critical", "system-cluster-critical")]).await.unwrap();
    assert_eq!(priority(&h, "critical").await.1, Some(2_000_000_000));
    h.create(common::pod("plain", "")).await.unwrap();
    assert_eq!(priority(&h, "plain").await, (String::new(), None));

    // Whoever writes the pod again need not know its number, and cannot change it.
    assert_eq!(h.apply(&[pod("p", "high")]).await.unwrap()[0].outcome, "unchanged");
    let replace = |priority: Option<i32>| {
        let h = &h;
        async move {
            let mut pod = h.get::<Pod>("p").await.unwrap();
            let spec = pod.spec.as_mut().unwrap();
            (spec.priority, spec.preemption_policy) = (priority, String::new());
            let request = UpdateRequest { object: Some(pod.into_any()), ..Default::default() };
            h.api().update(request).await.map(drop)
        }
    };
    replace(None).await.unwrap();
    assert_eq!(priority(&h, "p").await.1, Some(1000));
    assert_eq!(fields(&replace(Some(7)).await.unwrap_err()), ["spec.priority"]);
}

#[tokio::test]
async fn one_class_alone_is_everybodys() {
    let h = Harness::over_memory().await;
    h.apply(&[class("usual", 10, true)]).await.unwrap();
    assert_eq!(h.apply(&[class("usual", 10, true)]).await.unwrap()[0].outcome, "unchanged");
    let refused = h.apply(&[class("other", 20, true)]).await.unwrap_err();
    assert_eq!(fields(&refused), ["globalDefault"]);
    h.create(common::pod("plain", "")).await.unwrap();
    assert_eq!(priority(&h, "plain").await, ("usual".to_owned(), Some(10)));
    let refused = h.apply(&[class("usual", 11, true)]).await.unwrap_err();
    assert_eq!(fields(&refused), ["value"]);
}
