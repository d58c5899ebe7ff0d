//! What every node has, what is taken of it, and what was promised.
//!
//! Totals are kept by difference; they always equal what a recount of all accounts would give.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use pb::{
    ObjectExt,
    objects::{Node, PersistentVolume, PersistentVolumeClaim, Pod},
};

use super::{
    Amounts, ClaimName, Claims, Group, NodeFacts, PodName, Reason, Request, Unschedulable, claims_of, rank, rule_out,
    volumes::Volumes,
};

/// How long a promise stands without the pod being seen. Longer than the deadline of the call that asks for a place
/// and of the write that uses it, together.
pub const RESERVATION_TTL: Duration = Duration::from_secs(10);

/// A node for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The node.
    pub node: String,
    /// The store's revision of the node object that the choice rests on.
    pub node_revision: i64,
}

/// What one pod, seen or promised, takes of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Account {
    uid: String,
    /// The store's revision of the pod object that says so; 0 for a promise.
    revision: i64,
    node: String,
    amounts: Amounts,
    group: Option<Group>,
    claims: Claims,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct NodeTotals {
    /// None while pods are bound to a node of which no object was seen.
    facts: Option<NodeFacts>,
    used: Amounts,
    peers: BTreeMap<Group, u32>,
}

/// All nodes with what is taken of them.
///
/// Times are durations since any moment that stays the same, on a clock that never goes back.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    nodes: BTreeMap<String, NodeTotals>,
    pods: BTreeMap<PodName, Account>,
    reservations: BTreeMap<PodName, (Duration, Account)>,
    /// The same reservations by the time of their end.
    ends: BTreeSet<(Duration, PodName)>,
    volumes: Volumes,
}

impl Ledger {
    /// Takes over a state of a node, unless a newer one is known. Returns whether pods may fit now that did not before.
    pub fn set_node(&mut self, node: &Node) -> bool {
        let totals = self.nodes.entry(node.name().to_owned()).or_default();
        let facts = NodeFacts::of(node);
        if totals.facts.as_ref().is_some_and(|known| known.revision > facts.revision) {
            return false;
        }
        let better = totals.facts.as_ref().is_none_or(|old| !old.same_but_revision(&facts));
        totals.facts = Some(facts);
        better
    }

    /// The node went at this revision of the store.
    pub fn remove_node(&mut self, name: &str, revision: i64) {
        if let Some(totals) = self.nodes.get_mut(name) {
            totals.facts.take_if(|known| known.revision <= revision);
        }
        self.prune(name);
    }

    /// Takes over a state of a pod; one that is older than what is known is not looked at, so that lists and changes
    /// may come in any order. Returns whether room became free.
    pub fn set_pod(&mut self, pod: &Pod) -> bool {
        let name = PodName::of(pod);
        if self.pods.get(&name).is_some_and(|known| known.revision >= pod.mod_revision()) {
            return false;
        }
        let mut account = account(pod);
        if let Some(account) = &mut account {
            let known = self.pods.get(&name).filter(|known| known.uid == account.uid);
            let promised = self.reservations.get(&name).map(|(_, promised)| promised);
            let kept = promised.filter(|promised| same_pod(promised, account));
            // What was told of its volumes still holds, and may not be seen yet.
            if let Some(earlier) = kept.or(known) {
                learn(&mut account.claims, &earlier.claims);
            }
            if kept.is_some() {
                self.release(&name);
            }
        }
        let freed = match (self.pods.get(&name), &account) {
            (Some(old), new) => new.as_ref().is_none_or(|new| old.node != new.node || old.amounts != new.amounts),
            (None, _) => false,
        };
        if let Some(old) = self.pods.remove(&name) {
            self.untake(&name, &old);
        }
        if let Some(account) = account {
            self.take(&name, &account);
            self.pods.insert(name, account);
        }
        freed
    }

    /// The pod went at this revision of the store. Returns whether room became free.
    pub fn remove_pod(&mut self, name: &PodName, revision: i64) -> bool {
        if self.pods.get(name).is_none_or(|known| known.revision > revision) {
            return false;
        }
        self.pods.remove(name).inspect(|account| self.untake(name, account)).is_some()
    }

    /// Takes over a state of a claim, unless a newer one is known. Returns whether pods may fit now that did not
    /// before.
    pub fn set_claim(&mut self, claim: &PersistentVolumeClaim) -> bool {
        self.volumes.set_claim(claim)
    }

    /// The claim went at this revision of the store.
    pub fn remove_claim(&mut self, name: &ClaimName, revision: i64) {
        self.volumes.remove_claim(name, revision);
    }

    /// Takes over a state of a volume, unless a newer one is known. Returns whether pods may fit now that did not
    /// before.
    pub fn set_volume(&mut self, volume: &PersistentVolume) -> bool {
        self.volumes.set_volume(volume)
    }

    /// The volume went at this revision of the store.
    pub fn remove_volume(&mut self, name: &str, revision: i64) {
        self.volumes.remove_volume(name, revision);
    }

    /// Begins anew from a list of all claims as of a revision of the store. What is known from later revisions stays.
    pub fn reset_claims<'a>(&mut self, claims: impl IntoIterator<Item = &'a PersistentVolumeClaim>, as_of: i64) {
        self.volumes.reset_claims(claims, as_of);
    }

    /// Begins anew from a list of all volumes as of a revision of the store. What is known from later revisions stays.
    pub fn reset_volumes<'a>(&mut self, volumes: impl IntoIterator<Item = &'a PersistentVolume>, as_of: i64) {
        self.volumes.reset_volumes(volumes, as_of);
    }

    /// Begins anew from a list of all nodes as of a revision of the store. What is known from later revisions stays.
    pub fn reset_nodes<'a>(&mut self, nodes: impl IntoIterator<Item = &'a Node>, as_of: i64) {
        for totals in self.nodes.values_mut() {
            totals.facts.take_if(|known| known.revision <= as_of);
        }
        for node in nodes {
            self.set_node(node);
        }
        self.nodes.retain(|_, totals| *totals != NodeTotals::default());
    }

    /// Begins anew from a list of all pods as of a revision of the store. What is known from later revisions stays,
    /// and so does what was promised and not yet seen.
    pub fn reset_pods<'a>(&mut self, pods: impl IntoIterator<Item = &'a Pod>, as_of: i64) {
        let old: Vec<PodName> =
            self.pods.iter().filter(|(_, known)| known.revision <= as_of).map(|(name, _)| name.clone()).collect();
        for name in old {
            self.remove_pod(&name, as_of);
        }
        for pod in pods {
            self.set_pod(pod);
        }
    }

    /// Finds the best node for a pod and reserves its room there for [`RESERVATION_TTL`] from `now`, or until the pod
    /// is seen. What was reserved for a pod of this name before is given back.
    pub fn place(&mut self, request: &Request, now: Duration) -> Result<Placed, Unschedulable> {
        self.expire(now);
        self.release(&request.name);
        let placed = self.choose(request)?;
        let account = Account {
            uid: request.uid.clone(),
            revision: 0,
            node: placed.node.clone(),
            amounts: request.amounts.clone(),
            group: request.group.clone(),
            claims: request.claims.clone(),
        };
        self.promise(request.name.clone(), now + RESERVATION_TTL, account);
        Ok(placed)
    }

    /// Gives back what was reserved for a pod.
    pub fn release(&mut self, name: &PodName) {
        if let Some((end, account)) = self.reservations.remove(name) {
            self.ends.remove(&(end, name.clone()));
            self.untake(name, &account);
        }
    }

    /// How many nodes there are, and how many reservations stand.
    pub fn counts(&self) -> (usize, usize) {
        (self.nodes.values().filter(|totals| totals.facts.is_some()).count(), self.reservations.len())
    }

    fn choose(&self, request: &Request) -> Result<Placed, Unschedulable> {
        let gone = self.pods.get(&request.name);
        let mut nodes = 0;
        let mut reasons: BTreeMap<Reason, usize> = BTreeMap::new();
        let mut best = None;
        for (name, totals) in &self.nodes {
            let Some(facts) = &totals.facts else { continue };
            nodes += 1;
            let gone = gone.filter(|account| account.node == *name);
            let used = match gone {
                Some(account) => {
                    let mut used = totals.used.clone();
                    used.subtract(&account.amounts);
                    Cow::Owned(used)
                }
                None => Cow::Borrowed(&totals.used),
            };
            let mut ruled_out = rule_out(request, name, facts, &used);
            if ruled_out.is_empty() {
                ruled_out.extend(self.volumes.rule_out(request, name, &facts.volume_limits));
            }
            if ruled_out.is_empty() {
                let peers = request.group.as_ref().map_or(0, |group| {
                    let counted = gone.is_some_and(|account| account.group.as_ref() == Some(group));
                    totals.peers.get(group).copied().unwrap_or(0).saturating_sub(u32::from(counted))
                });
                let candidate = (rank(request, name, facts, &used, peers), facts.revision);
                if best.as_ref().is_none_or(|(rank, _)| candidate.0 < *rank) {
                    best = Some(candidate);
                }
            }
            for reason in ruled_out {
                *reasons.entry(reason).or_default() += 1;
            }
        }
        match best {
            Some(((.., name), revision)) => Ok(Placed { node: name.to_owned(), node_revision: revision }),
            None => Err(Unschedulable { nodes, reasons }),
        }
    }

    fn expire(&mut self, now: Duration) {
        while let Some((end, name)) = self.ends.first()
            && *end <= now
        {
            let name = name.clone();
            self.release(&name);
        }
    }

    fn promise(&mut self, name: PodName, end: Duration, account: Account) {
        self.take(&name, &account);
        self.ends.insert((end, name.clone()));
        self.reservations.insert(name, (end, account));
    }

    fn take(&mut self, pod: &PodName, account: &Account) {
        self.volumes.take(pod, &account.node, &account.claims);
        let totals = self.nodes.entry(account.node.clone()).or_default();
        totals.used.add(&account.amounts);
        if let Some(group) = &account.group {
            *totals.peers.entry(group.clone()).or_default() += 1;
        }
    }

    fn untake(&mut self, pod: &PodName, account: &Account) {
        self.volumes.untake(pod, &account.node, &account.claims);
        if let Some(totals) = self.nodes.get_mut(&account.node) {
            totals.used.subtract(&account.amounts);
            if let Some(group) = &account.group
                && let Some(count) = totals.peers.get_mut(group)
            {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    totals.peers.remove(group);
                }
            }
        }
        self.prune(&account.node);
    }

    /// Forgets a node that neither has an object nor runs anything.
    fn prune(&mut self, name: &str) {
        if self.nodes.get(name).is_some_and(|totals| *totals == NodeTotals::default()) {
            self.nodes.remove(name);
        }
    }
}

/// What a pod takes; None if it takes nothing: not bound, or ended for good.
fn account(pod: &Pod) -> Option<Account> {
    let node = pod.spec.as_ref().map(|spec| spec.node_name.as_str()).filter(|node| !node.is_empty())?;
    let ended = pod.status.as_ref().is_some_and(|status| matches!(status.phase.as_str(), "Succeeded" | "Failed"));
    (!ended).then(|| Account {
        uid: pod.uid().to_owned(),
        revision: pod.mod_revision(),
        node: node.to_owned(),
        amounts: Amounts::of_pod(pod),
        group: Group::of(pod),
        claims: claims_of(pod).into_iter().map(|claim| (claim, None)).collect(),
    })
}

/// Takes over the drivers that are not known otherwise.
fn learn(claims: &mut Claims, earlier: &Claims) {
    for (claim, driver) in claims {
        if driver.is_none() {
            *driver = earlier.get(claim).cloned().flatten();
        }
    }
}

/// Whether a pod that was seen is the one that room was promised to. A promise without uid is kept by node.
fn same_pod(promised: &Account, seen: &Account) -> bool {
    if promised.uid.is_empty() { promised.node == seen.node } else { promised.uid == seen.uid }
}

#[cfg(test)]
mod tests;
