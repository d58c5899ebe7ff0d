//! Claims, volumes, classes and drivers (VOL). Snapshots and attachments as well.
//!
//! The rules are those of Kubernetes' validation of the same kinds. Where Berth knows only CSI (no block volumes, no
//! volumes without a driver), that is said at the field.

use std::collections::BTreeSet;

use pb::objects::{
    CsiDriver, NodeSelectorTerm, ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec,
    PersistentVolumeClaimStatus, Quantity as Written, StorageClass, TopologySelectorTerm, TypedLocalObjectReference,
    VolumeAttachment, VolumeNodeAffinity, VolumeSnapshot,
};

use super::{meta, named, one_of, resources};
use crate::{
    error::{Errors, FieldPath},
    names,
    quantity::Quantity,
    source::{CLAIM, ORDINAL, PREVIOUS, SNAPSHOT, SNAPSHOT_GROUP},
};

/// How a volume may be mounted: by one node, by one pod, by many nodes for reading, by many nodes.
const ACCESS_MODES: [&str; 4] = ["ReadWriteOnce", "ReadWriteOncePod", "ReadOnlyMany", "ReadWriteMany"];
/// What may stand in the name of a template's data source, and what it may become.
const PLACES: [(&str, &str); 2] = [(ORDINAL, "1"), (PREVIOUS, "0")];
/// Longest name of a driver.
const LONGEST_DRIVER: usize = 63;
/// Parameters of a class, and their bytes together.
const PARAMETERS: (usize, usize) = (512, 256 * 1024);

/// A claim by itself.
pub(super) fn claim(claim: &PersistentVolumeClaim, errors: &mut Errors) {
    let (path, spec) = (FieldPath::of("spec"), claim.spec.clone().unwrap_or_default());
    claim_spec(&spec, &path, errors);
    let source = spec.data_source.filter(|source| PLACES.iter().any(|(place, _)| source.name.contains(place)));
    if let Some(source) = source {
        let why = "an ordinal can stand only in the claim template of a set: write the name out";
        errors.invalid(&path.child("dataSource").child("name"), source.name, why);
    }
}

/// What may become of a claim once it exists: it is bound once, and it grows.
pub(super) fn claim_update(old: &PersistentVolumeClaim, new: &PersistentVolumeClaim, errors: &mut Errors) {
    let path = FieldPath::of("spec");
    let (was, is) = (old.spec.clone().unwrap_or_default(), new.spec.clone().unwrap_or_default());
    if was.volume_name != is.volume_name && !was.volume_name.is_empty() {
        let why = "field is immutable once it is set; to use another volume, make another claim";
        errors.forbidden(&path.child("volumeName"), why);
    }
    let size = |spec: PersistentVolumeClaimSpec| spec.resources.unwrap_or_default().requests.remove("storage");
    let (Some(was), Some(is)) = (size(was), size(is)) else { return };
    let amount = |written: &Written| written.value.parse::<Quantity>().ok();
    let (Some(from), Some(to)) = (amount(&was), amount(&is)) else { return };
    let at = path.child("resources").child("requests").key("storage");
    let status = old.status.clone().unwrap_or_default();
    let capacity = status.capacity.get("storage").and_then(|written| Some((written, amount(written)?)));
    match capacity {
        _ if from == to => {}
        Some((written, has)) if to < has => {
            let why = format!("the volume has {} already, and volumes never shrink", written.value);
            errors.invalid(&at, is.value, why);
        }
        // What could not be given may be asked for no longer.
        _ if to < from && is_infeasible(&status) => {}
        _ if to < from => {
            errors.invalid(&at, is.value, format!("a claim never asks for less than before, which is {}", was.value));
        }
        None => errors.forbidden(&at, "a claim can grow once it is bound to a volume; until then, make it anew"),
        Some(_) => {}
    }
}

fn is_infeasible(status: &PersistentVolumeClaimStatus) -> bool {
    let how_far = status.allocated_resource_statuses.get("storage").map(String::as_str);
    matches!(how_far, Some("ControllerResizeInfeasible" | "NodeResizeInfeasible"))
}

/// What a claim asks for, by itself or in the template of a set.
pub(super) fn claim_spec(spec: &PersistentVolumeClaimSpec, path: &FieldPath, errors: &mut Errors) {
    access_modes(&spec.access_modes, &path.child("accessModes"), errors);
    let amounts = spec.resources.clone().unwrap_or_default();
    let at = path.child("resources");
    let size = at.child("requests").key("storage");
    match amounts.requests.get("storage") {
        None => errors.required(&size, "the size of the volume, such as 1Gi"),
        Some(written) => {
            let amount = written.value.parse::<Quantity>();
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
    if let Some(selector) = &spec.selector {
        meta::selector(selector, &path.child("selector"), errors);
    }
    data_sources(spec, path, errors);
}

fn data_sources(spec: &PersistentVolumeClaimSpec, path: &FieldPath, errors: &mut Errors) {
    let (old, new) = (&spec.data_source, &spec.data_source_ref);
    // Each brings the other: what is wrong with both is told once.
    let alike = old == new;
    for (field, source) in [("dataSource", old), ("dataSourceRef", new)].into_iter().take(if alike { 1 } else { 2 }) {
        if let Some(source) = source {
            data_source(source, &path.child(field), errors);
        }
    }
    if let (Some(old), Some(new)) = (old, new)
        && (group(old), &old.kind, &old.name) != (group(new), &new.kind, &new.name)
    {
        let why = "must be the same as dataSource, or stand alone";
        errors.invalid(&path.child("dataSourceRef"), shown(new), why);
    }
}

fn group(source: &TypedLocalObjectReference) -> &str {
    source.api_group.as_deref().unwrap_or_default()
}

fn shown(source: &TypedLocalObjectReference) -> String {
    format!("{}/{}", source.kind, source.name)
}

fn data_source(source: &TypedLocalObjectReference, path: &FieldPath, errors: &mut Errors) {
    let name = PLACES.iter().fold(source.name.clone(), |name, (place, value)| name.replace(place, value));
    if source.name.is_empty() {
        errors.required(&path.child("name"), "");
    } else if let Err(broken) = names::dns_subdomain(&name) {
        errors.invalid(&path.child("name"), source.name.as_str(), broken);
    }
    one_of(&source.kind, &[SNAPSHOT, CLAIM], &path.child("kind"), errors);
    let expected = match source.kind.as_str() {
        SNAPSHOT => SNAPSHOT_GROUP,
        CLAIM => "",
        _ => return,
    };
    let at = path.child("apiGroup");
    match (group(source), expected) {
        (is, wanted) if is == wanted => {}
        ("", wanted) => errors.required(&at, format!("for a {}: {wanted}", source.kind)),
        (is, "") => errors.invalid(&at, is, "a PersistentVolumeClaim belongs to no group: leave the field out"),
        (is, wanted) => errors.not_supported(&at, is, &[wanted]),
    }
}

fn access_modes(modes: &[String], path: &FieldPath, errors: &mut Errors) {
    if modes.is_empty() {
        errors.required(path, "at least 1 access mode is required");
    }
    for mode in modes.iter().filter(|mode| !ACCESS_MODES.contains(&mode.as_str())) {
        errors.not_supported(path, mode, &ACCESS_MODES);
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

/// A volume. Its nodes can be said later, so they may be missing.
pub(super) fn volume(volume: &PersistentVolume, errors: &mut Errors) {
    let path = FieldPath::of("spec");
    let spec = volume.spec.clone().unwrap_or_default();
    let size = path.child("capacity").key("storage");
    match spec.capacity.get("storage") {
        None => errors.required(&size, "the size of the volume, such as 1Gi"),
        Some(written) => {
            if resources::quantity(written, &size, errors).is_some_and(|amount| amount.is_zero()) {
                errors.invalid(&size, written.value.as_str(), "must be greater than zero");
            }
        }
    }
    for name in spec.capacity.keys().filter(|name| *name != "storage") {
        errors.not_supported(&path.child("capacity").key(name), name, &["storage"]);
    }
    access_modes(&spec.access_modes, &path.child("accessModes"), errors);
    let at = path.child("csi");
    match &spec.csi {
        None => errors.required(&at, "a volume's place in a CSI driver"),
        Some(source) => {
            named(&source.driver, driver_name, &at.child("driver"), errors);
            if source.volume_handle.is_empty() {
                errors.required(&at.child("volumeHandle"), "the driver's id of the volume");
            }
        }
    }
    let reclaim = path.child("persistentVolumeReclaimPolicy");
    one_of(&spec.persistent_volume_reclaim_policy, &["Retain", "Delete"], &reclaim, errors);
    if !spec.storage_class_name.is_empty() {
        named(&spec.storage_class_name, names::dns_subdomain, &path.child("storageClassName"), errors);
    }
    volume_mode(spec.volume_mode.as_deref(), &path.child("volumeMode"), errors);
    if let Some(claim) = &spec.claim_ref {
        claim_ref(claim, &path.child("claimRef"), errors);
    }
    if let Some(affinity) = &spec.node_affinity {
        node_affinity(affinity, &path.child("nodeAffinity"), errors);
    }
    mount_options(&spec.mount_options, &path.child("mountOptions"), errors);
}

/// The name of a CSI driver: as the specification has it.
fn driver_name(text: &str) -> Result<(), &'static str> {
    if text.len() > LONGEST_DRIVER {
        return Err("must be no more than 63 characters");
    }
    names::dns_subdomain(&text.to_ascii_lowercase())
}

/// The claim that a volume is kept for. Without a uid it is for whoever has that name.
fn claim_ref(claim: &ObjectReference, path: &FieldPath, errors: &mut Errors) {
    if !matches!(claim.kind.as_str(), "" | "PersistentVolumeClaim") {
        errors.not_supported(&path.child("kind"), &claim.kind, &["PersistentVolumeClaim"]);
    }
    named(&claim.name, names::dns_subdomain, &path.child("name"), errors);
    named(&claim.namespace, names::dns_label, &path.child("namespace"), errors);
}

fn node_affinity(affinity: &VolumeNodeAffinity, path: &FieldPath, errors: &mut Errors) {
    let at = path.child("required");
    let Some(required) = &affinity.required else {
        errors.required(&at, "the nodes that can reach the volume; leave nodeAffinity out if all can");
        return;
    };
    let at = at.child("nodeSelectorTerms");
    if required.node_selector_terms.is_empty() {
        errors.required(&at, "must have at least one node selector term");
    }
    for (index, term) in required.node_selector_terms.iter().enumerate() {
        node_selector_term(term, &at.index(index), errors);
    }
}

fn node_selector_term(term: &NodeSelectorTerm, path: &FieldPath, errors: &mut Errors) {
    for (place, condition) in term.match_expressions.iter().enumerate() {
        let at = path.child("matchExpressions").index(place);
        named(&condition.key, names::label_key, &at.child("key"), errors);
        let values = at.child("values");
        match (condition.operator.as_str(), condition.values.is_empty()) {
            ("In" | "NotIn", true) => errors.required(&values, "must be specified when `operator` is 'In' or 'NotIn'"),
            ("Exists" | "DoesNotExist", false) => {
                errors.forbidden(&values, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
            }
            (operator, _) => {
                one_of(operator, &["In", "NotIn", "Exists", "DoesNotExist"], &at.child("operator"), errors);
            }
        }
    }
}

/// Options of mounts are handed to `mount` as they are: they may not be empty or hide others behind a comma.
fn mount_options(options: &[String], path: &FieldPath, errors: &mut Errors) {
    for (index, option) in options.iter().enumerate() {
        let at = path.index(index);
        if option.trim().is_empty() {
            errors.required(&at, "an option such as noatime");
        } else if option.contains(',') || option.chars().any(char::is_whitespace) {
            errors.invalid(&at, option.as_str(), "must be one option: write each as an element of its own");
        }
    }
}

pub(super) fn class(class: &StorageClass, errors: &mut Errors) {
    named(&class.provisioner, names::label_key, &FieldPath::of("provisioner"), errors);
    parameters(class, errors);
    let policies = [
        ("reclaimPolicy", &class.reclaim_policy, ["Delete", "Retain"]),
        ("volumeBindingMode", &class.volume_binding_mode, ["Immediate", "WaitForFirstConsumer"]),
    ];
    for (field, value, supported) in policies {
        if let Some(value) = value {
            one_of(value, &supported, &FieldPath::of(field), errors);
        }
    }
    mount_options(&class.mount_options, &FieldPath::of("mountOptions"), errors);
    for (index, term) in class.allowed_topologies.iter().enumerate() {
        topology(term, &FieldPath::of("allowedTopologies").index(index), errors);
    }
}

fn parameters(class: &StorageClass, errors: &mut Errors) {
    let (path, (most, largest)) = (FieldPath::of("parameters"), PARAMETERS);
    if class.parameters.len() > most {
        errors.too_long(&path, format!("may have {most} entries, has {}", class.parameters.len()));
    }
    if class.parameters.keys().any(String::is_empty) {
        errors.invalid(&path, "", "a parameter has to have a name");
    }
    let size: usize = class.parameters.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > largest {
        errors.too_long(&path, format!("all parameters together may have {largest} bytes, these have {size}"));
    }
}

fn topology(term: &TopologySelectorTerm, path: &FieldPath, errors: &mut Errors) {
    let at = path.child("matchLabelExpressions");
    if term.match_label_expressions.is_empty() {
        errors.required(&at, "labels of the nodes that are meant; leave allowedTopologies out if all are");
    }
    let mut keys = BTreeSet::new();
    for (place, condition) in term.match_label_expressions.iter().enumerate() {
        let at = at.index(place);
        named(&condition.key, names::label_key, &at.child("key"), errors);
        if !keys.insert(&condition.key) {
            errors.duplicate(&at.child("key"), condition.key.as_str());
        }
        let (values, mut seen) = (at.child("values"), BTreeSet::new());
        if condition.values.is_empty() {
            errors.required(&values, "at least one value of the label");
        }
        for (place, value) in condition.values.iter().enumerate() {
            if let Err(broken) = names::label_value(value) {
                errors.invalid(&values.index(place), value.as_str(), broken);
            }
            if !seen.insert(value) {
                errors.duplicate(&values.index(place), value.as_str());
            }
        }
    }
}

pub(super) fn attachment(attachment: &VolumeAttachment, errors: &mut Errors) {
    let path = FieldPath::of("spec");
    let spec = attachment.spec.clone().unwrap_or_default();
    named(&spec.attacher, driver_name, &path.child("attacher"), errors);
    named(&spec.node_name, names::dns_subdomain, &path.child("nodeName"), errors);
    let volume = spec.source.unwrap_or_default().persistent_volume_name;
    named(&volume, names::dns_subdomain, &path.child("source").child("persistentVolumeName"), errors);
}

pub(super) fn driver(driver: &CsiDriver, errors: &mut Errors) {
    let path = FieldPath::of("spec");
    let spec = driver.spec.clone().unwrap_or_default();
    for (index, mode) in spec.volume_lifecycle_modes.iter().enumerate().filter(|(_, mode)| *mode != "Persistent") {
        let why = "volumes that live only as long as a pod are not supported by Berth yet: take the mode out";
        errors.not_supported_because(&path.child("volumeLifecycleModes").index(index), mode, &["Persistent"], why);
    }
    if let Some(policy) = &spec.fs_group_policy {
        one_of(policy, &["ReadWriteOnceWithFSType", "File", "None"], &path.child("fsGroupPolicy"), errors);
    }
    let not_yet = [
        ("podInfoOnMount", spec.pod_info_on_mount, "drivers are not told of pods"),
        ("requiresRepublish", spec.requires_republish, "a volume is published once for each pod"),
    ];
    for (field, _, why) in not_yet.iter().filter(|(_, value, _)| *value == Some(true)) {
        errors.forbidden(&path.child(field), format!("not supported by Berth yet: {why}; leave the field out"));
    }
}

pub(super) fn snapshot(snapshot: &VolumeSnapshot, errors: &mut Errors) {
    let source = snapshot.spec.clone().and_then(|spec| spec.source).unwrap_or_default();
    let path = FieldPath::of("spec").child("source").child("persistentVolumeClaimName");
    if source.persistent_volume_claim_name.is_empty() {
        errors.required(&path, "the claim whose data it holds, in the snapshot's namespace");
    } else {
        named(&source.persistent_volume_claim_name, names::dns_subdomain, &path, errors);
    }
}

#[cfg(test)]
mod tests;
