//! Node selectors: conditions on a node's labels.

use std::collections::BTreeMap;

use pb::objects::{NodeSelector, NodeSelectorRequirement};

/// The topology key of volumes that live on one node. Its value is the node's name.
pub const NODE_TOPOLOGY_KEY: &str = "topology.local.berth.dev/node";

/// The label that Kubernetes puts on every node, with the node's name.
const HOSTNAME_KEY: &str = "kubernetes.io/hostname";

/// A label of a node. Two keys have the node's name as value on every node that does not set them.
pub(super) fn label<'a>(node: &'a str, labels: &'a BTreeMap<String, String>, key: &str) -> Option<&'a str> {
    labels.get(key).map(String::as_str).or_else(|| matches!(key, NODE_TOPOLOGY_KEY | HOSTNAME_KEY).then_some(node))
}

/// Whether a node matches: at least one term of which all expressions hold. A selector without terms, and a term
/// without expressions, match nothing, as in Kubernetes.
pub fn matches(selector: &NodeSelector, node: &str, labels: &BTreeMap<String, String>) -> bool {
    selector.node_selector_terms.iter().any(|term| {
        !term.match_expressions.is_empty()
            && term.match_expressions.iter().all(|e| holds(e, label(node, labels, &e.key)))
    })
}

/// An operator that is not known never holds.
fn holds(expression: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let listed = |value: &str| expression.values.iter().any(|v| v == value);
    match expression.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        _ => false,
    }
}
