//! Taints that a pod puts up with.

use pb::objects::Toleration;

use super::named;
use crate::{
    error::{Errors, FieldPath},
    names,
};

/// What a taint does to pods that do not tolerate it.
pub(super) const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

pub(super) fn check(tolerations: &[Toleration], path: &FieldPath, errors: &mut Errors) {
    for (index, toleration) in tolerations.iter().enumerate() {
        one(toleration, &path.index(index), errors);
    }
}

fn one(toleration: &Toleration, path: &FieldPath, errors: &mut Errors) {
    let operator = path.child("operator");
    if !toleration.key.is_empty() {
        named(&toleration.key, names::label_key, &path.child("key"), errors);
    } else if toleration.operator != "Exists" {
        let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        errors.invalid(&operator, toleration.operator.as_str(), why);
    }
    let value = path.child("value");
    match toleration.operator.as_str() {
        "" | "Equal" => {
            if let Err(broken) = names::label_value(&toleration.value) {
                errors.invalid(&value, toleration.value.as_str(), broken);
            }
        }
        "Exists" => {
            if !toleration.value.is_empty() {
                errors.invalid(&value, toleration.value.as_str(), "value must be empty when `operator` is 'Exists'");
            }
        }
        other => errors.not_supported(&operator, other, &["Equal", "Exists"]),
    }
    let effect = path.child("effect");
    if !toleration.effect.is_empty() && !EFFECTS.contains(&toleration.effect.as_str()) {
        errors.not_supported(&effect, &toleration.effect, &EFFECTS);
    } else if toleration.toleration_seconds.is_some() && toleration.effect != "NoExecute" {
        let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        errors.invalid(&effect, toleration.effect.as_str(), why);
    }
}
