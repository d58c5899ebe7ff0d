//! However many mistakes are planted in a manifest, one answer names the place of each; and an object that was read
//! and written reads back as the same.

#![allow(clippy::unwrap_used, reason = "a place that the test itself wrote")]

use model::decode::{self, Mode};
use proptest::{prelude::*, sample::subsequence};
use serde_json::{Value, json};

fn web() -> Value {
    json!({
        "apiVersion": "berth/v1", "kind": "StatefulSet",
        "metadata": {"name": "web", "labels": {"tier": "db"}},
        "spec": {
            "replicas": 3,
            "serviceName": "nginx",
            "selector": {"matchLabels": {"app": "nginx"}},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 1}},
            "ordinals": {"start": 1, "reserved": [3, "5-7"]},
            "progressDeadlineSeconds": 600,
            "autoRevert": true,
            "overrides": [{
                "ordinals": ["1-2"],
                "containers": [{"name": "nginx", "resources": {"limits": {"cpu": "2"}}}],
                "volumeClaims": [{"name": "www", "storage": "2Gi"}],
            }],
            "template": {
                "metadata": {"labels": {"app": "nginx"}},
                "spec": {
                    "terminationGracePeriodSeconds": 10,
                    "volumes": [{"name": "scratch", "emptyDir": {}}],
                    "containers": [
                        {
                            "name": "nginx", "image": "nginx:1",
                            "ports": [{"containerPort": 80, "name": "web"}],
                            "env": [{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                            "resources": {"requests": {"cpu": "100m"}, "limits": {"memory": "64Mi"}},
                            "readinessProbe": {"httpGet": {"path": "/", "port": "web"}},
                            "volumeMounts": [{"name": "www", "mountPath": "/www"}, {"name": "scratch", "mountPath": "/tmp"}],
                        },
                        {"name": "side", "image": "side:1"},
                    ],
                },
            },
            "volumeClaimTemplates": [{
                "metadata": {"name": "www"},
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
            }],
        },
    })
}

/// Mistakes that do not touch each other: where to write what, and the path that must be named.
fn mistakes() -> Vec<(&'static str, &'static str, Value, &'static str)> {
    let container = "/spec/template/spec/containers/0";
    let claim = "/spec/volumeClaimTemplates/0/spec";
    vec![
        ("/metadata", "labels", json!({"tier": "d b"}), "metadata.labels"),
        ("/metadata", "colour", json!("red"), "metadata.colour"),
        ("/spec", "replicas", json!(-1), "spec.replicas"),
        ("/spec", "serviceName", json!(["nginx"]), "spec.serviceName"),
        ("/spec", "podManagementPolicy", json!("Random"), "spec.podManagementPolicy"),
        ("/spec", "minReadySeconds", json!("soon"), "spec.minReadySeconds"),
        ("/spec", "replicaCount", json!(3), "spec.replicaCount"),
        ("/spec/updateStrategy/rollingUpdate", "partition", json!(1.5), "spec.updateStrategy.rollingUpdate.partition"),
        ("/spec/template/metadata", "labels", json!({"app": "apache"}), "spec.template.metadata.labels"),
        ("/spec/template/spec", "hostNetwork", json!(true), "spec.template.spec.hostNetwork"),
        ("/spec/template/spec", "restartPolicy", json!("Never"), "spec.template.spec.restartPolicy"),
        ("/spec/template/spec/volumes/0", "emptyDir", json!("yes"), "spec.template.spec.volumes[0].emptyDir"),
        (container, "image", json!(null), "spec.template.spec.containers[0].image"),
        (container, "command", json!("sleep"), "spec.template.spec.containers[0].command"),
        (container, "imagePullPolicy", json!("Sometimes"), "spec.template.spec.containers[0].imagePullPolicy"),
        (
            "/spec/template/spec/containers/0/ports/0",
            "containerPort",
            json!(70_000),
            "spec.template.spec.containers[0].ports[0].containerPort",
        ),
        (
            "/spec/template/spec/containers/0/env/0",
            "name",
            json!("A=B"),
            "spec.template.spec.containers[0].env[0].name",
        ),
        (
            "/spec/template/spec/containers/0/resources/requests",
            "cpu",
            json!("lots"),
            "spec.template.spec.containers[0].resources.requests[cpu]",
        ),
        (
            "/spec/template/spec/containers/0/resources/limits",
            "memory",
            json!(true),
            "spec.template.spec.containers[0].resources.limits[memory]",
        ),
        (
            "/spec/template/spec/containers/0/readinessProbe/httpGet",
            "port",
            json!(0),
            "spec.template.spec.containers[0].readinessProbe.httpGet.port",
        ),
        (
            "/spec/template/spec/containers/0/volumeMounts/1",
            "name",
            json!("nowhere"),
            "spec.template.spec.containers[0].volumeMounts[1].name",
        ),
        ("/spec/template/spec/containers/1", "name", json!("nginx"), "spec.template.spec.containers[1].name"),
        ("/spec", "deletionOrder", json!("Sideways"), "spec.deletionOrder"),
        ("/spec", "maxConcurrentStart", json!(0), "spec.maxConcurrentStart"),
        ("/spec", "progressDeadlineSeconds", json!(-1), "spec.progressDeadlineSeconds"),
        ("/spec", "budgetPolicy", json!(true), "spec.budgetPolicy"),
        ("/spec/ordinals/reserved", "1", json!("7-5"), "spec.ordinals.reserved[1]"),
        ("/spec/overrides/0/ordinals", "0", json!("x"), "spec.overrides[0].ordinals[0]"),
        ("/spec/overrides/0/containers/0", "name", json!("ngnix"), "spec.overrides[0].containers[0].name"),
        (
            "/spec/overrides/0/containers/0/resources/limits",
            "cpu",
            json!("lots"),
            "spec.overrides[0].containers[0].resources.limits[cpu]",
        ),
        ("/spec/overrides/0/volumeClaims/0", "storage", json!(null), "spec.overrides[0].volumeClaims[0].storage"),
        (claim, "accessModes", json!([]), "spec.volumeClaimTemplates[0].spec.accessModes"),
        (claim, "volumeMode", json!("Block"), "spec.volumeClaimTemplates[0].spec.volumeMode"),
        (
            "/spec/volumeClaimTemplates/0/spec/resources/requests",
            "storage",
            json!("0"),
            "spec.volumeClaimTemplates[0].spec.resources.requests[storage]",
        ),
    ]
}

fn planted(planted: &[(&str, &str, Value, &str)]) -> Value {
    let mut manifest = web();
    for (parent, field, value, _) in planted {
        write(&mut manifest, parent, field, value.clone());
    }
    manifest
}

/// Writes a field of an object, or an element of a list.
fn write(manifest: &mut Value, parent: &str, field: &str, value: Value) {
    let parent = manifest.pointer_mut(parent).unwrap();
    match field.parse::<usize>() {
        Ok(index) => parent[index] = value,
        Err(_) => parent[field] = value,
    }
}

#[test]
fn each_mistake_alone_gives_one_error() {
    for mistake in mistakes() {
        let path = mistake.3;
        let errors = decode::manifest(&planted(&[mistake]), Mode::Strict).expect_err(path);
        let paths: Vec<_> = errors.iter().map(|e| e.path.as_str()).collect();
        assert_eq!(paths, [path], "{errors:?}");
    }
}

proptest! {
    #[test]
    fn every_planted_mistake_is_named(chosen in subsequence(mistakes(), 1..=34)) {
        let errors = decode::manifest(&planted(&chosen), Mode::Strict).expect_err("mistakes were planted");
        for (_, _, _, path) in &chosen {
            prop_assert!(errors.iter().any(|e| e.path.as_str() == *path), "{path} is not among {errors:#?}");
        }
        // What is told beyond that is told for a reason: never two errors for one path here.
        prop_assert_eq!(errors.len(), chosen.len(), "{:#?}", errors);
    }

    #[test]
    fn written_and_read_again_is_the_same(
        replicas in 0i32..1000,
        partition in proptest::option::of(0i32..10),
        name in "[a-z]([a-z0-9-]{0,20}[a-z0-9])?",
        labels in proptest::collection::btree_map("[a-z]{1,5}(/[A-Za-z0-9]{1,8})?", "([A-Za-z0-9]([A-Za-z0-9_.-]{0,8}[A-Za-z0-9])?)?", 0..4),
        command in proptest::collection::vec(any::<String>(), 0..4),
        env in any::<String>(),
        max_unavailable in prop_oneof![(1i32..100).prop_map(|n| json!(n)), (1u32..=100).prop_map(|n| json!(format!("{n}%")))],
    ) {
        let mut manifest = web();
        manifest["metadata"]["name"] = json!(name);
        manifest["metadata"]["labels"] = json!(labels);
        manifest["spec"]["replicas"] = json!(replicas);
        manifest["spec"]["updateStrategy"]["rollingUpdate"] = json!({"partition": partition, "maxUnavailable": max_unavailable});
        manifest["spec"]["template"]["spec"]["containers"][0]["command"] = json!(command);
        manifest["spec"]["template"]["spec"]["containers"][1]["env"] = json!([{"name": "X", "value": env}]);
        let (first, _) = decode::manifest(&manifest, Mode::Strict).map_err(|e| TestCaseError::fail(format!("{e:#?}")))?;
        let written = first.to_json().expect("JSON");
        let (second, warnings) = decode::manifest(&written, Mode::Strict).map_err(|e| TestCaseError::fail(format!("{e:#?}")))?;
        prop_assert_eq!(&first, &second);
        prop_assert!(warnings.is_empty());
        // And what the user wrote is still there.
        prop_assert_eq!(&written["spec"]["template"]["spec"]["containers"][1]["env"][0]["name"], "X");
        prop_assert_eq!(&written["spec"]["replicas"], replicas);
    }

    #[test]
    fn no_json_panics(pointer in proptest::sample::select(mistakes()), junk in junk()) {
        let (parent, field, _, _) = pointer;
        let mut manifest = web();
        write(&mut manifest, parent, field, junk);
        drop(decode::manifest(&manifest, Mode::Warn));
    }
}

fn junk() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map("(name|key|value|port|storage|[a-z]{1,4})", inner, 0..4)
                .prop_map(|m| json!(m)),
        ]
    })
}
