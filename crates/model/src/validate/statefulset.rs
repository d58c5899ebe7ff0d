//! StatefulSets (VAL-1 to VAL-8). What Berth adds to them stands in `berth`.

use pb::objects::{IntOrString, StatefulSet, StatefulSetSpec};
use serde_json::json;

use super::{Occasion, berth, meta, named, not_negative, one_of, pod, storage};
use crate::{
    bound::Bound,
    error::{Errors, FieldPath},
    names,
    selector::Selector,
};

pub(super) fn check(set: &StatefulSet, occasion: Occasion, errors: &mut Errors) {
    let path = FieldPath::of("spec");
    let Some(spec) = &set.spec else {
        errors.required(&path, "");
        return;
    };
    not_negative(spec.replicas.unwrap_or(1), &path.child("replicas"), errors);
    not_negative(spec.min_ready_seconds, &path.child("minReadySeconds"), errors);
    not_negative(spec.revision_history_limit.unwrap_or(10), &path.child("revisionHistoryLimit"), errors);
    ordinals(spec, &path, errors);
    if !matches!(spec.pod_management_policy.as_str(), "OrderedReady" | "Parallel") {
        let at = path.child("podManagementPolicy");
        match spec.pod_management_policy.as_str() {
            "" => errors.required(&at, "must be 'OrderedReady' or 'Parallel'"),
            other => errors.invalid(&at, other, "must be 'OrderedReady' or 'Parallel'"),
        }
    }
    update_strategy(spec, &path.child("updateStrategy"), errors);
    let retention = spec.persistent_volume_claim_retention_policy.clone().unwrap_or_default();
    let at = path.child("persistentVolumeClaimRetentionPolicy");
    for (field, value) in [("whenDeleted", retention.when_deleted), ("whenScaled", retention.when_scaled)] {
        one_of(&value, &["Retain", "Delete"], &at.child(field), errors);
    }
    if occasion == Occasion::Create {
        if !spec.service_name.is_empty() {
            named(&spec.service_name, names::dns_label, &path.child("serviceName"), errors);
        }
        claim_templates(spec, &path.child("volumeClaimTemplates"), errors);
    }
    template(spec, &path.child("template"), errors);
    berth::check(spec, &path, errors);
}

fn ordinals(spec: &StatefulSetSpec, path: &FieldPath, errors: &mut Errors) {
    let start = spec.ordinals.as_ref().map_or(0, |ordinals| ordinals.start);
    let at = path.child("ordinals").child("start");
    not_negative(start, &at, errors);
    let last = i64::from(start) + i64::from(spec.replicas.unwrap_or(1)) - 1;
    if start >= 0 && last > i64::from(i32::MAX) {
        errors.invalid(&at, start, format!("start and replicas lead to ordinal {last}, beyond {}", i32::MAX));
    }
}

/// Recreate is KEP-3541's; a set of apps/v1 may have it too.
const STRATEGIES: &str = "must be 'RollingUpdate', 'OnDelete' or 'Recreate'";

fn update_strategy(spec: &StatefulSetSpec, path: &FieldPath, errors: &mut Errors) {
    let strategy = spec.update_strategy.clone().unwrap_or_default();
    let at = path.child("rollingUpdate");
    match (strategy.r#type.as_str(), &strategy.rolling_update) {
        ("", _) => errors.required(&path.child("type"), STRATEGIES),
        ("RollingUpdate", Some(rolling)) => {
            not_negative(rolling.partition.unwrap_or(0), &at.child("partition"), errors);
            if let Some(bound) = &rolling.max_unavailable {
                max_unavailable(bound, &at.child("maxUnavailable"), errors);
            }
        }
        ("OnDelete" | "Recreate", Some(rolling)) => {
            let value = serde_json::to_value(rolling).unwrap_or_default();
            errors.invalid(&at, value, "only allowed for updateStrategy 'RollingUpdate'");
        }
        ("RollingUpdate" | "OnDelete" | "Recreate", None) => {}
        (other, _) => errors.invalid(&path.child("type"), other, STRATEGIES),
    }
}

fn max_unavailable(bound: &IntOrString, path: &FieldPath, errors: &mut Errors) {
    let broken = match Bound::read(bound) {
        Ok(Bound::Count(0) | Bound::Percent(0)) => "cannot be 0".to_owned(),
        Ok(_) => return,
        Err(broken) => broken.to_string(),
    };
    errors.invalid(path, json!(bound), broken);
}

fn claim_templates(spec: &StatefulSetSpec, path: &FieldPath, errors: &mut Errors) {
    let mut seen = Vec::new();
    for (index, claim) in spec.volume_claim_templates.iter().enumerate() {
        let at = path.index(index);
        let meta = claim.metadata.clone().unwrap_or_default();
        named(&meta.name, names::dns_label, &at.child("metadata").child("name"), errors);
        if !meta.name.is_empty() && seen.contains(&meta.name) {
            errors.duplicate(&at.child("metadata").child("name"), meta.name.as_str());
        }
        meta::labels(&meta.labels, &at.child("metadata").child("labels"), errors);
        meta::annotations(&meta.annotations, &at.child("metadata").child("annotations"), errors);
        storage::claim_spec(&claim.spec.clone().unwrap_or_default(), &at.child("spec"), errors);
        seen.push(meta.name);
    }
}

fn template(spec: &StatefulSetSpec, path: &FieldPath, errors: &mut Errors) {
    let template = spec.template.clone().unwrap_or_default();
    let meta = template.metadata.unwrap_or_default();
    let (labels, at) = (&meta.labels, path.child("metadata").child("labels"));
    meta::labels(labels, &at, errors);
    meta::annotations(&meta.annotations, &path.child("metadata").child("annotations"), errors);

    let selector_path = FieldPath::of("spec").child("selector");
    match spec.selector.as_ref() {
        None => errors.required(&selector_path, "labels of the set's pods, such as matchLabels: {app: web}"),
        Some(selector) if selector.match_labels.is_empty() && selector.match_expressions.is_empty() => {
            errors.invalid(&selector_path, json!({}), "empty selector is invalid for statefulset");
        }
        Some(selector) => {
            let sound = meta::selector(selector, &selector_path, errors);
            if sound && !Selector::of(selector).is_ok_and(|selector| selector.matches(labels)) {
                errors.invalid(&at, json!(labels), "`selector` does not match template `labels`");
            }
        }
    }

    let pod_spec = template.spec.unwrap_or_default();
    let at = path.child("spec");
    if !matches!(pod_spec.restart_policy.as_str(), "" | "Always") {
        errors.not_supported(&at.child("restartPolicy"), &pod_spec.restart_policy, &["Always"]);
    }
    if pod_spec.active_deadline_seconds.is_some() {
        let why = "the pods of a set have no end: leave the field out";
        errors.forbidden(&at.child("activeDeadlineSeconds"), why);
    }
    if pod_spec.priority.is_some() {
        let why = "is written into each pod from its PriorityClass: name that in priorityClassName";
        errors.forbidden(&at.child("priority"), why);
    }
    let claims: Vec<_> =
        spec.volume_claim_templates.iter().filter_map(|c| Some(c.metadata.as_ref()?.name.as_str())).collect();
    pod::spec(&pod_spec, &claims, &at, errors);
}
