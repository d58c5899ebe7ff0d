//! What a pod says about where it may and would like to run, read once from its spec.

use std::collections::{BTreeMap, BTreeSet};

use model::selector::Selector;
use pb::{
    Object, ObjectExt,
    objects::{
        LabelSelector, LabelSelectorRequirement, NodeSelector, NodeSelectorTerm, Pod, PodAffinityTerm, PodSpec, Taint,
        Toleration, TopologySpreadConstraint,
    },
};

use super::{
    ports::HostPort,
    selector::{label, matches, term_matches},
};
use crate::taints::{NO_EXECUTE, NO_SCHEDULE, PREFER_NO_SCHEDULE, tolerates};

/// The label with its name that every namespace has.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
/// The taint of a node that runs short of memory: only pods that asked for nothing keep away.
pub(super) const MEMORY_PRESSURE: &str = "node.kubernetes.io/memory-pressure";

/// The labels of namespaces, by name.
pub(super) type Namespaces = BTreeMap<String, BTreeMap<String, String>>;

/// Pods, and what counts as being at the same place as they.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Term {
    /// Nodes with the same value of this label are the same place.
    pub(super) key: String,
    /// None selects nothing.
    selector: Option<Selector>,
    namespaces: BTreeSet<String>,
    namespace_selector: Option<Selector>,
}

impl Term {
    fn of(term: &PodAffinityTerm, pod: &Pod) -> Self {
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(pod.namespace().to_owned());
        }
        let labels = &pod.meta().labels;
        let keys = [(&term.match_label_keys, "In"), (&term.mismatch_label_keys, "NotIn")];
        Self {
            key: term.topology_key.clone(),
            selector: selector(term.label_selector.as_ref(), labels, &keys),
            namespaces,
            namespace_selector: term.namespace_selector.as_ref().and_then(|selector| Selector::of(selector).ok()),
        }
    }

    /// Whether a pod of this namespace with these labels is meant.
    pub(super) fn selects(&self, namespace: &str, labels: &BTreeMap<String, String>, known: &Namespaces) -> bool {
        let inside = || {
            self.namespaces.contains(namespace)
                || self.namespace_selector.as_ref().is_some_and(|selector| in_namespace(selector, namespace, known))
        };
        self.selector.as_ref().is_some_and(|selector| selector.matches(labels)) && inside()
    }
}

/// Whether a namespace is selected. One that is not known has its name as its only label.
fn in_namespace(selector: &Selector, namespace: &str, known: &Namespaces) -> bool {
    if selector.is_empty() {
        return true;
    }
    let mut labels = known.get(namespace).cloned().unwrap_or_default();
    labels.insert(NAMESPACE_NAME.to_owned(), namespace.to_owned());
    selector.matches(&labels)
}

/// A selector with what the pod's own labels add to it. One that cannot be read selects nothing: it was checked when
/// it came in.
fn selector(
    own: Option<&LabelSelector>,
    labels: &BTreeMap<String, String>,
    keys: &[(&Vec<String>, &str)],
) -> Option<Selector> {
    let mut whole = own?.clone();
    for (keys, operator) in keys {
        for key in *keys {
            if let Some(value) = labels.get(key) {
                whole.match_expressions.push(LabelSelectorRequirement {
                    key: key.clone(),
                    operator: (*operator).to_owned(),
                    values: vec![value.clone()],
                });
            }
        }
    }
    Selector::of(&whole).ok()
}

/// How the pod is spread among others of its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spread {
    pub(super) key: String,
    pub(super) max_skew: i64,
    pub(super) min_domains: usize,
    /// Whether a place that would make it uneven is ruled out.
    pub(super) required: bool,
    /// Whether only nodes count that the pod's affinity lets in.
    honor_affinity: bool,
    /// Whether only nodes count whose taints the pod tolerates.
    honor_taints: bool,
    selector: Option<Selector>,
}

impl Spread {
    fn of(constraint: &TopologySpreadConstraint, pod: &Pod) -> Self {
        Self {
            key: constraint.topology_key.clone(),
            max_skew: i64::from(constraint.max_skew),
            min_domains: usize::try_from(constraint.min_domains.unwrap_or(1)).unwrap_or(1),
            required: constraint.when_unsatisfiable != "ScheduleAnyway",
            honor_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
            selector: selector(
                constraint.label_selector.as_ref(),
                &pod.meta().labels,
                &[(&constraint.match_label_keys, "In")],
            ),
        }
    }

    /// Whether a pod of the same namespace with these labels is counted.
    pub(super) fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.selector.as_ref().is_some_and(|selector| selector.matches(labels))
    }

    /// Whether the pods of a node are counted.
    pub(super) fn counts_node(
        &self,
        rules: &Rules,
        node: &str,
        labels: &BTreeMap<String, String>,
        taints: &[Taint],
    ) -> bool {
        (!self.honor_affinity || rules.lets_in(node, labels))
            && (!self.honor_taints || rules.untolerated(taints).is_none())
    }
}

/// What a pod says about where it may and would like to run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    pub(super) labels: BTreeMap<String, String>,
    /// Higher ones go first, and may take the place of lower ones.
    pub(super) priority: i32,
    /// Whether it may take the place of pods of lower priority.
    pub(super) may_preempt: bool,
    /// It asked for nothing.
    best_effort: bool,
    tolerations: Vec<Toleration>,
    /// The only node that it may go to.
    pub(super) node_name: Option<String>,
    node_selector: BTreeMap<String, String>,
    node_required: Option<NodeSelector>,
    node_preferred: Vec<(i64, NodeSelectorTerm)>,
    /// Pods that must be at the same place.
    pub(super) near: Vec<Term>,
    /// Pods that must not be at the same place.
    pub(super) far: Vec<Term>,
    /// Pods that shall be at the same place, or with a negative weight shall not.
    pub(super) pulls: Vec<(i64, Term)>,
    pub(super) spread: Vec<Spread>,
    pub(super) ports: BTreeSet<HostPort>,
}

impl Rules {
    /// What this pod says.
    pub fn of(pod: &Pod) -> Self {
        let labels = pod.meta().labels.clone();
        let Some(spec) = &pod.spec else { return Self { labels, ..Self::default() } };
        let affinity = spec.affinity.clone().unwrap_or_default();
        let node = affinity.node_affinity.unwrap_or_default();
        let (near, far) = (affinity.pod_affinity.unwrap_or_default(), affinity.pod_anti_affinity.unwrap_or_default());
        let terms = |terms: &[PodAffinityTerm]| terms.iter().map(|term| Term::of(term, pod)).collect();
        let preferred = node.preferred_during_scheduling_ignored_during_execution.into_iter();
        let towards = near.preferred_during_scheduling_ignored_during_execution.iter().map(|one| (1, one));
        let away = far.preferred_during_scheduling_ignored_during_execution.iter().map(|one| (-1, one));
        let pulls = towards.chain(away).filter_map(|(sign, one)| {
            Some((sign * i64::from(one.weight), Term::of(one.pod_affinity_term.as_ref()?, pod)))
        });
        Self {
            labels,
            priority: spec.priority.unwrap_or(0),
            may_preempt: spec.preemption_policy != model::priority::NEVER,
            best_effort: model::qos::class(spec) == model::qos::Class::BestEffort,
            tolerations: spec.tolerations.clone(),
            node_name: Some(spec.node_name.clone()).filter(|name| !name.is_empty()),
            node_selector: spec.node_selector.clone(),
            node_required: node.required_during_scheduling_ignored_during_execution,
            node_preferred: preferred.filter_map(|one| Some((i64::from(one.weight), one.preference?))).collect(),
            near: terms(&near.required_during_scheduling_ignored_during_execution),
            far: terms(&far.required_during_scheduling_ignored_during_execution),
            pulls: pulls.collect(),
            spread: spec.topology_spread_constraints.iter().map(|one| Spread::of(one, pod)).collect(),
            ports: ports(spec),
        }
    }

    /// Whether other pods can make room for this one by coming, and not only by going.
    pub fn asks_for_peers(&self) -> bool {
        !self.near.is_empty() || self.spread.iter().any(|spread| spread.required)
    }

    /// Whether the selector and the required affinity let the pod onto a node.
    pub(super) fn lets_in(&self, node: &str, labels: &BTreeMap<String, String>) -> bool {
        self.node_selector.iter().all(|(key, value)| label(node, labels, key) == Some(value.as_str()))
            && self.node_required.as_ref().is_none_or(|selector| matches(selector, node, labels))
    }

    /// The weights of all node preferences that hold.
    pub(super) fn node_score(&self, node: &str, labels: &BTreeMap<String, String>) -> i64 {
        let held = self.node_preferred.iter().filter(|(_, term)| term_matches(term, node, labels));
        held.map(|(weight, _)| weight).sum()
    }

    /// The first taint that keeps the pod away.
    pub(super) fn untolerated<'t>(&self, taints: &'t [Taint]) -> Option<&'t Taint> {
        let keeps_away =
            |taint: &&Taint| matches!(taint.effect.as_str(), NO_SCHEDULE | NO_EXECUTE) && !self.tolerates(taint);
        taints.iter().find(keeps_away)
    }

    /// How many taints would rather keep the pod away.
    pub(super) fn disliked(&self, taints: &[Taint]) -> i64 {
        let disliked = |taint: &&Taint| taint.effect == PREFER_NO_SCHEDULE && !self.tolerates(taint);
        i64::try_from(taints.iter().filter(disliked).count()).unwrap_or(i64::MAX)
    }

    /// Whether the pod puts up with a taint.
    pub(super) fn tolerates(&self, taint: &Taint) -> bool {
        (taint.key == MEMORY_PRESSURE && !self.best_effort) || tolerates(&self.tolerations, taint)
    }
}

/// The ports of the node that the pod takes.
fn ports(spec: &PodSpec) -> BTreeSet<HostPort> {
    let sidecars = spec.init_containers.iter().filter(|container| model::qos::is_sidecar(container));
    spec.containers.iter().chain(sidecars).flat_map(|container| &container.ports).filter_map(HostPort::of).collect()
}
