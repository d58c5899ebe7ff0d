//! Which outdated pods Berth replaces in a recorded state, and what Kubernetes says of that state.
//!
//! Written from the rules alone (`docs/statefulset.md`, MU-4, FR-1; `docs/deviations.md`): nothing here asks the planner,
//! so that a deviation holds for a case that nobody has seen yet, or the case differs.

use std::collections::BTreeSet;

use crate::{
    vector::{Act, Pod, Status},
    world::World,
};

/// Ordinals.
pub type Ordinals = BTreeSet<u32>;

/// Outdated pods that were deleted.
pub struct Replaced {
    /// Those that had not ended.
    pub pods: Ordinals,
    /// How many deletions, also of those that had ended and were deleted for that already.
    pub count: i32,
}

/// A recorded state, with the revisions that its pods come from and go to.
pub struct Case<'a> {
    world: &'a World<'a>,
    current: i64,
    update: i64,
}

impl<'a> Case<'a> {
    /// `update` is the revision of the present template.
    pub fn new(world: &'a World<'a>, update: i64) -> Self {
        let is_ours = |id: i64| {
            let mut revisions = world.revisions.iter();
            revisions.any(|r| r.id == id && !r.no_select && r.owner.as_deref() != Some("other"))
        };
        let current = world.set.status.current_rev.filter(|id| is_ours(*id)).unwrap_or(update);
        Self { world, current, update }
    }

    /// The set's pods: owned, or to be adopted.
    fn members(&self) -> impl Iterator<Item = &'a Pod> {
        let world = self.world;
        let adopted = |pod: &Pod| pod.owner.as_deref() == Some("none") && !pod.terminating && !world.set.deleting;
        let is_member = move |pod: &&Pod| pod.name.is_none() && !pod.no_select && (pod.owner.is_none() || adopted(pod));
        world.pods.iter().filter(is_member)
    }

    fn start(&self) -> u32 {
        self.world.set.start.unwrap_or(0)
    }

    fn in_range(&self, ordinal: u32) -> bool {
        ordinal.checked_sub(self.start()).is_some_and(|index| index < self.world.set.replicas)
    }

    /// The pod of an ordinal in range.
    fn pod(&self, ordinal: u32) -> Option<&'a Pod> {
        self.members().find(|pod| pod.o == ordinal).filter(|_| self.in_range(ordinal))
    }

    fn ordinals(&self) -> impl DoubleEndedIterator<Item = u32> {
        (0..self.world.set.replicas).map(|index| self.start() + index)
    }

    fn available(&self, pod: &Pod) -> bool {
        pod.ready_age.is_some_and(|age| age >= i64::from(self.world.set.min_ready)) && !pod.terminating
    }

    fn outdated(&self, pod: &Pod) -> bool {
        pod.rev != Some(self.update) && !pod.terminating
    }

    fn in_order(&self) -> bool {
        self.world.set.policy != "Parallel"
    }

    /// The pods that are down and outdated and come back updated: all of them under Parallel, under OrderedReady the one
    /// at which the walk up stops.
    pub fn broken(&self) -> Ordinals {
        let set = self.world.set;
        if set.strategy.r#type != "RollingUpdate" || set.deleting {
            return Ordinals::new();
        }
        let replaced = |ordinal: &u32| {
            let Some(pod) = self.pod(*ordinal) else { return false };
            self.outdated(pod) && !has_ended(pod) && *ordinal - self.start() >= self.partition()
        };
        if self.in_order() {
            let fine =
                |ordinal: &u32| self.pod(*ordinal).is_some_and(|pod| self.available(pod) && pod.phase == "Running");
            return self.ordinals().find(|ordinal| !fine(ordinal)).filter(replaced).into_iter().collect();
        }
        let down = |ordinal: &u32| self.pod(*ordinal).is_some_and(|pod| !self.available(pod));
        self.ordinals().filter(|ordinal| down(ordinal) && replaced(ordinal)).collect()
    }

    /// The lowest index that the update reaches.
    fn partition(&self) -> u32 {
        let strategy = &self.world.set.strategy;
        strategy.partition.filter(|_| strategy.rolling).unwrap_or(0)
    }

    /// Makes the pods that a set without a `rollingUpdate` block gets be of the present template, where the recording
    /// makes the first so many of them as they were (REV-12). Says whether there are such.
    pub fn update_new_pods(&self, actions: &mut [Act]) -> bool {
        let set = self.world.set;
        let kept_back = u32::try_from(set.status.current).unwrap_or(0);
        if set.strategy.r#type != "RollingUpdate" || set.strategy.rolling || self.current == self.update {
            return false;
        }
        let of_old = |act: &&mut Act| {
            let index = act.o.and_then(|ordinal| ordinal.checked_sub(self.start()));
            act.op == "create_pod" && act.rev == Some(self.current) && index.is_some_and(|index| index < kept_back)
        };
        let mut any = false;
        for act in actions.iter_mut().filter(of_old) {
            (act.rev, act.template, any) = (Some(self.update), Some(set.template), true);
        }
        any
    }

    /// The highest pod out of range, where only pods out of range that never come back keep Kubernetes from deleting it
    /// under OrderedReady: such as have ended, and such as are outdated and down.
    pub fn held_up_by_lost(&self) -> Option<u32> {
        let fine = |pod: &Pod| self.available(pod) && pod.phase == "Running";
        let all_fine = self.ordinals().all(|ordinal| self.pod(ordinal).is_some_and(fine));
        if !self.in_order() || self.world.set.deleting || !all_fine {
            return None;
        }
        let condemned = || self.members().filter(|pod| !self.in_range(pod.o));
        let down = || condemned().filter(|pod| !self.available(pod));
        let old = |pod: &Pod| pod.rev != Some(self.update);
        let highest = condemned().max_by_key(|pod| pod.o).filter(|pod| !pod.terminating)?;
        let lowest = down().min_by_key(|pod| pod.o);
        let goes_in_kubernetes = fine(highest) || lowest.is_some_and(|pod| pod.o == highest.o);
        let lowest = down().filter(|pod| !has_ended(pod) && !old(pod)).min_by_key(|pod| pod.o);
        let goes = match lowest {
            Some(lowest) => lowest.o == highest.o || has_ended(highest),
            None => has_ended(highest) || old(highest),
        };
        (goes && !goes_in_kubernetes).then_some(highest.o)
    }

    /// All outdated pods that Berth replaces where Kubernetes replaced `recorded`, and how many deletions that is; None if
    /// what was recorded cannot be part of that.
    pub fn due(&self, recorded: &Replaced) -> Option<Replaced> {
        let broken = self.broken();
        let (World { gates, set, .. }, strategy) = (self.world, &self.world.set.strategy);
        if self.in_order() || !gates.max_unavailable || strategy.r#type != "RollingUpdate" || set.deleting {
            // What ended is deleted again where the classic walk meets it, in both.
            let again = recorded.count - count_of(&recorded.pods);
            let pods = &broken | &recorded.pods;
            return Some(Replaced { count: count_of(&pods) + again, pods });
        }
        let pods: Vec<_> = self.ordinals().filter_map(|ordinal| self.pod(ordinal)).collect();
        let available = pods.iter().filter(|pod| self.available(pod)).count();
        let unavailable = usize::try_from(set.replicas).ok()?.checked_sub(available)?;
        let budget = self.max_unavailable().saturating_sub(unavailable);
        let from_the_top = pods.iter().copied().rev().filter(|pod| pod.o - self.start() >= self.partition());
        let next = from_the_top.filter(|pod| self.available(pod) && self.outdated(pod)).take(budget);
        // What has ended may have been left Ready: it has its share of the budget, and is deleted already.
        let (ended, next): (Vec<&Pod>, Vec<&Pod>) = next.partition(|pod| has_ended(pod));
        let next: Ordinals = next.into_iter().map(|pod| pod.o).collect();
        let pods = &broken | &next;
        let count = count_of(&pods) + i32::try_from(ended.len()).unwrap_or(i32::MAX);
        recorded.pods.is_subset(&pods).then_some(Replaced { pods, count })
    }

    fn max_unavailable(&self) -> usize {
        let replicas = u64::from(self.world.set.replicas);
        let bound = match &self.world.set.strategy.max_unavailable {
            Some(serde_json::Value::Number(count)) => count.as_u64().unwrap_or(1),
            Some(serde_json::Value::String(text)) => {
                text.trim_end_matches('%').parse::<u64>().map_or(1, |percent| replicas * percent / 100)
            }
            _ => 1,
        };
        usize::try_from(bound.max(1)).unwrap_or(usize::MAX)
    }

    /// The pods that a sync deleted because they were outdated. One that had ended is deleted twice, the first time because
    /// it had.
    pub fn replaced(&self, actions: &[Act]) -> Replaced {
        let (mut pods, mut ended) = (Ordinals::new(), Ordinals::new());
        let mut count = 0;
        for act in actions.iter().filter(|act| act.op == "delete_pod" && act.name.is_none()) {
            let Some(pod) = act.o.and_then(|ordinal| self.pod(ordinal)) else { continue };
            if has_ended(pod) && ended.insert(pod.o) {
                continue;
            }
            count += 1;
            if !has_ended(pod) {
                pods.insert(pod.o);
            }
        }
        Replaced { pods, count }
    }

    /// Pods that are at the current revision (STAT-5).
    pub fn at_current(&self) -> i32 {
        self.count(|pod| pod.rev == Some(self.current) && !pod.terminating)
    }

    /// The revision that the set comes from (REV-10).
    pub fn current(&self) -> i64 {
        self.current
    }

    /// The status that Kubernetes computes after `deleted` deletions of outdated pods (STAT-1 to STAT-9).
    pub fn status(&self, deleted: i32, collisions: Option<u32>) -> Status {
        let set = self.world.set;
        let ready = |pod: &Pod| pod.phase == "Running" && pod.ready_age.is_some();
        let long = |pod: &Pod| pod.ready_age.is_some_and(|age| age >= i64::from(set.min_ready));
        let mut status = Status {
            observed: set.generation,
            replicas: self.count(|_| true),
            ready: self.count(ready),
            available: self.count(|pod| ready(pod) && long(pod)),
            current: self.at_current() - deleted,
            updated: self.count(|pod| pod.rev == Some(self.update) && !pod.terminating),
            current_rev: Some(self.current),
            update_rev: Some(self.update),
            collisions,
        };
        let all = i32::try_from(set.replicas).unwrap_or(i32::MAX);
        if set.strategy.r#type == "RollingUpdate" && [status.updated, status.ready, status.replicas] == [all; 3] {
            status.current = status.updated;
            status.current_rev = status.update_rev;
        }
        status
    }

    fn count(&self, test: impl Fn(&Pod) -> bool) -> i32 {
        i32::try_from(self.members().filter(|pod| test(pod)).count()).unwrap_or(i32::MAX)
    }
}

fn has_ended(pod: &Pod) -> bool {
    pod.phase == "Failed" || pod.phase == "Succeeded"
}

fn count_of(pods: &Ordinals) -> i32 {
    i32::try_from(pods.len()).unwrap_or(i32::MAX)
}
