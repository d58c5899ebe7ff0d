//! What may change of the claim templates of a set: they may grow, and have other labels and annotations (VCT-1).
//!
//! A volume cannot be made smaller without losing what is in it, so a smaller size is refused with its path.

use pb::objects::{PersistentVolumeClaimSpec, StatefulSet};

use super::{meta, resources};
use crate::{
    error::{Errors, FieldPath},
    quantity::Quantity,
};

const STORAGE: &str = "storage";

/// Checks what changed of a set's claim templates and may change.
pub(super) fn templates(old: &StatefulSet, new: &StatefulSet, errors: &mut Errors) {
    let templates =
        |set: &StatefulSet| set.spec.as_ref().map(|spec| spec.volume_claim_templates.clone()).unwrap_or_default();
    let path = FieldPath::of("spec").child("volumeClaimTemplates");
    for (index, (old, new)) in templates(old).iter().zip(&templates(new)).enumerate() {
        let (was, is) = (old.metadata.clone().unwrap_or_default(), new.metadata.clone().unwrap_or_default());
        if was.name != is.name {
            // Another template; that is told as a whole.
            continue;
        }
        let at = path.index(index);
        if was.labels != is.labels {
            meta::labels(&is.labels, &at.child("metadata").child("labels"), errors);
        }
        if was.annotations != is.annotations {
            meta::annotations(&is.annotations, &at.child("metadata").child("annotations"), errors);
        }
        size(old.spec.as_ref(), new.spec.as_ref(), &at.child("spec"), errors);
    }
}

/// A template's size: it may grow, up to its own limit.
fn size(
    old: Option<&PersistentVolumeClaimSpec>,
    new: Option<&PersistentVolumeClaimSpec>,
    path: &FieldPath,
    errors: &mut Errors,
) {
    let (Some(was), Some(written)) = (requested(old), new.and_then(|spec| spec.resources.as_ref())) else { return };
    let at = path.child("resources");
    let Some(is) = requested(new) else {
        if let Some(broken) = written.requests.get(STORAGE) {
            resources::quantity(broken, &at.child("requests").key(STORAGE), errors);
        } else {
            errors.required(&at.child("requests").key(STORAGE), "the size of the volume, such as 1Gi");
        }
        return;
    };
    if is < was {
        let why = format!(
            "may grow and not shrink: it was {was}, and volumes cannot be made smaller; to have smaller ones, make \
             another set and copy the data"
        );
        errors.forbidden(&at.child("requests").key(STORAGE), why);
    } else if is > was {
        resources::within(&written.requests, &written.limits, &at, errors);
    }
}

fn requested(spec: Option<&PersistentVolumeClaimSpec>) -> Option<Quantity> {
    let requests = &spec?.resources.as_ref()?.requests;
    requests.get(STORAGE)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::tests::{web, with};
    use crate::default;

    /// As the front door would tell it, whatever else is wrong with the new set.
    fn updated(old: &Value, new: &Value) -> Vec<String> {
        let read = |json: &Value| {
            let mut object = pb::api::v1::Object::from_json(pb::Kind::StatefulSet, json.clone()).unwrap();
            default::object(&mut object);
            object
        };
        super::super::update(&read(old), &read(new)).iter().map(ToString::to_string).collect()
    }

    const TEMPLATE: &str = "/spec/volumeClaimTemplates/0";

    fn template(changed: &str, value: Value) -> Value {
        let mut set = with(web(), &format!("{TEMPLATE}/metadata/labels"), json!({"tier": "hot"}));
        if let Some(at) = changed.strip_prefix("metadata/") {
            set["spec"]["volumeClaimTemplates"][0]["metadata"][at] = value;
            return set;
        }
        with(set, &format!("{TEMPLATE}/{changed}"), value)
    }

    fn old() -> Value {
        template("metadata/labels", json!({"tier": "hot"}))
    }

    const SIZE: &str = "spec/resources/requests/storage";
    const PATH: &str = "spec.volumeClaimTemplates[0].spec.resources.requests[storage]";

    #[test]
    fn a_claim_template_may_grow() {
        assert_eq!(updated(&old(), &template(SIZE, json!("2Gi"))), Vec::<String>::new());
        assert_eq!(updated(&old(), &template("metadata/labels", json!({"tier": "cold"}))), Vec::<String>::new());
        assert_eq!(updated(&old(), &template("metadata/annotations", json!({"a": "b"}))), Vec::<String>::new());
    }

    #[test]
    fn a_claim_template_does_not_shrink() {
        let [only] = &updated(&old(), &template(SIZE, json!("512Mi")))[..] else { panic!("one mistake") };
        assert!(only.starts_with(&format!("{PATH}: Forbidden: may grow and not shrink: it was 1Gi")), "{only}");
    }

    #[test]
    fn what_changes_of_a_claim_template_is_checked() {
        for (field, value, path) in [
            ("metadata/labels", json!({"tier": "not a label"}), "spec.volumeClaimTemplates[0].metadata.labels"),
            (SIZE, json!("0"), PATH),
            ("spec/accessModes", json!(["ReadWriteOncePod"]), "spec.volumeClaimTemplates[0].spec.accessModes"),
            ("metadata/name", json!("other"), "spec.volumeClaimTemplates[0].metadata.name"),
        ] {
            let mistakes = updated(&old(), &template(field, value));
            assert!(mistakes.iter().any(|one| one.starts_with(path)), "{field}: {mistakes:?}");
        }
    }
}
