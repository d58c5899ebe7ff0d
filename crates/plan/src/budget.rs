//! Disruption budgets: how many of the pods that a selector matches may be away at a time (PDB).
//!
//! Whoever takes a pod away for a reason that can wait asks here: an eviction, an update, a scale-down. No counter is
//! kept anywhere. The answer is counted from the pods as they were seen, and it names them: the transaction that takes
//! the pod away compares that each of them is still so, and the budget too, so that of two disruptions that together
//! would be one too many only one can happen.
//!
//! The status of a budget is written for people; nothing is decided from it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use jiff::Timestamp;
use model::{
    bound::Bound,
    identity::{ModRevision, PodName, Uid},
    selector::Selector,
};
use pb::{
    Object, ObjectExt,
    objects::{Condition, Pod, PodDisruptionBudget, PodDisruptionBudgetStatus, StatefulSet, Time},
};

use crate::statefulset::PodAt;

/// Condition of a budget: whether a pod may go now.
pub const DISRUPTION_ALLOWED: &str = "DisruptionAllowed";

/// A budget and the pods that it counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Budget {
    /// metadata.name
    pub name: String,
    /// metadata.uid
    pub uid: Uid,
    /// Revision of the last change.
    pub at: ModRevision,
    /// What it demands.
    pub demand: Demand,
    /// What becomes of pods that are not ready.
    pub unhealthy: Unhealthy,
    /// Pods that its selector matches, in the order of their names.
    pub pods: Vec<Counted>,
    /// Pods that there should be: `replicas` of each set whose template the selector matches or that controls one of
    /// `pods`, and the pods without a set.
    pub wanted: u32,
}

/// What a budget demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// spec.minAvailable: so many stay healthy.
    MinAvailable(Bound),
    /// spec.maxUnavailable: so many may be away.
    MaxUnavailable(Bound),
    /// The budget cannot be read: nothing may go until it is repaired.
    Unreadable,
}

/// spec.unhealthyPodEvictionPolicy
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unhealthy {
    /// A pod that is not ready may go while enough others are healthy.
    #[default]
    IfHealthyBudget,
    /// It may always go.
    AlwaysAllow,
}

/// A pod that a budget counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The pod as it was seen.
    pub pod: PodAt,
    /// How it fares.
    pub health: Health,
}

/// How a pod fares, as budgets see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Ready and not on its way out.
    Healthy,
    /// Running, but not ready.
    Unhealthy,
    /// It has not started, has ended, or is on its way out: no budget holds it.
    Away,
}

impl Health {
    /// How a stored pod fares.
    pub fn of(pod: &Pod) -> Self {
        let status = pod.status.as_ref();
        let phase = status.map_or("", |status| status.phase.as_str());
        let ready = status.is_some_and(|s| s.conditions.iter().any(|c| c.r#type == "Ready" && c.status == "True"));
        match phase {
            _ if pod.is_terminating() => Self::Away,
            "" | "Pending" | "Succeeded" | "Failed" => Self::Away,
            _ if ready => Self::Healthy,
            _ => Self::Unhealthy,
        }
    }
}

/// What a budget comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// Pods that there should be.
    pub expected: u32,
    /// Pods that must stay healthy.
    pub desired: u32,
    /// Healthy pods.
    pub healthy: u32,
}

impl Numbers {
    /// Healthy pods that may go.
    pub fn allowed(self) -> u32 {
        self.healthy.saturating_sub(self.desired)
    }
}

/// What an allowed disruption rests on: all of it must still be so when the pod goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grounds {
    /// The budgets that were asked.
    pub budgets: Vec<BudgetAt>,
    /// Healthy pods that stay.
    pub pods: Vec<PodAt>,
}

/// A budget as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BudgetAt {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: Uid,
    /// The revision at which it was seen.
    pub at: ModRevision,
}

/// A budget that holds a pod back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The budget.
    pub budget: String,
    /// What it demands.
    pub demand: Demand,
    /// What it comes to, with the pods that go already taken off.
    pub numbers: Numbers,
    /// Pods that are not healthy: the ones to look after.
    pub unhealthy: Vec<PodName>,
}

/// Pods that an advice names at most.
const NAMED: usize = 3;

impl Refusal {
    /// What would let the pod go, as a sentence for people.
    pub fn advice(&self) -> String {
        let Self { budget, demand, numbers, unhealthy } = self;
        let down: Vec<&str> = unhealthy.iter().take(NAMED).map(PodName::as_str).collect();
        match (demand, down.as_slice()) {
            (Demand::Unreadable, _) => format!("repair the budget or delete it: `berth get pdb {budget} -o yaml`"),
            (_, [first, ..]) => {
                format!("when {} ready again it goes on; `berth why {first}` says what holds that up", is_or_are(&down))
            }
            _ if numbers.healthy < numbers.expected => "it goes on when the pods that are missing are ready".to_owned(),
            (Demand::MinAvailable(_), _) => {
                format!("all pods are healthy and none may go: lower minAvailable of {budget}")
            }
            _ => format!("all pods are healthy and none may go: raise maxUnavailable of {budget}"),
        }
    }
}

fn is_or_are(names: &[&str]) -> String {
    format!("{} {}", names.join(", "), if names.len() == 1 { "is" } else { "are" })
}

impl Budget {
    /// What a stored budget says of the pods of its namespace. `sets` are those that may control some of them.
    ///
    /// Total: without a selector, or with one that cannot be read, no pod is counted; a demand that cannot be read lets
    /// nothing go. The front door lets neither in.
    pub fn of(budget: &PodDisruptionBudget, pods: &[&Pod], sets: &[&StatefulSet]) -> Self {
        let spec = budget.spec.clone().unwrap_or_default();
        let selector = spec.selector.as_ref().and_then(|selector| Selector::of(selector).ok());
        let matching = pods.iter().filter(|pod| {
            pod.namespace() == budget.namespace() && selector.as_ref().is_some_and(|s| s.matches(&pod.meta().labels))
        });
        let matching: BTreeMap<&str, &Pod> = matching.map(|pod| (pod.name(), *pod)).collect();
        let read = |bound: Option<_>| bound.as_ref().map(Bound::read);
        let demand = match (read(spec.min_available), read(spec.max_unavailable)) {
            (Some(Ok(bound)), None) => Demand::MinAvailable(bound),
            (None, Some(Ok(bound))) => Demand::MaxUnavailable(bound),
            _ => Demand::Unreadable,
        };
        Self {
            name: budget.name().to_owned(),
            uid: budget.uid().into(),
            at: ModRevision(budget.mod_revision()),
            demand,
            unhealthy: match spec.unhealthy_pod_eviction_policy.as_str() {
                "AlwaysAllow" => Unhealthy::AlwaysAllow,
                _ => Unhealthy::IfHealthyBudget,
            },
            wanted: wanted(matching.values().copied(), sets, |set| {
                set.namespace() == budget.namespace() && selector.as_ref().is_some_and(|s| selects_template(s, set))
            }),
            pods: matching.values().map(|pod| Counted::of(pod)).collect(),
        }
    }

    /// A budget that exists and cannot be read: it may be about any pod, and none may go.
    pub fn unreadable(name: &str, at: ModRevision, pods: &[&Pod]) -> Self {
        Self {
            name: name.to_owned(),
            uid: Uid::default(),
            at,
            demand: Demand::Unreadable,
            unhealthy: Unhealthy::IfHealthyBudget,
            pods: pods.iter().map(|pod| Counted::of(pod)).collect(),
            wanted: 0,
        }
    }

    /// How a pod fares; None if the budget does not count it.
    pub fn health_of(&self, pod: &PodName) -> Option<Health> {
        self.pods.iter().find(|counted| counted.pod.pod == *pod).map(|counted| counted.health)
    }

    /// What it comes to.
    pub fn numbers(&self) -> Numbers {
        self.numbers_without(&BTreeSet::new())
    }

    /// What it comes to once `leaving` have gone.
    fn numbers_without(&self, leaving: &BTreeSet<PodName>) -> Numbers {
        let all = u32::try_from(self.pods.len()).unwrap_or(u32::MAX);
        let (expected, desired) = match self.demand {
            Demand::MinAvailable(bound @ Bound::Count(count)) => (all, bound.rounded_up(count)),
            Demand::MinAvailable(bound) => (self.wanted, bound.rounded_up(self.wanted)),
            Demand::MaxUnavailable(bound) => (self.wanted, self.wanted.saturating_sub(bound.rounded_up(self.wanted))),
            Demand::Unreadable => (all, u32::MAX),
        };
        let healthy = u32::try_from(self.staying(leaving).count()).unwrap_or(u32::MAX);
        Numbers { expected, desired, healthy }
    }

    /// Healthy pods that stay when `leaving` have gone.
    fn staying<'a>(&'a self, leaving: &'a BTreeSet<PodName>) -> impl Iterator<Item = &'a PodAt> {
        let stays = |counted: &&Counted| counted.health == Health::Healthy && !leaving.contains(&counted.pod.pod);
        self.pods.iter().filter(stays).map(|counted| &counted.pod)
    }

    /// Whether the pod may go when `leaving` go anyway; with Some, on what grounds.
    fn lets_go(&self, pod: &PodName, leaving: &BTreeSet<PodName>) -> Result<Option<Grounds>, Refusal> {
        let Some(health) = self.health_of(pod) else { return Ok(None) };
        let numbers = self.numbers_without(leaving);
        let allowed = match (health, self.unhealthy) {
            (Health::Away, _) | (Health::Unhealthy, Unhealthy::AlwaysAllow) => return Ok(None),
            (Health::Unhealthy, Unhealthy::IfHealthyBudget) => numbers.healthy >= numbers.desired,
            (Health::Healthy, _) => numbers.allowed() > 0,
        };
        if !allowed {
            let down = self.pods.iter().filter(|counted| counted.health != Health::Healthy);
            let unhealthy = down.map(|counted| counted.pod.pod.clone()).collect();
            return Err(Refusal { budget: self.name.clone(), demand: self.demand, numbers, unhealthy });
        }
        let budget = BudgetAt { name: self.name.clone(), uid: self.uid.clone(), at: self.at };
        let pods = self.staying(leaving).filter(|stays| stays.pod != *pod).cloned().collect();
        Ok(Some(Grounds { budgets: vec![budget], pods }))
    }

    /// The status for people. Equal to the stored one if there is nothing new to say.
    pub fn status(
        &self,
        stored: &PodDisruptionBudgetStatus,
        generation: i64,
        now: Timestamp,
    ) -> PodDisruptionBudgetStatus {
        let numbers = self.numbers();
        let short = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
        let (reason, message) = match (self.demand, numbers.allowed()) {
            (Demand::Unreadable, _) => ("SyncFailed", "neither minAvailable nor maxUnavailable can be read".to_owned()),
            (_, 0) => (
                "InsufficientPods",
                format!("{} of the {} pods that must stay are healthy", numbers.healthy, numbers.desired),
            ),
            _ => ("SufficientPods", String::new()),
        };
        let holds = if numbers.allowed() > 0 { "True" } else { "False" };
        let before = stored.conditions.iter().find(|condition| condition.r#type == DISRUPTION_ALLOWED);
        let since = before.filter(|before| before.status == holds).and_then(|before| before.last_transition_time);
        let allowed = Condition {
            r#type: DISRUPTION_ALLOWED.to_owned(),
            status: holds.to_owned(),
            observed_generation: generation,
            last_transition_time: since.or(Some(Time::from(now))),
            reason: reason.to_owned(),
            message,
            ..Condition::default()
        };
        let others = stored.conditions.iter().filter(|condition| condition.r#type != DISRUPTION_ALLOWED).cloned();
        PodDisruptionBudgetStatus {
            observed_generation: generation,
            disruptions_allowed: short(numbers.allowed()),
            current_healthy: short(numbers.healthy),
            desired_healthy: short(numbers.desired),
            expected_pods: short(numbers.expected),
            conditions: others.chain([allowed]).collect(),
        }
    }
}

impl Counted {
    fn of(pod: &Pod) -> Self {
        let seen = PodAt { pod: pod.name().into(), uid: pod.uid().into(), at: ModRevision(pod.mod_revision()) };
        Self { pod: seen, health: Health::of(pod) }
    }
}

/// The pods that there should be. A set whose pods are all away for the moment counts too: otherwise a budget would
/// demand less and less the more pods are missing.
fn wanted<'a>(pods: impl Iterator<Item = &'a Pod>, sets: &[&StatefulSet], meant: impl Fn(&StatefulSet) -> bool) -> u32 {
    let controller = |pod: &Pod| {
        let owner = pod.meta().owner_references.iter().find(|owner| owner.controller == Some(true));
        owner.and_then(|owner| sets.iter().find(|set| set.uid() == owner.uid).copied())
    };
    let size = |set: &StatefulSet| {
        let replicas = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        u32::try_from(replicas).unwrap_or(0)
    };
    let meant = sets.iter().filter(|set| !set.is_terminating() && meant(set));
    let mut replicas: BTreeMap<&str, u32> = meant.map(|set| (set.uid(), size(set))).collect();
    let mut alone = 0_u32;
    for pod in pods {
        match controller(pod) {
            Some(set) => drop(replicas.insert(set.uid(), size(set))),
            None => alone = alone.saturating_add(1),
        }
    }
    replicas.values().fold(alone, |sum, count| sum.saturating_add(*count))
}

fn selects_template(selector: &Selector, set: &StatefulSet) -> bool {
    let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref()).and_then(|t| t.metadata.as_ref());
    template.is_some_and(|meta| selector.matches(&meta.labels))
}

/// Whether every budget lets a pod go when `leaving` go anyway: on what grounds, or which budget does not.
///
/// # Errors
/// The first budget that holds it back.
pub fn may_go<'a>(
    budgets: impl IntoIterator<Item = &'a Budget>,
    pod: &PodName,
    leaving: &BTreeSet<PodName>,
) -> Result<Grounds, Refusal> {
    let mut all = Grounds::default();
    for budget in budgets {
        if let Some(grounds) = budget.lets_go(pod, leaving)? {
            all.budgets.extend(grounds.budgets);
            let new: Vec<_> = grounds.pods.into_iter().filter(|pod| !all.pods.contains(pod)).collect();
            all.pods.extend(new);
        }
    }
    Ok(all)
}

impl fmt::Display for Demand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MinAvailable(bound) => write!(f, "minAvailable {bound}"),
            Self::MaxUnavailable(bound) => write!(f, "maxUnavailable {bound}"),
            Self::Unreadable => write!(f, "unreadable"),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { budget, demand, numbers, .. } = self;
        if *demand == Demand::Unreadable {
            return write!(f, "disruption budget {budget} cannot be read");
        }
        let Numbers { expected, desired, healthy } = numbers;
        write!(f, "disruption budget {budget} ({demand}) needs {desired} of {expected} pods healthy and has {healthy}")
    }
}

#[cfg(test)]
mod tests;
