//! Taints of nodes: why pods shall keep away, or go.

use std::collections::BTreeSet;

use pb::objects::Taint;

use super::{named, one_of, toleration::EFFECTS};
use crate::{
    error::{Errors, FieldPath},
    names,
};

/// The key of the taint that says that a machine is off: nothing of it runs, and it will not come back by itself (NL-3d).
pub const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

pub(super) fn check(taints: &[Taint], path: &FieldPath, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, taint) in taints.iter().enumerate() {
        let path = path.index(index);
        named(&taint.key, names::label_key, &path.child("key"), errors);
        if let Err(broken) = names::label_value(&taint.value) {
            errors.invalid(&path.child("value"), taint.value.as_str(), broken);
        }
        one_of(&taint.effect, &EFFECTS, &path.child("effect"), errors);
        if !seen.insert((&taint.key, &taint.effect)) {
            errors.duplicate(&path, format!("{}:{}", taint.key, taint.effect));
        }
    }
}
