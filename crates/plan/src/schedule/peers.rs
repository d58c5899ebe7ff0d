//! What other pods mean for a pod that needs a node: who must or should be near or far, and how evenly they lie.
//!
//! The rules are Kubernetes'. Everything is counted once for a question, then each node is looked up: as many steps as
//! there are pods if the pod asks about others, as many as there are different wishes of others if it does not.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    NodeFacts, Reason, Request,
    ledger::{Account, Ledger, Wish},
    rules::{Spread, Term},
    selector::label,
};

/// A place: the key of a label of nodes, and a value of it.
type Place<'a> = (&'a str, &'a str);

/// What other pods mean for one pod.
#[derive(Debug, Default)]
pub(super) struct Peers<'a> {
    near: BTreeSet<Place<'a>>,
    /// Nobody is near whom the pod wants to be near to, and the pod is one of those itself.
    first: bool,
    far: BTreeSet<Place<'a>>,
    repelled: BTreeSet<Place<'a>>,
    pulls: BTreeMap<Place<'a>, i64>,
    /// Of each constraint of the pod, in their order.
    spread: Vec<Places<'a>>,
}

/// How many pods lie where, for one constraint.
#[derive(Debug, Default)]
struct Places<'a> {
    counts: BTreeMap<&'a str, i64>,
    fewest: i64,
    /// Whether the pod itself counts.
    own: i64,
}

impl<'a> Peers<'a> {
    /// Counts for one question. `gone` is the pod that had the name before.
    pub(super) fn of(ledger: &'a Ledger, request: &'a Request, gone: Option<&Account>) -> Self {
        let mut peers = Self::default();
        peers.heed_wishes(ledger, request, gone);
        let rules = &request.rules;
        if !rules.near.is_empty() || !rules.far.is_empty() || !rules.pulls.is_empty() {
            peers.look_for_others(ledger, request);
        }
        if !rules.spread.is_empty() {
            peers.spread = count_places(ledger, request);
        }
        peers
    }

    /// What others wish of a pod like this one.
    fn heed_wishes(&mut self, ledger: &'a Ledger, request: &Request, gone: Option<&Account>) {
        let rules = &request.rules;
        for ((wish, term), nodes) in &ledger.wishes {
            if !term.selects(&request.name.namespace, &rules.labels, &ledger.namespaces) {
                continue;
            }
            for (node, count) in nodes {
                let own = gone.filter(|gone| gone.node == *node);
                let own = own.map_or(0, |gone| gone.wishes().filter(|known| *known == (*wish, term)).count());
                let count = i64::from(*count).saturating_sub(i64::try_from(own).unwrap_or(0));
                let Some(place) = place(ledger, node, &term.key).filter(|_| count > 0) else { continue };
                match wish {
                    Wish::Away => {
                        self.repelled.insert(place);
                    }
                    Wish::Weight(weight) => *self.pulls.entry(place).or_default() += weight * count,
                }
            }
        }
    }

    /// What the pod itself wishes of others.
    fn look_for_others(&mut self, ledger: &'a Ledger, request: &'a Request) {
        let rules = &request.rules;
        let selects = |term: &Term, namespace: &str, labels| term.selects(namespace, labels, &ledger.namespaces);
        for (name, account) in ledger.others(request) {
            let (namespace, labels) = (name.namespace.as_str(), &account.rules.labels);
            let at = |term: &'a Term| place(ledger, &account.node, &term.key);
            if !rules.near.is_empty() && rules.near.iter().all(|term| selects(term, namespace, labels)) {
                self.near.extend(rules.near.iter().filter_map(at));
            }
            let far = rules.far.iter().filter(|term| selects(term, namespace, labels));
            self.far.extend(far.filter_map(at));
            for (weight, term) in rules.pulls.iter().filter(|(_, term)| selects(term, namespace, labels)) {
                if let Some(place) = at(term) {
                    *self.pulls.entry(place).or_default() += weight;
                }
            }
        }
        let own = |term: &Term| selects(term, &request.name.namespace, &rules.labels);
        self.first = self.near.is_empty() && rules.near.iter().all(own);
    }

    /// What keeps the pod away from a node, because of other pods.
    pub(super) fn rule_out(&self, request: &Request, name: &str, node: &NodeFacts) -> Option<Reason> {
        let at = |key: &str| label(name, &node.labels, key);
        let rules = &request.rules;
        for (spread, places) in rules.spread.iter().zip(&self.spread).filter(|(spread, _)| spread.required) {
            let Some(value) = at(&spread.key) else { return Some(Reason::SpreadLabel) };
            let there = places.counts.get(value).copied().unwrap_or(0);
            if there + places.own - places.fewest > spread.max_skew {
                return Some(Reason::Spread);
            }
        }
        let mut alone = false;
        for term in &rules.near {
            let Some(value) = at(&term.key) else { return Some(Reason::Near) };
            alone |= !self.near.contains(&(term.key.as_str(), value));
        }
        if alone && !self.first {
            return Some(Reason::Near);
        }
        let among =
            |places: &BTreeSet<Place<'_>>, key: &str| at(key).is_some_and(|value| places.contains(&(key, value)));
        if rules.far.iter().any(|term| among(&self.far, &term.key)) {
            return Some(Reason::Far);
        }
        let repelled = self.repelled.iter().any(|(key, value)| at(key) == Some(*value));
        repelled.then_some(Reason::Repelled)
    }

    /// Whether any of what [`Peers::pull`] says can differ between nodes.
    pub(super) fn pulls(&self) -> bool {
        !self.pulls.is_empty()
    }

    /// How much other pods speak for a node.
    pub(super) fn pull(&self, name: &str, node: &NodeFacts) -> i64 {
        let here = self.pulls.iter().filter(|((key, value), _)| label(name, &node.labels, key) == Some(*value));
        here.map(|(_, weight)| weight).sum()
    }

    /// How uneven each of these nodes would make it, for constraints that are only preferred: less is better. None
    /// where a node lacks a label.
    pub(super) fn unevenness(&self, request: &Request, nodes: &[(&str, &NodeFacts)]) -> Vec<Option<i64>> {
        let soft: Vec<(&Spread, &Places<'_>)> =
            request.rules.spread.iter().zip(&self.spread).filter(|(spread, _)| !spread.required).collect();
        let complete = |node: &(&str, &NodeFacts)| {
            soft.iter().all(|(spread, _)| label(node.0, &node.1.labels, &spread.key).is_some())
        };
        let weights: Vec<i64> = soft
            .iter()
            .map(|(spread, _)| {
                let of = |node: &(&str, &NodeFacts)| label(node.0, &node.1.labels, &spread.key).map(str::to_owned);
                let places: BTreeSet<String> = nodes.iter().filter(|node| complete(node)).filter_map(of).collect();
                logarithm(places.len() + 2)
            })
            .collect();
        let score = |node: &(&str, &NodeFacts)| {
            let mut sum = 0;
            for ((spread, places), weight) in soft.iter().zip(&weights) {
                let value = label(node.0, &node.1.labels, &spread.key)?;
                let there = places.counts.get(value).copied().unwrap_or(0);
                sum += there * weight + (spread.max_skew - 1) * LOGARITHM_UNIT;
            }
            Some(sum)
        };
        nodes.iter().map(score).collect()
    }
}

/// What [`logarithm`] gives for 2.
const LOGARITHM_UNIT: i64 = 16;

/// Sixteen times the logarithm to base 2, rounded down: places of few values weigh less than those of many.
fn logarithm(number: usize) -> i64 {
    let number = u128::try_from(number).unwrap_or(u128::MAX).min(200);
    i64::from(number.saturating_pow(16).checked_ilog2().unwrap_or(0))
}

/// Where a node is for a key; None if it has no such label, or no object.
fn place<'a>(ledger: &'a Ledger, node: &str, key: &'a str) -> Option<Place<'a>> {
    let (name, totals) = ledger.nodes.get_key_value(node)?;
    Some((key, label(name, &totals.facts.as_ref()?.labels, key)?))
}

/// How many pods lie where, for each constraint of the pod. Pods that are on their way out are not counted.
fn count_places<'a>(ledger: &'a Ledger, request: &'a Request) -> Vec<Places<'a>> {
    let rules = &request.rules;
    let mut on_nodes: Vec<BTreeMap<&str, i64>> = vec![BTreeMap::new(); rules.spread.len()];
    let counted = ledger
        .others(request)
        .filter(|(name, account)| name.namespace == request.name.namespace && !account.terminating);
    for (_, account) in counted {
        for (spread, counts) in rules.spread.iter().zip(&mut on_nodes) {
            if spread.selects(&account.rules.labels) {
                *counts.entry(account.node.as_str()).or_default() += 1;
            }
        }
    }
    let places = |(spread, on_nodes): (&'a Spread, &BTreeMap<&str, i64>)| {
        let mut counts: BTreeMap<&'a str, i64> = BTreeMap::new();
        for (name, totals) in &ledger.nodes {
            let Some(facts) = &totals.facts else { continue };
            // A node counts only if it has the keys of all constraints of the same force.
            let same = rules.spread.iter().filter(|other| other.required == spread.required);
            let complete = same.into_iter().all(|other| label(name, &facts.labels, &other.key).is_some());
            let counts_here = complete && spread.counts_node(rules, name, &facts.labels, &facts.taints);
            if let Some(value) = label(name, &facts.labels, &spread.key).filter(|_| counts_here) {
                *counts.entry(value).or_default() += on_nodes.get(name.as_str()).copied().unwrap_or(0);
            }
        }
        let fewest = if counts.len() < spread.min_domains { Some(0) } else { counts.values().min().copied() };
        let own = i64::from(spread.selects(&rules.labels));
        // Without any place nothing is uneven.
        Places { fewest: fewest.unwrap_or(i64::from(i32::MAX)), counts, own }
    };
    rules.spread.iter().zip(&on_nodes).map(places).collect()
}
