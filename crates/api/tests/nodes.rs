//! Node agents' side of the API service: registration, heartbeats, pods, reports, endpoints.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use common::*;
use pb::{
    Object as _, ObjectExt,
    agent::v1::{watch_endpoints_response, watch_pods_response::Change, *},
    objects::*,
};
use store::{Key, LeaseId, objects};
use tonic::Code;

over_both_stores!(
    nodes_get_networks_and_leases,
    a_second_agent_takes_the_name_over,
    a_node_hears_of_its_pods_alone,
    reports_are_written_once_and_believed_only_from_the_node,
    a_stopped_pod_goes,
    a_node_that_registers_again_says_what_its_drivers_are_now,
    a_bundle_grows_with_what_the_pod_needs,
    a_bundle_carries_every_object_that_the_pod_names_and_their_changes,
    a_bundle_says_whether_its_volumes_are_attached,
    endpoints_follow_pods,
    many_nodes_share_a_connection,
);

fn node(name: &str) -> Node {
    Node {
        metadata: Some(ObjectMeta { name: name.into(), ..Default::default() }),
        status: Some(NodeStatus::default()),
        ..Default::default()
    }
}

async fn register(h: &Harness, node: Node) -> RegisterResponse {
    h.nodes().register(RegisterRequest { node: Some(node) }).await.unwrap().into_inner()
}

async fn heartbeat(h: &Harness, node: &str, lease_id: i64) -> Result<i64, tonic::Status> {
    let request = HeartbeatRequest { node_name: node.into(), lease_id };
    Ok(h.nodes().heartbeat(request).await?.into_inner().lease_seconds)
}

async fn watch_pods(h: &Harness, node: &str) -> tonic::Streaming<WatchPodsResponse> {
    h.nodes().watch_pods(WatchPodsRequest { node_name: node.into() }).await.unwrap().into_inner()
}

async fn report(h: &Harness, node: &str, pod: &Pod, phase: &str, stopped: bool) -> String {
    let ready = Condition { r#type: "Ready".into(), status: "True".into(), ..Default::default() };
    let status =
        PodStatus { phase: phase.into(), pod_ip: "10.77.1.5".into(), conditions: vec![ready], ..Default::default() };
    let pod = PodRef { namespace: "default".into(), name: pod.name().into(), uid: pod.uid().into() };
    let pods = vec![PodReport { pod: Some(pod), status: Some(status), stopped }];
    let request = ReportStatusRequest { node_name: node.into(), pods };
    h.nodes().report_status(request).await.unwrap().into_inner().results[0].outcome.clone()
}

async fn nodes_get_networks_and_leases(h: &Harness) {
    let names = ["n1", "n2", "n3"];
    let registered = futures::future::join_all(names.map(|name| register(h, node(name)))).await;
    let mut networks: Vec<_> = registered.iter().map(|r| r.node.clone().unwrap().spec.unwrap().pod_cidr).collect();
    networks.sort();
    assert_eq!(networks, ["10.77.1.0/24", "10.77.2.0/24", "10.77.3.0/24"]);
    let mut hollow = node("hollow");
    hollow.meta_mut().labels.insert("berth.dev/hollow".into(), "true".into());
    let hollow = register(h, hollow).await.node.unwrap();
    assert!(hollow.spec.unwrap_or_default().pod_cidr.is_empty());

    let first = &registered[0];
    assert_eq!(first.lease_seconds, 10);
    let key = Key::node_lease("n1");
    assert_eq!(h.store.get(&key).await.unwrap().unwrap().lease, Some(LeaseId(first.lease_id)));
    let before = h.get::<Node>("n1").await.unwrap();
    assert_eq!(heartbeat(h, "n1", first.lease_id).await.unwrap(), 10);
    assert_eq!(h.get::<Node>("n1").await.unwrap(), before);
    h.store.revoke_lease(LeaseId(first.lease_id)).await.unwrap();
    assert_eq!(heartbeat(h, "n1", first.lease_id).await.unwrap_err().code(), Code::NotFound);
    let again = register(h, node("n1")).await.node.unwrap();
    assert_eq!(again, before, "registering again changes nothing of the node");
}

async fn a_second_agent_takes_the_name_over(h: &Harness) {
    let first = register(h, node("n1")).await;
    let second = register(h, node("n1")).await;
    assert_eq!(heartbeat(h, "n1", second.lease_id).await.unwrap(), 10);
    let lost = heartbeat(h, "n1", first.lease_id).await.unwrap_err();
    assert_eq!(lost.code(), Code::NotFound);
    assert!(lost.message().contains("another agent"), "{}", lost.message());
}

async fn a_node_hears_of_its_pods_alone(h: &Harness) {
    let web = h.create(pod("web-0", "n1")).await.unwrap();
    h.create(pod("web-1", "n2")).await.unwrap();
    let mut pods = watch_pods(h, "n1").await;
    let Some(Change::Upsert(bundle)) = next(&mut pods).await.change else { panic!() };
    assert_eq!(bundle.pod.unwrap(), web);
    assert_eq!(next(&mut pods).await.change, Some(Change::Synced(true)));

    h.create(pod("web-2", "n2")).await.unwrap();
    let web_3 = h.create(pod("web-3", "n1")).await.unwrap();
    let Some(Change::Upsert(bundle)) = next(&mut pods).await.change else { panic!() };
    assert_eq!(bundle.pod.unwrap(), web_3);
    let key = Key::of(&web_3);
    h.store.txn(store::Txn { ops: vec![store::Op::Delete(key)], ..Default::default() }).await.unwrap();
    let Some(Change::Removed(gone)) = next(&mut pods).await.change else { panic!() };
    assert_eq!((gone.name.as_str(), gone.uid.as_str()), ("web-3", web_3.uid()));
}

async fn reports_are_written_once_and_believed_only_from_the_node(h: &Harness) {
    let web = h.create(pod("web-0", "n1")).await.unwrap();
    assert_eq!(report(h, "n2", &web, "Running", false).await, "Gone");
    assert_eq!(report(h, "n1", &web, "Running", false).await, "Written");
    let written = h.get::<Pod>("web-0").await.unwrap();
    assert_eq!(written.status.as_ref().unwrap().phase, "Running");
    assert_eq!(report(h, "n1", &web, "Running", false).await, "Unchanged");
    // Back and forth at once: what the cache showed last must not count.
    assert_eq!(report(h, "n1", &web, "Pending", false).await, "Written");
    assert_eq!(report(h, "n1", &web, "Running", false).await, "Written");
    assert_eq!(report(h, "n1", &web, "Running", false).await, "Unchanged");
    let mut other = web.clone();
    other.meta_mut().uid = "another".into();
    assert_eq!(report(h, "n1", &other, "Failed", false).await, "Gone");
}

async fn a_stopped_pod_goes(h: &Harness) {
    let web = h.create(pod("web-0", "n1")).await.unwrap();
    assert_eq!(report(h, "n1", &web, "Failed", true).await, "Written", "nobody asked for it to go");
    h.delete("pod", "web-0").await.unwrap();
    assert_eq!(report(h, "n1", &web, "Failed", false).await, "Unchanged");
    assert_eq!(report(h, "n1", &web, "Failed", true).await, "Removed");
    assert_eq!(report(h, "n1", &web, "Failed", true).await, "Gone");
    assert_eq!(h.get::<Pod>("web-0").await.unwrap_err().code(), Code::NotFound);
}

async fn a_bundle_grows_with_what_the_pod_needs(h: &Harness) {
    let mut web = pod("web-0", "n1");
    let claim_name = "www-web-0".to_owned();
    let volume = |name: &str| Volume { name: name.into(), ..Default::default() };
    web.spec.as_mut().unwrap().volumes = vec![
        Volume {
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim_name.clone(),
                ..Default::default()
            }),
            ..volume("www")
        },
        Volume {
            config_map: Some(ConfigMapVolumeSource { name: "site".into(), ..Default::default() }),
            ..volume("site")
        },
    ];
    h.create(web).await.unwrap();
    let mut pods = watch_pods(h, "n1").await;
    let Some(Change::Upsert(bundle)) = next(&mut pods).await.change else { panic!() };
    assert_eq!((bundle.volumes[0].volume.as_ref(), bundle.config_maps.len()), (None, 0));
    assert_eq!(next(&mut pods).await.change, Some(Change::Synced(true)));

    h.create(config_map("site", &[])).await.unwrap();
    let Some(Change::Upsert(bundle)) = next(&mut pods).await.change else { panic!() };
    assert_eq!(bundle.config_maps.len(), 1);

    // A claim and its volume come bound in one transaction, and are told as one.
    let meta = |name: &str, namespace: &str, uid: &str| {
        Some(ObjectMeta { name: name.into(), namespace: namespace.into(), uid: uid.into(), ..Default::default() })
    };
    let claim = PersistentVolumeClaim {
        metadata: meta(&claim_name, "default", "claim-uid"),
        spec: Some(PersistentVolumeClaimSpec { volume_name: "pv-1".into(), ..Default::default() }),
        ..Default::default()
    };
    let reference = ObjectReference {
        namespace: "default".into(),
        name: claim_name.clone(),
        uid: "claim-uid".into(),
        ..Default::default()
    };
    let volume = PersistentVolume {
        metadata: meta("pv-1", "", "pv-uid"),
        spec: Some(PersistentVolumeSpec { claim_ref: Some(reference), ..Default::default() }),
        ..Default::default()
    };
    let ops = vec![objects::put(&claim), objects::put(&volume)];
    h.store.txn(store::Txn { ops, ..Default::default() }).await.unwrap();
    let Some(Change::Upsert(bundle)) = next(&mut pods).await.change else { panic!() };
    assert_eq!(bundle.volumes[0].claim_name, claim_name);
    assert_eq!(bundle.volumes[0].volume.as_ref().unwrap().name(), "pv-1");
}

async fn a_bundle_carries_every_object_that_the_pod_names_and_their_changes(h: &Harness) {
    let mut web = pod("web-0", "n1");
    let spec = web.spec.as_mut().unwrap();
    let projected = serde_json::json!({"name": "all", "projected": {"sources": [
        {"configMap": {"name": "projected", "optional": true}}, {"secret": {"name": "projected"}},
    ]}});
    spec.volumes = vec![serde_json::from_value(projected).unwrap()];
    let env = serde_json::json!([
        {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "key", "key": "k"}}},
        {"name": "B", "valueFrom": {"secretKeyRef": {"name": "key", "key": "k"}}},
    ]);
    let whole = serde_json::json!([{"configMapRef": {"name": "whole"}}, {"secretRef": {"name": "whole"}}]);
    spec.containers[0].env = serde_json::from_value(env).unwrap();
    spec.containers[0].env_from = serde_json::from_value(whole).unwrap();
    spec.image_pull_secrets = vec![LocalObjectReference { name: "pull".into() }];
    h.create(web).await.unwrap();
    let mut pods = watch_pods(h, "n1").await;
    let Some(Change::Upsert(bundle)) = next(&mut pods).await.change else { panic!() };
    assert_eq!((bundle.config_maps.len(), bundle.secrets.len()), (0, 0));
    assert_eq!(next(&mut pods).await.change, Some(Change::Synced(true)));

    for name in ["projected", "key", "whole", "nobodys"] {
        h.create(config_map(name, &[])).await.unwrap();
    }
    for name in ["projected", "key", "whole", "pull", "nobodys"] {
        let metadata = Some(ObjectMeta { name: name.into(), namespace: "default".into(), ..Default::default() });
        h.create(Secret { metadata, ..Default::default() }).await.unwrap();
    }
    loop {
        let Some(Change::Upsert(bundle)) = next(&mut pods).await.change else { panic!() };
        let maps: Vec<&str> = bundle.config_maps.iter().map(ObjectExt::name).collect();
        let secrets: Vec<&str> = bundle.secrets.iter().map(ObjectExt::name).collect();
        if (maps.len(), secrets.len()) == (3, 4) {
            assert_eq!(maps, ["key", "projected", "whole"]);
            assert_eq!(secrets, ["key", "projected", "pull", "whole"]);
            break;
        }
    }

    let changed = serde_json::json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "projected", "namespace": "default"},
        "data": {"k": "new"},
    });
    h.apply(&[changed]).await.unwrap();
    let Some(Change::Upsert(bundle)) = next(&mut pods).await.change else { panic!() };
    assert_eq!(bundle.config_maps[1].data.get("k").map(String::as_str), Some("new"));
    h.delete("configmap", "projected").await.unwrap();
    let Some(Change::Upsert(bundle)) = next(&mut pods).await.change else { panic!() };
    assert_eq!(bundle.config_maps.len(), 2);
}

async fn a_bundle_says_whether_its_volumes_are_attached(h: &Harness) {
    let mut web = pod("web-0", "n1");
    let source = PersistentVolumeClaimVolumeSource { claim_name: "www-web-0".into(), ..Default::default() };
    let volume = Volume { name: "www".into(), persistent_volume_claim: Some(source), ..Default::default() };
    web.spec.as_mut().unwrap().volumes = vec![volume];
    h.create(web).await.unwrap();
    let meta = |name: &str, uid: &str| Some(ObjectMeta { name: name.into(), uid: uid.into(), ..Default::default() });
    let claim = PersistentVolumeClaim {
        metadata: Some(ObjectMeta { namespace: "default".into(), ..meta("www-web-0", "claim-uid").unwrap() }),
        spec: Some(PersistentVolumeClaimSpec { volume_name: "pv-1".into(), ..Default::default() }),
        ..Default::default()
    };
    let reference = ObjectReference {
        namespace: "default".into(),
        name: "www-web-0".into(),
        uid: "claim-uid".into(),
        ..Default::default()
    };
    let volume = PersistentVolume {
        metadata: meta("pv-1", "pv-uid"),
        spec: Some(PersistentVolumeSpec {
            csi: Some(CsiPersistentVolumeSource { driver: "shared".into(), ..Default::default() }),
            claim_ref: Some(reference),
            ..Default::default()
        }),
        ..Default::default()
    };
    let attachment = |node: &str| VolumeAttachment {
        metadata: meta(&format!("csi-{node}"), &format!("uid-{node}")),
        spec: Some(VolumeAttachmentSpec {
            attacher: "shared".into(),
            node_name: node.into(),
            source: Some(VolumeAttachmentSource { persistent_volume_name: "pv-1".into() }),
        }),
        ..Default::default()
    };
    let put = async |ops: Vec<store::Op>| {
        h.store.txn(store::Txn { ops, ..Default::default() }).await.unwrap();
    };
    put(vec![objects::put(&claim), objects::put(&volume), objects::put(&attachment("n2"))]).await;
    let mut pods = watch_pods(h, "n1").await;
    // What has not arrived at the service yet is told when it does.
    let told = async |pods: &mut tonic::Streaming<WatchPodsResponse>, wanted: &dyn Fn(&ClaimVolume) -> bool| loop {
        if let Some(Change::Upsert(bundle)) = next(pods).await.change
            && wanted(&bundle.volumes[0])
        {
            return bundle.volumes[0].clone();
        }
    };
    let first = told(&mut pods, &|claim| claim.volume.is_some()).await;
    assert!(first.attach_required, "so unless its driver says otherwise");
    assert_eq!(first.attachment, None, "it is attached elsewhere");
    put(vec![objects::put(&attachment("n1"))]).await;
    let here = told(&mut pods, &|claim| claim.attachment.is_some()).await;
    assert_eq!(here.attachment.unwrap().name(), "csi-n1");
    let mut attached = attachment("n1");
    attached.status.get_or_insert_default().attached = true;
    put(vec![objects::put(&attached)]).await;
    told(&mut pods, &|claim| claim.attachment.iter().any(|one| one.status.as_ref().is_some_and(|s| s.attached))).await;
    attached.meta_mut().deletion_timestamp = Some(Time::default());
    put(vec![objects::put(&attached)]).await;
    told(&mut pods, &|claim| claim.attachment.is_none()).await;
    let spec = Some(CsiDriverSpec { attach_required: Some(false), ..Default::default() });
    put(vec![objects::put(&CsiDriver { metadata: meta("shared", "driver-uid"), spec, ..Default::default() })]).await;
    told(&mut pods, &|claim| !claim.attach_required).await;
}

async fn a_node_that_registers_again_says_what_its_drivers_are_now(h: &Harness) {
    let with = |drivers: &[(&str, i64)], zone: &str| {
        let mut node = node("n1");
        node.meta_mut().labels.insert("topology.example.com/zone".into(), zone.into());
        let status = node.status.as_mut().unwrap();
        for (name, most) in drivers {
            let driver = NodeCsiDriver { name: (*name).into(), max_volumes: *most, ..Default::default() };
            status.csi_drivers.push(driver);
            let amount = Quantity { value: most.to_string() };
            status.allocatable.insert(format!("attachable-volumes-csi-{name}"), amount);
        }
        node
    };
    register(h, with(&[("local", 0), ("foreign", 8)], "a")).await;
    let labels = br#"{"metadata": {"labels": {"disk": "ssd"}}, "spec": {"unschedulable": true}}"#;
    let request = pb::api::v1::PatchRequest {
        kind: "node".into(),
        name: "n1".into(),
        patch: labels.to_vec(),
        ..Default::default()
    };
    h.api().patch(request).await.unwrap();
    register(h, with(&[("foreign", 4)], "b")).await;
    let known = h.get::<Node>("n1").await.unwrap();
    let status = known.status.as_ref().unwrap();
    let drivers: Vec<_> = status.csi_drivers.iter().map(|d| (d.name.as_str(), d.max_volumes)).collect();
    assert_eq!(drivers, [("foreign", 4)]);
    let allocatable: Vec<_> = status.allocatable.iter().map(|(name, n)| (name.as_str(), n.value.as_str())).collect();
    assert_eq!(allocatable, [("attachable-volumes-csi-foreign", "4")]);
    let labels = &known.meta().labels;
    assert_eq!((labels["topology.example.com/zone"].as_str(), labels["disk"].as_str()), ("b", "ssd"));
    assert!(known.spec.as_ref().unwrap().unschedulable);
}

async fn endpoints_follow_pods(h: &Harness) {
    use watch_endpoints_response::Change;
    let mut endpoints = h.nodes().watch_endpoints(WatchEndpointsRequest {}).await.unwrap().into_inner();
    assert_eq!(next(&mut endpoints).await.change, Some(Change::Synced(true)));
    h.apply(&[nginx()]).await.unwrap();
    let Some(Change::Upsert(none)) = next(&mut endpoints).await.change else { panic!() };
    assert_eq!((none.name.as_str(), none.endpoints.len(), none.ports.len()), ("nginx", 0, 1));
    let web = h.create(pod("web-0", "n1")).await.unwrap();
    report(h, "n1", &web, "Running", false).await;
    let Some(Change::Upsert(one)) = next(&mut endpoints).await.change else { panic!() };
    let expected =
        Endpoint { ip: "10.77.1.5".into(), hostname: "web-0".into(), pod_name: "web-0".into(), target_ports: vec![80] };
    assert_eq!(one.endpoints, [expected]);
    // A terminating pod is not answered any more (DNS-4).
    h.delete("pod", "web-0").await.unwrap();
    let Some(Change::Upsert(none)) = next(&mut endpoints).await.change else { panic!() };
    assert!(none.endpoints.is_empty());
    h.delete("service", "nginx").await.unwrap();
    let Some(Change::Removed(gone)) = next(&mut endpoints).await.change else { panic!() };
    assert_eq!(gone.name, "nginx");
}

/// One process stands for many hollow nodes; their streams must not wait for each other.
async fn many_nodes_share_a_connection(h: &Harness) {
    let names: Vec<_> = (0..500).map(|at| format!("hollow-{at}")).collect();
    let mut streams = futures::future::join_all(names.iter().map(|name| watch_pods(h, name))).await;
    for stream in &mut streams {
        assert_eq!(next(stream).await.change, Some(Change::Synced(true)));
    }
    for name in &names {
        h.create(pod(name, name)).await.unwrap();
    }
    for (stream, name) in streams.iter_mut().zip(&names) {
        let Some(Change::Upsert(bundle)) = next(stream).await.change else { panic!() };
        assert_eq!(bundle.pod.unwrap().name(), name);
    }
}
