//! What is answered.

use std::collections::BTreeMap;

use pb::{Object as _, objects::*};
use serde_json::json;

use super::*;

/// Nothing is known.
const NOTHING: Facts<'static> = Facts {
    now: Timestamp::UNIX_EPOCH,
    set: None,
    pods: &[],
    claims: &[],
    revisions: &[],
    services: &[],
    nodes: &[],
    budgets: &[],
    events: &[],
    volumes: &[],
    classes: &[],
    drivers: &[],
    attachments: &[],
    snapshots: &[],
};

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn labels() -> BTreeMap<String, String> {
    [("app".to_owned(), "nginx".to_owned())].into()
}

fn meta(name: &str) -> Option<ObjectMeta> {
    Some(ObjectMeta {
        name: name.into(),
        namespace: "default".into(),
        uid: format!("uid-{name}"),
        labels: labels(),
        ..Default::default()
    })
}

fn set() -> StatefulSet {
    let container = Container { name: "nginx".into(), image: "nginx".into(), ..Default::default() };
    StatefulSet {
        metadata: meta("web"),
        spec: Some(StatefulSetSpec {
            replicas: Some(3),
            selector: Some(LabelSelector { match_labels: labels(), ..Default::default() }),
            template: Some(PodTemplateSpec {
                metadata: meta(""),
                spec: Some(PodSpec { containers: vec![container], ..Default::default() }),
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn pod(name: &str, ready: bool) -> Pod {
    let mut pod = Pod {
        metadata: meta(name),
        spec: Some(PodSpec { node_name: "n1".into(), ..Default::default() }),
        status: Some(PodStatus {
            phase: "Running".into(),
            conditions: vec![Condition {
                r#type: "Ready".into(),
                status: if ready { "True" } else { "False" }.into(),
                last_transition_time: Some(Time { seconds: 100, nanos: 0 }),
                ..Default::default()
            }],
            container_statuses: vec![ContainerStatus { name: "nginx".into(), ready, ..Default::default() }],
            ..Default::default()
        }),
        ..Default::default()
    };
    pod.meta_mut().owner_references = vec![OwnerReference {
        kind: "StatefulSet".into(),
        name: "web".into(),
        uid: "uid-web".into(),
        controller: Some(true),
        ..Default::default()
    }];
    pod
}

fn ask(asked: &Asked, pods: &[&Pod]) -> WhyResponse {
    let set = set();
    let facts = Facts { now: now(), set: Some(&set), pods, ..NOTHING };
    explain(asked, &facts)
}

#[test]
fn a_missing_pod_is_explained_by_the_one_that_holds_it_up() {
    let (first, second) = (pod("web-0", true), pod("web-1", false));
    let answer = ask(&Asked::Pod("web-2".into()), &[&first, &second]);
    let reasons: Vec<_> = answer.reasons.iter().map(|r| (r.object.as_str(), r.reason.as_str())).collect();
    assert_eq!(reasons[..2], [("pod/web-2", "PredecessorNotReady"), ("pod/web-1", "NotReady")], "{answer:#?}");
    assert!(answer.summary.contains("web-1 has to be ready"), "{}", answer.summary);
    assert!(answer.reasons.iter().any(|r| r.message.contains("readiness probe does not hold")));
    assert_eq!(answer.reasons[1].since, Some(Time { seconds: 100, nanos: 0 }));
    assert!(answer.reasons[1].advice.contains("berth logs web-1"));
}

#[test]
fn a_pod_that_a_budget_holds_back_is_explained_by_the_pod_that_is_down() {
    let mut set = set();
    set.spec.as_mut().unwrap().replicas = Some(1);
    let (first, second, down) = (pod("web-0", true), pod("web-1", true), pod("other-0", false));
    let budget = PodDisruptionBudget {
        metadata: meta("pdb"),
        spec: Some(PodDisruptionBudgetSpec {
            min_available: Some(IntOrString::int(2)),
            selector: Some(LabelSelector::default()),
            ..Default::default()
        }),
        ..Default::default()
    };
    let pods = [&first, &second, &down];
    let budgets = &[Budget::of(&budget, &pods, &[&set])];
    let facts = Facts { now: now(), set: Some(&set), pods: &pods, budgets, ..NOTHING };
    let answer = explain(&Asked::Pod("web-1".into()), &facts);
    let reason = &answer.reasons[0];
    assert_eq!((reason.object.as_str(), reason.reason.as_str()), ("pod/web-1", "DisruptionBudget"), "{answer:#?}");
    assert_eq!(
        reason.message,
        "web-1 is to go, but disruption budget pdb (minAvailable 2) needs 2 of 3 pods healthy and has 2"
    );
    assert!(reason.advice.contains("`berth why other-0` says what holds that up"), "{}", reason.advice);
    assert!(reason.advice.contains("spec.budgetPolicy: Ignore"), "{}", reason.advice);
}

#[test]
fn a_pod_on_a_silent_node_has_a_way_out() {
    let mut stuck = pod("web-0", true);
    stuck.meta_mut().deletion_timestamp = Some(Time { seconds: 100, nanos: 0 });
    let silent = Condition { r#type: "Ready".into(), status: "Unknown".into(), ..Default::default() };
    let node = Node {
        metadata: meta("n1"),
        status: Some(NodeStatus { conditions: vec![silent], ..Default::default() }),
        ..Default::default()
    };
    let (set, pods, nodes) = (set(), [&stuck], [&node]);
    let facts = Facts { now: now(), set: Some(&set), pods: &pods, nodes: &nodes, ..NOTHING };
    let answer = explain(&Asked::Pod("web-0".into()), &facts);
    let advice = answer.reasons.iter().map(|reason| reason.advice.as_str()).collect::<Vec<_>>().join("\n");
    assert!(!advice.contains("--grace-period=0"), "{answer:#?}");
    assert!(advice.contains("`berth taint node n1 node.kubernetes.io/out-of-service=off:NoExecute`"), "{advice}");
    assert!(advice.contains("`berth delete node n1`"), "{advice}");
}

#[test]
fn a_pod_behind_one_that_is_about_to_be_created_is_wanted() {
    let first = pod("web-0", true);
    let answer = ask(&Asked::Pod("web-2".into()), &[&first]);
    assert_eq!(answer.summary, "web-2 is not created yet: web-1 comes first", "{answer:#?}");
    assert_eq!(answer.reasons[0].reason, "ControllerDue");
}

#[test]
fn a_set_that_went_back_or_missed_its_deadline_says_so_and_what_to_do() {
    let mut set = set();
    set.spec.as_mut().unwrap().progress_deadline_seconds = Some(60);
    let broken = pod("web-0", false);
    let pods = [&broken];
    let asked = |set: &StatefulSet| {
        let facts = Facts { now: now(), set: Some(set), pods: &pods, ..NOTHING };
        let answer = explain(&Asked::Set, &facts);
        let last = answer.reasons.last().cloned().unwrap();
        (last, planned(set, &facts).status)
    };
    // The status as the controller writes it, and then nothing moves for a minute.
    let (_, status) = asked(&set);
    plan::statefulset::stamp::status(&status, set.status.get_or_insert_default());
    let stored = set.status.as_mut().unwrap();
    stored.last_progress_time = Some(Time { seconds: 1_767_225_540, nanos: 0 });
    let (overdue, status) = asked(&set);
    assert_eq!((overdue.object.as_str(), overdue.reason.as_str()), ("statefulset/web", "ProgressDeadlineExceeded"));
    assert!(overdue.advice.contains("`berth rollout undo sts/web`"), "{}", overdue.advice);

    let stored = set.status.as_mut().unwrap();
    stored.failed_revision = "web-bad".into();
    stored.complete_revision = status.update_revision.unwrap().to_string();
    stored.last_progress_time = Some(Time { seconds: 1_767_225_590, nanos: 0 });
    let (reverted, _) = asked(&set);
    assert_eq!(reverted.reason, "RolloutReverted");
    assert!(reverted.message.contains("revision web-bad missed its deadline"), "{}", reverted.message);
}

#[test]
fn a_complete_set_has_no_reasons() {
    let pods = [pod("web-0", true), pod("web-1", true), pod("web-2", true)];
    let pods: Vec<&Pod> = pods.iter().collect();
    let answer = ask(&Asked::Set, &pods);
    assert_eq!(answer.summary, "statefulset web has 3 of 3 replicas available", "{answer:#?}");
    assert!(ask(&Asked::Pod("web-9".into()), &pods).summary.contains("not wanted"));
}
fn read<T: pb::Object>(json: serde_json::Value) -> T {
    serde_json::from_value(json).unwrap()
}

fn bound(status: serde_json::Value) -> (PersistentVolumeClaim, PersistentVolume) {
    let claim = read(json!({
        "metadata": {"name": "www-web-0", "namespace": "default", "uid": "c"},
        "spec": {"volumeName": "pv", "accessModes": ["ReadWriteOnce"], "storageClassName": "shared"},
        "status": status,
    }));
    let volume = read(json!({
        "metadata": {"name": "pv"},
        "spec": {
            "csi": {"driver": "shared", "volumeHandle": "a"}, "accessModes": ["ReadWriteOnce"],
            "claimRef": {"namespace": "default", "name": "www-web-0", "uid": "c"},
        },
        "status": {"phase": "Bound"},
    }));
    (claim, volume)
}

/// The reasons about a claim, as words.
fn about(facts: &Facts<'_>) -> Vec<(String, String, String)> {
    let answer = explain(&Asked::Claim("www-web-0".into()), facts);
    answer.reasons.into_iter().map(|reason| (reason.reason, reason.message, reason.advice)).collect()
}

#[test]
fn a_claim_that_cannot_get_a_volume_has_the_planners_reason() {
    let claim: PersistentVolumeClaim = read(json!({
        "metadata": {"name": "www-web-0", "namespace": "default", "uid": "c"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }));
    let claims = [&claim];
    let facts = Facts { claims: &claims, ..NOTHING };
    let reasons = about(&facts);
    assert_eq!(reasons[0].0, "NoDefaultClass", "{reasons:#?}");
    let class: StorageClass = read(json!({
        "metadata": {"name": "fast", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "foreign", "volumeBindingMode": "WaitForFirstConsumer",
    }));
    let classes = [&class];
    let facts = Facts { classes: &classes, ..facts };
    assert_eq!(about(&facts)[0].0, "UnknownProvisioner");
    let driver: CsiDriver = read(json!({"metadata": {"name": "foreign"}}));
    let drivers = [&driver];
    let reasons = about(&Facts { drivers: &drivers, ..facts });
    assert_eq!((reasons[0].0.as_str(), reasons.len()), ("ClaimNotBound", 1), "{reasons:#?}");
}

#[test]
fn a_volume_that_another_node_has_is_explained_by_who_holds_it() {
    let (claim, volume) = bound(json!({"phase": "Bound"}));
    let pod = |name: &str, node: &str| -> Pod {
        read(json!({
            "metadata": {"name": name},
            "spec": {"nodeName": node, "volumes": [{"name": "w", "persistentVolumeClaim": {"claimName": "www-web-0"}}]},
        }))
    };
    let (waiting, holding) = (pod("a", "n2"), pod("b", "n1"));
    let attachment: VolumeAttachment = read(json!({
        "metadata": {"name": "csi-1"},
        "spec": {"attacher": "shared", "nodeName": "n1", "source": {"persistentVolumeName": "pv"}},
        "status": {"attached": true},
    }));
    let (claims, volumes, pods, attachments) = ([&claim], [&volume], [&waiting, &holding], [&attachment]);
    let facts = Facts { claims: &claims, volumes: &volumes, pods: &pods, attachments: &attachments, ..NOTHING };
    let reasons = about(&facts);
    assert_eq!(reasons[0].0, "MultiAttach", "{reasons:#?}");
    assert_eq!(reasons[0].2, "pod b uses it there; it is free when that pod is gone");
    let silent: Node = read(json!({"metadata": {"name": "n1"}}));
    assert!(about(&Facts { nodes: &[&silent], ..facts })[0].2.contains("berth taint node n1"));
    let reasons = about(&Facts { attachments: &[], ..facts });
    assert_eq!(reasons[0].0, "NotAttached", "{reasons:#?}");
    let plain: CsiDriver = read(json!({"metadata": {"name": "shared"}, "spec": {"attachRequired": false}}));
    assert!(about(&Facts { attachments: &[], drivers: &[&plain], ..facts }).is_empty());
}

#[test]
fn what_is_done_with_a_claim_is_said_with_how_far_it_is() {
    let operation = |phase: &str| {
        json!({"phase": "Bound", "operation": {
            "id": "x", "type": "Move", "targetNode": "n2", "phase": phase, "message": "pod web-0 stops",
        }})
    };
    let lost = json!({"phase": "Bound", "conditions": [
        {"type": "VolumeLost", "status": "True", "message": "node n1 is gone"},
        {"type": "FileSystemResizePending", "status": "True", "message": "the kernel refuses"},
    ]});
    let cases = [
        (
            operation("Waiting"),
            vec!["ClaimHeld"],
            "claim www-web-0 is held by the move to n2 (Waiting): pod web-0 stops",
        ),
        (operation("Failed"), vec!["OperationFailed"], "the move to n2 of claim www-web-0 failed: pod web-0 stops"),
        (operation("Done"), vec![], ""),
        (lost, vec!["VolumeLost", "FileSystemResizePending"], "node n1 is gone"),
    ];
    for (status, expected, message) in cases {
        let (claim, volume) = bound(status);
        let (claims, volumes) = ([&claim], [&volume]);
        let reasons = about(&Facts { claims: &claims, volumes: &volumes, ..NOTHING });
        assert_eq!(reasons.iter().map(|reason| reason.0.as_str()).collect::<Vec<_>>(), expected, "{reasons:#?}");
        assert_eq!(reasons.first().map_or("", |reason| reason.1.as_str()), message);
    }
}
