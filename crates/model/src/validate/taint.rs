//! Taints of nodes. One is known so far: the word of a person that a machine is off (NL-3d).

use std::collections::BTreeSet;

use pb::objects::Taint;

use super::one_of;
use crate::error::{Errors, FieldPath};

/// The key of the taint that says that a machine is off: nothing of it runs, and it will not come back by itself.
pub const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

pub(super) fn check(taints: &[Taint], path: &FieldPath, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, taint) in taints.iter().enumerate() {
        let path = path.index(index);
        match taint.key.as_str() {
            "" => errors.required(&path.child("key"), format!("{OUT_OF_SERVICE:?} is supported")),
            OUT_OF_SERVICE => {}
            other => errors.not_supported_because(
                &path.child("key"),
                other,
                &[OUT_OF_SERVICE],
                "other taints are not supported by Berth yet: cordon the node (spec.unschedulable) to keep pods away",
            ),
        }
        one_of(&taint.effect, &["NoSchedule", "NoExecute"], &path.child("effect"), errors);
        if !seen.insert((&taint.key, &taint.effect)) {
            errors.duplicate(&path, format!("{}:{}", taint.key, taint.effect));
        }
    }
}
