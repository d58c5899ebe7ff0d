//! Which nodes a pod may go to, and which pods it is near to or far from.

use std::collections::BTreeSet;

use pb::objects::{
    Affinity, LabelSelector, NodeAffinity, NodeSelector, NodeSelectorTerm, PodAffinityTerm, WeightedPodAffinityTerm,
};

use super::{meta, named, one_of};
use crate::{
    error::{Errors, FieldPath},
    names,
};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

pub(super) fn check(affinity: &Affinity, path: &FieldPath, errors: &mut Errors) {
    if let Some(node) = &affinity.node_affinity {
        of_nodes(node, &path.child("nodeAffinity"), errors);
    }
    if let Some(near) = &affinity.pod_affinity {
        let (required, preferred) = (
            &near.required_during_scheduling_ignored_during_execution,
            &near.preferred_during_scheduling_ignored_during_execution,
        );
        of_pods(required, preferred, &path.child("podAffinity"), errors);
    }
    if let Some(far) = &affinity.pod_anti_affinity {
        let (required, preferred) = (
            &far.required_during_scheduling_ignored_during_execution,
            &far.preferred_during_scheduling_ignored_during_execution,
        );
        of_pods(required, preferred, &path.child("podAntiAffinity"), errors);
    }
}

fn of_nodes(affinity: &NodeAffinity, path: &FieldPath, errors: &mut Errors) {
    if let Some(required) = &affinity.required_during_scheduling_ignored_during_execution {
        node_selector(required, &path.child(REQUIRED), errors);
    }
    for (index, one) in affinity.preferred_during_scheduling_ignored_during_execution.iter().enumerate() {
        let at = path.child(PREFERRED).index(index);
        weight(one.weight, &at.child("weight"), errors);
        let preference = one.preference.clone().unwrap_or_default();
        node_selector_term(&preference, &at.child("preference"), errors);
    }
}

fn node_selector(selector: &NodeSelector, path: &FieldPath, errors: &mut Errors) {
    let at = path.child("nodeSelectorTerms");
    if selector.node_selector_terms.is_empty() {
        errors.required(&at, "must have at least one node selector term");
    }
    for (index, term) in selector.node_selector_terms.iter().enumerate() {
        node_selector_term(term, &at.index(index), errors);
    }
}

/// Conditions on the labels of a node; Gt and Lt compare whole numbers.
fn node_selector_term(term: &NodeSelectorTerm, path: &FieldPath, errors: &mut Errors) {
    for (index, condition) in term.match_expressions.iter().enumerate() {
        let at = path.child("matchExpressions").index(index);
        named(&condition.key, names::label_key, &at.child("key"), errors);
        let values = at.child("values");
        match (condition.operator.as_str(), condition.values.as_slice()) {
            ("In" | "NotIn", []) => errors.required(&values, "must be specified when `operator` is 'In' or 'NotIn'"),
            ("Exists" | "DoesNotExist", [_, ..]) => {
                errors.forbidden(&values, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
            }
            ("Gt" | "Lt", [one]) => {
                if one.parse::<i64>().is_err() {
                    let why = "must be a whole number when `operator` is 'Lt' or 'Gt'";
                    errors.invalid(&values.index(0), one.as_str(), why);
                }
            }
            ("Gt" | "Lt", _) => {
                errors.required(&values, "must be specified single value when `operator` is 'Lt' or 'Gt'");
            }
            (operator, _) => {
                let known = ["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"];
                one_of(operator, &known, &at.child("operator"), errors);
            }
        }
    }
}

fn of_pods(required: &[PodAffinityTerm], preferred: &[WeightedPodAffinityTerm], path: &FieldPath, errors: &mut Errors) {
    for (index, term) in required.iter().enumerate() {
        pod_term(term, &path.child(REQUIRED).index(index), errors);
    }
    for (index, one) in preferred.iter().enumerate() {
        let at = path.child(PREFERRED).index(index);
        weight(one.weight, &at.child("weight"), errors);
        pod_term(&one.pod_affinity_term.clone().unwrap_or_default(), &at.child("podAffinityTerm"), errors);
    }
}

fn pod_term(term: &PodAffinityTerm, path: &FieldPath, errors: &mut Errors) {
    for (field, selector) in [("labelSelector", &term.label_selector), ("namespaceSelector", &term.namespace_selector)]
    {
        if let Some(selector) = selector {
            meta::selector(selector, &path.child(field), errors);
        }
    }
    for (index, namespace) in term.namespaces.iter().enumerate() {
        named(namespace, names::dns_label, &path.child("namespaces").index(index), errors);
    }
    topology_key(&term.topology_key, &path.child("topologyKey"), errors);
    let selector = term.label_selector.as_ref();
    label_keys(&term.match_label_keys, selector, &path.child("matchLabelKeys"), errors);
    label_keys(&term.mismatch_label_keys, selector, &path.child("mismatchLabelKeys"), errors);
    let both = term.match_label_keys.iter().enumerate().filter(|(_, key)| term.mismatch_label_keys.contains(key));
    for (index, key) in both {
        let at = path.child("matchLabelKeys").index(index);
        errors.invalid(&at, key.as_str(), "exists in both matchLabelKeys and mismatchLabelKeys");
    }
}

/// The label whose value says which nodes are the same place.
pub(super) fn topology_key(key: &str, path: &FieldPath, errors: &mut Errors) {
    if key.is_empty() {
        errors.required(path, "can not be empty");
    } else {
        named(key, names::label_key, path, errors);
    }
}

/// Labels of the pod itself whose values others are compared with: beside a selector, and not in it.
pub(super) fn label_keys(keys: &[String], selector: Option<&LabelSelector>, path: &FieldPath, errors: &mut Errors) {
    if !keys.is_empty() && selector.is_none() {
        errors.forbidden(path, "must not be specified when labelSelector is not set");
    }
    let in_selector: BTreeSet<&String> = selector
        .iter()
        .flat_map(|selector| {
            selector.match_labels.keys().chain(selector.match_expressions.iter().map(|expression| &expression.key))
        })
        .collect();
    for (index, key) in keys.iter().enumerate() {
        let at = path.index(index);
        named(key, names::label_key, &at, errors);
        if in_selector.contains(key) {
            errors.invalid(&at, key.as_str(), "exists in labelSelector already");
        }
    }
}

fn weight(weight: i32, path: &FieldPath, errors: &mut Errors) {
    if !(1..=100).contains(&weight) {
        errors.invalid(path, weight, "must be in the range 1-100");
    }
}
