//! The data of claims: it grows, is kept in snapshots, is moved and put back, and is never lost on the way.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests say what they expect")]

mod support;

use pb::{
    Kind, Object,
    objects::{
        ClaimOperation, Node, ObjectMeta, PersistentVolume, PersistentVolumeClaim, StorageClass, Time, VolumeSnapshot,
        VolumeSnapshotSource, VolumeSnapshotSpec,
    },
};
use store::Key;
use support::{Cluster, DriverKind, Fault, pod, pvc};
use tonic::Code;

const GIB: i64 = 1 << 30;

async fn stored(cluster: &Cluster) -> PersistentVolumeClaim {
    cluster.read("default", "www-web-1").await.unwrap()
}

async fn volume(cluster: &Cluster) -> PersistentVolume {
    cluster.read("", "pvc-uid-1").await.unwrap()
}

/// A claim with its volume on n1, and something on it.
async fn begun(kind: DriverKind) -> Cluster {
    let cluster = Cluster::start(kind).await;
    cluster.change("", "fast", |class: &mut StorageClass| class.allow_volume_expansion = Some(true)).await;
    cluster.bound(&pvc(1), "n1").await;
    for disk in cluster.driver.state.lock().disks.values_mut() {
        disk.content = Some("records".into());
    }
    cluster
}

async fn ask_for(cluster: &Cluster, size: &str) {
    let ask = |claim: &mut PersistentVolumeClaim| {
        let resources = claim.spec.as_mut().unwrap().resources.as_mut().unwrap();
        resources.requests.insert("storage".into(), size.into());
    };
    cluster.change("default", "www-web-1", ask).await;
}

async fn until_capacity(cluster: &Cluster, size: &str) {
    let holds = async || stored(cluster).await.status.unwrap().capacity["storage"].value == size;
    cluster.until(&format!("the claim has {size}"), holds).await;
}

fn condition(claim: &PersistentVolumeClaim, kind: &str) -> Option<String> {
    let conditions = &claim.status.as_ref()?.conditions;
    conditions.iter().find(|condition| condition.r#type == kind).map(|condition| condition.message.clone())
}

async fn until_condition(cluster: &Cluster, kind: &str, words: &str) {
    let holds = async || condition(&stored(cluster).await, kind).is_some_and(|message| message.contains(words));
    cluster.until(&format!("{kind}: {words}"), holds).await;
}

#[tokio::test]
async fn a_claim_grows_whatever_the_driver_does_and_a_new_leader_goes_on() {
    let mut cluster = begun(DriverKind::Local).await;
    cluster
        .driver
        .will("Expand", [Fault::DoneAndSilent, Fault::DoneButError(Code::Internal), Fault::Error(Code::Aborted)]);
    cluster.driver.will("NodeExpand", [Fault::Silent]);
    ask_for(&cluster, "2Gi").await;
    until_condition(&cluster, "FileSystemResizePending", "when a pod is started").await;
    let spec = volume(&cluster).await.spec.unwrap();
    assert_eq!(spec.capacity["storage"].value, "2Gi", "the volume has grown");
    assert_eq!(stored(&cluster).await.status.unwrap().capacity["storage"].value, "1Gi", "the claim has not yet");
    assert_eq!(cluster.driver.calls("NodeExpand"), 0, "no pod has it");

    cluster.restart().await;
    cluster.driver.state.lock().data.staged.insert(("n1".into(), "pvc-uid-1".into()), GIB);
    cluster.create(&pod("web-1", "n1", "www-web-1")).await;
    until_capacity(&cluster, "2Gi").await;
    let grown: Vec<i64> = cluster.driver.state.lock().data.staged.values().copied().collect();
    assert_eq!(grown, [2 * GIB]);
    assert_eq!(cluster.driver.state.lock().broken, Vec::<String>::new());
    let status = stored(&cluster).await.status.unwrap();
    assert!(status.conditions.is_empty() && status.allocated_resource_statuses.is_empty(), "{status:?}");
    cluster.end().await;
}

#[tokio::test]
async fn what_cannot_grow_says_why_and_what_the_node_refuses_is_tried_when_the_pod_changes() {
    let cluster = begun(DriverKind::Local).await;
    cluster.driver.state.lock().data.most = 4 * GIB;
    ask_for(&cluster, "8Gi").await;
    until_condition(&cluster, "ControllerResizeError", "larger than any disk").await;
    let calls = cluster.driver.calls("Expand");

    cluster.driver.state.lock().data.stubborn = true;
    cluster.driver.state.lock().data.staged.insert(("n1".into(), "pvc-uid-1".into()), GIB);
    cluster.create(&pod("web-1", "n1", "www-web-1")).await;
    ask_for(&cluster, "3Gi").await;
    until_condition(&cluster, "FileSystemResizePending", "start the pod again").await;
    assert_eq!(cluster.driver.calls("Expand"), calls + 1, "a refusal is not asked for again");

    cluster.driver.state.lock().data.stubborn = false;
    let started = |pod: &mut pb::objects::Pod| pod.status.get_or_insert_default().phase = "Running".into();
    cluster.change("default", "web-1", started).await;
    until_capacity(&cluster, "3Gi").await;

    cluster.change("", "fast", |class: &mut StorageClass| class.allow_volume_expansion = Some(false)).await;
    ask_for(&cluster, "4Gi").await;
    until_condition(&cluster, "ControllerResizeError", "allowVolumeExpansion").await;
    cluster.end().await;
}

fn snapshot(name: &str, claim: &str) -> VolumeSnapshot {
    let meta = ObjectMeta { name: name.into(), namespace: "default".into(), uid: name.into(), ..ObjectMeta::default() };
    let source = VolumeSnapshotSource { persistent_volume_claim_name: claim.into() };
    let spec = Some(VolumeSnapshotSpec { source: Some(source) });
    VolumeSnapshot { metadata: Some(meta), spec, ..VolumeSnapshot::default() }
}

async fn until_ready(cluster: &Cluster, name: &str) -> VolumeSnapshot {
    let read = async || cluster.read::<VolumeSnapshot>("default", name).await.unwrap();
    let holds = async || read().await.status.is_some_and(|status| status.ready_to_use);
    cluster.until(&format!("{name} is ready"), holds).await;
    read().await
}

/// What the API does with an object that has finalizers.
async fn delete_snapshot(cluster: &Cluster, name: &str) {
    let mark = |snapshot: &mut VolumeSnapshot| {
        snapshot.meta_mut().deletion_timestamp = Some(Time { seconds: 1, nanos: 0 });
    };
    cluster.change("default", name, mark).await;
    let key = Key::object(Kind::VolumeSnapshot, "default", name);
    let gone = async || cluster.store.get(&key).await.unwrap().is_none();
    cluster.until(&format!("{name} is gone"), gone).await;
}

#[tokio::test]
async fn a_snapshot_is_made_once_and_goes_with_its_data() {
    let cluster = begun(DriverKind::Local).await;
    cluster.driver.state.lock().data.unready = 3;
    cluster.driver.will("CreateSnapshot", [Fault::DoneAndSilent, Fault::Error(Code::ResourceExhausted)]);
    cluster.create(&snapshot("s1", "www-web-1")).await;
    let status = until_ready(&cluster, "s1").await.status.unwrap();
    assert_eq!((status.driver.as_str(), status.volume_handle.as_str()), ("fake-local", "pvc-uid-1"));
    assert_eq!(status.restore_size.unwrap().value, "1Gi");
    assert!(status.error.is_none() && status.reachable.is_some());
    assert_eq!(cluster.driver.state.lock().data.snapshots.len(), 1);

    cluster.driver.will("DeleteSnapshot", [Fault::DoneButError(Code::Internal), Fault::Silent]);
    delete_snapshot(&cluster, "s1").await;
    assert!(cluster.driver.state.lock().data.snapshots.is_empty());
    assert_eq!(cluster.driver.state.lock().broken, Vec::<String>::new());
    cluster.end().await;
}

#[tokio::test]
async fn a_snapshot_of_a_claim_that_is_not_there_says_so_until_it_is() {
    let cluster = begun(DriverKind::Local).await;
    cluster.create(&snapshot("s1", "www-web-2")).await;
    let says = async |words: &str| {
        let holds = async || {
            let snapshot: VolumeSnapshot = cluster.read("default", "s1").await.unwrap();
            snapshot.status.and_then(|status| status.error).is_some_and(|error| error.message.contains(words))
        };
        cluster.until(words, holds).await;
    };
    says("does not exist").await;
    cluster.create(&pvc(2)).await;
    says("has no volume yet").await;
    let claim = cluster.read("default", "www-web-2").await.unwrap();
    cluster.bound(&claim, "n2").await;
    until_ready(&cluster, "s1").await;
    cluster.end().await;
}

async fn operate(cluster: &Cluster, operation: ClaimOperation) {
    let begin = |claim: &mut PersistentVolumeClaim| {
        claim.status.get_or_insert_default().operation = Some(operation.clone());
    };
    cluster.change("default", "www-web-1", begin).await;
}

fn move_to(node: &str) -> ClaimOperation {
    ClaimOperation {
        id: "op1".into(),
        r#type: "Move".into(),
        target_node: node.into(),
        phase: "Waiting".into(),
        ..ClaimOperation::default()
    }
}

async fn operation(cluster: &Cluster) -> ClaimOperation {
    stored(cluster).await.status.unwrap().operation.unwrap()
}

async fn until_ended(cluster: &Cluster) -> ClaimOperation {
    let ended = async || matches!(operation(cluster).await.phase.as_str(), "Done" | "Failed");
    cluster.until("the operation has ended", ended).await;
    operation(cluster).await
}

/// What is in the place that the claim's volume names.
async fn content(cluster: &Cluster) -> Option<String> {
    let spec = volume(cluster).await.spec.unwrap();
    let place = spec.node_affinity.map(|affinity| affinity.required.unwrap().node_selector_terms[0].clone());
    let node = place.map_or_else(String::new, |term| term.match_expressions[0].values[0].clone());
    let state = cluster.driver.state.lock();
    state.disks[&(node, spec.csi.unwrap().volume_handle)].content.clone()
}

#[tokio::test]
async fn a_claim_moves_when_its_pod_has_gone_and_nothing_is_left_behind() {
    let mut cluster = begun(DriverKind::Local).await;
    let user = pod("web-1", "n1", "www-web-1");
    cluster.create(&user).await;
    let used = ("n1".to_owned(), "pvc-uid-1".to_owned());
    cluster.driver.state.lock().in_use.insert(used.clone());
    operate(&cluster, move_to("n2")).await;
    let says = async |words: &str| {
        let holds = async || operation(&cluster).await.message.contains(words);
        cluster.until(words, holds).await;
    };
    says("pod \"web-1\"").await;
    cluster.remove(&user).await;
    says("in use still").await;
    assert_eq!(cluster.driver.calls("CreateVolume"), 1, "nothing begins while a node has it");

    cluster.driver.state.lock().data.breaks = 4;
    cluster.driver.will("CreateVolume", [Fault::DoneAndSilent]);
    cluster.driver.will("Import", [Fault::Silent]);
    cluster.driver.state.lock().in_use.clear();
    let copying = async || operation(&cluster).await.phase == "Copying";
    cluster.until("copying", copying).await;
    cluster.restart().await;

    let ended = until_ended(&cluster).await;
    assert_eq!((ended.phase.as_str(), ended.done_bytes, ended.total_bytes), ("Done", 100, 100), "{}", ended.message);
    assert_eq!(content(&cluster).await.as_deref(), Some("records"));
    let moved = async || cluster.driver.disks() == [("n2".to_owned(), "pvc-uid-1-op1".to_owned())];
    cluster.until("the old data is gone", moved).await;
    cluster.converges().await;
    let claim = stored(&cluster).await;
    assert_eq!(claim.metadata.unwrap().annotations["volume.kubernetes.io/selected-node"], "n2");
    cluster.end().await;
}

#[tokio::test]
async fn a_move_that_cannot_be_done_leaves_all_as_it_was() {
    let cluster = begun(DriverKind::Local).await;
    let before = volume(&cluster).await;
    cluster.driver.will("CreateVolume", [Fault::Error(Code::ResourceExhausted)]);
    operate(&cluster, move_to("n2")).await;
    let ended = until_ended(&cluster).await;
    assert_eq!(ended.phase, "Failed");
    assert!(ended.message.contains("The data is where it was"), "{}", ended.message);

    // This time it fails when the new volume is there already.
    cluster.driver.will("Import", [Fault::Error(Code::DataLoss), Fault::Error(Code::ResourceExhausted)]);
    operate(&cluster, ClaimOperation { id: "op2".into(), ..move_to("n3") }).await;
    let again = until_ended(&cluster).await;
    assert_eq!((again.id.as_str(), again.phase.as_str()), ("op2", "Failed"));
    cluster.converges().await;
    assert_eq!(volume(&cluster).await, before);
    assert_eq!(content(&cluster).await.as_deref(), Some("records"));

    let unknown = ClaimOperation { id: "op3".into(), ..move_to("n9") };
    operate(&cluster, unknown).await;
    let ended = until_ended(&cluster).await;
    assert!(ended.phase == "Failed" && ended.message.contains("does not exist"), "{}", ended.message);
    cluster.end().await;
}

#[tokio::test]
async fn a_claim_that_goes_in_the_middle_of_a_move_leaves_nothing() {
    let cluster = begun(DriverKind::Local).await;
    cluster.driver.will("Import", (0..50).map(|_| Fault::Silent));
    operate(&cluster, move_to("n2")).await;
    let copied = async || cluster.driver.disks().len() == 2;
    cluster.until("the copy is there", copied).await;
    cluster.remove(&stored(&cluster).await).await;
    let empty = async || cluster.driver.disks().is_empty();
    cluster.until("all data is gone", empty).await;
    cluster.converges().await;
    cluster.end().await;
}

#[tokio::test]
async fn a_snapshot_takes_the_place_of_the_data_which_is_kept() {
    for kind in [DriverKind::Local, DriverKind::Shared] {
        let cluster = begun(kind).await;
        cluster.create(&snapshot("s1", "www-web-1")).await;
        let status = until_ready(&cluster, "s1").await.status.unwrap();
        cluster.driver.state.lock().disks.values_mut().for_each(|disk| disk.content = Some("spoilt".into()));
        cluster.driver.will("CreateVolume", [Fault::DoneButError(Code::Unavailable)]);
        let restore = ClaimOperation {
            id: "op1".into(),
            r#type: "Restore".into(),
            snapshot: "s1".into(),
            phase: "Waiting".into(),
            ..ClaimOperation::default()
        };
        operate(&cluster, restore).await;
        let ended = until_ended(&cluster).await;
        assert_eq!(ended.phase, "Done", "{}", ended.message);
        assert_eq!(content(&cluster).await, Some(status.snapshot_handle), "what the snapshot holds");

        let kept: PersistentVolume = cluster.read("", "pvc-uid-1-before-op1").await.unwrap();
        assert!(kept.meta().annotations.contains_key("volume.berth.dev/keep"));
        let spec = kept.spec.unwrap();
        assert_eq!(spec.persistent_volume_reclaim_policy, "Retain");
        let handle = spec.csi.unwrap().volume_handle;
        let spoilt = cluster.driver.state.lock().disks.iter().find(|((_, id), _)| *id == handle).unwrap().1.clone();
        assert_eq!(spoilt.content.as_deref(), Some("spoilt"));
        delete_snapshot(&cluster, "s1").await;
        cluster.converges().await;
        assert_eq!(cluster.driver.disks().len(), 2);
        cluster.end().await;
    }
}

#[tokio::test]
async fn a_volume_is_lost_with_its_node_and_is_not_deleted() {
    let cluster = begun(DriverKind::Local).await;
    let node: Node = cluster.read("", "n1").await.unwrap();
    cluster.remove(&node).await;
    until_condition(&cluster, "VolumeLost", "fake/node in (n1)").await;
    assert_eq!(volume(&cluster).await.status.unwrap().reason, "NodeLost");
    cluster.create(&node).await;
    let found = async || condition(&stored(&cluster).await, "VolumeLost").is_none();
    cluster.until("the volume is found", found).await;
    assert_eq!(volume(&cluster).await.status.unwrap().reason, "");
    cluster.end().await;
}
