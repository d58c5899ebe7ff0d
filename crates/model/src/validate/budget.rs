//! PodDisruptionBudgets.

use pb::objects::PodDisruptionBudget;
use serde_json::json;

use super::meta;
use crate::{
    bound::Bound,
    error::{Errors, FieldPath},
};

/// What becomes of pods that are not ready.
const UNHEALTHY_POLICIES: &[&str] = &["IfHealthyBudget", "AlwaysAllow"];

pub(super) fn check(budget: &PodDisruptionBudget, errors: &mut Errors) {
    let path = FieldPath::of("spec");
    let Some(spec) = &budget.spec else {
        errors.required(&path, "");
        return;
    };
    match (&spec.min_available, &spec.max_unavailable) {
        (Some(_), Some(_)) => {
            let value = serde_json::to_value(spec).unwrap_or_default();
            errors.invalid(&path, value, "minAvailable and maxUnavailable cannot be both set");
        }
        (None, None) => {
            let why = "how many pods must stay, or maxUnavailable: how many may be away, such as 1 or \"25%\"";
            errors.required(&path.child("minAvailable"), why);
        }
        _ => {}
    }
    for (field, bound) in [("minAvailable", &spec.min_available), ("maxUnavailable", &spec.max_unavailable)] {
        if let Some(bound) = bound
            && let Err(broken) = Bound::read(bound)
        {
            errors.invalid(&path.child(field), json!(bound), broken.to_string());
        }
    }
    match &spec.selector {
        Some(selector) => {
            meta::selector(selector, &path.child("selector"), errors);
        }
        None => {
            let why = "labels of the pods that the budget protects, such as matchLabels: {app: web}; {} is every pod of the namespace";
            errors.required(&path.child("selector"), why);
        }
    }
    let policy = spec.unhealthy_pod_eviction_policy.as_str();
    if !policy.is_empty() && !UNHEALTHY_POLICIES.contains(&policy) {
        errors.not_supported(&path.child("unhealthyPodEvictionPolicy"), policy, UNHEALTHY_POLICIES);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::decode::{self, Mode};

    fn answers(spec: Value) -> Vec<String> {
        let budget =
            json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "b"}, "spec": spec});
        match decode::manifest(&budget, Mode::Strict) {
            Ok(_) => Vec::new(),
            Err(errors) => errors.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn a_budget_has_one_bound_and_a_selector() {
        let selector = json!({"matchLabels": {"app": "web"}});
        for bound in [json!(0), json!(2), json!("0%"), json!("100%")] {
            for field in ["minAvailable", "maxUnavailable"] {
                let spec = json!({field: bound, "selector": selector});
                assert_eq!(answers(spec), Vec::<String>::new());
            }
        }
        assert!(answers(json!({"minAvailable": 1, "selector": {}})).is_empty(), "every pod of the namespace");
        let found = answers(json!({"unhealthyPodEvictionPolicy": "Never"}));
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].starts_with("spec.minAvailable: Required value: how many pods must stay"), "{found:?}");
        assert!(found[1].starts_with("spec.selector: Required value"), "{found:?}");
        assert!(found[2].contains(r#""Never": supported values: "IfHealthyBudget", "AlwaysAllow""#), "{found:?}");
        let both = answers(json!({"minAvailable": 1, "maxUnavailable": "101%", "selector": selector}));
        assert!(both[0].contains("cannot be both set"), "{both:?}");
        assert_eq!(both[1], r#"spec.maxUnavailable: Invalid value: "101%": must not be greater than 100%"#);
        let texts = answers(json!({"minAvailable": "half", "selector": selector}));
        assert!(texts[0].contains(r#"must be a number, or a percentage such as "25%""#), "{texts:?}");
    }

    #[test]
    fn a_manifest_written_out_by_kubernetes_is_taken() {
        let budget = json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "b"},
            "spec": {"maxUnavailable": 1, "selector": {}, "unhealthyPodEvictionPolicy": "AlwaysAllow"},
            "status": {"disruptedPods": {"web-0": "2026-01-01T00:00:00Z"}, "disruptionsAllowed": 1, "currentHealthy": 3,
                       "desiredHealthy": 2, "expectedPods": 3, "observedGeneration": 1},
        });
        let (_, warnings) = decode::manifest(&budget, Mode::Strict).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
    }
}
