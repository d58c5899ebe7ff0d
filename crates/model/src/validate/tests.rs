//! What a user may get wrong, and what the answer says.

use pb::{Kind, api::v1::Object as AnyObject};
use serde_json::{Value, json};

use crate::{
    decode::{self, Mode},
    error::ErrorKind,
};

pub(super) fn web() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "serviceName": "nginx",
            "selector": {"matchLabels": {"app": "nginx"}},
            "template": {
                "metadata": {"labels": {"app": "nginx"}},
                "spec": {"containers": [{
                    "name": "nginx", "image": "nginx",
                    "ports": [{"containerPort": 80, "name": "web"}],
                    "volumeMounts": [{"name": "www", "mountPath": "/usr/share/nginx/html"}],
                }]},
            },
            "volumeClaimTemplates": [{
                "metadata": {"name": "www"},
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
            }],
        },
    })
}

pub(super) fn good(json: &Value) -> AnyObject {
    match decode::manifest(json, Mode::Strict) {
        Ok((object, warnings)) => {
            assert!(warnings.is_empty(), "{warnings:?}");
            object
        }
        Err(errors) => panic!("{errors:#?}"),
    }
}

pub(super) fn bad(json: &Value) -> Vec<String> {
    let errors = decode::manifest(json, Mode::Strict).expect_err("must be refused");
    errors.iter().map(ToString::to_string).collect()
}

pub(super) fn with(mut json: Value, pointer: &str, value: Value) -> Value {
    match json.pointer_mut(pointer) {
        Some(place) => *place = value,
        None => {
            let (parent, field) = pointer.rsplit_once('/').unwrap();
            json.pointer_mut(parent).unwrap()[field] = value;
        }
    }
    json
}

pub(super) fn updated(old: &Value, new: &Value) -> Vec<String> {
    super::update(&good(old), &good(new)).iter().map(ToString::to_string).collect()
}

#[test]
fn the_documented_set_is_valid() {
    let set = good(&web());
    let json = set.to_json().unwrap();
    assert_eq!(json["spec"]["replicas"], 1);
    assert_eq!(json["spec"]["template"]["spec"]["containers"][0]["ports"][0]["protocol"], "TCP");
    assert_eq!(json["spec"]["volumeClaimTemplates"][0]["spec"]["volumeMode"], "Filesystem");
    assert_eq!(good(&json), set, "what was written reads back as the same");
}

#[test]
fn five_mistakes_five_errors() {
    let mut json = web();
    json["spec"]["replicas"] = json!("three");
    json["spec"]["podManagmentPolicy"] = json!("Parallel");
    json["spec"]["template"]["spec"]["containers"][0]["image"] = json!("");
    json["spec"]["template"]["spec"]["schedulingGates"] = json!([{"name": "example.com/wait"}]);
    json["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"] = json!("1 GB");
    assert_eq!(
        bad(&json),
        [
            r#"spec.podManagmentPolicy: Unknown field: did you mean "podManagementPolicy"?"#,
            r#"spec.replicas: Invalid value: "three": must be a whole number of 32 bits, not this string"#,
            "spec.template.spec.containers[0].image: Required value",
            "spec.template.spec.schedulingGates: Unsupported field: not supported by Berth yet",
            r#"spec.volumeClaimTemplates[0].spec.resources.requests[storage]: Invalid value: "1 GB": must be a number with an optional suffix (n u m k M G T P E, Ki Mi Gi Ti Pi Ei, or an exponent), such as 500m, 1Gi or 2.5"#,
        ]
    );
}

#[test]
fn a_value_of_the_wrong_type_is_not_also_missing() {
    assert_eq!(bad(&with(web(), "/spec/selector", json!("app=nginx"))).len(), 1);
    assert_eq!(bad(&with(web(), "/spec/template/spec/containers", json!({}))).len(), 1);
    assert_eq!(bad(&with(web(), "/metadata/name", json!(7))).len(), 1);
    assert_eq!(bad(&with(web(), "/spec/template/spec/containers/0", json!(7))).len(), 1);
}

#[test]
fn a_choice_that_is_not_there_is_not_also_missing() {
    let container = "/spec/template/spec/containers/0";
    let hook = json!({"preStop": {"tcpSocket": {"port": 80}}});
    assert_eq!(bad(&with(web(), &format!("{container}/lifecycle"), hook)).len(), 1);
    let probe = json!({"exce": {"command": ["true"]}});
    let texts = bad(&with(web(), &format!("{container}/livenessProbe"), probe));
    assert_eq!(texts, [r#"spec.template.spec.containers[0].livenessProbe.exce: Unknown field: did you mean "exec"?"#]);
}

#[test]
fn what_kubernetes_writes_out_is_taken() {
    let mut json = web();
    json["metadata"]["managedFields"] = json!([{"manager": "kubectl"}]);
    json["metadata"]["creationTimestamp"] = json!(null);
    json["spec"]["template"]["metadata"]["creationTimestamp"] = json!(null);
    json["spec"]["template"]["spec"]["dnsPolicy"] = json!("ClusterFirst");
    json["spec"]["template"]["spec"]["schedulerName"] = json!("default-scheduler");
    json["spec"]["template"]["spec"]["containers"][0]["terminationMessagePath"] = json!("/dev/termination-log");
    json["spec"]["template"]["spec"]["tolerations"] = json!([]);
    good(&json);
    assert_eq!(bad(&with(json, "/spec/template/spec/schedulerName", json!("mine"))).len(), 1);
}

#[test]
fn warn_mode_drops_and_says_so() {
    let mut json = web();
    json["spec"]["replica"] = json!(3);
    json["spec"]["template"]["spec"]["overhead"] = json!({"cpu": "1"});
    let (_, warnings) = decode::manifest(&json, Mode::Warn).unwrap();
    assert_eq!(
        warnings,
        [
            r#"unknown field spec.replica was dropped: did you mean "replicas"?"#,
            "field spec.template.spec.overhead was dropped: not supported by Berth yet",
        ]
    );
}

#[test]
fn kinds_and_versions() {
    let texts = bad(&json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}}));
    assert!(
        texts[0].starts_with(r#"kind: Unsupported value: "Deployment": supported values: "StatefulSet""#),
        "{texts:?}"
    );
    assert_eq!(bad(&json!({})).len(), 2);
    assert_eq!(
        bad(&with(web(), "/apiVersion", json!("apps/v1beta1"))),
        [r#"apiVersion: Unsupported value: "apps/v1beta1": supported values: "apps/v1", "berth/v1""#]
    );
    assert_eq!(bad(&json!([])).len(), 1);
    for kind in Kind::ALL {
        assert!(pb::schema::of(kind).name.eq_ignore_ascii_case(kind.name()), "{kind}");
    }
}

fn service(spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "nginx"}, "spec": spec})
}

#[test]
fn a_service_is_virtual_headless_or_a_name() {
    let app = json!({"app": "nginx"});
    good(&service(json!({"clusterIP": "None", "selector": app, "ports": [{"port": 80, "name": "web"}]})));
    good(&service(json!({"clusterIP": "None"})));
    good(&service(json!({"selector": app, "ports": [{"port": 80}]})));
    good(&service(
        json!({"clusterIP": "10.96.3.4", "clusterIPs": ["10.96.3.4"], "selector": app, "ports": [{"port": 80}]}),
    ));
    good(&service(json!({"type": "ExternalName", "externalName": "db.example.com."})));
    let udp = json!([{"port": 53, "name": "dns", "protocol": "UDP"}, {"port": 53, "name": "dns-tcp"}]);
    good(&service(json!({"selector": app, "ports": udp})));
}

#[test]
fn what_a_service_cannot_be_is_named_field_by_field() {
    let app = json!({"app": "nginx"});
    let paths = |spec: Value| -> Vec<String> {
        bad(&service(spec)).into_iter().map(|text| text.split(": ").next().unwrap().to_owned()).collect()
    };
    for (spec, expected) in [
        (json!({}), vec!["spec.ports", "spec.selector"]),
        (json!({"type": "NodePort", "selector": app, "ports": [{"port": 80}]}), vec!["spec.type"]),
        (json!({"type": "Other", "selector": app, "ports": [{"port": 80}]}), vec!["spec.type"]),
        (json!({"clusterIP": "fd00::1", "selector": app, "ports": [{"port": 80}]}), vec!["spec.clusterIP"]),
        (
            json!({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.2"], "selector": app, "ports": [{"port": 80}]}),
            vec!["spec.clusterIPs"],
        ),
        (json!({"type": "ExternalName"}), vec!["spec.externalName"]),
        (
            json!({"type": "ExternalName", "externalName": "10.0.0.1", "clusterIP": "None"}),
            vec!["spec.clusterIP", "spec.clusterIPs", "spec.externalName"],
        ),
        (json!({"clusterIP": "None", "externalName": "db.example.com"}), vec!["spec.externalName"]),
        (
            json!({"selector": app, "ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]}),
            vec!["spec.ports[1]"],
        ),
        (
            json!({"selector": app, "ports": [{"port": 80}], "sessionAffinity": "ClientIP"}),
            vec!["spec.sessionAffinity"],
        ),
    ] {
        assert_eq!(paths(spec.clone()), expected, "{spec}");
    }
    let texts = bad(&service(json!({"type": "LoadBalancer", "selector": app, "ports": [{"port": 80}]})));
    assert!(texts[0].contains("berth port-forward"), "{texts:?}");
}

#[test]
fn the_address_of_a_service_changes_only_with_its_type() {
    let old = service(json!({"clusterIP": "10.96.0.7", "selector": {"app": "nginx"}, "ports": [{"port": 80}]}));
    assert!(updated(&old, &with(old.clone(), "/spec/ports/0/port", json!(81))).is_empty());
    for other in ["10.96.0.8", "None"] {
        let texts = updated(&old, &with(old.clone(), "/spec/clusterIP", json!(other)));
        assert_eq!(texts.len(), 1, "{texts:?}");
        assert!(texts[0].starts_with("spec.clusterIP: Invalid value"), "{texts:?}");
    }
    let named = service(json!({"type": "ExternalName", "externalName": "db.example.com"}));
    assert!(updated(&old, &named).is_empty());
    assert!(updated(&named, &old).is_empty());
}

#[test]
fn what_berth_cannot_do_yet_is_refused() {
    let cases = [
        (
            "/spec/template/spec/containers/0/volumeDevices",
            json!([{"name": "www", "devicePath": "/dev/xvda"}]),
            "spec.template.spec.containers[0].volumeDevices",
        ),
        (
            "/spec/volumeClaimTemplates/0/spec/volumeMode",
            json!("Block"),
            "spec.volumeClaimTemplates[0].spec.volumeMode",
        ),
        ("/spec/template/spec/hostNetwork", json!(true), "spec.template.spec.hostNetwork"),
        (
            "/spec/template/spec/containers/0/resizePolicy",
            json!([{"resourceName": "cpu", "restartPolicy": "NotRequired"}]),
            "spec.template.spec.containers[0].resizePolicy",
        ),
        ("/metadata/name", json!("a".repeat(53)), "metadata.name"),
    ];
    for (pointer, value, path) in cases {
        let texts = bad(&with(web(), pointer, value));
        assert_eq!(texts.len(), 1, "{texts:?}");
        assert!(texts[0].starts_with(&format!("{path}: ")), "{texts:?}");
    }
    good(&with(web(), "/metadata/name", json!("a".repeat(52))));
}

#[test]
fn an_immutable_field_is_named() {
    let new = with(web(), "/spec/serviceName", json!("other"));
    let new = with(new, "/spec/volumeClaimTemplates/0/spec/accessModes", json!(["ReadWriteOncePod"]));
    let new = with(new, "/spec/replicas", json!(5));
    let texts = updated(&web(), &new);
    assert_eq!(texts.len(), 2, "{texts:?}");
    assert!(texts[0].starts_with("spec.serviceName: Forbidden: field is immutable"), "{texts:?}");
    assert!(texts[1].starts_with("spec.volumeClaimTemplates[0].spec.accessModes[0]: Forbidden"), "{texts:?}");
    let same = with(web(), "/spec/volumeClaimTemplates/0/spec/resources/requests/storage", json!("1024Mi"));
    assert!(updated(&web(), &same).is_empty(), "the same amount in another spelling");
}

#[test]
fn of_a_pod_only_images_change() {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "a", "image": "x:1"}, {"name": "b", "image": "y:1"}]},
    });
    assert!(updated(&pod, &with(pod.clone(), "/spec/containers/1/image", json!("y:2"))).is_empty());
    let texts = updated(&pod, &with(pod.clone(), "/spec/containers/1/command", json!(["sh"])));
    assert_eq!(texts.len(), 1);
    assert!(texts[0].starts_with("spec.containers[1].command: Forbidden"), "{texts:?}");
}

#[test]
fn frozen_configuration_stays() {
    let map = |value: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"k": value}, "immutable": true});
    let texts = updated(&map("a"), &map("b"));
    assert_eq!(texts, ["data[k]: Forbidden: field is immutable because `immutable` is set"]);
}

#[test]
fn kinds_of_errors() {
    let json = with(web(), "/spec/template/spec/containers/0/volumeMounts/0/name", json!("wwww"));
    let errors = decode::manifest(&json, Mode::Strict).unwrap_err();
    assert_eq!(errors[0].kind, ErrorKind::NotFound);
    assert_eq!(errors[0].description(), r#"Not found: "wwww": the pod's volumes are www"#);
}

#[test]
fn a_node_may_have_any_taint_once() {
    let node = |taints: Value| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "spec": {"taints": taints}});
    let off = json!({"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"});
    good(&node(json!([off, {"key": "gpu", "effect": "PreferNoSchedule"}, {"key": "gpu", "effect": "NoSchedule"}])));
    assert_eq!(
        bad(&node(json!([off, off, {"key": "g p u", "effect": "Never"}]))),
        [
            r#"spec.taints[1]: Duplicate value: "node.kubernetes.io/out-of-service:NoExecute""#,
            r#"spec.taints[2].effect: Unsupported value: "Never": supported values: "NoSchedule", "PreferNoSchedule", "NoExecute""#,
            "spec.taints[2].key: Invalid value: \"g p u\": must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character, with an optional DNS prefix and '/' (such as MyName, my.name or example.com/my-name)",
        ]
    );
}

#[test]
fn a_priority_class_keeps_its_value() {
    let class = |value: i64| {
        json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "high"},
            "value": value, "description": "first",
        })
    };
    good(&class(1_000_000_000));
    good(&class(-7));
    assert_eq!(
        bad(&with(class(1_000_000_001), "/metadata/name", json!("system-mine"))),
        [
            r#"metadata.name: Forbidden: names with prefix "system-" are reserved; the system's own classes exist without objects"#,
            "value: Forbidden: maximum allowed value of a user defined priority is 1000000000",
        ]
    );
    let other = with(with(class(8), "/preemptionPolicy", json!("Never")), "/description", json!("second"));
    let texts = updated(&class(7), &other);
    assert_eq!(texts.len(), 2, "{texts:?}");
    assert!(texts[0].starts_with("preemptionPolicy: Forbidden") && texts[1].starts_with("value: Forbidden"));
}
