//! One question to the ledger: what keeps the pod away from which node.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use super::{
    super::{Amounts, NodeFacts, Reason, Request, peers::Peers, ports::HostPort, reaches, rule_out},
    Account, Ledger, NodeTotals,
};

/// One question, and what it has to be answered from.
pub(super) struct Question<'a> {
    ledger: &'a Ledger,
    request: &'a Request,
    /// The pod that had the name before; it is taken as gone.
    gone: Option<&'a Account>,
    pub(super) peers: Peers<'a>,
    /// What is kept on nodes for pods that are at least as important.
    kept: BTreeMap<&'a str, (Amounts, BTreeSet<&'a HostPort>)>,
}

impl<'a> Question<'a> {
    pub(super) fn of(ledger: &'a Ledger, request: &'a Request) -> Self {
        let gone = ledger.pods.get(&request.name);
        let mut kept: BTreeMap<&str, (Amounts, BTreeSet<&HostPort>)> = BTreeMap::new();
        for (name, nomination) in &ledger.nominations {
            let promised = ledger.reservations.contains_key(name);
            if *name != request.name && !promised && nomination.rules.priority >= request.rules.priority {
                let (amounts, ports) = kept.entry(nomination.node.as_str()).or_default();
                amounts.add(&nomination.amounts);
                ports.extend(&nomination.rules.ports);
            }
        }
        Self { ledger, request, gone, peers: Peers::of(ledger, request, gone), kept }
    }

    /// The pod that had the name before, if it was there.
    fn gone_from(&self, node: &str) -> Option<&'a Account> {
        self.gone.filter(|account| account.node == node)
    }

    /// What is taken of a node without the pod itself.
    pub(super) fn used(&self, node: &str, totals: &'a NodeTotals) -> Cow<'a, Amounts> {
        let (gone, kept) = (self.gone_from(node), self.kept.get(node));
        if gone.is_none() && kept.is_none() {
            return Cow::Borrowed(&totals.used);
        }
        let mut used = totals.used.clone();
        if let Some(gone) = gone {
            used.subtract(&gone.amounts);
        }
        if let Some((amounts, _)) = kept {
            used.add(amounts);
        }
        Cow::Owned(used)
    }

    /// How many pods of the same set are there.
    pub(super) fn peers_on(&self, node: &str, totals: &NodeTotals) -> u32 {
        self.request.group.as_ref().map_or(0, |group| {
            let counted = self.gone_from(node).is_some_and(|account| account.group.as_ref() == Some(group));
            totals.peers.get(group).copied().unwrap_or(0).saturating_sub(u32::from(counted))
        })
    }

    fn port_is_taken(&self, node: &str, totals: &NodeTotals) -> bool {
        let wanted = &self.request.rules.ports;
        if wanted.is_empty() {
            return false;
        }
        let own = self.gone_from(node).map(|account| &account.rules.ports);
        let others =
            totals.ports.iter().filter(|(port, count)| **count > u32::from(own.is_some_and(|own| own.contains(*port))));
        let kept = self.kept.get(node).into_iter().flat_map(|(_, ports)| ports.iter().copied());
        let mut taken = others.map(|(port, _)| port).chain(kept);
        taken.any(|taken| wanted.iter().any(|port| port.conflicts(taken)))
    }

    /// Why a node cannot take the pod; empty if it can.
    pub(super) fn rule_out(&self, name: &str, totals: &NodeTotals, facts: &NodeFacts, used: &Amounts) -> Vec<Reason> {
        let request = self.request;
        if let Some(reason) = rule_out(request, name, facts) {
            return vec![reason];
        }
        if self.port_is_taken(name, totals) {
            return vec![Reason::Ports];
        }
        let short = request.amounts.missing(&facts.allocatable, used);
        if !short.is_empty() {
            return short;
        }
        if !reaches(request, name, facts) {
            return vec![Reason::Volume];
        }
        let claims = || self.ledger.volumes.rule_out(request, name, &facts.volume_limits);
        claims().or_else(|| self.peers.rule_out(request, name, facts)).into_iter().collect()
    }
}
