//! What every node has, what is taken of it, and what was promised.
//!
//! Totals are kept by difference; they always equal what a recount of all accounts would give.
//!
//! Room that others make for a pod of higher priority is kept for it: whoever is less important is told that it is taken.

mod question;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use pb::{
    Object, ObjectExt,
    objects::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, Time},
};

use question::Question;

use super::{
    Amounts, ClaimName, Claims, Group, NodeFacts, PodName, Reason, Request, Rules, Unschedulable, claims_of, nominated,
    ports::Taken,
    prefer, rank,
    rules::{Namespaces, Term},
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
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Account {
    pub(super) uid: String,
    /// The store's revision of the pod object that says so; 0 for a promise.
    pub(super) revision: i64,
    pub(super) node: String,
    pub(super) amounts: Amounts,
    group: Option<Group>,
    claims: Claims,
    pub(super) rules: Arc<Rules>,
    /// Whether it was asked to go.
    pub(super) terminating: bool,
    /// When its node took it.
    pub(super) start: Option<Time>,
}

impl Account {
    /// What the pod wishes of those that come after it.
    pub(super) fn wishes(&self) -> impl Iterator<Item = (Wish, &Term)> {
        let away = self.rules.far.iter().map(|term| (Wish::Away, term));
        // As in Kubernetes: whom it must be near to is welcome, a little.
        let near = self.rules.near.iter().map(|term| (Wish::Weight(1), term));
        away.chain(near).chain(self.rules.pulls.iter().map(|(weight, term)| (Wish::Weight(*weight), term)))
    }
}

/// What pods that are there wish of those that come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wish {
    /// Not to come.
    Away,
    /// To come, or with a negative weight rather not.
    Weight(i64),
}

/// Wishes, with how many pods of which nodes have them.
pub(super) type Wishes = BTreeMap<(Wish, Term), BTreeMap<String, u32>>;

/// Room that is being made for a pod.
#[derive(Clone, Debug, PartialEq)]
struct Nomination {
    revision: i64,
    node: String,
    amounts: Amounts,
    rules: Arc<Rules>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NodeTotals {
    /// None while pods are bound to a node of which no object was seen.
    pub(super) facts: Option<NodeFacts>,
    used: Amounts,
    peers: BTreeMap<Group, u32>,
    ports: Taken,
}

/// All nodes with what is taken of them.
///
/// Times are durations since any moment that stays the same, on a clock that never goes back.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    pub(super) nodes: BTreeMap<String, NodeTotals>,
    pub(super) pods: BTreeMap<PodName, Account>,
    pub(super) wishes: Wishes,
    pub(super) namespaces: Namespaces,
    nominations: BTreeMap<PodName, Nomination>,
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
        let given_up = self.nominate(&name, pod);
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
            (Some(old), new) => new.as_ref().is_none_or(|new| {
                (&old.node, &old.amounts, &old.rules, old.terminating)
                    != (&new.node, &new.amounts, &new.rules, new.terminating)
            }),
            (None, _) => false,
        };
        if let Some(old) = self.pods.remove(&name) {
            self.untake(&name, &old);
        }
        if let Some(account) = account {
            self.take(&name, &account);
            self.pods.insert(name, account);
        }
        freed || given_up
    }

    /// Keeps the room that is made for a pod, as long as it waits for it. Returns whether such room was given up.
    fn nominate(&mut self, name: &PodName, pod: &Pod) -> bool {
        if self.nominations.get(name).is_some_and(|known| known.revision > pod.mod_revision()) {
            return false;
        }
        let waits = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_empty()) && !pod.is_terminating();
        let nomination = nominated(pod).filter(|_| waits).map(|node| Nomination {
            revision: pod.mod_revision(),
            node,
            amounts: Amounts::of_pod(pod),
            rules: Arc::new(Rules::of(pod)),
        });
        let node = nomination.as_ref().map(|nomination| nomination.node.clone());
        let old = match nomination {
            Some(nomination) => self.nominations.insert(name.clone(), nomination),
            None => self.nominations.remove(name),
        };
        old.is_some_and(|old| Some(old.node) != node)
    }

    /// The pod went at this revision of the store. Returns whether room became free.
    pub fn remove_pod(&mut self, name: &PodName, revision: i64) -> bool {
        let nominated = self.nominations.get(name).is_some_and(|known| known.revision <= revision);
        if nominated {
            self.nominations.remove(name);
        }
        if self.pods.get(name).is_none_or(|known| known.revision > revision) {
            return nominated;
        }
        self.pods.remove(name).inspect(|account| self.untake(name, account)).is_some()
    }

    /// Takes over the labels of a namespace. Returns whether pods may fit now that did not before.
    pub fn set_namespace(&mut self, namespace: &Namespace) -> bool {
        let labels = namespace.meta().labels.clone();
        self.namespaces.insert(namespace.name().to_owned(), labels.clone()) != Some(labels)
    }

    /// The namespace went.
    pub fn remove_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
    }

    /// Begins anew from a list of all namespaces.
    pub fn reset_namespaces<'a>(&mut self, namespaces: impl IntoIterator<Item = &'a Namespace>) {
        self.namespaces.clear();
        for namespace in namespaces {
            self.set_namespace(namespace);
        }
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
        self.nominations.retain(|_, known| known.revision > as_of);
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
            rules: Arc::clone(&request.rules),
            terminating: false,
            start: None,
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
        let question = Question::of(self, request);
        let mut nodes = 0;
        let mut reasons: BTreeMap<Reason, usize> = BTreeMap::new();
        let mut fitting = Vec::new();
        for (name, totals) in &self.nodes {
            let Some(facts) = &totals.facts else { continue };
            nodes += 1;
            let used = question.used(name, totals);
            let ruled_out = question.rule_out(name, totals, facts, &used);
            if ruled_out.is_empty() {
                let rank = rank(request, name, facts, &used, question.peers_on(name, totals));
                fitting.push((name.as_str(), facts, rank));
            }
            for reason in ruled_out {
                *reasons.entry(reason).or_default() += 1;
            }
        }
        let candidates: Vec<(&str, &NodeFacts)> = fitting.iter().map(|(name, facts, _)| (*name, *facts)).collect();
        let scores = prefer::scores(request, &question.peers, &candidates);
        let ranked = fitting.into_iter().zip(scores).map(|((name, facts, rank), score)| {
            ((Reverse(Some(name) == request.nominated.as_deref()), Reverse(score), rank), name, facts)
        });
        match ranked.min_by(|(a, ..), (b, ..)| a.cmp(b)) {
            Some((_, name, facts)) => Ok(Placed { node: name.to_owned(), node_revision: facts.revision }),
            None => Err(Unschedulable { nodes, reasons }),
        }
    }

    /// Why a node cannot take the pod; empty if it can.
    pub(super) fn look_at(&self, request: &Request, node: &str) -> Vec<Reason> {
        let Some(totals) = self.nodes.get(node) else { return vec![Reason::NotReady] };
        let Some(facts) = &totals.facts else { return vec![Reason::NotReady] };
        let question = Question::of(self, request);
        question.rule_out(node, totals, facts, &question.used(node, totals))
    }

    /// All pods that are there or were promised a place, but for the one that had the name of the pod that asks.
    pub(super) fn others<'a>(&'a self, request: &'a Request) -> impl Iterator<Item = (&'a PodName, &'a Account)> {
        let promised = self.reservations.iter().map(|(name, (_, account))| (name, account));
        self.pods.iter().chain(promised).filter(|(name, _)| **name != request.name)
    }

    /// Takes a pod out of the reckoning.
    pub(super) fn lift(&mut self, name: &PodName) -> Option<Account> {
        let account = self.pods.remove(name)?;
        self.untake(name, &account);
        Some(account)
    }

    /// Puts a pod back that was taken out.
    pub(super) fn put_back(&mut self, name: &PodName, account: Account) {
        self.take(name, &account);
        self.pods.insert(name.clone(), account);
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
        for port in &account.rules.ports {
            *totals.ports.entry(port.clone()).or_default() += 1;
        }
        for (wish, term) in account.wishes() {
            let nodes = self.wishes.entry((wish, term.clone())).or_default();
            *nodes.entry(account.node.clone()).or_default() += 1;
        }
    }

    fn untake(&mut self, pod: &PodName, account: &Account) {
        self.volumes.untake(pod, &account.node, &account.claims);
        if let Some(totals) = self.nodes.get_mut(&account.node) {
            totals.used.subtract(&account.amounts);
            if let Some(group) = &account.group {
                one_less(&mut totals.peers, group);
            }
            for port in &account.rules.ports {
                one_less(&mut totals.ports, port);
            }
        }
        for (wish, term) in account.wishes() {
            let key = (wish, term.clone());
            if let Some(nodes) = self.wishes.get_mut(&key) {
                one_less(nodes, &account.node);
                if nodes.is_empty() {
                    self.wishes.remove(&key);
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

/// Counts one less; what is not there any more is forgotten.
fn one_less<K: Ord>(counts: &mut BTreeMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(key);
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
        rules: Arc::new(Rules::of(pod)),
        terminating: pod.is_terminating(),
        start: pod.status.as_ref().and_then(|status| status.start_time),
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
