//! Variables of containers, and what fields of a pod they and files may take their value from.

use pb::objects::{EnvFromSource, EnvVar, Quantity as Written, ResourceFieldSelector};

use super::{named, resources};
use crate::{
    error::{Errors, FieldPath},
    names,
    quantity::Quantity,
};

/// Fields of a pod that a variable may take its value from.
const OF_A_VARIABLE: [&str; 8] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// Fields of a pod that a file may hold.
const OF_A_FILE: [&str; 5] =
    ["metadata.name", "metadata.namespace", "metadata.uid", "metadata.labels", "metadata.annotations"];
/// Bounds and requests of a container that a variable or a file may hold.
const AMOUNTS: [&str; 6] = [
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
];
/// Units of CPU, and of bytes.
const UNITS_OF_CPU: [&str; 2] = ["1m", "1"];
const UNITS_OF_BYTES: [&str; 13] = ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

/// Who asks for a field of the pod.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    /// A variable; a container that is not named is its own.
    Variable,
    /// A file of a volume, which must name the container.
    File,
}

/// A variable of the environment.
pub(super) fn variable(variable: &EnvVar, path: &FieldPath, errors: &mut Errors) {
    named(&variable.name, names::env_name, &path.child("name"), errors);
    let Some(source) = &variable.value_from else { return };
    let at = path.child("valueFrom");
    if !variable.value.is_empty() {
        errors.invalid(&at, "", "may not be specified when `value` is not empty");
    }
    let sources = [
        source.field_ref.is_some(),
        source.resource_field_ref.is_some(),
        source.config_map_key_ref.is_some(),
        source.secret_key_ref.is_some(),
    ];
    if sources.iter().filter(|set| **set).count() != 1 {
        errors.invalid(
            &at,
            "",
            "must have exactly one of fieldRef, resourceFieldRef, configMapKeyRef and secretKeyRef",
        );
    }
    if let Some(field) = &source.field_ref {
        field_path(&field.field_path, For::Variable, &at.child("fieldRef").child("fieldPath"), errors);
    }
    if let Some(field) = &source.resource_field_ref {
        resource_field(field, For::Variable, &at.child("resourceFieldRef"), errors);
    }
    for (name, key) in [("configMapKeyRef", &source.config_map_key_ref), ("secretKeyRef", &source.secret_key_ref)] {
        if let Some(key) = key {
            let at = at.child(name);
            named(&key.name, names::dns_subdomain, &at.child("name"), errors);
            named(&key.key, names::config_key, &at.child("key"), errors);
        }
    }
}

/// Variables from all keys of one object.
pub(super) fn from(source: &EnvFromSource, path: &FieldPath, errors: &mut Errors) {
    if !source.prefix.is_empty() {
        named(&source.prefix, names::env_name, &path.child("prefix"), errors);
    }
    match (&source.config_map_ref, &source.secret_ref) {
        (None, None) => errors.invalid(path, "", "must specify one of: `configMapRef` or `secretRef`"),
        (Some(_), Some(_)) => errors.invalid(path, "", "may not have more than one field specified at a time"),
        _ => {}
    }
    for (field, object) in [("configMapRef", &source.config_map_ref), ("secretRef", &source.secret_ref)] {
        if let Some(object) = object {
            named(&object.name, names::dns_subdomain, &path.child(field).child("name"), errors);
        }
    }
}

/// The path of a field of the pod.
pub(super) fn field_path(text: &str, who: For, path: &FieldPath, errors: &mut Errors) {
    let plain: &[&str] = match who {
        For::Variable => &OF_A_VARIABLE,
        For::File => &OF_A_FILE,
    };
    let subscript = |map: &str| {
        let key = text.strip_prefix(map)?.strip_prefix("['")?.strip_suffix("']")?;
        names::label_key(key).ok()
    };
    if text.is_empty() {
        errors.required(path, "");
    } else if !plain.contains(&text) && subscript("metadata.labels").or(subscript("metadata.annotations")).is_none() {
        let forms = ["metadata.labels['KEY']", "metadata.annotations['KEY']"];
        let supported: Vec<_> = plain.iter().copied().chain(forms).collect();
        errors.not_supported(path, text, &supported);
    }
}

/// A bound or request of a container.
pub(super) fn resource_field(field: &ResourceFieldSelector, who: For, path: &FieldPath, errors: &mut Errors) {
    if who == For::File && field.container_name.is_empty() {
        errors.required(&path.child("containerName"), "a volume belongs to no container: name one");
    }
    let at = path.child("resource");
    if field.resource.is_empty() {
        errors.required(&at, "");
    } else if !AMOUNTS.contains(&field.resource.as_str()) {
        errors.not_supported(&at, &field.resource, &AMOUNTS);
    } else if let Some(divisor) = &field.divisor {
        let units: &[&str] = if field.resource.ends_with(".cpu") { &UNITS_OF_CPU } else { &UNITS_OF_BYTES };
        unit(divisor, units, &path.child("divisor"), errors);
    }
}

fn unit(divisor: &Written, units: &[&str], path: &FieldPath, errors: &mut Errors) {
    let Some(amount) = resources::quantity(divisor, path, errors) else { return };
    let is = |text: &str| text.parse::<Quantity>().is_ok_and(|unit| unit == amount);
    // 0 stands for none, which is 1.
    if !is("0") && !units.iter().any(|unit| is(unit)) {
        errors.not_supported(path, &divisor.value, units);
    }
}
