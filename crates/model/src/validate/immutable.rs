//! What may not change once an object exists (VAL-U).
//!
//! The old and the new object are compared field by field along the schema, and each change outside of what may change
//! is named by its path. Kubernetes answers with one error at `spec` and a list of what may change; the user is left
//! to search.

use pb::{
    Kind,
    api::v1::{Object as AnyObject, object::Object as Variant},
    schema::{self, Field, Form, Message, Shape},
};
use serde_json::Value;

use crate::{
    error::{Errors, FieldPath},
    quantity::Quantity,
};

pub(super) fn check(old: &AnyObject, new: &AnyObject, errors: &mut Errors) {
    let Some(kind) = new.kind() else { return };
    let frozen = is_frozen(old);
    let rules = Rules::of(kind, frozen);
    let (Ok(old), Ok(new)) = (old.to_json(), new.to_json()) else { return };
    let mut changed = Vec::new();
    let root = FieldPath::root();
    for field in schema::of(kind).fields.iter().filter(|field| rules.fixed.contains(&field.name)) {
        compare_field(field, &old[field.name], &new[field.name], &root.child(field.name), &mut changed);
    }
    for path in changed {
        if !rules.may_change(&path) && !is_said_first(&path, &old) {
            errors.forbidden(&path, rules.why);
        }
    }
}

/// Whether a field says now what was left open before, and may: which nodes reach a volume.
fn is_said_first(path: &FieldPath, old: &Value) -> bool {
    let affinity = path.is_within(&FieldPath::of("spec.nodeAffinity"));
    affinity && old.pointer("/spec/nodeAffinity").is_none_or(Value::is_null)
}

/// Whether the user said that this configuration never changes.
fn is_frozen(object: &AnyObject) -> bool {
    match &object.object {
        Some(Variant::ConfigMap(map)) => map.immutable == Some(true),
        Some(Variant::Secret(secret)) => secret.immutable == Some(true),
        _ => false,
    }
}

/// Which fields stay as they were.
struct Rules {
    /// Fields of the object.
    fixed: &'static [&'static str],
    /// Paths within them that may change after all; `[]` stands for any index.
    except: &'static [&'static str],
    /// What to tell the user.
    why: &'static str,
}

impl Rules {
    fn of(kind: Kind, frozen: bool) -> Self {
        let (fixed, except, why): (&'static [&'static str], &'static [&'static str], &'static str) = match kind {
            Kind::StatefulSet => (
                &["spec"],
                &[
                    "spec.replicas",
                    "spec.ordinals",
                    "spec.template",
                    "spec.updateStrategy",
                    "spec.revisionHistoryLimit",
                    "spec.persistentVolumeClaimRetentionPolicy",
                    "spec.minReadySeconds",
                    "spec.deletionOrder",
                    "spec.progressDeadlineSeconds",
                    "spec.autoRevert",
                    "spec.maxConcurrentStart",
                    "spec.paused",
                    "spec.overrides",
                    "spec.budgetPolicy",
                    "spec.volumePolicy",
                    // Only up: `grow`.
                    "spec.volumeClaimTemplates[].spec.resources.requests[storage]",
                    "spec.volumeClaimTemplates[].metadata.labels",
                    "spec.volumeClaimTemplates[].metadata.annotations",
                ],
                "field is immutable; to change it, delete the set with --cascade=orphan and create it again: pods and claims stay",
            ),
            Kind::Pod => (
                &["spec"],
                &[
                    "spec.containers[].image",
                    "spec.initContainers[].image",
                    // How these may change is looked at apart: `lived`.
                    "spec.activeDeadlineSeconds",
                    "spec.tolerations",
                ],
                "field is immutable; of a pod's spec only images may change, activeDeadlineSeconds fall and tolerations come",
            ),
            // How these two may change is looked at apart.
            Kind::PersistentVolumeClaim => (
                &["spec"],
                &["spec.volumeName", "spec.resources.requests[storage]"],
                "field is immutable; of a claim's spec only resources.requests.storage may change, and only grow",
            ),
            Kind::PersistentVolume => (
                &["spec"],
                &[
                    "spec.claimRef",
                    "spec.persistentVolumeReclaimPolicy",
                    "spec.accessModes",
                    "spec.capacity",
                    "spec.storageClassName",
                    "spec.mountOptions",
                ],
                "field is immutable after creation; to change it, delete the volume (its data stays with \
                 persistentVolumeReclaimPolicy: Retain) and create it again",
            ),
            Kind::VolumeSnapshot => {
                (&["spec"], &[], "field is immutable: a snapshot is of one claim; make another snapshot")
            }
            Kind::CsiDriver => (
                &["spec"],
                &["spec.podInfoOnMount", "spec.storageCapacity", "spec.fsGroupPolicy", "spec.requiresRepublish"],
                "field is immutable; delete the driver's object and create it again while none of its volumes is used",
            ),
            Kind::StorageClass => (
                &["provisioner", "parameters", "reclaimPolicy", "volumeBindingMode"],
                &[],
                "field is immutable; create a class of another name",
            ),
            Kind::PriorityClass => (
                &["value", "preemptionPolicy"],
                &[],
                "field is immutable: pods have it already; create a class of another name",
            ),
            Kind::ControllerRevision => (&["data"], &[], "field is immutable"),
            Kind::Secret if frozen => {
                (&["data", "type", "immutable"], &[], "field is immutable because `immutable` is set")
            }
            Kind::Secret => (&["type"], &[], "field is immutable"),
            Kind::ConfigMap if frozen => {
                (&["data", "binaryData", "immutable"], &[], "field is immutable because `immutable` is set")
            }
            _ => (&[], &[], ""),
        };
        Self { fixed, except, why }
    }

    fn may_change(&self, path: &FieldPath) -> bool {
        let any_index = FieldPath::of(&without_indices(path.as_str()));
        self.except.iter().any(|except| any_index.is_within(&FieldPath::of(except)))
    }
}

/// `a[3].b` -> `a[].b`
fn without_indices(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut inside = false;
    for char in path.chars() {
        match char {
            '[' => {
                inside = true;
                out.push('[');
            }
            ']' => {
                inside = false;
                out.push(']');
            }
            char if inside && char.is_ascii_digit() => {}
            char => out.push(char),
        }
    }
    out
}

fn compare(message: &'static Message, old: &Value, new: &Value, path: &FieldPath, changed: &mut Vec<FieldPath>) {
    for field in message.fields {
        compare_field(field, &old[field.name], &new[field.name], &path.child(field.name), changed);
    }
}

fn compare_field(field: &'static Field, old: &Value, new: &Value, path: &FieldPath, changed: &mut Vec<FieldPath>) {
    match (field.form, old, new) {
        (_, old, new) if old == new => {}
        (Form::One, old, new) => compare_value(field.shape, old, new, path, changed),
        (Form::List, Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            for (index, (old, new)) in old.iter().zip(new).enumerate() {
                compare_value(field.shape, old, new, &path.index(index), changed);
            }
        }
        (Form::Map, Value::Object(old), Value::Object(new)) => {
            let keys = old.keys().chain(new.keys().filter(|key| !old.contains_key(*key)));
            for key in keys {
                let (old, new) = (old.get(key).unwrap_or(&Value::Null), new.get(key).unwrap_or(&Value::Null));
                compare_value(field.shape, old, new, &path.key(key), changed);
            }
        }
        // Longer or shorter, there or gone.
        _ => changed.push(path.clone()),
    }
}

fn compare_value(shape: Shape, old: &Value, new: &Value, path: &FieldPath, changed: &mut Vec<FieldPath>) {
    match shape {
        _ if old == new => {}
        Shape::Message(message) if old.is_object() && new.is_object() => compare(message, old, new, path, changed),
        // The same amount in another spelling is no change.
        Shape::Quantity if same_amount(old, new) => {}
        _ => changed.push(path.clone()),
    }
}

fn same_amount(old: &Value, new: &Value) -> bool {
    let amount = |value: &Value| value.as_str().and_then(|text| text.parse::<Quantity>().ok());
    matches!((amount(old), amount(new)), (Some(old), Some(new)) if old == new)
}
