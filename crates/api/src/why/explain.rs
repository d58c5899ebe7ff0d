//! From what is known to why: the waits of the planner, followed from pod to pod down to the one that holds up the
//! others, with what conditions, containers, claims, nodes and events say of it ([`super::pod`], [`super::claim`]).
//!
//! Pure. The planner is the one that the controller runs, so the answer is the controller's own reason.

use std::collections::BTreeSet;

use jiff::Timestamp;
use model::{
    identity::{PodName, SetName},
    ordinals::Ordinals,
};
use pb::{
    ObjectExt,
    api::v1::{WhyReason, WhyResponse},
    objects::{
        ControllerRevision, CsiDriver, Event, Node, PersistentVolume, PersistentVolumeClaim, Pod, Service, StatefulSet,
        StorageClass, Time, VolumeAttachment, VolumeSnapshot,
    },
};
use plan::{
    budget::Budget,
    statefulset::{Objects, Op, Plan, Snapshot, Wait, conditions, plan},
};

use super::{
    advice::{advice, since, waits_for},
    pod::{is_true, phase},
};

/// What is asked about.
pub enum Asked {
    /// The set of the facts.
    Set,
    /// A pod, which need not exist.
    Pod(PodName),
    /// A claim.
    Claim(String),
}

/// What is known, all of one namespace.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    pub now: Timestamp,
    pub set: Option<&'a StatefulSet>,
    pub pods: &'a [&'a Pod],
    pub claims: &'a [&'a PersistentVolumeClaim],
    pub revisions: &'a [&'a ControllerRevision],
    pub services: &'a [&'a Service],
    pub nodes: &'a [&'a Node],
    pub budgets: &'a [Budget],
    pub events: &'a [&'a Event],
    pub volumes: &'a [&'a PersistentVolume],
    pub classes: &'a [&'a StorageClass],
    pub drivers: &'a [&'a CsiDriver],
    pub attachments: &'a [&'a VolumeAttachment],
    pub snapshots: &'a [&'a VolumeSnapshot],
}

/// Answers.
pub fn explain(asked: &Asked, facts: &Facts<'_>) -> WhyResponse {
    let mut answer = Answer { facts, plan: facts.set.map(|set| planned(set, facts)), reasons: Vec::new() };
    let summary = match asked {
        Asked::Pod(name) => answer.about_pod(name),
        Asked::Claim(name) => answer.about_claim(name),
        Asked::Set => answer.about_set(),
    };
    WhyResponse { summary, reasons: answer.reasons }
}

fn planned(set: &StatefulSet, facts: &Facts<'_>) -> Plan {
    let service = set.spec.as_ref().map(|spec| spec.service_name.as_str()).unwrap_or_default();
    let service_exists = service.is_empty() || facts.services.iter().any(|there| there.name() == service);
    let (pods, claims, revisions) = (facts.pods, facts.claims, facts.revisions);
    let objects = Objects { set, pods, claims, revisions, service_exists, budgets: facts.budgets };
    plan(&Snapshot::of(facts.now, objects).with_snapshots(facts.snapshots.iter().copied()))
}

/// The answer, as far as it has come.
pub struct Answer<'a> {
    pub(super) facts: &'a Facts<'a>,
    plan: Option<Plan>,
    pub(super) reasons: Vec<WhyReason>,
}

impl Answer<'_> {
    fn pod(&self, name: &PodName) -> Option<&Pod> {
        self.facts.pods.iter().find(|pod| pod.name() == name.as_str()).copied()
    }

    fn waits(&self) -> Vec<Wait> {
        self.plan.as_ref().map(|plan| plan.waits.clone()).unwrap_or_default()
    }

    fn about_set(&mut self) -> String {
        let set = self.facts.set.map(|set| (set.name().to_owned(), set.spec.as_ref().and_then(|spec| spec.replicas)));
        let (name, wanted) = set.unwrap_or_default();
        let wanted = wanted.unwrap_or(1);
        let available = self.plan.as_ref().map_or(0, |plan| plan.status.available);
        let waits = self.waits();
        let mut seen = BTreeSet::new();
        for wait in &waits {
            self.follow(&wait.pod.clone(), &mut seen);
        }
        self.degraded();
        let state = format!("statefulset {name} has {available} of {wanted} replicas available");
        match self.reasons.first() {
            Some(first) => format!("{state}: {}", first.message),
            None => state,
        }
    }

    /// What the controller says is wrong with the set as a whole. An obstacle is among the waits already.
    fn degraded(&mut self) {
        let (Some(plan), Some(set)) = (&self.plan, self.facts.set) else { return };
        let degraded = plan.status.conditions.iter().find(|condition| condition.kind == conditions::DEGRADED);
        let Some(degraded) = degraded.filter(|condition| condition.holds).cloned() else { return };
        let name = set.name();
        let advice = match degraded.reason.as_str() {
            conditions::DEADLINE_EXCEEDED => format!(
                "correct the template and apply it, or go back with `berth rollout undo sts/{name}`; pods that are not \
                 well are replaced by themselves then"
            ),
            conditions::ROLLOUT_REVERTED => {
                format!("correct the template and apply it; `berth rollout history sts/{name}` shows what was tried")
            }
            _ => return,
        };
        let since = Some(Time::from(degraded.since));
        self.add(format!("statefulset/{name}"), &degraded.reason, degraded.message, since, advice);
    }

    fn about_pod(&mut self, name: &PodName) -> String {
        let mut seen = BTreeSet::new();
        self.follow(name, &mut seen);
        if self.reasons.is_empty()
            && self.pod(name).is_none()
            && self.is_wanted(name)
            && let Some(first) = self.next_to_act_on()
        {
            self.follow(&first, &mut seen);
            return format!("{name} is not created yet: {first} comes first");
        }
        match (self.reasons.first(), self.pod(name)) {
            (Some(first), _) => {
                // The reason at the end of the way, if it is about another object.
                let root = self.reasons.iter().rev().find(|reason| reason.object.starts_with("pod/"));
                match root.filter(|root| root.object != first.object) {
                    Some(root) => format!("{}; {}", first.message, root.message),
                    None => first.message.clone(),
                }
            }
            (None, Some(pod)) if is_true(pod, "Ready") => format!("{name} is ready; nothing holds it up"),
            (None, Some(pod)) => format!("{name} is {} and waits for nothing that is known here", phase(pod)),
            (None, None) => format!("{name} is not wanted: the set has fewer replicas"),
        }
    }

    /// Whether the set has this ordinal.
    fn is_wanted(&self, name: &PodName) -> bool {
        let Some(set) = self.facts.set else { return false };
        let ordinals = Ordinals::of(&set.spec.clone().unwrap_or_default());
        SetName::from(set.name()).ordinal_of(name).is_some_and(|ordinal| ordinals.contains(ordinal))
    }

    /// The first pod that the plan is about to create or delete: a plan that acts says nothing of the pods behind.
    fn next_to_act_on(&self) -> Option<PodName> {
        self.plan.as_ref()?.actions.iter().find_map(|action| match &action.op {
            Op::CreatePod(new) => Some(new.pod.clone()),
            Op::DeletePod { pod, .. } => Some(pod.clone()),
            _ => None,
        })
    }

    /// Everything about one pod, then about the pod that it waits for.
    fn follow(&mut self, name: &PodName, seen: &mut BTreeSet<PodName>) {
        if !seen.insert(name.clone()) {
            return;
        }
        let waits: Vec<Wait> = self.waits().into_iter().filter(|wait| wait.pod == *name).collect();
        for wait in &waits {
            self.wait(wait);
        }
        self.intention(name);
        if let Some(pod) = self.pod(name).cloned() {
            self.pod_facts(&pod, !waits.is_empty());
        }
        for wait in &waits {
            if let Some(other) = waits_for(&wait.reason) {
                self.follow(other, seen);
            }
        }
    }

    /// Adds a reason.
    pub(super) fn add(&mut self, object: String, reason: &str, message: String, since: Option<Time>, advice: String) {
        self.reasons.push(WhyReason { object, reason: reason.to_owned(), message, since, advice });
    }

    fn wait(&mut self, wait: &Wait) {
        let pod = self.pod(&wait.pod);
        let since = pod.and_then(|pod| since(pod, &wait.reason));
        let advice = advice(wait, pod, self.facts);
        let object = match wait.ordinal {
            Some(_) => format!("pod/{}", wait.pod),
            None => self.facts.set.map(|set| format!("statefulset/{}", set.name())).unwrap_or_default(),
        };
        self.add(object, wait.reason.as_str(), wait.to_string(), since, advice);
    }

    /// What the controller is about to do: seen for longer than an instant, the controller does not work.
    fn intention(&mut self, name: &PodName) {
        let Some(plan) = &self.plan else { return };
        let what = plan.actions.iter().find_map(|action| match &action.op {
            Op::CreatePod(new) if new.pod == *name => Some("is about to be created"),
            Op::DeletePod { pod, .. } if pod == name => Some("is about to be deleted"),
            _ => None,
        });
        if let Some(what) = what {
            let message = format!("{name} {what} by the controller");
            let advice = "if this stays so, look whether the controller runs, and at its log".to_owned();
            self.add(format!("pod/{name}"), "ControllerDue", message, None, advice);
        }
    }
}

#[cfg(test)]
mod tests;
