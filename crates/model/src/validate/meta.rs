//! Metadata: names, labels, annotations, owners.

use std::collections::BTreeMap;

use pb::{
    Kind,
    objects::{LabelSelector, ObjectMeta},
};

use super::named;
use crate::{
    error::{Errors, FieldPath},
    names,
};

/// Bytes of all annotations of an object together.
const LARGEST_ANNOTATIONS: usize = 256 * 1024;

/// Longest name of a set: its pods carry `<set>-<hash of ten>` in a label and `<set>-<ordinal of ten digits>` as their
/// name, and neither may be longer than 63. Kubernetes takes 63 here and fails later, when it makes the pods (#64023).
const LONGEST_SET_NAME: usize = 52;

pub(super) fn create(kind: Kind, meta: &ObjectMeta, errors: &mut Errors) {
    let path = FieldPath::of("metadata");
    name(kind, meta, &path, errors);
    let namespace = path.child("namespace");
    match (kind.namespaced(), meta.namespace.as_str()) {
        (_, "") => {}
        (true, text) => named(text, names::dns_label, &namespace, errors),
        (false, _) => errors.forbidden(&namespace, format!("a {kind} belongs to no namespace: leave the field out")),
    }
    common(meta, &path, errors);
}

fn name(kind: Kind, meta: &ObjectMeta, path: &FieldPath, errors: &mut Errors) {
    let rule = match kind {
        Kind::StatefulSet | Kind::Namespace => names::dns_label,
        Kind::Service => names::dns_label_1035,
        _ => names::dns_subdomain,
    };
    let at = path.child("name");
    match meta.name.as_str() {
        // The front door completes it.
        "" if !meta.generate_name.is_empty() => {
            let complete = format!("{}x", meta.generate_name);
            if let Err(broken) = rule(&complete) {
                errors.invalid(&path.child("generateName"), meta.generate_name.as_str(), broken);
            }
        }
        "" => errors.required(&at, "name or generateName is required"),
        name => match rule(name) {
            Err(broken) => errors.invalid(&at, name, broken),
            Ok(()) if kind == Kind::StatefulSet && name.len() > LONGEST_SET_NAME => {
                let why = format!(
                    "must be no more than {LONGEST_SET_NAME} characters: pods carry it in a name and a label of at most 63, with an ordinal or the hash of a revision behind it"
                );
                errors.invalid(&at, name, why);
            }
            Ok(()) => {}
        },
    }
}

pub(super) fn update(old: &ObjectMeta, new: &ObjectMeta, errors: &mut Errors) {
    let path = FieldPath::of("metadata");
    let fixed =
        [("name", &old.name, &new.name), ("namespace", &old.namespace, &new.namespace), ("uid", &old.uid, &new.uid)];
    for (field, old, new) in fixed {
        if old != new {
            errors.invalid(&path.child(field), new.as_str(), "field is immutable");
        }
    }
    common(new, &path, errors);
    if new.generation < old.generation {
        errors.invalid(&path.child("generation"), new.generation, "must not fall");
    }
}

fn common(meta: &ObjectMeta, path: &FieldPath, errors: &mut Errors) {
    labels(&meta.labels, &path.child("labels"), errors);
    annotations(&meta.annotations, &path.child("annotations"), errors);
    let mut controllers = 0;
    for (index, owner) in meta.owner_references.iter().enumerate() {
        let at = path.child("ownerReferences").index(index);
        let parts =
            [("apiVersion", &owner.api_version), ("kind", &owner.kind), ("name", &owner.name), ("uid", &owner.uid)];
        for (field, _) in parts.iter().filter(|(_, value)| value.is_empty()) {
            errors.required(&at.child(field), "");
        }
        controllers += usize::from(owner.controller == Some(true));
    }
    if controllers > 1 {
        errors.invalid(&path.child("ownerReferences"), controllers, "only one owner may be the controller");
    }
    for (index, finalizer) in meta.finalizers.iter().enumerate() {
        named(finalizer, names::label_key, &path.child("finalizers").index(index), errors);
    }
}

/// Labels: each key and value by its grammar.
pub(super) fn labels(labels: &BTreeMap<String, String>, path: &FieldPath, errors: &mut Errors) {
    for (key, value) in labels {
        if let Err(broken) = names::label_key(key) {
            errors.invalid(path, key.as_str(), format!("as a key {broken}"));
        }
        if let Err(broken) = names::label_value(value) {
            errors.invalid(path, value.as_str(), format!("the value of {key:?} {broken}"));
        }
    }
}

/// Annotations: each key by its grammar, all of them by their size.
pub(super) fn annotations(annotations: &BTreeMap<String, String>, path: &FieldPath, errors: &mut Errors) {
    for key in annotations.keys() {
        if let Err(broken) = names::label_key(key) {
            errors.invalid(path, key.as_str(), format!("as a key {broken}"));
        }
    }
    let size: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > LARGEST_ANNOTATIONS {
        errors.too_long(
            path,
            format!("all annotations together may have {LARGEST_ANNOTATIONS} bytes, these have {size}"),
        );
    }
}

/// A label selector in a spec. Says whether it is sound.
pub(super) fn selector(selector: &LabelSelector, path: &FieldPath, errors: &mut Errors) -> bool {
    let mut own = Errors::default();
    labels(&selector.match_labels, &path.child("matchLabels"), &mut own);
    for (index, expression) in selector.match_expressions.iter().enumerate() {
        let at = path.child("matchExpressions").index(index);
        let values = at.child("values");
        match (expression.operator.as_str(), expression.values.is_empty()) {
            ("In" | "NotIn", true) => own.required(&values, "must be specified when `operator` is 'In' or 'NotIn'"),
            ("Exists" | "DoesNotExist", false) => {
                own.forbidden(&values, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
            }
            ("In" | "NotIn" | "Exists" | "DoesNotExist", _) => {}
            (other, _) => own.invalid(&at.child("operator"), other, "must be In, NotIn, Exists or DoesNotExist"),
        }
        if let Err(broken) = names::label_key(&expression.key) {
            own.invalid(&at.child("key"), expression.key.as_str(), broken);
        }
        for (index, value) in expression.values.iter().enumerate() {
            if let Err(broken) = names::label_value(value) {
                own.invalid(&values.index(index), value.as_str(), broken);
            }
        }
    }
    let sound = own.is_empty();
    errors.extend(own);
    sound
}
