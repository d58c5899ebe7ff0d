//! Stories from an empty cluster: events, syncs, a model of kubelets and of the garbage collector.
//!
//! The world follows the recording: what was recorded is what is done, so that one tick in which Berth deviates does
//! not change the ticks after it. The model is checked too: pods and claims must be as recorded in every tick.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::{
    compare::{Outcome, Recorded, compare, unshown_status},
    due::Case,
    vector::{
        Act, Claim, ClaimShown, Event, Final, Owner, Pod, PodShown, Retention, Revision, Set, Status, Tick, Trajectory,
    },
    world::{SET_UID, World},
};

/// Ready ages are recorded up to this.
const AGE_SHOWN: i64 = 20;

/// Steps within which a story that goes on by itself comes to rest.
const ROUNDS: usize = 300;

/// What a story says.
pub struct Replay {
    /// Decisions, by tick.
    pub ticks: Vec<(u32, Outcome)>,
    /// What becomes of the state in which the recording ends; or why it says nothing.
    pub end: Result<Outcome, &'static str>,
}

/// Compares a whole story.
pub fn replay(story: &Trajectory) -> Replay {
    let mut cluster = Cluster::new(story);
    let mut ticks = Vec::new();
    for tick in &story.ticks {
        ticks.push((tick.t, cluster.tick(tick)));
        if cluster.gone {
            break;
        }
    }
    let end = match &story.r#final {
        Final { gone: true, .. } if cluster.gone => Ok(Outcome::Agree),
        Final { gone, .. } if *gone != cluster.gone => Ok(Outcome::Differ("one of both is gone".to_owned())),
        Final { quiet: false, .. } => Err("the recording ends while something is still under way"),
        Final { .. } => Ok(cluster.rest()),
    };
    Replay { ticks, end }
}

struct Cluster<'a> {
    story: &'a Trajectory,
    now: Timestamp,
    set: Set,
    revisions: Vec<Revision>,
    pods: BTreeMap<u32, Running>,
    claims: Vec<Claim>,
    pods_shown: Vec<PodShown>,
    claims_shown: Vec<ClaimShown>,
    /// The status that the last good sync returned.
    status: Option<Status>,
    uids: u32,
    gone: bool,
}

/// A pod and how many steps its kubelet still needs.
struct Running {
    pod: Pod,
    start: u32,
    ready: u32,
    term: u32,
    held: bool,
    lost: bool,
}

impl<'a> Cluster<'a> {
    fn new(story: &'a Trajectory) -> Self {
        Self {
            story,
            now: Timestamp::UNIX_EPOCH + SignedDuration::from_hours(24 * 365),
            set: story.set.clone(),
            revisions: Vec::new(),
            pods: BTreeMap::new(),
            claims: Vec::new(),
            pods_shown: Vec::new(),
            claims_shown: Vec::new(),
            status: None,
            uids: 0,
            gone: false,
        }
    }

    fn tick(&mut self, tick: &Tick) -> Outcome {
        for event in &tick.events {
            self.event(event);
        }
        if let Err(difference) = self.check(tick) {
            return Outcome::Differ(format!("the model of the story itself: {difference}"));
        }
        self.decide(tick)
    }

    /// Compares a sync in the state as it is, and does what was recorded of it.
    fn decide(&mut self, tick: &Tick) -> Outcome {
        let failed = match &tick.errors {
            Value::Array(errors) => !errors.is_empty(),
            Value::Null | Value::Bool(false) => false,
            Value::Number(count) => count.as_u64() != Some(0),
            _ => true,
        };
        if tick.status.is_some() {
            self.status.clone_from(&tick.status);
        }
        let world = self.world();
        let plan = plan::statefulset::plan(&world.snapshot());
        let recorded = Recorded {
            actions: &tick.actions,
            status: if failed { None } else { self.status.as_ref() },
            written: None,
            failed,
            requeue: tick.requeue,
        };
        let outcome = compare(&world, &recorded, &plan);
        let written = if failed { Some(unshown_status(&world, &recorded, &plan)) } else { self.status.clone() };
        if failed {
            self.status = None;
        }

        for act in tick.actions.iter().filter(|act| act.err.is_none()) {
            self.apply(act, written.as_ref());
        }
        self.pass();
        outcome
    }

    /// Time, kubelets and the garbage collector.
    fn pass(&mut self) {
        self.now += SignedDuration::from_secs(self.story.kubelet.tick);
        for pod in self.pods.values_mut() {
            pod.pod.ready_age = pod.pod.ready_age.map(|age| age + self.story.kubelet.tick);
        }
        self.kubelets();
        self.collect_garbage();
    }

    /// Where the recording has come to rest, stuck or not: rests Berth as well, or by which deviation does it go on?
    /// Where it goes on it decides alone from here, and must come to rest with no pod left that it ought to heal.
    fn rest(&mut self) -> Outcome {
        // Three ticks without a write came before the end, so one more is as the last.
        let Some(last) = self.story.ticks.last() else { return Outcome::Agree };
        let outcome = self.decide(last);
        for _ in 0..ROUNDS {
            let (acts, written) = {
                let world = self.world();
                let plan = plan::statefulset::plan(&world.snapshot());
                (world.acts(&plan), world.status(&plan.status))
            };
            if acts.is_empty() && self.pods.values().all(Running::rests) {
                let update = written.update_rev.unwrap_or_default();
                let world = self.world();
                let left = Case::new(&world, update).broken();
                return if left.is_empty() { outcome } else { Outcome::Differ(format!("{left:?} are not healed")) };
            }
            acts.iter().for_each(|act| self.apply(act, Some(&written)));
            self.pass();
        }
        Outcome::Differ("it does not come to rest".to_owned())
    }

    fn world(&self) -> World<'_> {
        World {
            now: self.now,
            gates: self.story.gates,
            set: &self.set,
            revisions: &self.revisions,
            pods: self.pods.values().map(|running| running.pod.clone()).collect(),
            claims: &self.claims,
        }
    }

    /// The recording shows pods and claims where they have changed.
    fn check(&mut self, tick: &Tick) -> Result<(), String> {
        if let Some(pods) = &tick.pods {
            self.pods_shown.clone_from(pods);
        }
        if let Some(claims) = &tick.claims {
            self.claims_shown.clone_from(claims);
        }
        let pods: Vec<PodShown> = self.pods.values().map(shown).collect();
        let owner = |owner: &Owner| format!("{}:{}", owner.k, owner.u);
        let mut claims: Vec<ClaimShown> = self
            .claims
            .iter()
            .map(|claim| (claim.t.clone(), claim.o, claim.terminating, claim.owners.iter().map(owner).collect()))
            .collect();
        claims.sort();
        let mut claims_shown = self.claims_shown.clone();
        claims_shown.sort();
        if pods != self.pods_shown {
            return Err(format!("pods\n  recorded {:?}\n  modelled {pods:?}", self.pods_shown));
        }
        if claims != claims_shown {
            return Err(format!("claims\n  recorded {claims_shown:?}\n  modelled {claims:?}"));
        }
        Ok(())
    }

    fn event(&mut self, event: &Event) {
        let number = |key: &str| event.with.get(key).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
        let text = |key: &str| event.with.get(key).and_then(Value::as_str).map(str::to_owned);
        let spec_before = self.set.generation;
        self.set.generation += 1;
        match event.e.as_str() {
            "scale" => self.set.replicas = number("replicas").unwrap_or(self.set.replicas),
            "template" => self.set.template = number("template").map_or(self.set.template, i64::from),
            "partition" => {
                self.set.strategy.rolling = true;
                self.set.strategy.partition = number("partition");
            }
            "max_unavailable" => self.set.strategy.max_unavailable = event.with.get("max_unavailable").cloned(),
            "start" => self.set.start = number("start"),
            "min_ready" => self.set.min_ready = number("min_ready").unwrap_or(0),
            "retention" => {
                let policy = event.with.get("retention").cloned().unwrap_or_default();
                self.set.retention = serde_json::from_value::<Option<Retention>>(policy).ok().flatten();
            }
            "delete_set" => self.set.deleting = true,
            _ => {
                self.set.generation = spec_before;
                if let Some(ordinal) = number("o") {
                    self.object_event(&event.e, ordinal, text("t"));
                }
            }
        }
    }

    fn object_event(&mut self, event: &str, ordinal: u32, template: Option<String>) {
        if event == "delete_claim" {
            let claims =
                self.claims.iter_mut().filter(|claim| claim.o == ordinal && Some(&claim.t) == template.as_ref());
            claims.for_each(|claim| claim.terminating = true);
            return;
        }
        if event == "force_delete_pod" {
            self.pods.remove(&ordinal);
            return;
        }
        let term = self.story.kubelet.term;
        let Some(running) = self.pods.get_mut(&ordinal) else { return };
        match event {
            "delete_pod" => running.terminate(term),
            "fail_pod" | "succeed_pod" => {
                running.pod.phase = if event == "fail_pod" { "Failed" } else { "Succeeded" }.to_owned();
                running.pod.ready_age = None;
            }
            "unready_pod" => {
                running.pod.ready_age = None;
                running.held = true;
                running.ready = 1;
            }
            "recover_pod" => running.held = false,
            "node_lost" => {
                running.pod.ready_age = None;
                running.lost = true;
                running.ready = 1;
            }
            "node_back" => running.lost = false,
            other => panic!("the recording has an event that the model does not know: {other}"),
        }
    }

    fn apply(&mut self, act: &Act, written: Option<&Status>) {
        let ordinal = act.o.unwrap_or_default();
        let template = act.t.clone().unwrap_or_default();
        let new_revision = self.revisions.iter().map(|revision| revision.id).max().unwrap_or(0) + 1;
        let revision = self.revisions.iter_mut().find(|revision| Some(revision.id) == act.rev);
        match act.op.as_str() {
            "create_rev" if !act.existing => self.revisions.push(Revision {
                id: act.rev.unwrap_or(new_revision),
                template: act.template.unwrap_or(self.set.template),
                revision: act.revision.unwrap_or_default(),
                owner: None,
                no_select: false,
                variant: 0,
                collides: false,
                corrupt: false,
            }),
            "update_rev" => revision.into_iter().for_each(|r| r.revision = act.revision.unwrap_or(r.revision)),
            "delete_rev" => self.revisions.retain(|revision| Some(revision.id) != act.rev),
            "create_claim" => {
                self.claims.push(Claim { t: template, o: ordinal, terminating: false, owners: Vec::new() });
            }
            "update_claim" => {
                let claim = self.claims.iter_mut().find(|claim| claim.o == ordinal && claim.t == template);
                claim.into_iter().for_each(|claim| claim.owners = act.owners.clone().unwrap_or_default());
            }
            "create_pod" => self.create_pod(ordinal, act.rev),
            "delete_pod" => {
                let term = self.story.kubelet.term;
                self.pods.get_mut(&ordinal).into_iter().for_each(|running| running.terminate(term));
            }
            "update_status" => self.set.status = written.cloned().unwrap_or_default(),
            _ => {}
        }
    }

    fn create_pod(&mut self, ordinal: u32, rev: Option<i64>) {
        self.uids += 1;
        let kubelet = &self.story.kubelet;
        let pod = Pod {
            o: ordinal,
            uid: format!("u{}", self.uids),
            name: None,
            phase: "Pending".to_owned(),
            scheduled: true,
            ready_age: None,
            terminating: false,
            rev,
            volumes: self.set.claims.iter().cloned().collect(),
            identity: None,
            owner: None,
            no_select: false,
        };
        let (start, ready, term) = (kubelet.start, kubelet.ready, kubelet.term);
        self.pods.insert(ordinal, Running { pod, start, ready, term, held: false, lost: false });
    }

    fn kubelets(&mut self) {
        let broken: BTreeSet<i64> = self
            .revisions
            .iter()
            .filter(|revision| self.story.kubelet.broken.contains(&revision.template))
            .map(|revision| revision.id)
            .collect();
        self.pods.retain(|_, running| running.step(&broken));
    }

    fn collect_garbage(&mut self) {
        let uids: BTreeSet<&str> =
            self.pods.values().map(|running| running.pod.uid.as_str()).chain([SET_UID]).collect();
        for claim in &mut self.claims {
            let orphaned =
                !claim.owners.is_empty() && claim.owners.iter().all(|owner| !uids.contains(owner.u.as_str()));
            claim.terminating |= orphaned;
        }
        self.claims.retain(|claim| !claim.terminating || self.pods.contains_key(&claim.o));
        if self.set.deleting {
            self.gone = self.pods.is_empty();
            let term = self.story.kubelet.term;
            self.pods.values_mut().for_each(|running| running.terminate(term));
        }
    }
}

impl Running {
    fn terminate(&mut self, term: u32) {
        if !self.pod.terminating {
            self.pod.terminating = true;
            self.term = term;
        }
    }

    /// Whether neither its kubelet nor time changes anything about it.
    fn rests(&self) -> bool {
        let coming = self.pod.phase == "Pending" && !self.lost;
        let young = self.pod.ready_age.is_some_and(|age| age < 2 * AGE_SHOWN);
        !coming && !young && (!self.pod.terminating || self.lost)
    }

    /// One step of the kubelet; false when the pod is gone.
    fn step(&mut self, broken: &BTreeSet<i64>) -> bool {
        if self.lost {
            return true;
        }
        if self.pod.terminating {
            self.term = self.term.saturating_sub(1);
            return self.term > 0;
        }
        if self.pod.phase == "Pending" {
            self.start = self.start.saturating_sub(1);
            if self.start == 0 {
                self.pod.phase = "Running".to_owned();
            }
            return true;
        }
        let is_broken = self.pod.rev.is_some_and(|rev| broken.contains(&rev));
        if self.pod.phase == "Running" && self.pod.ready_age.is_none() && !self.held && !is_broken {
            self.ready = self.ready.saturating_sub(1);
            if self.ready == 0 {
                self.pod.ready_age = Some(0);
            }
        }
        true
    }
}

fn shown(running: &Running) -> PodShown {
    let pod = &running.pod;
    let age = pod.ready_age.map(|age| age.min(AGE_SHOWN));
    (pod.o, pod.phase.clone(), age, pod.terminating, pod.rev, pod.uid.clone())
}
