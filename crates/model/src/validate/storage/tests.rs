//! What a user may get wrong about volumes, and what the answer says.

use pb::{
    api::v1::object::Object as Variant,
    objects::{PersistentVolumeClaimStatus, Quantity as Written},
};
use serde_json::{Value, json};

use super::super::{
    tests::{bad, good, updated, web, with},
    update,
};

fn claim() -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
    })
}

fn volume() -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "disk"},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce", "ReadOnlyMany"],
            "csi": {"driver": "local", "volumeHandle": "a"},
            "claimRef": {"namespace": "default", "name": "data"},
            "mountOptions": ["noatime"],
            "nodeAffinity": {"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["x"]}]},
            ]}},
        },
    })
}

fn class() -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "fast"},
        "provisioner": "kubernetes.io/no-provisioner", "allowVolumeExpansion": true, "mountOptions": ["noatime"],
        "allowedTopologies": [{"matchLabelExpressions": [{"key": "zone", "values": ["a", "b"]}]}],
    })
}

fn snapshot(spec: Value) -> Value {
    json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": "s"}, "spec": spec,
    })
}

fn from(kind: &str, name: &str) -> Value {
    match kind {
        "VolumeSnapshot" => json!({"apiGroup": "snapshot.storage.k8s.io", "kind": kind, "name": name}),
        _ => json!({"kind": kind, "name": name}),
    }
}

#[test]
fn what_kubernetes_users_write_is_taken() {
    let read = good(&volume()).to_json().unwrap();
    assert_eq!(read["status"]["phase"], "Available");
    assert_eq!(read["spec"]["claimRef"]["kind"], "PersistentVolumeClaim");
    good(&class());
    good(&with(class(), "/provisioner", json!("nfs.csi.k8s.io")));
    for mode in super::ACCESS_MODES {
        good(&with(claim(), "/spec/accessModes", json!([mode])));
    }
    good(&with(claim(), "/spec/selector", json!({"matchLabels": {"disk": "ssd"}})));
    let cloned = good(&with(claim(), "/spec/dataSource", from("PersistentVolumeClaim", "other"))).to_json().unwrap();
    assert_eq!(cloned["spec"]["dataSourceRef"], cloned["spec"]["dataSource"], "each word brings the other");
    good(&snapshot(json!({"source": {"persistentVolumeClaimName": "data"}})));
    let driver = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": "nfs.csi.k8s.io"},
        "spec": {"attachRequired": false, "volumeLifecycleModes": ["Persistent"], "fsGroupPolicy": "File"},
    });
    good(&driver);
}

#[test]
fn what_is_wrong_is_named_where_it_stands() {
    let cases = [
        (claim(), "/spec/accessModes", json!(["ReadWriteOncePod", "ReadOnlyMany"]), "spec.accessModes: Forbidden"),
        (claim(), "/spec/accessModes", json!(["RWX"]), "spec.accessModes: Unsupported value: \"RWX\""),
        (
            claim(),
            "/spec/selector",
            json!({"matchExpressions": [{"key": "a", "operator": "In"}]}),
            "spec.selector.matchExpressions[0].values: Required value",
        ),
        (
            claim(),
            "/spec/dataSource",
            json!({"kind": "VolumeSnapshot", "name": "s"}),
            "spec.dataSource.apiGroup: Required value: for a VolumeSnapshot: snapshot.storage.k8s.io",
        ),
        (claim(), "/spec/dataSource", from("Pod", "s"), "spec.dataSource.kind: Unsupported value: \"Pod\""),
        (
            claim(),
            "/spec/dataSource",
            from("VolumeSnapshot", "www-$(ordinal)"),
            "spec.dataSource.name: Invalid value: \"www-$(ordinal)\": an ordinal can stand only in the claim template",
        ),
        (volume(), "/spec/capacity/storage", json!("0"), "spec.capacity[storage]: Invalid value"),
        (volume(), "/spec/csi", json!(null), "spec.csi: Required value"),
        (volume(), "/spec/claimRef/name", json!(""), "spec.claimRef.name: Required value"),
        (volume(), "/spec/mountOptions", json!(["ro,noatime"]), "spec.mountOptions[0]: Invalid value"),
        (volume(), "/spec/nodeAffinity", json!({}), "spec.nodeAffinity.required: Required value"),
        (
            volume(),
            "/spec/nodeAffinity/required/nodeSelectorTerms/0/matchExpressions/0/values",
            json!([]),
            "spec.nodeAffinity.required.nodeSelectorTerms[0].matchExpressions[0].values: Required value",
        ),
        (volume(), "/spec/hostPath", json!({"path": "/x"}), "spec.hostPath: Unsupported field: volumes come from CSI"),
        (
            class(),
            "/allowedTopologies/0/matchLabelExpressions/0/values",
            json!(["a", "a"]),
            "allowedTopologies[0].matchLabelExpressions[0].values[1]: Duplicate value",
        ),
        (
            class(),
            "/allowedTopologies/0/matchLabelExpressions",
            json!([]),
            "allowedTopologies[0].matchLabelExpressions: Required value",
        ),
        (
            snapshot(json!({"source": {"persistentVolumeClaimName": "data"}})),
            "/spec/volumeSnapshotClassName",
            json!("fast"),
            "spec.volumeSnapshotClassName: Unsupported field: Berth has no classes of snapshots",
        ),
        (
            snapshot(json!({"source": {"persistentVolumeClaimName": "data"}})),
            "/spec/source/volumeSnapshotContentName",
            json!("content"),
            "spec.source.volumeSnapshotContentName: Unsupported field: Berth has no objects for snapshots made outside",
        ),
        (
            snapshot(json!({"source": {"persistentVolumeClaimName": "data"}})),
            "/spec",
            json!({}),
            "spec.source.persistentVolumeClaimName: Required value",
        ),
    ];
    for (json, pointer, value, expected) in cases {
        let texts = bad(&with(json, pointer, value));
        assert_eq!(texts.len(), 1, "{pointer}: {texts:?}");
        assert!(texts[0].starts_with(expected), "{pointer}: {texts:?}");
    }
    let other = with(claim(), "/spec/dataSource", from("PersistentVolumeClaim", "a"));
    let texts = bad(&with(other, "/spec/dataSourceRef", from("PersistentVolumeClaim", "b")));
    assert_eq!(texts.len(), 1, "{texts:?}");
    assert!(texts[0].starts_with("spec.dataSourceRef: Invalid value"), "{texts:?}");
}

#[test]
fn a_template_may_name_the_ordinal_in_its_source() {
    let source = |name: &str| with(web(), "/spec/volumeClaimTemplates/0/spec/dataSource", from("VolumeSnapshot", name));
    good(&source("nightly-www-web-$(ordinal)"));
    good(&source("www-web-$(previous)"));
    let texts = bad(&source("www-$(replica)"));
    assert_eq!(texts.len(), 1, "{texts:?}");
    assert!(texts[0].starts_with("spec.volumeClaimTemplates[0].spec.dataSource.name: Invalid value"), "{texts:?}");
}

/// What becomes of a bound claim of 2Gi whose volume has `capacity`.
fn sized(capacity: &str, infeasible: bool, to: &str) -> Vec<String> {
    let size = |size: &str| with(claim(), "/spec/resources/requests/storage", json!(size));
    let (mut old, new) = (good(&size("2Gi")), good(&size(to)));
    if let Some(Variant::PersistentVolumeClaim(claim)) = &mut old.object {
        let mut status = PersistentVolumeClaimStatus::default();
        if !capacity.is_empty() {
            status.capacity.insert("storage".to_owned(), Written { value: capacity.to_owned() });
        }
        if infeasible {
            status.allocated_resource_statuses.insert("storage".into(), "ControllerResizeInfeasible".into());
        }
        claim.status = Some(status);
    }
    update(&old, &new).iter().map(ToString::to_string).collect()
}

#[test]
fn a_claim_grows_and_never_shrinks() {
    const AT: &str = "spec.resources.requests[storage]: ";
    assert_eq!(sized("2Gi", false, "3Gi"), [""; 0]);
    assert_eq!(sized("2Gi", false, "2048Mi"), [""; 0], "the same amount in another spelling");
    let lines = [
        (sized("2Gi", false, "1Gi"), "Invalid value: \"1Gi\": the volume has 2Gi already, and volumes never shrink"),
        (
            sized("1Gi", false, "1536Mi"),
            "Invalid value: \"1536Mi\": a claim never asks for less than before, which is 2Gi",
        ),
        (sized("", false, "3Gi"), "Forbidden: a claim can grow once it is bound to a volume; until then, make it anew"),
        (sized("1Gi", true, "512Mi"), "Invalid value: \"512Mi\": the volume has 1Gi already, and volumes never shrink"),
    ];
    for (texts, expected) in lines {
        assert_eq!(texts, [format!("{AT}{expected}")]);
    }
    assert_eq!(sized("1Gi", true, "1Gi"), [""; 0], "what cannot be given may be asked for no longer");
}

#[test]
fn what_a_claim_is_bound_to_is_said_once() {
    let bound = |to: &str| with(claim(), "/spec/volumeName", json!(to));
    assert!(updated(&claim(), &bound("disk")).is_empty());
    let texts = updated(&bound("disk"), &bound("other"));
    assert_eq!(texts.len(), 1, "{texts:?}");
    assert!(texts[0].starts_with("spec.volumeName: Forbidden: field is immutable once it is set"), "{texts:?}");
    let texts = updated(&claim(), &with(claim(), "/spec/storageClassName", json!("fast")));
    assert!(texts[0].starts_with("spec.storageClassName: Forbidden: field is immutable"), "{texts:?}");
}

#[test]
fn of_volumes_snapshots_and_drivers_little_changes() {
    assert!(updated(&volume(), &with(volume(), "/spec/persistentVolumeReclaimPolicy", json!("Delete"))).is_empty());
    assert!(updated(&volume(), &with(volume(), "/spec/claimRef", json!(null))).is_empty());
    let everywhere = with(volume(), "/spec/nodeAffinity", json!(null));
    assert!(updated(&everywhere, &volume()).is_empty(), "nodes may be said later");
    for (old, new, expected) in [
        (volume(), everywhere, "spec.nodeAffinity: Forbidden"),
        (volume(), with(volume(), "/spec/csi/volumeHandle", json!("b")), "spec.csi.volumeHandle: Forbidden"),
        (
            snapshot(json!({"source": {"persistentVolumeClaimName": "a"}})),
            snapshot(json!({"source": {"persistentVolumeClaimName": "b"}})),
            "spec.source.persistentVolumeClaimName: Forbidden: field is immutable: a snapshot is of one claim",
        ),
        (class(), with(class(), "/provisioner", json!("local")), "provisioner: Forbidden"),
    ] {
        let texts = updated(&old, &new);
        assert_eq!(texts.len(), 1, "{texts:?}");
        assert!(texts[0].starts_with(expected), "{texts:?}");
    }
    assert!(updated(&class(), &with(class(), "/allowVolumeExpansion", json!(false))).is_empty());
}
