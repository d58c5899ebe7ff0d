//! Places: where nodes are, as conditions on their labels.

use std::collections::BTreeMap;

use pb::{
    Object, ObjectExt,
    csi::v1 as csi,
    objects::{
        Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, StorageClass, TopologySelectorTerm,
        VolumeNodeAffinity,
    },
};

use crate::schedule::{NODE_TOPOLOGY_KEY, matches};

/// The label that Kubernetes puts on every node, with the node's name.
const HOSTNAME_KEY: &str = "kubernetes.io/hostname";

/// Terms that the conjunction of two places may have; beyond it the first place alone is given, and the node is looked
/// at again when it has been chosen.
const MOST_TERMS: usize = 256;

/// A label of a node. Two keys have the node's name as value on every node that does not set them.
pub fn label_of<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    let own = node.meta().labels.get(key).map(String::as_str);
    own.or_else(|| matches!(key, NODE_TOPOLOGY_KEY | HOSTNAME_KEY).then_some(node.name()))
}

/// Whether a volume with this reach can be reached from a node. None: from everywhere.
pub fn reaches(selector: Option<&NodeSelector>, node: &str, labels: &BTreeMap<String, String>) -> bool {
    selector.is_none_or(|selector| matches(selector, node, labels))
}

/// A node's place for a driver; None if the driver has no topology, or the node lacks one of its labels.
pub fn place_of(node: &Node, keys: &[String]) -> Option<csi::Topology> {
    if keys.is_empty() {
        return None;
    }
    let segment = |key: &String| Some((key.clone(), label_of(node, key)?.to_owned()));
    let segments = keys.iter().map(segment).collect::<Option<BTreeMap<_, _>>>()?;
    Some(csi::Topology { segments })
}

/// Places as a condition on nodes. None (reachable from everywhere) if there are none. Places that differ in one
/// label alone become one term.
pub fn selector_of(places: &[csi::Topology]) -> Option<NodeSelector> {
    let named: Vec<_> = places.iter().filter(|place| !place.segments.is_empty()).collect();
    if named.is_empty() {
        return None;
    }
    let mut single: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut terms = Vec::new();
    for place in named {
        let mut segments = place.segments.iter();
        match (segments.next(), segments.next()) {
            (Some((key, value)), None) => {
                let values = single.entry(key).or_default();
                if !values.contains(value) {
                    values.push(value.clone());
                }
            }
            _ => terms.push(term(place.segments.iter().map(|(key, value)| (key.clone(), vec![value.clone()])))),
        }
    }
    terms.extend(single.into_iter().map(|(key, values)| term([(key.to_owned(), values)])));
    Some(NodeSelector { node_selector_terms: terms })
}

/// A driver's places as the node affinity of a volume. None: reachable from everywhere.
pub(super) fn affinity(places: &[csi::Topology]) -> Option<VolumeNodeAffinity> {
    selector_of(places).map(|required| VolumeNodeAffinity { required: Some(required) })
}

/// The places that a selector names, if it names them one by one (as [`selector_of`] does).
pub fn places_in(selector: &NodeSelector) -> Vec<csi::Topology> {
    let mut places = Vec::new();
    for term in &selector.node_selector_terms {
        let mut of_term = vec![BTreeMap::new()];
        for expression in term.match_expressions.iter().filter(|expression| expression.operator == "In") {
            let with = |segments: &BTreeMap<String, String>, value: &String| {
                let mut segments = segments.clone();
                segments.insert(expression.key.clone(), value.clone());
                segments
            };
            of_term = of_term
                .iter()
                .flat_map(|segments| expression.values.iter().map(move |value| with(segments, value)))
                .take(MOST_TERMS)
                .collect();
        }
        places.extend(of_term.into_iter().filter(|place| !place.is_empty()));
    }
    places.into_iter().map(|segments| csi::Topology { segments }).collect()
}

/// Where a class allows volumes to be made; None: everywhere.
pub fn allowed(class: &StorageClass) -> Option<NodeSelector> {
    let of = |topology: &TopologySelectorTerm| {
        term(topology.match_label_expressions.iter().map(|e| (e.key.clone(), e.values.clone())))
    };
    let terms: Vec<_> =
        class.allowed_topologies.iter().map(of).filter(|term| !term.match_expressions.is_empty()).collect();
    (!terms.is_empty()).then_some(NodeSelector { node_selector_terms: terms })
}

/// Where both hold. None: everywhere.
pub fn both(a: Option<NodeSelector>, b: Option<NodeSelector>) -> Option<NodeSelector> {
    let (a, b) = match (a, b) {
        (Some(a), Some(b)) => (a, b),
        (one, other) => return one.or(other),
    };
    if a == b || a.node_selector_terms.len() * b.node_selector_terms.len() > MOST_TERMS {
        return Some(a);
    }
    let and = |a: &NodeSelectorTerm, b: &NodeSelectorTerm| {
        let mut both = a.clone();
        for expression in &b.match_expressions {
            if !both.match_expressions.contains(expression) {
                both.match_expressions.push(expression.clone());
            }
        }
        both
    };
    let terms = a.node_selector_terms.iter().flat_map(|a| b.node_selector_terms.iter().map(move |b| and(a, b)));
    Some(NodeSelector { node_selector_terms: terms.collect() })
}

/// Where at least one holds. None: everywhere; so is no place at all, which callers rule out first.
pub fn either<'a>(places: impl IntoIterator<Item = Option<&'a NodeSelector>>) -> Option<NodeSelector> {
    let mut terms: Vec<NodeSelectorTerm> = Vec::new();
    for place in places {
        for term in &place?.node_selector_terms {
            if !terms.contains(term) {
                terms.push(term.clone());
            }
        }
    }
    (!terms.is_empty()).then_some(NodeSelector { node_selector_terms: terms })
}

/// A selector for people: `zone in (a, b) and disk in (ssd), or node in (n1)`.
pub fn selector_text(selector: &NodeSelector) -> String {
    let expression = |e: &NodeSelectorRequirement| match e.operator.as_str() {
        "In" => format!("{} in ({})", e.key, e.values.join(", ")),
        "NotIn" => format!("{} not in ({})", e.key, e.values.join(", ")),
        operator => format!("{} {operator}", e.key),
    };
    let term =
        |term: &NodeSelectorTerm| term.match_expressions.iter().map(expression).collect::<Vec<_>>().join(" and ");
    selector.node_selector_terms.iter().map(term).collect::<Vec<_>>().join(", or ")
}

fn term(labels: impl IntoIterator<Item = (String, Vec<String>)>) -> NodeSelectorTerm {
    let expression = |(key, values)| NodeSelectorRequirement { key, operator: "In".to_owned(), values };
    NodeSelectorTerm { match_expressions: labels.into_iter().map(expression).collect() }
}
