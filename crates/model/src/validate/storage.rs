//! Claims, volumes and classes.

use pb::objects::{
    CsiDriver, PersistentVolume, PersistentVolumeClaimSpec, StorageClass, VolumeAttachment, VolumeSnapshot,
};

use super::{named, one_of, resources};
use crate::{
    error::{Errors, FieldPath},
    names,
};

const ONE_WRITER: [&str; 2] = ["ReadWriteOnce", "ReadWriteOncePod"];

pub(super) fn claim_spec(spec: &PersistentVolumeClaimSpec, path: &FieldPath, errors: &mut Errors) {
    access_modes(&spec.access_modes, &path.child("accessModes"), errors);
    let amounts = spec.resources.clone().unwrap_or_default();
    let at = path.child("resources");
    let size = at.child("requests").key("storage");
    match amounts.requests.get("storage") {
        None => errors.required(&size, "the size of the volume, such as 1Gi"),
        Some(written) => {
            let amount = written.value.parse::<crate::quantity::Quantity>();
            if amount.is_ok_and(|amount| amount.is_zero()) {
                errors.invalid(&size, written.value.as_str(), "must be greater than zero");
            }
        }
    }
    for (field, amounts) in [("requests", &amounts.requests), ("limits", &amounts.limits)] {
        for name in amounts.keys().filter(|name| *name != "storage") {
            errors.not_supported(&at.child(field).key(name), name, &["storage"]);
        }
    }
    resources::within(&amounts.requests, &amounts.limits, &at, errors);
    if let Some(class) = spec.storage_class_name.as_deref().filter(|class| !class.is_empty()) {
        named(class, names::dns_subdomain, &path.child("storageClassName"), errors);
    }
    if !spec.volume_name.is_empty() {
        named(&spec.volume_name, names::dns_subdomain, &path.child("volumeName"), errors);
    }
    volume_mode(spec.volume_mode.as_deref(), &path.child("volumeMode"), errors);
}

fn access_modes(modes: &[String], path: &FieldPath, errors: &mut Errors) {
    if modes.is_empty() {
        errors.required(path, "at least 1 access mode is required");
    }
    for mode in modes.iter().filter(|mode| !ONE_WRITER.contains(&mode.as_str())) {
        let why = match mode.as_str() {
            "ReadWriteMany" | "ReadOnlyMany" => "volumes shared by several nodes are not supported by Berth yet",
            _ => "",
        };
        errors.not_supported_because(path, mode, &ONE_WRITER, why);
    }
    if modes.len() > 1 && modes.iter().any(|mode| mode == "ReadWriteOncePod") {
        errors.forbidden(path, "may not use ReadWriteOncePod with other access modes");
    }
}

fn volume_mode(mode: Option<&str>, path: &FieldPath, errors: &mut Errors) {
    match mode {
        Some("Filesystem") | None => {}
        Some(other) => {
            let why = if other == "Block" { "block volumes are not supported by Berth yet" } else { "" };
            errors.not_supported_because(path, other, &["Filesystem"], why);
        }
    }
}

pub(super) fn volume(volume: &PersistentVolume, errors: &mut Errors) {
    let path = FieldPath::of("spec");
    let spec = volume.spec.clone().unwrap_or_default();
    let size = path.child("capacity").key("storage");
    match spec.capacity.get("storage") {
        None => errors.required(&size, "the size of the volume, such as 1Gi"),
        Some(written) => {
            resources::quantity(written, &size, errors);
        }
    }
    access_modes(&spec.access_modes, &path.child("accessModes"), errors);
    let at = path.child("csi");
    match &spec.csi {
        None => errors.required(&at, "a volume's place in a CSI driver"),
        Some(source) => {
            named(&source.driver, names::dns_subdomain, &at.child("driver"), errors);
            if source.volume_handle.is_empty() {
                errors.required(&at.child("volumeHandle"), "");
            }
        }
    }
    let reclaim = path.child("persistentVolumeReclaimPolicy");
    one_of(&spec.persistent_volume_reclaim_policy, &["Retain", "Delete"], &reclaim, errors);
    if !spec.storage_class_name.is_empty() {
        named(&spec.storage_class_name, names::dns_subdomain, &path.child("storageClassName"), errors);
    }
    volume_mode(spec.volume_mode.as_deref(), &path.child("volumeMode"), errors);
    let terms = spec.node_affinity.and_then(|affinity| affinity.required).map(|required| required.node_selector_terms);
    for (index, term) in terms.unwrap_or_default().iter().enumerate() {
        for (place, condition) in term.match_expressions.iter().enumerate() {
            let at = path.child("nodeAffinity").child("required").child("nodeSelectorTerms").index(index);
            let at = at.child("matchExpressions").index(place);
            named(&condition.key, names::label_key, &at.child("key"), errors);
            one_of(&condition.operator, &["In", "NotIn", "Exists", "DoesNotExist"], &at.child("operator"), errors);
        }
    }
}

pub(super) fn class(class: &StorageClass, errors: &mut Errors) {
    named(&class.provisioner, names::label_key, &FieldPath::of("provisioner"), errors);
    let policies = [
        ("reclaimPolicy", &class.reclaim_policy, ["Delete", "Retain"]),
        ("volumeBindingMode", &class.volume_binding_mode, ["Immediate", "WaitForFirstConsumer"]),
    ];
    for (field, value, supported) in policies {
        if let Some(value) = value {
            one_of(value, &supported, &FieldPath::of(field), errors);
        }
    }
}

pub(super) fn attachment(attachment: &VolumeAttachment, errors: &mut Errors) {
    let path = FieldPath::of("spec");
    let spec = attachment.spec.clone().unwrap_or_default();
    named(&spec.attacher, names::dns_subdomain, &path.child("attacher"), errors);
    named(&spec.node_name, names::dns_subdomain, &path.child("nodeName"), errors);
    let volume = spec.source.unwrap_or_default().persistent_volume_name;
    named(&volume, names::dns_subdomain, &path.child("source").child("persistentVolumeName"), errors);
}

pub(super) fn driver(driver: &CsiDriver, errors: &mut Errors) {
    let path = FieldPath::of("spec");
    let spec = driver.spec.clone().unwrap_or_default();
    for mode in spec.volume_lifecycle_modes.iter().filter(|mode| *mode != "Persistent") {
        errors.not_supported(&path.child("volumeLifecycleModes"), mode, &["Persistent"]);
    }
    if let Some(policy) = &spec.fs_group_policy {
        one_of(policy, &["ReadWriteOnceWithFSType", "File", "None"], &path.child("fsGroupPolicy"), errors);
    }
}

pub(super) fn snapshot(snapshot: &VolumeSnapshot, errors: &mut Errors) {
    let source = snapshot.spec.clone().and_then(|spec| spec.source).unwrap_or_default();
    let path = FieldPath::of("spec").child("source").child("persistentVolumeClaimName");
    named(&source.persistent_volume_claim_name, names::dns_subdomain, &path, errors);
}
