//! Defaults: what Kubernetes writes into a field that the user left open (DEF in the rules).
//!
//! Where Berth differs: `imagePullPolicy` is IfNotPresent whatever the tag, so that images which are loaded onto the nodes
//! need no registry. `maxUnavailable`
//! is in force where it is set and stays open where it is not: the update then takes one pod at a time as it always did.

use pb::{
    api::v1::{Object as AnyObject, object::Object as Variant},
    objects::*,
};

use crate::{priority::PREEMPT, service::CLUSTER_IP};

/// Writes the defaults of an object into it. Doing it again changes nothing.
pub fn object(object: &mut AnyObject) {
    match &mut object.object {
        Some(Variant::StatefulSet(set)) => stateful_set(set),
        Some(Variant::ControllerRevision(revision)) => {
            if let Some(template) = &mut revision.data {
                pod_template(template);
            }
        }
        Some(Variant::Pod(pod)) => {
            pod_spec(pod.spec.get_or_insert_default());
            text(&mut pod.status.get_or_insert_default().phase, "Pending");
        }
        Some(Variant::Service(service)) => service_spec(service.spec.get_or_insert_default()),
        Some(Variant::PersistentVolumeClaim(claim)) => persistent_volume_claim(claim),
        Some(Variant::PersistentVolume(volume)) => {
            let spec = volume.spec.get_or_insert_default();
            text(&mut spec.persistent_volume_reclaim_policy, "Retain");
            spec.volume_mode.get_or_insert_with(|| "Filesystem".to_owned());
            if let Some(claim) = &mut spec.claim_ref {
                text(&mut claim.kind, "PersistentVolumeClaim");
                text(&mut claim.api_version, "v1");
            }
            // Pending is a volume that is still being made; what a person describes is there.
            text(&mut volume.status.get_or_insert_default().phase, "Available");
        }
        Some(Variant::StorageClass(class)) => {
            class.reclaim_policy.get_or_insert_with(|| "Delete".to_owned());
            class.volume_binding_mode.get_or_insert_with(|| "Immediate".to_owned());
        }
        Some(Variant::Secret(secret)) => {
            text(&mut secret.r#type, "Opaque");
            for (key, value) in std::mem::take(&mut secret.string_data) {
                secret.data.insert(key, value.into_bytes());
            }
        }
        Some(Variant::Namespace(namespace)) => text(&mut namespace.status.get_or_insert_default().phase, "Active"),
        Some(Variant::Event(event)) => {
            text(&mut event.r#type, "Normal");
            number(&mut event.count, 1);
        }
        Some(Variant::PriorityClass(class)) => text(&mut class.preemption_policy, PREEMPT),
        Some(Variant::CsiDriver(driver)) => {
            let spec = driver.spec.get_or_insert_default();
            spec.attach_required.get_or_insert(true);
            spec.pod_info_on_mount.get_or_insert(false);
            spec.storage_capacity.get_or_insert(false);
            spec.requires_republish.get_or_insert(false);
            spec.fs_group_policy.get_or_insert_with(|| "ReadWriteOnceWithFSType".to_owned());
            if spec.volume_lifecycle_modes.is_empty() {
                spec.volume_lifecycle_modes.push("Persistent".to_owned());
            }
        }
        Some(
            Variant::ConfigMap(_)
            | Variant::Node(_)
            | Variant::PodDisruptionBudget(_)
            | Variant::VolumeAttachment(_)
            | Variant::VolumeSnapshot(_),
        )
        | None => {}
    }
}

fn text(field: &mut String, default: &str) {
    if field.is_empty() {
        default.clone_into(field);
    }
}

fn number(field: &mut i32, default: i32) {
    if *field == 0 {
        *field = default;
    }
}

fn stateful_set(set: &mut StatefulSet) {
    let spec = set.spec.get_or_insert_default();
    spec.replicas.get_or_insert(1);
    spec.revision_history_limit.get_or_insert(10);
    text(&mut spec.pod_management_policy, "OrderedReady");
    let strategy = spec.update_strategy.get_or_insert_default();
    // A type that the user wrote does not bring the struct (Kubernetes' own rule; partition 0 either way).
    if strategy.r#type.is_empty() {
        text(&mut strategy.r#type, "RollingUpdate");
        strategy.rolling_update.get_or_insert_default();
    }
    if let Some(rolling) = strategy.rolling_update.as_mut().filter(|_| strategy.r#type == "RollingUpdate") {
        rolling.partition.get_or_insert(0);
    }
    let retention = spec.persistent_volume_claim_retention_policy.get_or_insert_default();
    text(&mut retention.when_deleted, "Retain");
    text(&mut retention.when_scaled, "Retain");
    pod_template(spec.template.get_or_insert_default());
    for claim in &mut spec.volume_claim_templates {
        text(&mut claim.api_version, "v1");
        text(&mut claim.kind, "PersistentVolumeClaim");
        persistent_volume_claim(claim);
    }
    set.status.get_or_insert_default();
}

fn persistent_volume_claim(claim: &mut PersistentVolumeClaim) {
    let spec = claim.spec.get_or_insert_default();
    // Two words for one thing: each brings the other.
    match (&spec.data_source, &spec.data_source_ref) {
        (Some(source), None) => spec.data_source_ref = Some(source.clone()),
        (None, Some(source)) => spec.data_source = Some(source.clone()),
        _ => {}
    }
    spec.volume_mode.get_or_insert_with(|| "Filesystem".to_owned());
    text(&mut claim.status.get_or_insert_default().phase, "Pending");
}

fn service_spec(spec: &mut ServiceSpec) {
    text(&mut spec.r#type, CLUSTER_IP);
    if spec.cluster_ips.is_empty() && !spec.cluster_ip.is_empty() {
        spec.cluster_ips.push(spec.cluster_ip.clone());
    }
    for port in &mut spec.ports {
        text(&mut port.protocol, "TCP");
        let same = IntOrString::int(port.port);
        port.target_port.get_or_insert(same);
    }
}

/// Writes the defaults of a pod template into it.
pub fn pod_template(template: &mut PodTemplateSpec) {
    pod_spec(template.spec.get_or_insert_default());
}

/// Writes the defaults of a pod into it.
pub fn pod_spec(spec: &mut PodSpec) {
    text(&mut spec.restart_policy, "Always");
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.security_context.get_or_insert_default();
    spec.volumes.iter_mut().for_each(volume);
    spec.init_containers.iter_mut().chain(&mut spec.containers).for_each(container);
}

fn volume(volume: &mut Volume) {
    const FILE_MODE: i32 = 0o644;
    if *volume == (Volume { name: volume.name.clone(), ..Volume::default() }) {
        volume.empty_dir = Some(EmptyDirVolumeSource::default());
    }
    let Volume { config_map, secret, .. } = volume;
    if let Some(source) = config_map {
        source.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(source) = secret {
        source.default_mode.get_or_insert(FILE_MODE);
    }
}

fn container(container: &mut Container) {
    text(&mut container.image_pull_policy, "IfNotPresent");
    for port in &mut container.ports {
        text(&mut port.protocol, "TCP");
    }
    for source in container.env.iter_mut().filter_map(|variable| variable.value_from.as_mut()) {
        if let Some(field) = &mut source.field_ref {
            text(&mut field.api_version, "v1");
        }
    }
    // What is limited and not requested is requested up to the limit.
    let resources = container.resources.get_or_insert_default();
    for (name, limit) in &resources.limits {
        resources.requests.entry(name.clone()).or_insert_with(|| limit.clone());
    }
    let Container { liveness_probe, readiness_probe, startup_probe, .. } = container;
    [liveness_probe, readiness_probe, startup_probe].into_iter().flatten().for_each(probe);
}

fn probe(probe: &mut Probe) {
    number(&mut probe.timeout_seconds, 1);
    number(&mut probe.period_seconds, 10);
    number(&mut probe.success_threshold, 1);
    number(&mut probe.failure_threshold, 3);
    if let Some(get) = &mut probe.http_get {
        text(&mut get.path, "/");
        text(&mut get.scheme, "HTTP");
    }
}
