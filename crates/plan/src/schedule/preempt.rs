//! Which pods have to go so that a more important one gets a node.
//!
//! Only pods of lower priority go, only where their going makes room, and as few as possible: whoever can stay stays,
//! the most important first. Among nodes the one is taken where, in this order, the fewest disruption budgets are
//! broken, the most important victim is the least important, the victims' priorities sum up to the least, the fewest go,
//! and the most important of them have run for the shortest time. The rules are Kubernetes'.
//!
//! Must never: choose a pod of the same or a higher priority; let pods go that would not make room by going.

use std::{cmp::Reverse, collections::BTreeMap};

use model::selector::Selector;
use pb::{
    ObjectExt,
    objects::{PodDisruptionBudget, Time},
};

use super::{Ledger, PodName, Request, ledger::Account};

/// Nodes that are weighed against each other at most.
const CANDIDATES: usize = 100;

/// How many of its pods a disruption budget can spare.
#[derive(Clone, Debug)]
pub struct Budget {
    namespace: String,
    selector: Option<Selector>,
    spare: i64,
}

impl Budget {
    /// What a budget's status says.
    pub fn of(budget: &PodDisruptionBudget) -> Self {
        let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        Self {
            namespace: budget.namespace().to_owned(),
            selector: selector.and_then(|selector| Selector::of(selector).ok()),
            spare: budget.status.as_ref().map_or(0, |status| i64::from(status.disruptions_allowed)),
        }
    }

    fn is_about(&self, name: &PodName, account: &Account) -> bool {
        self.namespace == name.namespace
            && self.selector.as_ref().is_some_and(|selector| selector.matches(&account.rules.labels))
    }
}

/// A pod that has to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Victim {
    /// Its name.
    pub name: PodName,
    /// Its uid.
    pub uid: String,
    /// The store's revision of the pod as it was seen.
    pub revision: i64,
    /// Its priority.
    pub priority: i32,
    /// Whether it is on its way out already.
    pub terminating: bool,
}

/// A node, and who has to go there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preemption {
    /// The node.
    pub node: String,
    /// Who has to go, the most important first.
    pub victims: Vec<Victim>,
}

/// What can be done for a pod that fits nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Others may go for it.
    Take(Preemption),
    /// Others are going for it already.
    Wait,
    /// Nothing.
    Nothing,
}

/// A pod that the ledger counts.
type Known = (PodName, Account);

/// What speaks against a choice: less is better.
type Cost = (usize, i32, i64, usize, Reverse<(i64, i32)>);

impl Ledger {
    /// What can be done for a pod that fits onto no node. `budgets` are those of all namespaces.
    pub fn preempt(&self, request: &Request, budgets: &[Budget]) -> Verdict {
        if !request.rules.may_preempt {
            return Verdict::Nothing;
        }
        let mut weaker: BTreeMap<&str, Vec<&PodName>> = BTreeMap::new();
        for (name, account) in &self.pods {
            if account.rules.priority < request.rules.priority && *name != request.name {
                if account.terminating && request.nominated.as_deref() == Some(&account.node) {
                    return Verdict::Wait;
                }
                weaker.entry(&account.node).or_default().push(name);
            }
        }
        if weaker.is_empty() {
            return Verdict::Nothing;
        }
        let mut world = self.clone();
        let mut best: Option<(Cost, Preemption)> = None;
        let choices = weaker.into_iter().filter_map(|(node, names)| world.victims(request, node, &names, budgets));
        for (cost, preemption) in choices.take(CANDIDATES) {
            if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                best = Some((cost, preemption));
            }
        }
        best.map_or(Verdict::Nothing, |(_, preemption)| Verdict::Take(preemption))
    }

    /// Who of these pods of a node has to go; None if that does not make room. All are there as before afterwards.
    fn victims(
        &mut self,
        request: &Request,
        node: &str,
        weaker: &[&PodName],
        budgets: &[Budget],
    ) -> Option<(Cost, Preemption)> {
        if !self.look_at(request, node).iter().all(super::Reason::curable) {
            return None;
        }
        let mut gone: Vec<Known> = weaker.iter().filter_map(|name| Some(((*name).clone(), self.lift(name)?))).collect();
        let fits = self.look_at(request, node).is_empty();
        gone.sort_by_key(|(name, account)| (Reverse(account.rules.priority), began(account), name.clone()));
        let (breaking, sparing): (Vec<_>, Vec<_>) = split(gone, budgets);
        let (mut victims, mut broken) = (Vec::new(), 0);
        for (breaks, (name, account)) in
            breaking.into_iter().map(|pod| (true, pod)).chain(sparing.into_iter().map(|pod| (false, pod)))
        {
            self.put_back(&name, account);
            if fits
                && !self.look_at(request, node).is_empty()
                && let Some(account) = self.lift(&name)
            {
                broken += usize::from(breaks);
                victims.push((name, account));
            }
        }
        victims.sort_by_key(|(name, account)| (Reverse(account.rules.priority), began(account), name.clone()));
        let chosen = victims.iter().map(|(name, account)| victim(name, account)).collect();
        let cost = cost(broken, &victims);
        for (name, account) in victims {
            self.put_back(&name, account);
        }
        fits.then(|| (cost, Preemption { node: node.to_owned(), victims: chosen }))
    }
}

fn victim(name: &PodName, account: &Account) -> Victim {
    Victim {
        name: name.clone(),
        uid: account.uid.clone(),
        revision: account.revision,
        priority: account.rules.priority,
        terminating: account.terminating,
    }
}

/// When a pod began to run. One that did not begin yet comes last.
fn began(account: &Account) -> (i64, i32) {
    account.start.map_or((i64::MAX, 0), |Time { seconds, nanos }| (seconds, nanos))
}

/// Splits pods into those whose going breaks a budget and those whose going does not, as they go one after the other.
fn split(pods: Vec<Known>, budgets: &[Budget]) -> (Vec<Known>, Vec<Known>) {
    let mut budgets = budgets.to_vec();
    pods.into_iter().partition(|(name, account)| {
        let mut breaks = false;
        for budget in budgets.iter_mut().filter(|budget| budget.is_about(name, account)) {
            // One that goes already was counted when it was asked to.
            budget.spare -= i64::from(!account.terminating);
            breaks |= budget.spare < 0 && !account.terminating;
        }
        breaks
    })
}

fn cost(broken: usize, victims: &[Known]) -> Cost {
    let priorities = || victims.iter().map(|(_, account)| account.rules.priority);
    let highest = priorities().max().unwrap_or(i32::MIN);
    // Shifted, so that every victim counts whatever its sign.
    let sum = priorities().map(|priority| i64::from(priority) - i64::from(i32::MIN)).sum();
    let leading = victims.iter().filter(|(_, account)| account.rules.priority == highest);
    let earliest = leading.map(|(_, account)| began(account)).min().unwrap_or((i64::MAX, 0));
    (broken, highest, sum, victims.len(), Reverse(earliest))
}
