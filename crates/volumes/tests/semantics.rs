//! Kubernetes' semantics of volumes: attaching, static volumes, binding at once, places, room, clones.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests say what they expect")]

mod support;

use std::{collections::BTreeMap, time::Duration};

use pb::{
    Object, ObjectExt,
    objects::*,
    volumes::v1::{PreparedClaim, prepared_claim::State},
};
use store::objects::put;
use support::{Cluster, Disk, DriverKind, Fault, bound, claim, class, pod, pvc};
use tonic::Code;

fn reason(prepared: PreparedClaim) -> String {
    match prepared.state {
        Some(State::Problem(problem)) => problem.reason,
        Some(State::Bound(_)) => "Bound".into(),
        Some(State::Unbound(_)) => "Unbound".into(),
        None => "nothing".into(),
    }
}

fn reachable(prepared: PreparedClaim) -> Vec<String> {
    let Some(State::Unbound(unbound)) = prepared.state else { panic!("{prepared:?}") };
    let terms = unbound.reachable.map(|selector| selector.node_selector_terms).unwrap_or_default();
    terms.into_iter().flat_map(|term| term.match_expressions).flat_map(|expression| expression.values).collect()
}

async fn attachments(cluster: &Cluster) -> Vec<(String, bool)> {
    let all = cluster.all::<VolumeAttachment>().await;
    all.into_iter().map(|a| (a.spec.unwrap().node_name, a.status.unwrap_or_default().attached)).collect()
}

#[tokio::test]
async fn a_volume_is_attached_to_one_node_at_a_time_and_never_taken_from_one_that_uses_it() {
    let mut cluster = Cluster::start(DriverKind::Shared).await;
    cluster.until("the driver is known", async || !cluster.all::<CsiDriver>().await.is_empty()).await;
    cluster.bound(&pvc(1), "n1").await;
    let unsure = [Fault::DoneAndSilent, Fault::DoneButError(Code::Internal), Fault::Error(Code::Unavailable)];
    cluster.driver.will("Publish", unsure.clone());
    let (one, two) = (pod("web-1", "n1", "www-web-1"), pod("other", "n2", "www-web-1"));
    cluster.create(&one).await;
    cluster.until("attached to n1", async || attachments(&cluster).await == [("n1".to_owned(), true)]).await;
    let attachment = cluster.all::<VolumeAttachment>().await.remove(0);
    assert_eq!(attachment.status.unwrap().attachment_metadata["by"], "id-of-n1");

    cluster.driver.state.lock().in_use.insert(("n1".into(), "pvc-uid-1".into()));
    cluster.create(&two).await;
    let says_why = async || {
        let volume: PersistentVolume = cluster.read("", "pvc-uid-1").await.unwrap();
        volume.status.unwrap().message.contains("Multi-Attach error")
    };
    cluster.until("the volume says who waits", says_why).await;
    cluster.restart().await;
    // The first pod's object goes while its node still has the volume.
    cluster.remove(&one).await;
    cluster
        .until("it is retracted", async || {
            cluster.all::<VolumeAttachment>().await.iter().any(VolumeAttachment::is_terminating)
        })
        .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(cluster.driver.calls("Unpublish"), 0);
    cluster.driver.will("Unpublish", unsure);
    cluster.driver.state.lock().in_use.clear();
    cluster.until("attached to n2", async || attachments(&cluster).await == [("n2".to_owned(), true)]).await;

    // The machine of n2 is off, and its agent would say that it uses the volume for ever.
    cluster.driver.state.lock().in_use.insert(("n2".into(), "pvc-uid-1".into()));
    cluster
        .change("", "n2", |node: &mut Node| {
            let taint = Taint {
                key: "node.kubernetes.io/out-of-service".into(),
                effect: "NoExecute".into(),
                ..Default::default()
            };
            node.spec.get_or_insert_default().taints.push(taint);
        })
        .await;
    cluster.driver.state.lock().in_use.clear();
    cluster.remove(&two).await;
    cluster.until("attached nowhere", async || cluster.driver.state.lock().attached.is_empty()).await;
    let stored: PersistentVolumeClaim = cluster.read("default", "www-web-1").await.unwrap();
    cluster.remove(&stored).await;
    cluster.until("the data is gone", async || cluster.driver.disks().is_empty()).await;
    cluster.converges().await;
    cluster.end().await;
}

/// A volume that a person described, and its disk.
fn by_hand(cluster: &Cluster, name: &str, node: &str, size: &str, class: &str) -> PersistentVolume {
    let disk = Disk { name: name.into(), bytes: 1, content: None, parameters: BTreeMap::new() };
    cluster.driver.state.lock().disks.insert((node.into(), format!("disk-{name}")), disk);
    let place = NodeSelectorRequirement { key: "fake/node".into(), operator: "In".into(), values: vec![node.into()] };
    let term = NodeSelectorTerm { match_expressions: vec![place] };
    PersistentVolume {
        metadata: Some(ObjectMeta { name: name.into(), uid: name.into(), ..ObjectMeta::default() }),
        spec: Some(PersistentVolumeSpec {
            capacity: BTreeMap::from([("storage".to_owned(), size.into())]),
            csi: Some(CsiPersistentVolumeSource {
                driver: cluster.driver.name().into(),
                volume_handle: format!("disk-{name}"),
                ..Default::default()
            }),
            access_modes: vec!["ReadWriteOnce".into()],
            persistent_volume_reclaim_policy: "Retain".into(),
            storage_class_name: class.into(),
            node_affinity: Some(VolumeNodeAffinity {
                required: Some(NodeSelector { node_selector_terms: vec![term] }),
            }),
            ..PersistentVolumeSpec::default()
        }),
        ..PersistentVolume::default()
    }
}

#[tokio::test]
async fn a_claim_gets_the_smallest_free_volume_that_its_node_reaches_and_the_data_is_kept() {
    let cluster = Cluster::start(DriverKind::Local).await;
    let mut manual = class("manual", &cluster.driver);
    manual.provisioner = "kubernetes.io/no-provisioner".into();
    let volumes = [("small", "n1", "500Mi"), ("fits", "n1", "2Gi"), ("large", "n1", "9Gi"), ("far", "n2", "1Gi")];
    let objects = volumes.map(|(name, node, size)| put(&by_hand(&cluster, name, node, size, "manual")));
    let mut kept = by_hand(&cluster, "kept", "n1", "1Gi", "manual");
    kept.spec.as_mut().unwrap().claim_ref =
        Some(ObjectReference { namespace: "default".into(), name: "www-web-2".into(), ..Default::default() });
    cluster.write(objects.into_iter().chain([put(&manual), put(&kept)]).collect()).await;
    cluster.until_phase("fits", "Available").await;
    cluster.until_phase("kept", "Available").await;

    let of_class = |number| {
        let mut claim = pvc(number);
        claim.spec.as_mut().unwrap().storage_class_name = Some("manual".into());
        claim
    };
    let mut places = reachable(cluster.prepare(&of_class(1)).await);
    places.sort();
    assert_eq!(places, ["n1", "n2"]);
    cluster.bound(&of_class(1), "n1").await;
    let stored: PersistentVolumeClaim = cluster.read("default", "www-web-1").await.unwrap();
    assert_eq!(bound(&cluster.prepare(&stored).await), Some("fits"), "neither too small, nor far, nor another's");
    assert_eq!(stored.status.as_ref().unwrap().capacity["storage"].value, "2Gi");
    cluster.bound(&of_class(2), "n1").await;
    let second: PersistentVolumeClaim = cluster.read("default", "www-web-2").await.unwrap();
    assert_eq!(second.spec.unwrap().volume_name, "kept");

    // A disk that is not there is not handed out.
    cluster.driver.state.lock().disks.remove(&("n2".into(), "disk-far".into()));
    let status = cluster.provision(&of_class(3), "n2").await.unwrap_err();
    assert!(status.message().contains("no such disk"), "{status}");

    cluster.remove(&stored).await;
    cluster.until_phase("fits", "Released").await;
    assert_eq!(cluster.driver.calls("DeleteVolume"), 0);
    // A person lets the object go; the disk stays.
    cluster
        .change("", "fits", |v: &mut PersistentVolume| {
            v.meta_mut().deletion_timestamp = Some(jiff::Timestamp::now().into());
        })
        .await;
    cluster.until("the object is gone", async || cluster.read::<PersistentVolume>("", "fits").await.is_none()).await;
    assert!(cluster.driver.disks().contains(&("n1".to_owned(), "disk-fits".to_owned())));
    cluster.end().await;
}

#[tokio::test]
async fn a_class_that_binds_at_once_does_so_within_its_places() {
    let cluster = Cluster::start(DriverKind::Local).await;
    let mut at_once = class("fast", &cluster.driver);
    at_once.volume_binding_mode = Some("Immediate".into());
    let place = TopologySelectorLabelRequirement { key: "fake/node".into(), values: vec!["n2".into()] };
    at_once.allowed_topologies = vec![TopologySelectorTerm { match_label_expressions: vec![place] }];
    cluster.write(vec![put(&at_once)]).await;
    cluster.until("the class is seen", async || reachable(cluster.prepare(&pvc(1)).await) == ["n2"]).await;
    cluster.driver.will("CreateVolume", [Fault::DoneAndSilent, Fault::Error(Code::Unavailable)]);
    cluster.create(&pvc(1)).await;
    cluster
        .until("it is bound", async || {
            let claim: PersistentVolumeClaim = cluster.read("default", "www-web-1").await.unwrap();
            claim.status.is_some_and(|status| status.phase == "Bound")
        })
        .await;
    assert_eq!(cluster.driver.disks(), [("n2".to_owned(), "pvc-uid-1".to_owned())]);
    cluster.converges().await;
    cluster.end().await;
}

#[tokio::test]
async fn places_without_room_are_left_out_and_none_is_a_problem() {
    let cluster = Cluster::start(DriverKind::Local).await;
    cluster.driver.state.lock().room =
        BTreeMap::from([("n1".into(), 1 << 20), ("n2".into(), 3 << 30), ("n3".into(), 0)]);
    cluster.write(vec![put(&class("other", &cluster.driver))]).await;
    cluster
        .until("room is known", async || {
            // A new class is asked about at once.
            cluster
                .change("", "other", |class: &mut StorageClass| {
                    let labels = &mut class.meta_mut().labels;
                    labels.insert("n".into(), labels.len().to_string());
                })
                .await;
            matches!(cluster.prepare(&pvc(1)).await.state, Some(State::Unbound(unbound)) if unbound.reachable.is_some())
        })
        .await;
    assert_eq!(reachable(cluster.prepare(&pvc(1)).await), ["n2"]);
    let mut large = pvc(2);
    large.spec.as_mut().unwrap().resources.as_mut().unwrap().requests.insert("storage".into(), "5Gi".into());
    assert_eq!(reason(cluster.prepare(&large).await), "NoCapacity");
    cluster.end().await;
}

#[tokio::test]
async fn a_clone_is_made_where_its_source_is_and_from_its_data() {
    let cluster = Cluster::start(DriverKind::Local).await;
    cluster.bound(&pvc(1), "n3").await;
    let from = |name: &str, size: &str| {
        let mut copy = claim("copy", "uid-copy");
        let spec = copy.spec.as_mut().unwrap();
        spec.data_source = Some(TypedLocalObjectReference {
            api_group: None,
            kind: "PersistentVolumeClaim".into(),
            name: name.into(),
        });
        spec.resources.as_mut().unwrap().requests.insert("storage".into(), size.into());
        copy
    };
    assert_eq!(reason(cluster.prepare(&from("nobody", "1Gi")).await), "DataSourceNotFound");
    assert_eq!(reason(cluster.prepare(&from("www-web-1", "1Mi")).await), "DataSourceTooLarge");
    let copy = from("www-web-1", "2Gi");
    assert_eq!(reachable(cluster.prepare(&copy).await), ["n3"]);
    cluster.bound(&copy, "n3").await;
    let content = cluster.driver.state.lock().disks[&("n3".to_owned(), "pvc-uid-copy".to_owned())].content.clone();
    assert_eq!(content.as_deref(), Some("pvc-uid-1"));
    cluster.end().await;
}

#[tokio::test]
async fn a_claim_of_one_pod_or_under_an_operation_goes_to_no_other_and_usage_is_told() {
    let cluster = Cluster::start(DriverKind::Local).await;
    let mut one_pod = pvc(1);
    one_pod.spec.as_mut().unwrap().access_modes = vec!["ReadWriteOncePod".into()];
    cluster.bound(&one_pod, "n1").await;
    let stored: PersistentVolumeClaim = cluster.read("default", "www-web-1").await.unwrap();
    assert_eq!(reason(cluster.prepare(&stored).await), "Bound");
    let user = pod("web-1", "n1", "www-web-1");
    cluster.create(&user).await;
    cluster.until("it is in use", async || reason(cluster.prepare(&stored).await) == "ClaimInUse").await;

    cluster.driver.state.lock().in_use.insert(("n1".into(), "pvc-uid-1".into()));
    // The pod is in one cache, the volume in another.
    cluster.until("usage is told", async || !cluster.usage("pvc-uid-1").await.is_empty()).await;
    let usage = cluster.usage("pvc-uid-1").await.remove(0);
    assert_eq!((usage.node.as_str(), usage.used_bytes, usage.total_bytes), ("n1", 30, 100));
    cluster.driver.state.lock().in_use.clear();
    assert!(cluster.usage("pvc-uid-1").await.is_empty());

    let mut held = stored.clone();
    let operation = ClaimOperation { r#type: "Move".into(), phase: "Copying".into(), ..ClaimOperation::default() };
    held.status.as_mut().unwrap().operation = Some(operation);
    assert_eq!(reason(cluster.prepare(&held).await), "ClaimHeld");
    cluster.end().await;
}
