//! What holds of disruption budgets, whoever takes pods away: two sets that update and scale, and evictions, all under
//! one budget, each deciding from what it saw some time ago. None of them ever leaves fewer healthy pods than the budget
//! demands; when the budget allows it, everything gets done.

#![allow(clippy::expect_used, reason = "a test that cannot set itself up fails")]

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use pb::{
    Object, ObjectExt,
    objects::{Condition, ControllerRevision, IntOrString, Pod, PodDisruptionBudget, StatefulSet},
};
use plan::{
    budget::{self, Budget, BudgetAt, Grounds, Health},
    statefulset::{Action, DeleteReason, Guard, Objects, Op, Plan, PodAt, Snapshot, plan, stamp},
};
use proptest::prelude::*;
use serde_json::json;

const SETS: [&str; 2] = ["a", "b"];
/// Evictions that are under way at a time.
const EVICTIONS: usize = 3;
/// Rounds within which everything must be done once nothing interferes.
const ROUNDS: usize = 200;

#[derive(Clone, Debug)]
enum Event {
    /// A set's controller decides, and remembers what to do.
    Decide(usize),
    /// It does the next thing of what it decided, if all is still as it was.
    Do(usize),
    /// Somebody asks whether a pod may be evicted.
    Ask(usize),
    /// The oldest eviction that was allowed is carried out.
    Evict,
    Kubelet(usize),
    Kubelets,
    Break(usize),
    Template(usize, u32),
    Scale(usize, i32),
    Demand(Demand),
}

#[derive(Clone, Debug)]
enum Demand {
    Min(i32),
    MinPercent(u32),
    Max(i32),
    MaxPercent(u32),
}

fn demand() -> impl Strategy<Value = Demand> {
    prop_oneof![
        (0..8i32).prop_map(Demand::Min),
        (0..=100u32).prop_map(Demand::MinPercent),
        (0..4i32).prop_map(Demand::Max),
        (0..=100u32).prop_map(Demand::MaxPercent),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let (set, pod) = (0..SETS.len(), 0..8usize);
    prop_oneof![
        6 => set.clone().prop_map(Event::Decide),
        8 => set.clone().prop_map(Event::Do),
        3 => pod.clone().prop_map(Event::Ask),
        3 => Just(Event::Evict),
        2 => pod.clone().prop_map(Event::Kubelet),
        3 => Just(Event::Kubelets),
        1 => pod.prop_map(Event::Break),
        2 => (set.clone(), 0..3u32).prop_map(|(set, template)| Event::Template(set, template)),
        2 => (set, 0..5i32).prop_map(|(set, replicas)| Event::Scale(set, replicas)),
        1 => demand().prop_map(Event::Demand),
    ]
}

struct World {
    sets: BTreeMap<String, StatefulSet>,
    pods: BTreeMap<String, Pod>,
    revisions: BTreeMap<String, ControllerRevision>,
    budget: PodDisruptionBudget,
    at: i64,
    /// What each controller has still to do of what it decided.
    decided: BTreeMap<usize, Vec<Action>>,
    allowed: Vec<(PodAt, Grounds)>,
}

impl World {
    fn new(policies: [&str; 2], max_unavailable: [Option<u32>; 2], demand: &Demand) -> Self {
        let (pods, revisions, decided) = Default::default();
        let budget = PodDisruptionBudget::default();
        let mut world = Self { sets: BTreeMap::new(), pods, revisions, budget, at: 0, decided, allowed: Vec::new() };
        for ((name, policy), max) in SETS.into_iter().zip(policies).zip(max_unavailable) {
            let set = json!({
                "metadata": {"name": name, "uid": name, "generation": 1},
                "spec": {
                    "replicas": 3, "podManagementPolicy": policy,
                    "selector": {"matchLabels": {"app": name}},
                    "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0, "maxUnavailable": max}},
                    "template": {
                        "metadata": {"labels": {"app": name, "tier": "db"}},
                        "spec": {"containers": [{"name": "c", "image": "i:0"}]},
                    },
                },
            });
            let mut set: StatefulSet = serde_json::from_value(set).expect("a set");
            world.touch(&mut set);
            world.sets.insert(name.to_owned(), set);
        }
        world.demand(demand);
        world
    }

    fn touch<T: Object>(&mut self, object: &mut T) {
        self.at += 1;
        object.meta_mut().resource_version = self.at.to_string();
    }

    fn demand(&mut self, demand: &Demand) {
        let (field, bound) = match demand {
            Demand::Min(count) => ("minAvailable", json!(count)),
            Demand::MinPercent(percent) => ("minAvailable", json!(format!("{percent}%"))),
            Demand::Max(count) => ("maxUnavailable", json!(count)),
            Demand::MaxPercent(percent) => ("maxUnavailable", json!(format!("{percent}%"))),
        };
        let budget = json!({
            "metadata": {"name": "db", "uid": "budget"},
            "spec": {field: bound, "selector": {"matchLabels": {"tier": "db"}}},
        });
        let mut budget: PodDisruptionBudget = serde_json::from_value(budget).expect("a budget");
        self.touch(&mut budget);
        self.budget = budget;
    }

    /// The budget as it is now.
    fn counted(&self) -> Budget {
        let (pods, sets): (Vec<_>, Vec<_>) = (self.pods.values().collect(), self.sets.values().collect());
        Budget::of(&self.budget, &pods, &sets)
    }

    fn plan(&self, name: &str) -> Plan {
        let objects = Objects {
            set: &self.sets[name],
            pods: &self.pods.values().collect::<Vec<_>>(),
            claims: &[],
            revisions: &self.revisions.values().collect::<Vec<_>>(),
            service_exists: true,
            budgets: &[self.counted()],
        };
        plan(&Snapshot::of(Timestamp::UNIX_EPOCH, objects))
    }

    fn holds(&self, set: &str, guard: &Guard) -> bool {
        let pod = |seen: &PodAt| self.pods.get(seen.pod.as_str()).is_some_and(|pod| pod.mod_revision() == seen.at.0);
        match guard {
            Guard::SetUnchanged { at, .. } => self.sets[set].mod_revision() == at.0,
            Guard::PodUnchanged(seen) => pod(seen),
            Guard::PodsUnchanged(seen) => seen.iter().all(pod),
            Guard::PodAbsent(name) => !self.pods.contains_key(name.as_str()),
            Guard::RevisionUnchanged { name, at, .. } => {
                self.revisions.get(name.as_str()).is_some_and(|revision| revision.mod_revision() == at.0)
            }
            Guard::RevisionAbsent(name) => !self.revisions.contains_key(name.as_str()),
            Guard::BudgetUnchanged(seen) => self.is_budget(seen),
            other => panic!("nothing in this world gives rise to {other:?}"),
        }
    }

    fn is_budget(&self, seen: &BudgetAt) -> bool {
        self.budget.mod_revision() == seen.at.0
    }

    /// Does the next thing that a controller decided; forgets the rest if something has changed.
    fn act(&mut self, number: usize) {
        let name = SETS[number];
        let Some(actions) = self.decided.get_mut(&number).filter(|actions| !actions.is_empty()) else { return };
        let action = actions.remove(0);
        if action.guards.iter().all(|guard| self.holds(name, guard)) {
            self.apply(name, &action);
        } else if !is_deletion(&action) {
            self.decided.remove(&number);
        }
    }

    fn apply(&mut self, name: &str, action: &Action) {
        let set = self.sets[name].clone();
        match &action.op {
            Op::CreateRevision { name, number, .. } => {
                let mut revision = stamp::revision(&set, name.as_str(), *number);
                self.touch(&mut revision);
                self.revisions.insert(name.to_string(), revision);
            }
            Op::RenumberRevision { name, number } => {
                let mut revision = self.revisions[name.as_str()].clone();
                revision.revision = *number;
                self.touch(&mut revision);
                self.revisions.insert(name.to_string(), revision);
            }
            Op::DeleteRevision { name } => drop(self.revisions.remove(name.as_str())),
            Op::CreatePod(new) => {
                let template = self.revisions[new.revision.as_str()].data.clone().unwrap_or_default();
                let mut pod = stamp::pod(&set, &template, new);
                pod.spec.get_or_insert_default().node_name = "n".to_owned();
                pod.status.get_or_insert_default().phase = "Pending".to_owned();
                self.touch(&mut pod);
                self.pods.insert(new.pod.to_string(), pod);
            }
            Op::DeletePod { pod, why, .. } => {
                let can_wait = matches!(why, DeleteReason::Outdated { .. } | DeleteReason::ScaledAway);
                assert!(can_wait, "nothing ends here and no set goes: {why:?}");
                self.disrupt(pod.as_str());
            }
            Op::UpdateStatus(status) => {
                let mut set = set;
                stamp::status(status, set.status.get_or_insert_default());
                self.touch(&mut set);
                self.sets.insert(name.to_owned(), set);
            }
            other => panic!("nothing in this world gives rise to {other:?}"),
        }
    }

    /// A pod goes for a reason that could have waited: what the budget demands must be there without it.
    fn disrupt(&mut self, name: &str) {
        let was_healthy = Health::of(&self.pods[name]) == Health::Healthy;
        self.edit(name, |pod| {
            pod.meta_mut().deletion_timestamp.get_or_insert_default();
        });
        let budget = self.counted();
        let left = budget.numbers();
        assert!(!was_healthy || left.healthy >= left.desired, "{name} went: {left:?} under {}", budget.demand);
    }

    fn edit(&mut self, name: &str, change: impl FnOnce(&mut Pod)) {
        let Some(mut pod) = self.pods.remove(name) else { return };
        change(&mut pod);
        self.touch(&mut pod);
        self.pods.insert(name.to_owned(), pod);
    }

    fn ask(&mut self, name: &str) {
        if self.allowed.len() < EVICTIONS && !self.pods[name].is_terminating() {
            let budget = self.counted();
            let seen = budget.pods.iter().find(|counted| counted.pod.pod.as_str() == name);
            let seen = seen.expect("the budget counts every pod").pod.clone();
            self.allowed.extend(budget::may_go([&budget], &seen.pod, &BTreeSet::new()).ok().map(|on| (seen, on)));
        }
    }

    fn evict(&mut self) {
        if self.allowed.is_empty() {
            return;
        }
        let (pod, Grounds { budgets, pods }) = self.allowed.remove(0);
        let name = pod.pod.to_string();
        let still = |guard| self.holds(SETS[0], &guard);
        if budgets.iter().all(|budget| self.is_budget(budget))
            && still(Guard::PodUnchanged(pod))
            && still(Guard::PodsUnchanged(pods))
        {
            self.disrupt(&name);
        }
    }

    /// A node does the next thing with a pod.
    fn kubelet(&mut self, name: &str) {
        if self.pods[name].is_terminating() {
            self.at += 1;
            self.pods.remove(name);
        } else if Health::of(&self.pods[name]) != Health::Healthy {
            self.report(name, true);
        }
    }

    fn report(&mut self, name: &str, ready: bool) {
        self.edit(name, |pod| {
            let status = pod.status.get_or_insert_default();
            status.phase = "Running".to_owned();
            status.conditions = vec![Condition {
                r#type: "Ready".to_owned(),
                status: if ready { "True" } else { "False" }.to_owned(),
                ..Condition::default()
            }];
        });
    }

    fn change_set(&mut self, number: usize, change: impl FnOnce(&mut StatefulSet)) {
        let mut set = self.sets[SETS[number]].clone();
        change(&mut set);
        set.meta_mut().generation += 1;
        self.touch(&mut set);
        self.sets.insert(SETS[number].to_owned(), set);
    }

    fn happen(&mut self, event: &Event) {
        let names: Vec<String> = self.pods.keys().cloned().collect();
        let pod = |number: &usize| names.get(number % names.len().max(1)).cloned();
        match event {
            Event::Decide(number) => {
                let plan = self.plan(SETS[*number]);
                self.decided.insert(*number, plan.actions);
            }
            Event::Do(number) => self.act(*number),
            Event::Ask(number) => pod(number).into_iter().for_each(|name| self.ask(&name)),
            Event::Evict => self.evict(),
            Event::Kubelet(number) => pod(number).into_iter().for_each(|name| self.kubelet(&name)),
            Event::Kubelets => names.iter().for_each(|name| self.kubelet(name)),
            Event::Break(number) => pod(number).into_iter().for_each(|name| self.report(&name, false)),
            Event::Template(number, template) => self.change_set(*number, |set| {
                let template_of = set.spec.get_or_insert_default().template.get_or_insert_default();
                template_of.spec.get_or_insert_default().containers[0].image = format!("i:{template}");
            }),
            Event::Scale(number, replicas) => {
                // Where the size of the sets counts, a set that grows between a decision and its transaction demands
                // more than could be known: as if it had grown afterwards.
                let spec = self.budget.spec.clone().unwrap_or_default();
                let fixed = spec.min_available.is_some_and(|bound| !bound.to_string().ends_with('%'));
                self.change_set(*number, |set| {
                    let spec = set.spec.get_or_insert_default();
                    let now = spec.replicas.unwrap_or(1);
                    spec.replicas = Some(if fixed { *replicas } else { now.min(*replicas) });
                });
            }
            Event::Demand(demand) => self.demand(demand),
        }
    }

    /// Lets everybody work until there is nothing left to do.
    fn settle(&mut self) {
        for _ in 0..ROUNDS {
            let names: Vec<String> = self.pods.keys().cloned().collect();
            names.iter().for_each(|name| self.kubelet(name));
            let plans: Vec<_> = SETS.iter().map(|name| self.plan(name)).collect();
            if plans.iter().all(Plan::is_settled) {
                return;
            }
            for (number, plan) in plans.into_iter().enumerate() {
                let steps = plan.actions.len();
                self.decided.insert(number, plan.actions);
                (0..steps).for_each(|_| self.act(number));
            }
        }
        let waits: Vec<_> = SETS.iter().flat_map(|name| self.plan(name).waits).map(|wait| wait.to_string()).collect();
        panic!("not settled: {waits:#?}");
    }
}

fn is_deletion(action: &Action) -> bool {
    matches!(action.op, Op::DeletePod { .. })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nobody_takes_one_pod_too_many(
        parallel in any::<[bool; 2]>(),
        max_unavailable in [prop::option::of(1..4u32), prop::option::of(1..4u32)],
        first in demand(),
        events in prop::collection::vec(event(), 1..150),
    ) {
        let policies = parallel.map(|parallel| if parallel { "Parallel" } else { "OrderedReady" });
        let mut world = World::new(policies, max_unavailable, &Demand::Max(1));
        world.settle();
        world.demand(&first);
        for event in &events {
            world.happen(event);
        }
        world.demand(&Demand::Max(1));
        world.settle();
        let set = |pod: &Pod| &world.sets[&pod.meta().labels["app"]];
        for pod in world.pods.values() {
            let update = &set(pod).status.as_ref().expect("it was counted").update_revision;
            prop_assert_eq!(&pod.meta().labels[stamp::REVISION_LABEL], update);
        }
    }
}

#[test]
fn two_sets_that_decide_at_the_same_time_do_not_both_go_on() {
    let mut world = World::new(["OrderedReady"; 2], [None; 2], &Demand::Max(1));
    world.settle();
    for number in [0, 1] {
        world.happen(&Event::Template(number, 1));
        let plan = world.plan(SETS[number]);
        world.decided.insert(number, plan.actions);
        // The revision is made and the status written; the deletion is decided anew from what is so then.
        while let Some(at) = world.decided[&number].iter().position(|action| !is_deletion(action)) {
            world.decided.entry(number).and_modify(|actions| actions.swap(0, at));
            world.act(number);
        }
        let plan = world.plan(SETS[number]);
        world.decided.insert(number, plan.actions);
    }
    let deletes = |world: &World, number: usize| world.decided[&number].iter().any(is_deletion);
    assert!(deletes(&world, 0) && deletes(&world, 1), "both were allowed to");
    for number in [0, 1] {
        (0..8).for_each(|_| world.act(number));
    }
    assert_eq!(world.pods.values().filter(|pod| pod.is_terminating()).count(), 1);
}

#[test]
fn deletions_of_one_plan_are_within_the_budget_together() {
    let mut world = World::new(["Parallel"; 2], [Some(3), None], &Demand::Max(1));
    world.settle();
    let pods_that_go = |world: &World| {
        let actions = world.plan("a").actions;
        actions.iter().filter(|action| is_deletion(action)).count()
    };
    world.happen(&Event::Template(0, 1));
    for (allowed, gone) in [(0, 0), (1, 1), (2, 2), (4, 3)] {
        world.demand(&Demand::Max(allowed));
        assert_eq!(pods_that_go(&world), gone, "maxUnavailable: {allowed}");
    }
    world.demand(&Demand::Max(2));
    world.report("b-1", false);
    assert_eq!(pods_that_go(&world), 1, "a pod of the other set is away already");
    world.demand(&Demand::Max(0));
    world.report("b-1", true);
    let waits: Vec<String> = world.plan("a").waits.iter().map(ToString::to_string).collect();
    assert_eq!(
        waits,
        ["a-2 is to go, but disruption budget db (maxUnavailable 0) needs 6 of 6 pods healthy and has 6"]
    );
    world.change_set(0, |set| "Ignore".clone_into(&mut set.spec.get_or_insert_default().budget_policy));
    assert_eq!(pods_that_go(&world), 3, "it asks no budget");
}

#[test]
fn a_scale_down_asks_for_healthy_pods_alone() {
    let mut world = World::new(["Parallel"; 2], [None; 2], &Demand::Min(6));
    world.settle();
    world.change_set(0, |set| set.spec.get_or_insert_default().replicas = Some(1));
    world.report("a-2", false);
    let going: Vec<_> = world
        .plan("a")
        .actions
        .iter()
        .filter_map(|action| match &action.op {
            Op::DeletePod { pod, .. } => Some(pod.to_string()),
            _ => None,
        })
        .collect();
    assert_eq!(going, ["a-2"], "it serves nobody; a-1 is held by the budget");
    let bound = world.budget.spec.as_ref().and_then(|spec| spec.min_available.clone());
    assert_eq!(bound, Some(IntOrString::int(6)));
}
