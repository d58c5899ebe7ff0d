//! The columns of each kind: kubectl's, where it has the kind.

use std::collections::BTreeMap;

use jiff::Timestamp;
use pb::{
    Kind, Object,
    api::v1::{Object as AnyObject, object::Object as Variant},
    objects::*,
};

use super::pod;
use crate::age;

/// The header of a kind.
pub fn header(kind: Kind, wide: bool) -> Vec<&'static str> {
    let (usual, more): (&[&str], &[&str]) = match kind {
        Kind::StatefulSet => (&["NAME", "READY", "AGE"], &["CONTAINERS", "IMAGES"]),
        Kind::ControllerRevision => (&["NAME", "CONTROLLER", "REVISION", "AGE"], &[]),
        Kind::Pod => (&["NAME", "READY", "STATUS", "RESTARTS", "AGE"], &["IP", "NODE"]),
        Kind::Service => (&["NAME", "TYPE", "CLUSTER-IP", "PORT(S)", "AGE"], &["EXTERNAL-NAME", "SELECTOR"]),
        Kind::PersistentVolumeClaim => {
            (&["NAME", "STATUS", "VOLUME", "CAPACITY", "ACCESS MODES", "STORAGECLASS", "AGE"], &["VOLUMEMODE"])
        }
        Kind::PersistentVolume => (
            &["NAME", "CAPACITY", "ACCESS MODES", "RECLAIM POLICY", "STATUS", "CLAIM", "STORAGECLASS", "AGE"],
            &["DRIVER", "NODES"],
        ),
        Kind::StorageClass => (&["NAME", "PROVISIONER", "RECLAIMPOLICY", "VOLUMEBINDINGMODE", "AGE"], &[]),
        Kind::ConfigMap => (&["NAME", "DATA", "AGE"], &[]),
        Kind::Secret => (&["NAME", "TYPE", "DATA", "AGE"], &[]),
        Kind::Node => (
            &["NAME", "STATUS", "AGE", "VERSION"],
            &["INTERNAL-IP", "POD-CIDR", "OS-IMAGE", "KERNEL-VERSION", "CONTAINER-RUNTIME"],
        ),
        Kind::Namespace => (&["NAME", "STATUS", "AGE"], &[]),
        Kind::PodDisruptionBudget => (&["NAME", "MIN AVAILABLE", "MAX UNAVAILABLE", "ALLOWED DISRUPTIONS", "AGE"], &[]),
        Kind::VolumeAttachment => (&["NAME", "ATTACHER", "PV", "NODE", "ATTACHED", "AGE"], &[]),
        Kind::CsiDriver => (&["NAME", "ATTACHREQUIRED", "STORAGECAPACITY", "MODES", "AGE"], &[]),
        Kind::VolumeSnapshot => {
            (&["NAME", "READYTOUSE", "SOURCEPVC", "RESTORESIZE", "CREATIONTIME", "AGE"], &["DRIVER"])
        }
        Kind::PriorityClass => (&["NAME", "VALUE", "GLOBAL-DEFAULT", "PREEMPTIONPOLICY", "AGE"], &[]),
        Kind::Event => (&["LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"], &[]),
    };
    let more = if wide { more } else { &[] };
    usual.iter().chain(more).copied().collect()
}

/// The row of an object: as many cells as its kind's header has.
pub fn row(object: &AnyObject, wide: bool, now: Timestamp) -> Vec<String> {
    let Some(kind) = object.kind() else { return Vec::new() };
    let meta = object.meta();
    let common = Common { name: meta.name.clone(), age: age::since(meta.creation_timestamp.as_ref(), now) };
    let mut cells = match &object.object {
        Some(Variant::StatefulSet(set)) => stateful_set(set, common),
        Some(Variant::ControllerRevision(revision)) => controller_revision(revision, common),
        Some(Variant::Pod(one)) => pod_row(one, common, now),
        Some(Variant::Service(service)) => service_row(service, common),
        Some(Variant::PersistentVolumeClaim(claim)) => claim_row(claim, common),
        Some(Variant::PersistentVolume(volume)) => volume_row(volume, common),
        Some(Variant::StorageClass(class)) => class_row(class, common),
        Some(Variant::ConfigMap(map)) => {
            vec![common.name, (map.data.len() + map.binary_data.len()).to_string(), common.age]
        }
        Some(Variant::Secret(secret)) => {
            vec![common.name, secret.r#type.clone(), secret.data.len().to_string(), common.age]
        }
        Some(Variant::Node(node)) => node_row(node, common),
        Some(Variant::Namespace(namespace)) => {
            let phase = namespace.status.as_ref().map_or("Active", |status| status.phase.as_str());
            vec![common.name, terminating(namespace, phase), common.age]
        }
        Some(Variant::PodDisruptionBudget(budget)) => budget_row(budget, common),
        Some(Variant::VolumeAttachment(attachment)) => attachment_row(attachment, common),
        Some(Variant::CsiDriver(driver)) => driver_row(driver, common),
        Some(Variant::VolumeSnapshot(snapshot)) => snapshot_row(snapshot, common, now),
        Some(Variant::PriorityClass(class)) => vec![
            common.name,
            class.value.to_string(),
            class.global_default.to_string(),
            class.preemption_policy.clone(),
            common.age,
        ],
        Some(Variant::Event(event)) => event_row(event, now),
        None => Vec::new(),
    };
    cells.truncate(header(kind, wide).len());
    cells
}

/// What every table has.
struct Common {
    name: String,
    age: String,
}

/// `<none>` for nothing.
pub fn or_none(text: String) -> String {
    if text.is_empty() { "<none>".to_owned() } else { text }
}

fn terminating<T: Object>(object: &T, phase: &str) -> String {
    let going = object.meta().deletion_timestamp.is_some();
    or_none(if going { "Terminating".to_owned() } else { phase.to_owned() })
}

fn joined(map: &BTreeMap<String, String>) -> String {
    or_none(map.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(","))
}

fn stateful_set(set: &StatefulSet, common: Common) -> Vec<String> {
    let wanted = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let ready = set.status.as_ref().map_or(0, |status| status.ready_replicas);
    let template =
        set.spec.as_ref().and_then(|spec| spec.template.as_ref()).and_then(|template| template.spec.as_ref());
    let containers = template.map_or(&[][..], |spec| &spec.containers);
    let names = containers.iter().map(|container| container.name.as_str()).collect::<Vec<_>>().join(",");
    let images = containers.iter().map(|container| container.image.as_str()).collect::<Vec<_>>().join(",");
    vec![common.name, format!("{ready}/{wanted}"), common.age, names, images]
}

fn budget_row(budget: &PodDisruptionBudget, common: Common) -> Vec<String> {
    let spec = budget.spec.clone().unwrap_or_default();
    let bound = |bound: Option<IntOrString>| bound.map_or_else(|| "N/A".to_owned(), |bound| bound.to_string());
    let allowed = budget.status.as_ref().map_or(0, |status| status.disruptions_allowed);
    vec![common.name, bound(spec.min_available), bound(spec.max_unavailable), allowed.to_string(), common.age]
}

fn controller_revision(revision: &ControllerRevision, common: Common) -> Vec<String> {
    let controller = revision.meta().owner_references.iter().find(|owner| owner.controller == Some(true));
    let controller =
        controller.map_or(String::new(), |owner| format!("{}/{}", owner.kind.to_ascii_lowercase(), owner.name));
    vec![common.name, or_none(controller), revision.revision.to_string(), common.age]
}

fn pod_row(one: &Pod, common: Common, now: Timestamp) -> Vec<String> {
    let (ready, all) = pod::ready_containers(one);
    let status = one.status.clone().unwrap_or_default();
    let node = one.spec.as_ref().map_or(String::new(), |spec| spec.node_name.clone());
    vec![
        common.name,
        format!("{ready}/{all}"),
        pod::reason(one),
        restarts(&status, now),
        common.age,
        or_none(status.pod_ip),
        or_none(node),
    ]
}

/// How often containers were started again, and when the last one ended.
fn restarts(status: &PodStatus, now: Timestamp) -> String {
    let count: i32 = status.container_statuses.iter().map(|container| container.restart_count).sum();
    let ends = status.container_statuses.iter().filter_map(|c| c.last_state.as_ref()?.terminated.as_ref()?.finished_at);
    match ends.max_by_key(|end| (end.seconds, end.nanos)) {
        Some(end) if count > 0 => format!("{count} ({} ago)", age::since(Some(&end), now)),
        _ => count.to_string(),
    }
}

fn service_row(service: &Service, common: Common) -> Vec<String> {
    let spec = service.spec.clone().unwrap_or_default();
    let ports: Vec<_> = spec.ports.iter().map(|port| format!("{}/{}", port.port, port.protocol)).collect();
    vec![
        common.name,
        spec.r#type,
        or_none(spec.cluster_ip),
        or_none(ports.join(",")),
        common.age,
        or_none(spec.external_name),
        joined(&spec.selector),
    ]
}

/// ReadWriteOnce -> RWO
fn modes(modes: &[String]) -> String {
    let short = modes.iter().map(|mode| match mode.as_str() {
        "ReadWriteOnce" => "RWO",
        "ReadOnlyMany" => "ROX",
        "ReadWriteMany" => "RWX",
        "ReadWriteOncePod" => "RWOP",
        other => other,
    });
    short.collect::<Vec<_>>().join(",")
}

fn amount(amounts: &BTreeMap<String, Quantity>) -> String {
    amounts.get("storage").map_or(String::new(), |amount| amount.value.clone())
}

fn claim_row(claim: &PersistentVolumeClaim, common: Common) -> Vec<String> {
    let spec = claim.spec.clone().unwrap_or_default();
    let status = claim.status.clone().unwrap_or_default();
    vec![
        common.name,
        terminating(claim, &status.phase),
        spec.volume_name,
        amount(&status.capacity),
        modes(&status.access_modes),
        spec.storage_class_name.unwrap_or_default(),
        common.age,
        spec.volume_mode.unwrap_or_default(),
    ]
}

fn volume_row(volume: &PersistentVolume, common: Common) -> Vec<String> {
    let spec = volume.spec.clone().unwrap_or_default();
    let phase = volume.status.clone().unwrap_or_default().phase;
    let claim = spec.claim_ref.map_or(String::new(), |claim| format!("{}/{}", claim.namespace, claim.name));
    let terms = spec.node_affinity.and_then(|affinity| affinity.required).map(|required| required.node_selector_terms);
    let nodes: Vec<_> =
        terms.iter().flatten().flat_map(|term| &term.match_expressions).flat_map(|e| e.values.clone()).collect();
    vec![
        common.name,
        amount(&spec.capacity),
        modes(&spec.access_modes),
        spec.persistent_volume_reclaim_policy,
        terminating(volume, &phase),
        claim,
        spec.storage_class_name,
        common.age,
        spec.csi.map_or(String::new(), |csi| csi.driver),
        if nodes.is_empty() { "<any>".to_owned() } else { nodes.join(",") },
    ]
}

fn class_row(class: &StorageClass, common: Common) -> Vec<String> {
    const DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";
    let default = class.meta().annotations.get(DEFAULT).is_some_and(|value| value == "true");
    let name = if default { format!("{} (default)", common.name) } else { common.name };
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    vec![name, class.provisioner.clone(), text(&class.reclaim_policy), text(&class.volume_binding_mode), common.age]
}

fn attachment_row(attachment: &VolumeAttachment, common: Common) -> Vec<String> {
    let spec = attachment.spec.clone().unwrap_or_default();
    let volume = spec.source.unwrap_or_default().persistent_volume_name;
    let attached = attachment.status.as_ref().is_some_and(|status| status.attached);
    vec![common.name, spec.attacher, volume, spec.node_name, attached.to_string(), common.age]
}

fn driver_row(driver: &CsiDriver, common: Common) -> Vec<String> {
    let spec = driver.spec.clone().unwrap_or_default();
    vec![
        common.name,
        spec.attach_required.unwrap_or(true).to_string(),
        spec.storage_capacity.unwrap_or_default().to_string(),
        or_none(spec.volume_lifecycle_modes.join(",")),
        common.age,
    ]
}

fn snapshot_row(snapshot: &VolumeSnapshot, common: Common, now: Timestamp) -> Vec<String> {
    let source = snapshot.spec.clone().and_then(|spec| spec.source).unwrap_or_default();
    let status = snapshot.status.clone().unwrap_or_default();
    vec![
        common.name,
        status.ready_to_use.to_string(),
        source.persistent_volume_claim_name,
        status.restore_size.map_or(String::new(), |size| size.value),
        age::since(status.creation_time.as_ref(), now),
        common.age,
        or_none(status.driver),
    ]
}

fn node_row(node: &Node, common: Common) -> Vec<String> {
    let status = node.status.clone().unwrap_or_default();
    let info = status.node_info.unwrap_or_default();
    let ready = match status.conditions.iter().find(|condition| condition.r#type == "Ready").map(|c| c.status.as_str())
    {
        Some("True") => "Ready",
        Some("False") => "NotReady",
        _ => "Unknown",
    };
    let spec = node.spec.clone().unwrap_or_default();
    let cordoned = if spec.unschedulable { ",SchedulingDisabled" } else { "" };
    let address =
        status.addresses.into_iter().find(|address| address.r#type == "InternalIP").map(|address| address.address);
    vec![
        common.name,
        format!("{ready}{cordoned}"),
        common.age,
        or_none(info.agent_version),
        or_none(address.unwrap_or_default()),
        or_none(spec.pod_cidr),
        or_none(info.os_image),
        or_none(info.kernel_version),
        or_none(info.container_runtime_version),
    ]
}

fn event_row(event: &Event, now: Timestamp) -> Vec<String> {
    let about = event.involved_object.clone().unwrap_or_default();
    let last = event.last_timestamp.as_ref().or(event.meta().creation_timestamp.as_ref());
    let kind = about.kind.to_ascii_lowercase();
    let seen = age::since(last, now);
    vec![
        seen,
        event.r#type.clone(),
        event.reason.clone(),
        format!("{kind}/{}", about.name),
        event.message.trim().to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn shown(kind: Kind, json: Value) -> Vec<String> {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        row(&AnyObject::from_json(kind, json).unwrap(), true, now)
    }

    const BORN: &str = "2026-01-01T00:00:00Z";

    #[test]
    fn every_row_fits_its_header() {
        for kind in Kind::ALL {
            for wide in [false, true] {
                let empty = AnyObject::from_json(kind, json!({"metadata": {"name": "x"}})).unwrap();
                assert_eq!(row(&empty, wide, Timestamp::UNIX_EPOCH).len(), header(kind, wide).len(), "{kind}");
            }
        }
    }

    #[test]
    fn pods() {
        let pod = |status: Value, extra: Value| {
            let mut json = json!({
                "metadata": {"name": "web-0", "creationTimestamp": BORN},
                "spec": {"containers": [{"name": "a"}, {"name": "b"}], "nodeName": "node-1"},
                "status": status,
            });
            json_patch(&mut json, extra);
            shown(Kind::Pod, json)[1..4].join(" ")
        };
        fn json_patch(json: &mut Value, extra: Value) {
            for (key, value) in extra.as_object().unwrap() {
                json["metadata"][key] = value.clone();
            }
        }
        let running = json!({"phase": "Running", "containerStatuses": [
            {"name": "a", "ready": true, "restartCount": 0, "state": {"running": {}}},
            {"name": "b", "ready": true, "restartCount": 2, "state": {"running": {}},
             "lastState": {"terminated": {"exitCode": 1, "finishedAt": "2026-01-01T00:00:30Z"}}},
        ]});
        assert_eq!(pod(running.clone(), json!({})), "2/2 Running 2 (30s ago)");
        assert_eq!(pod(running, json!({"deletionTimestamp": BORN})), "2/2 Terminating 2 (30s ago)");
        assert_eq!(pod(json!({"phase": "Pending"}), json!({})), "0/2 Pending 0");
        let waiting = json!({"phase": "Pending", "containerStatuses": [{"name": "a", "restartCount": 0, "state": {"waiting": {"reason": "ContainerCreating"}}}]});
        assert_eq!(pod(waiting, json!({})), "0/2 ContainerCreating 0");
        // A sidecar counts, and is waited for until it has started.
        let mut beside = json!({
            "metadata": {"name": "web-0"},
            "spec": {"initContainers": [{"name": "s", "restartPolicy": "Always"}], "containers": [{"name": "a"}]},
            "status": {
                "phase": "Pending",
                "initContainerStatuses": [{"name": "s", "ready": true, "started": false, "state": {"running": {}}}],
                "containerStatuses": [{"name": "a", "ready": true, "state": {"running": {}}}],
            },
        });
        assert_eq!(shown(Kind::Pod, beside.clone())[2], "Init:0/1");
        beside["status"]["phase"] = json!("Running");
        beside["status"]["initContainerStatuses"][0]["started"] = json!(true);
        assert_eq!(shown(Kind::Pod, beside)[1..3], ["2/2", "Running"]);
        let ended = json!({"phase": "Failed", "containerStatuses": [{"name": "a", "restartCount": 0, "state": {"terminated": {"exitCode": 3}}}]});
        assert_eq!(pod(ended, json!({})), "0/2 ExitCode:3 0");
    }

    #[test]
    fn sets_and_claims() {
        let set = json!({
            "metadata": {"name": "web", "creationTimestamp": BORN},
            "spec": {"replicas": 3, "template": {"spec": {"containers": [{"name": "nginx", "image": "nginx:1"}]}}},
            "status": {"readyReplicas": 2},
        });
        assert_eq!(shown(Kind::StatefulSet, set), ["web", "2/3", "60s", "nginx", "nginx:1"]);
        let claim = json!({
            "metadata": {"name": "www-web-0", "creationTimestamp": BORN},
            "spec": {"volumeName": "pvc-1", "storageClassName": "local", "volumeMode": "Filesystem", "accessModes": ["ReadWriteOnce"]},
            "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]},
        });
        assert_eq!(
            shown(Kind::PersistentVolumeClaim, claim),
            ["www-web-0", "Bound", "pvc-1", "1Gi", "RWO", "local", "60s", "Filesystem"]
        );
    }
}
