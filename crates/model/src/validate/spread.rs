//! How pods are spread evenly over places.

use pb::objects::TopologySpreadConstraint;
use serde_json::json;

use super::{affinity, meta, one_of};
use crate::error::{Errors, FieldPath};

pub(super) fn check(constraints: &[TopologySpreadConstraint], path: &FieldPath, errors: &mut Errors) {
    let mut seen = Vec::new();
    for (index, constraint) in constraints.iter().enumerate() {
        let at = path.index(index);
        one(constraint, &at, errors);
        let pair = (&constraint.topology_key, &constraint.when_unsatisfiable);
        if seen.contains(&pair) {
            let (key, when) = pair;
            let shown = json!({"topologyKey": key, "whenUnsatisfiable": when});
            errors.duplicate(&at, shown);
        }
        seen.push(pair);
    }
}

fn one(constraint: &TopologySpreadConstraint, path: &FieldPath, errors: &mut Errors) {
    if constraint.max_skew <= 0 {
        errors.invalid(&path.child("maxSkew"), constraint.max_skew, "must be greater than zero");
    }
    affinity::topology_key(&constraint.topology_key, &path.child("topologyKey"), errors);
    let when = path.child("whenUnsatisfiable");
    one_of(&constraint.when_unsatisfiable, &["DoNotSchedule", "ScheduleAnyway"], &when, errors);
    if let Some(domains) = constraint.min_domains {
        let at = path.child("minDomains");
        if domains <= 0 {
            errors.invalid(&at, domains, "must be greater than zero");
        }
        if constraint.when_unsatisfiable == "ScheduleAnyway" {
            errors.invalid(&at, domains, "can only use minDomains if whenUnsatisfiable=DoNotSchedule");
        }
    }
    let policies = [
        ("nodeAffinityPolicy", &constraint.node_affinity_policy),
        ("nodeTaintsPolicy", &constraint.node_taints_policy),
    ];
    for (field, policy) in policies {
        if let Some(policy) = policy {
            one_of(policy, &["Honor", "Ignore"], &path.child(field), errors);
        }
    }
    let selector = constraint.label_selector.as_ref();
    if let Some(selector) = selector {
        meta::selector(selector, &path.child("labelSelector"), errors);
    }
    affinity::label_keys(&constraint.match_label_keys, selector, &path.child("matchLabelKeys"), errors);
}
