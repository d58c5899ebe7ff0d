//! Node selectors: conditions on a node's labels.

use std::collections::BTreeMap;

use pb::objects::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};

/// The topology key of volumes that live on one node. Its value is the node's name.
pub const NODE_TOPOLOGY_KEY: &str = "topology.local.berth.dev/node";

/// The label that Kubernetes puts on every node, with the node's name.
pub(super) const HOSTNAME_KEY: &str = "kubernetes.io/hostname";

/// A label of a node. Two keys have the node's name as value on every node that does not set them.
pub(super) fn label<'a>(node: &'a str, labels: &'a BTreeMap<String, String>, key: &str) -> Option<&'a str> {
    labels.get(key).map(String::as_str).or_else(|| matches!(key, NODE_TOPOLOGY_KEY | HOSTNAME_KEY).then_some(node))
}

/// Whether a node matches: at least one term of which all expressions hold. A selector without terms, and a term
/// without expressions, match nothing, as in Kubernetes.
pub fn matches(selector: &NodeSelector, node: &str, labels: &BTreeMap<String, String>) -> bool {
    selector.node_selector_terms.iter().any(|term| term_matches(term, node, labels))
}

/// Whether all expressions of a term hold; a term without any does not.
pub(super) fn term_matches(term: &NodeSelectorTerm, node: &str, labels: &BTreeMap<String, String>) -> bool {
    !term.match_expressions.is_empty() && term.match_expressions.iter().all(|e| holds(e, label(node, labels, &e.key)))
}

/// An operator that is not known never holds.
fn holds(expression: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let listed = |value: &str| expression.values.iter().any(|v| v == value);
    let compared = |than: fn(&i64, &i64) -> bool| {
        let number = value.and_then(|value| value.parse::<i64>().ok());
        let bound = expression.values.first().and_then(|bound| bound.parse::<i64>().ok());
        number.zip(bound).is_some_and(|(number, bound)| expression.values.len() == 1 && than(&number, &bound))
    };
    match expression.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared(i64::gt),
        "Lt" => compared(i64::lt),
        _ => false,
    }
}
