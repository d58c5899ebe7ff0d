//! What may change of a pod that exists: its end may come nearer, and it may put up with more taints (VAL-U).

use pb::objects::{Pod, PodSpec, Toleration};
use serde_json::json;

use crate::error::{Errors, FieldPath};

pub(super) fn check(old: &Pod, new: &Pod, errors: &mut Errors) {
    let path = FieldPath::of("spec");
    let (old, new) = (old.spec.clone().unwrap_or_default(), new.spec.clone().unwrap_or_default());
    deadline(&old, &new, &path.child("activeDeadlineSeconds"), errors);
    tolerations(&old.tolerations, &new.tolerations, &path.child("tolerations"), errors);
}

fn deadline(old: &PodSpec, new: &PodSpec, path: &FieldPath, errors: &mut Errors) {
    match (old.active_deadline_seconds, new.active_deadline_seconds) {
        (Some(old), None) => errors.invalid(path, json!(null), format!("must not be taken away: it is {old}")),
        (Some(old), Some(new)) if new > old => {
            errors.invalid(path, new, format!("must be less than or equal to previous value {old}"));
        }
        _ => {}
    }
}

/// Of a toleration that is there only the seconds may change.
fn tolerations(old: &[Toleration], new: &[Toleration], path: &FieldPath, errors: &mut Errors) {
    let timeless = |one: &Toleration| Toleration { toleration_seconds: None, ..one.clone() };
    if !old.iter().all(|was| new.iter().any(|is| timeless(is) == timeless(was))) {
        errors.forbidden(path, "existing toleration can not be modified except its tolerationSeconds; add others");
    }
}
