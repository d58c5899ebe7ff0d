//! What users do with volumes: snapshots of a set, moving and restoring data, growing claims.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use common::*;
use pb::{
    Object, ObjectExt,
    agent::v1::RegisterRequest,
    api::v1::{Object as AnyObject, *},
    objects::*,
};
use serde_json::{Value, json};
use store::{Op, Txn, objects::put};
use tonic::Code;

over_both_stores!(
    snapshots_of_a_set_are_made_together_or_not_at_all,
    data_moves_once_its_pod_stops,
    data_moves_only_where_it_can,
    a_snapshot_takes_the_place_of_data,
    a_claim_grows_where_its_class_lets_it,
    attachments_are_the_volume_managers,
    usage_needs_the_volume_manager,
);

const DRIVER: &str = "local";

fn read<T: Object>(json: Value) -> T {
    T::from_any(AnyObject::from_json(T::KIND, json).unwrap()).unwrap()
}

async fn write(h: &Harness, ops: Vec<Op>) {
    h.store.txn(Txn { ops, ..Txn::default() }).await.unwrap();
}

/// A claim of 1Gi, bound to the volume `pv-<name>` on a node, as the volume manager writes them.
async fn bound(h: &Harness, name: &str, node: &str) {
    let claim: PersistentVolumeClaim = read(json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")},
        "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "volumeMode": "Filesystem",
            "storageClassName": "local", "volumeName": format!("pv-{name}"),
        },
        "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}},
    }));
    let volume: PersistentVolume = read(json!({
        "metadata": {"name": format!("pv-{name}")},
        "spec": {
            "capacity": {"storage": "1Gi"}, "csi": {"driver": DRIVER, "volumeHandle": name},
            "claimRef": {"namespace": "default", "name": name, "uid": format!("uid-{name}")},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "topology.local.berth.dev/node", "operator": "In", "values": [node]}]},
            ]}},
        },
    }));
    write(h, vec![put(&claim), put(&volume)]).await;
    // The service has to have heard of the volume.
    let deadline = std::time::Instant::now() + SOON;
    while h.get::<PersistentVolume>(&format!("pv-{name}")).await.is_err() {
        assert!(std::time::Instant::now() < deadline, "the volume never came");
        tokio::task::yield_now().await;
    }
}

async fn node(h: &Harness, name: &str, drivers: &[&str]) {
    let drivers: Vec<_> = drivers.iter().map(|name| json!({"name": name})).collect();
    let node: Node = read(json!({"metadata": {"name": name}, "status": {"csiDrivers": drivers}}));
    h.nodes().register(RegisterRequest { node: Some(node) }).await.unwrap();
}

async fn running(h: &Harness, name: &str, node: &str, claim: &str) {
    let mut pod = pod(name, node);
    let source = PersistentVolumeClaimVolumeSource { claim_name: claim.into(), ..Default::default() };
    let volume = Volume { name: "www".into(), persistent_volume_claim: Some(source), ..Default::default() };
    pod.spec.as_mut().unwrap().volumes = vec![volume];
    h.create(pod).await.unwrap();
}

fn of_pod(name: &str) -> Option<VolumeOwner> {
    Some(VolumeOwner { pod: name.into(), ..VolumeOwner::default() })
}

fn of_claim(name: &str) -> Option<VolumeOwner> {
    Some(VolumeOwner { claim: name.into(), ..VolumeOwner::default() })
}

async fn moved(
    h: &Harness,
    of: Option<VolumeOwner>,
    to: &str,
    stop: bool,
) -> Result<MoveVolumesResponse, tonic::Status> {
    let request = MoveVolumesRequest { of, target_node: to.into(), stop };
    Ok(h.api().move_volumes(request).await?.into_inner())
}

async fn restored(h: &Harness, from: &str) -> Result<RestoreVolumesResponse, tonic::Status> {
    let request = RestoreVolumesRequest { into: of_claim("www-web-0"), from: from.into(), stop: false };
    Ok(h.api().restore_volumes(request).await?.into_inner())
}

async fn snapshot(h: &Harness, group: &str, of: VolumeOwner) -> Result<Vec<VolumeSnapshot>, tonic::Status> {
    let request = SnapshotVolumesRequest { of: Some(of), group: group.into() };
    Ok(h.api().snapshot_volumes(request).await?.into_inner().snapshots)
}

async fn snapshots_of_a_set_are_made_together_or_not_at_all(h: &Harness) {
    h.apply(&[web()]).await.unwrap();
    bound(h, "www-web-0", "n1").await;
    bound(h, "www-web-1", "n1").await;
    let set = || VolumeOwner { stateful_set: "web".into(), ..VolumeOwner::default() };
    let missing = snapshot(h, "nightly", set()).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    assert!(missing.message().contains("default/www-web-2"), "{}", missing.message());
    bound(h, "www-web-2", "n2").await;
    let made = snapshot(h, "nightly", set()).await.unwrap();
    let names: Vec<_> = made.iter().map(|snapshot| snapshot.name().to_owned()).collect();
    assert_eq!(names, ["nightly-www-web-0", "nightly-www-web-1", "nightly-www-web-2"]);
    let stored = h.get::<VolumeSnapshot>("nightly-www-web-1").await.unwrap();
    assert_eq!(stored, made[1]);
    assert_eq!(stored.meta().labels["volume.berth.dev/group"], "nightly");
    assert_eq!(stored.spec.unwrap().source.unwrap().persistent_volume_claim_name, "www-web-1");

    let one = |pod: &str| VolumeOwner { pod: pod.into(), ..VolumeOwner::default() };
    assert_eq!(snapshot(h, "weekly", one("web-2")).await.unwrap().len(), 1);
    let again = snapshot(h, "weekly", set()).await.unwrap_err();
    assert_eq!(again.code(), Code::Aborted);
    assert!(
        again.message().contains("weekly-www-web-2 exists already, so no snapshot was made"),
        "{}",
        again.message()
    );
    assert!(h.get::<VolumeSnapshot>("weekly-www-web-0").await.is_err(), "all or none");
    for bad in ["", "Bad Name"] {
        assert_eq!(snapshot(h, bad, set()).await.unwrap_err().code(), Code::InvalidArgument);
    }
    let none = h.api().snapshot_volumes(SnapshotVolumesRequest { group: "g".into(), of: None }).await.unwrap_err();
    assert_eq!(violations(&none)[0].0, "of");
}

async fn data_moves_once_its_pod_stops(h: &Harness) {
    node(h, "n1", &[DRIVER]).await;
    node(h, "n2", &[DRIVER]).await;
    h.apply(&[web()]).await.unwrap();
    bound(h, "www-web-0", "n1").await;
    running(h, "web-0", "n1", "www-web-0").await;
    let refused = moved(h, of_pod("web-0"), "n2", false).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("pod web-0 uses the data now; with --stop"), "{}", refused.message());
    assert!(h.get::<PersistentVolumeClaim>("www-web-0").await.unwrap().status.unwrap().operation.is_none());

    let claims = moved(h, of_pod("web-0"), "n2", true).await.unwrap().claims;
    assert_eq!(claims.len(), 1);
    let stored = h.get::<PersistentVolumeClaim>("www-web-0").await.unwrap();
    assert_eq!(stored, claims[0]);
    let operation = stored.status.unwrap().operation.unwrap();
    assert_eq!((operation.r#type.as_str(), operation.phase.as_str()), ("Move", "Waiting"));
    assert_eq!((operation.target_node.as_str(), operation.id.len()), ("n2", 8));
    assert!(h.get::<Pod>("web-0").await.unwrap().is_terminating(), "asked to stop in the same write");

    let twice = moved(h, of_pod("web-0"), "n2", true).await.unwrap_err();
    assert_eq!(twice.code(), Code::FailedPrecondition);
    assert!(twice.message().contains(&format!("is held by operation {}", operation.id)), "{}", twice.message());
}

async fn data_moves_only_where_it_can(h: &Harness) {
    node(h, "n1", &[DRIVER]).await;
    node(h, "n2", &["foreign"]).await;
    node(h, "n3", &[DRIVER]).await;
    bound(h, "www-web-0", "n1").await;
    bound(h, "www-web-1", "gone").await;
    let why =
        async |claim: &str, to: &str| moved(h, of_claim(claim), to, false).await.unwrap_err().message().to_owned();
    assert!(why("www-web-0", "n9").await.contains("node n9 not found; `berth get nodes`"));
    assert!(why("www-web-0", "n1").await.contains("there is nothing to move"));
    let other = why("www-web-0", "n2").await;
    assert!(
        other.contains(r#"node n2 does not have the CSI driver "local" of claim www-web-0 (it has foreign)"#),
        "{other}"
    );
    assert!(why("www-web-1", "n3").await.contains("no node that is well has the data of claim www-web-1"));
    assert!(why("www-web-9", "n3").await.contains("persistentvolumeclaim default/www-web-9 not found"));
    let patch = br#"{"spec": {"unschedulable": true}}"#.to_vec();
    let cordon = PatchRequest { kind: "node".into(), name: "n3".into(), patch, ..Default::default() };
    h.api().patch(cordon).await.unwrap();
    assert!(why("www-web-0", "n3").await.contains("takes no new pods (it is cordoned)"));
}

async fn a_snapshot_takes_the_place_of_data(h: &Harness) {
    bound(h, "www-web-0", "n1").await;
    let missing = restored(h, "nightly").await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    assert!(missing.message().contains("has no snapshot of claim www-web-0"), "{}", missing.message());

    let mut snapshot = snapshot(h, "nightly", of_claim("www-web-0").unwrap()).await.unwrap().remove(0);
    let unready = restored(h, "nightly").await.unwrap_err();
    assert!(unready.message().contains("snapshot nightly-www-web-0 is not ready yet"), "{}", unready.message());
    let status = |size: &str, driver: &str| {
        read::<VolumeSnapshot>(json!({"status": {"readyToUse": true, "restoreSize": size, "driver": driver}})).status
    };
    for (size, driver, expected) in [
        (
            "2Gi",
            DRIVER,
            "needs 2Gi, and claim www-web-0 asks for 1Gi; `berth volume expand www-web-0 --size 2Gi` first",
        ),
        ("1Gi", "foreign", r#"is of the CSI driver "foreign""#),
    ] {
        snapshot.status = status(size, driver);
        write(h, vec![put(&snapshot)]).await;
        let refused = restored(h, "nightly").await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains(expected), "{}", refused.message());
    }
    snapshot.status = status("1Gi", DRIVER);
    write(h, vec![put(&snapshot)]).await;
    let claims = restored(h, "nightly").await.unwrap().claims;
    let operation = claims[0].status.clone().unwrap().operation.unwrap();
    assert_eq!((operation.r#type.as_str(), operation.snapshot.as_str()), ("Restore", "nightly-www-web-0"));

    // One that has ended holds nothing, and a snapshot may be named by itself.
    let mut ended = claims[0].clone();
    ended.status.as_mut().unwrap().operation.as_mut().unwrap().phase = "Failed".into();
    write(h, vec![put(&ended)]).await;
    let again = restored(h, "nightly-www-web-0").await.unwrap().claims;
    assert_ne!(again[0].status.clone().unwrap().operation.unwrap().id, operation.id);
}

async fn a_claim_grows_where_its_class_lets_it(h: &Harness) {
    bound(h, "data", "n1").await;
    let grow = async |size: &str| {
        let patch = json!({"spec": {"resources": {"requests": {"storage": size}}}}).to_string().into_bytes();
        let request = PatchRequest {
            kind: "pvc".into(),
            namespace: "default".into(),
            name: "data".into(),
            patch,
            ..PatchRequest::default()
        };
        h.api().patch(request).await
    };
    let patch = json!({"allowVolumeExpansion": false}).to_string().into_bytes();
    let fixed = PatchRequest { kind: "sc".into(), name: "local".into(), patch, ..PatchRequest::default() };
    h.api().patch(fixed.clone()).await.unwrap();
    let refused = violations(&grow("2Gi").await.unwrap_err());
    assert_eq!(refused[0].0, "spec.resources.requests[storage]");
    assert!(refused[0].1.starts_with(r#"Forbidden: storage class "local" does not let volumes grow"#), "{refused:?}");
    let patch = json!({"allowVolumeExpansion": true}).to_string().into_bytes();
    h.api().patch(PatchRequest { patch, ..fixed }).await.unwrap();
    grow("2Gi").await.unwrap();
    let refused = violations(&grow("512Mi").await.unwrap_err());
    assert!(refused[0].1.contains("the volume has 1Gi already, and volumes never shrink"), "{refused:?}");
}

async fn attachments_are_the_volume_managers(h: &Harness) {
    let attachment = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": {"name": "mine"},
        "spec": {"attacher": "shared", "nodeName": "n1", "source": {"persistentVolumeName": "pv"}},
    });
    let refused = h.apply(std::slice::from_ref(&attachment)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("by the volume manager alone"), "{}", refused.message());
    write(h, vec![put(&read::<VolumeAttachment>(attachment))]).await;
    assert_eq!(h.delete("volumeattachment", "mine").await.unwrap_err().code(), Code::FailedPrecondition);

    // A volume that a person makes is there, and kept while it is used.
    let volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "disk"},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany"],
            "csi": {"driver": "shared", "volumeHandle": "a"},
        },
    });
    h.apply(&[volume]).await.unwrap();
    let made = h.get::<PersistentVolume>("disk").await.unwrap();
    assert_eq!(made.status.as_ref().unwrap().phase, "Available");
    assert_eq!(made.meta().finalizers, ["kubernetes.io/pv-protection"]);
    assert!(!h.delete("pv", "disk").await.unwrap().gone, "the volume manager lets it go");
}

async fn usage_needs_the_volume_manager(h: &Harness) {
    assert!(h.api().volume_usage(VolumeUsageRequest::default()).await.unwrap().into_inner().volumes.is_empty());
    let request = VolumeUsageRequest { volumes: vec!["pv".into()] };
    let unreachable = h.api().volume_usage(request).await.unwrap_err();
    assert_eq!(unreachable.code(), Code::Unavailable);
    assert!(unreachable.message().contains("--volumes names it"), "{}", unreachable.message());
}
