//! Kinds with few rules: ConfigMap, Secret, Node, Event, ControllerRevision.

use pb::objects::{ConfigMap, ControllerRevision, Event, Node, Secret};

use super::{named, not_negative, one_of, pod, resources, taint};
use crate::{
    error::{Errors, FieldPath},
    names,
};

/// Bytes of all values of a ConfigMap or Secret together: what a value in the store may weigh.
const LARGEST_DATA: usize = 1024 * 1024;

pub(super) fn config_map(map: &ConfigMap, errors: &mut Errors) {
    let texts = map.data.iter().map(|(key, value)| (key, value.len()));
    let bytes = map.binary_data.iter().map(|(key, value)| (key, value.len()));
    data(texts.clone(), &FieldPath::of("data"), errors);
    data(bytes.clone(), &FieldPath::of("binaryData"), errors);
    for key in map.binary_data.keys().filter(|key| map.data.contains_key(*key)) {
        errors.invalid(&FieldPath::of("binaryData").key(key), key.as_str(), "stands in data already");
    }
    size(texts.chain(bytes).map(|(_, size)| size).sum(), errors);
}

pub(super) fn secret(secret: &Secret, errors: &mut Errors) {
    let sizes = secret.data.iter().map(|(key, value)| (key, value.len()));
    data(sizes.clone(), &FieldPath::of("data"), errors);
    size(sizes.map(|(_, size)| size).sum(), errors);
    if secret.r#type.is_empty() {
        errors.required(&FieldPath::of("type"), "");
    }
}

fn data<'k>(sizes: impl Iterator<Item = (&'k String, usize)>, path: &FieldPath, errors: &mut Errors) {
    for (key, _) in sizes {
        if let Err(broken) = names::config_key(key) {
            errors.invalid(&path.key(key), key.as_str(), broken);
        }
    }
}

fn size(bytes: usize, errors: &mut Errors) {
    if bytes > LARGEST_DATA {
        errors.too_long(&FieldPath::of("data"), format!("may have {LARGEST_DATA} bytes, has {bytes}"));
    }
}

pub(super) fn node(node: &Node, errors: &mut Errors) {
    if let Some(spec) = &node.spec {
        taint::check(&spec.taints, &FieldPath::of("spec.taints"), errors);
    }
    let Some(status) = &node.status else { return };
    for (field, amounts) in [("capacity", &status.capacity), ("allocatable", &status.allocatable)] {
        for (name, amount) in amounts {
            resources::quantity(amount, &FieldPath::of("status").child(field).key(name), errors);
        }
    }
}

pub(super) fn event(event: &Event, errors: &mut Errors) {
    let about = FieldPath::of("involvedObject");
    match &event.involved_object {
        None => errors.required(&about, "what the event is about"),
        Some(object) if object.namespace != event.metadata.as_ref().map_or("", |m| m.namespace.as_str()) => {
            // Events about objects of the whole cluster live in the default namespace.
            if !object.namespace.is_empty() {
                errors.invalid(
                    &about.child("namespace"),
                    object.namespace.as_str(),
                    "must be the event's own namespace",
                );
            }
        }
        Some(_) => {}
    }
    one_of(&event.r#type, &["Normal", "Warning"], &FieldPath::of("type"), errors);
    not_negative(event.count, &FieldPath::of("count"), errors);
}

pub(super) fn controller_revision(revision: &ControllerRevision, errors: &mut Errors) {
    not_negative(revision.revision, &FieldPath::of("revision"), errors);
    let path = FieldPath::of("data");
    match &revision.data {
        None => errors.required(&path, "the template of the pods"),
        Some(template) => {
            let spec = template.spec.clone().unwrap_or_default();
            for (index, container) in spec.containers.iter().enumerate() {
                named(
                    &container.name,
                    names::dns_label,
                    &path.child("spec").child("containers").index(index).child("name"),
                    errors,
                );
            }
            pod::names(&spec, &path.child("spec"), errors);
        }
    }
}
