//! From what is known to why: the waits of the planner, followed from pod to pod down to the one that holds up the
//! others, with what conditions, containers, claims, nodes and events say of it.
//!
//! Pure. The planner is the one that the controller runs, so the answer is the controller's own reason.

use std::collections::BTreeSet;

use jiff::Timestamp;
use model::{
    identity::{PodName, SetName},
    ordinals::Ordinals,
    validate::OUT_OF_SERVICE,
};
use pb::{
    Object, ObjectExt,
    api::v1::{WhyReason, WhyResponse},
    objects::{
        Condition, ContainerStatus, ControllerRevision, Event, Node, PersistentVolumeClaim, Pod, Service, StatefulSet,
        Time,
    },
};
use plan::{
    budget::Budget,
    statefulset::{Objects, Op, Plan, Snapshot, Wait, WaitReason, conditions, plan},
};

/// Events that are shown of one pod.
const EVENTS: usize = 3;

/// What is asked about.
pub enum Asked {
    /// The set of the facts.
    Set,
    /// A pod, which need not exist.
    Pod(PodName),
}

/// What is known, all of one namespace.
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
}

/// The answer.
pub fn explain(asked: &Asked, facts: &Facts<'_>) -> WhyResponse {
    let mut answer = Answer { facts, plan: facts.set.map(|set| planned(set, facts)), reasons: Vec::new() };
    let summary = match asked {
        Asked::Pod(name) => answer.about_pod(name),
        Asked::Set => answer.about_set(),
    };
    WhyResponse { summary, reasons: answer.reasons }
}

fn planned(set: &StatefulSet, facts: &Facts<'_>) -> Plan {
    let service = set.spec.as_ref().map(|spec| spec.service_name.as_str()).unwrap_or_default();
    let service_exists = service.is_empty() || facts.services.iter().any(|there| there.name() == service);
    let (pods, claims, revisions) = (facts.pods, facts.claims, facts.revisions);
    plan(&Snapshot::of(facts.now, Objects { set, pods, claims, revisions, service_exists, budgets: facts.budgets }))
}

struct Answer<'a> {
    facts: &'a Facts<'a>,
    plan: Option<Plan>,
    reasons: Vec<WhyReason>,
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

    fn add(&mut self, object: String, reason: &str, message: String, since: Option<Time>, advice: String) {
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

    /// What the pod's own surroundings say. Of a pod that nothing holds up, only what is wrong all the same.
    fn pod_facts(&mut self, pod: &Pod, troubled: bool) {
        let object = format!("pod/{}", pod.name());
        let spec = pod.spec.clone().unwrap_or_default();
        if let Some(node) = self.facts.nodes.iter().find(|node| node.name() == spec.node_name) {
            let ready = node.status.iter().flat_map(|status| &status.conditions).find(|c| c.r#type == "Ready");
            if let Some(down) = ready.filter(|ready| ready.status != "True") {
                let message = format!("node {} of {} is not ready: {}", node.name(), pod.name(), down.message);
                let advice = way_out(node.name());
                self.add(format!("node/{}", node.name()), "NodeNotReady", message, down.last_transition_time, advice);
            }
        }
        if !troubled {
            return;
        }
        for name in spec.volumes.iter().filter_map(|volume| volume.persistent_volume_claim.as_ref()) {
            self.claim(&name.claim_name);
        }
        let status = pod.status.clone().unwrap_or_default();
        for container in status.init_container_statuses.iter().chain(&status.container_statuses) {
            if let Some((reason, message)) = trouble(container) {
                let advice = format!("`berth logs {} -c {}` shows what it wrote", pod.name(), container.name);
                self.add(object.clone(), &reason, message, None, advice);
            }
        }
        let mine = |event: &&&Event| {
            event.involved_object.as_ref().is_some_and(|o| o.kind == "Pod" && o.name == pod.name())
                && event.r#type == "Warning"
        };
        let mut events: Vec<_> = self.facts.events.iter().filter(mine).copied().collect();
        events.sort_by_key(|event| std::cmp::Reverse(event.last_timestamp.map(|time| (time.seconds, time.nanos))));
        // An event often only repeats what the pod's own conditions say.
        let said = |message: &str| self.reasons.iter().any(|reason| reason.message.contains(message));
        let news: Vec<_> = events.into_iter().filter(|event| !said(&event.message)).take(EVENTS).collect();
        for event in news {
            self.add(object.clone(), &event.reason, event.message.clone(), event.last_timestamp, String::new());
        }
    }

    fn claim(&mut self, name: &str) {
        let object = format!("persistentvolumeclaim/{name}");
        let advice = format!("`berth describe pvc {name}` shows its class and events");
        match self.facts.claims.iter().find(|claim| claim.name() == name) {
            None => self.add(object, "ClaimMissing", format!("claim {name} does not exist"), None, String::new()),
            Some(claim) => {
                let phase = claim.status.as_ref().map(|status| status.phase.as_str()).unwrap_or_default();
                if phase != "Bound" {
                    let message = format!("claim {name} is {phase}: no volume is bound to it");
                    self.add(object, "ClaimNotBound", message, claim.meta().creation_timestamp, advice);
                }
            }
        }
    }
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().map_or("Pending", |status| status.phase.as_str())
}

fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a Condition> {
    pod.status.as_ref()?.conditions.iter().find(|condition| condition.r#type == kind)
}

fn is_true(pod: &Pod, kind: &str) -> bool {
    condition(pod, kind).is_some_and(|condition| condition.status == "True")
}

fn since(pod: &Pod, reason: &WaitReason) -> Option<Time> {
    let changed = |kind| condition(pod, kind).and_then(|condition| condition.last_transition_time);
    match reason {
        WaitReason::NodeUnbound { .. } => changed("PodScheduled").or(pod.meta().creation_timestamp),
        WaitReason::NotReady { .. } | WaitReason::MinReadySeconds { .. } => {
            changed("Ready").or(pod.meta().creation_timestamp)
        }
        WaitReason::PodTerminating | WaitReason::PodLeaving => {
            let grace = pod.meta().deletion_grace_period_seconds.unwrap_or_default();
            pod.meta().deletion_timestamp.map(|end| Time { seconds: end.seconds - grace, nanos: end.nanos })
        }
        _ => None,
    }
}

/// The pod that has to move first.
fn waits_for(reason: &WaitReason) -> Option<&PodName> {
    match reason {
        WaitReason::PredecessorNotReady { predecessor } => Some(predecessor),
        WaitReason::PeerNotReady { peer } => Some(peer),
        WaitReason::SuccessorNotGone { successor } => Some(successor),
        WaitReason::OlderNotGone { older } => Some(older),
        WaitReason::DisruptionBudget(refusal) => refusal.unhealthy.first(),
        _ => None,
    }
}

fn advice(wait: &Wait, pod: Option<&Pod>, facts: &Facts<'_>) -> String {
    let name = &wait.pod;
    match &wait.reason {
        WaitReason::NodeUnbound { .. } => {
            "make room, or add a node (`berth get nodes`); the scheduler binds the pod as soon as one fits".to_owned()
        }
        WaitReason::NotReady { .. } => {
            format!("`berth describe pod {name}` shows its probes and events, `berth logs {name}` what it wrote")
        }
        WaitReason::ClaimTerminating { claim } => {
            format!("`berth describe pvc {claim}` says what keeps it; it goes when no pod uses it")
        }
        WaitReason::PodTerminating | WaitReason::PodLeaving if overdue(pod, facts.now) => match lost(pod, facts) {
            Some(node) => way_out(node.name()),
            None => format!(
                "it should have stopped by now: look at its node; `berth delete pod {name} --grace-period=0` forgets it, \
             which is safe only if nothing of it runs any more"
            ),
        },
        WaitReason::DisruptionBudget(refusal) => {
            format!("{}; with spec.budgetPolicy: Ignore the set asks no budget", refusal.advice())
        }
        WaitReason::UpdateOnDelete => format!("`berth delete pod {name}` replaces it"),
        WaitReason::Paused => match facts.set {
            Some(set) => format!("`berth rollout resume sts/{}` goes on with the update", set.name()),
            None => String::new(),
        },
        WaitReason::UpdateBudget { .. } => {
            "make the unavailable pods ready, or raise updateStrategy.rollingUpdate.maxUnavailable".to_owned()
        }
        _ => String::new(),
    }
}

/// What to do about a node of which nothing is heard (NL-3).
fn way_out(node: &str) -> String {
    format!(
        "bring node {node} and its agent back; if the machine is off, `berth taint node {node} \
         {OUT_OF_SERVICE}=off:NoExecute` lets its pods come elsewhere at once; if it never returns, `berth delete node \
         {node}`"
    )
}

/// The node of a pod, if nothing is heard of it.
fn lost<'a>(pod: Option<&Pod>, facts: &Facts<'a>) -> Option<&'a Node> {
    let name = &pod?.spec.as_ref()?.node_name;
    let node = facts.nodes.iter().find(|node| node.name() == name)?;
    let mut conditions = node.status.iter().flat_map(|status| &status.conditions);
    let ready = conditions.any(|condition| condition.r#type == "Ready" && condition.status == "True");
    (!ready).then_some(*node)
}

fn overdue(pod: Option<&Pod>, now: Timestamp) -> bool {
    pod.and_then(|pod| pod.meta().deletion_timestamp).is_some_and(|end| end.timestamp() < now)
}

/// What is wrong with a container, if anything.
fn trouble(container: &ContainerStatus) -> Option<(String, String)> {
    let name = &container.name;
    let state = container.state.clone().unwrap_or_default();
    let ended = container.last_state.as_ref().and_then(|last| last.terminated.as_ref());
    let restarts = match (container.restart_count, ended) {
        (0, _) | (_, None) => String::new(),
        (count, Some(end)) => {
            format!(
                "; it was started again {count} times, and ended last with exit code {} {}",
                end.exit_code, end.reason
            )
        }
    };
    if let Some(waiting) = state.waiting.filter(|waiting| !waiting.reason.is_empty()) {
        let message = format!("container {name} has not started: {} {}", waiting.reason, waiting.message);
        return Some((waiting.reason, message.trim_end().to_owned() + &restarts));
    }
    if let Some(end) = state.terminated {
        let message = format!("container {name} ended with exit code {} {}", end.exit_code, end.message);
        return Some(("ContainerEnded".to_owned(), message.trim_end().to_owned() + &restarts));
    }
    if !container.ready || !restarts.is_empty() {
        let ready = if container.ready { "is ready" } else { "runs, but its readiness probe does not hold" };
        return Some(("ContainerNotReady".to_owned(), format!("container {name} {ready}{restarts}")));
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use pb::objects::*;

    use super::*;

    fn labels() -> BTreeMap<String, String> {
        [("app".to_owned(), "nginx".to_owned())].into()
    }

    fn meta(name: &str) -> Option<ObjectMeta> {
        Some(ObjectMeta {
            name: name.into(),
            namespace: "default".into(),
            uid: format!("uid-{name}"),
            labels: labels(),
            ..Default::default()
        })
    }

    fn set() -> StatefulSet {
        let container = Container { name: "nginx".into(), image: "nginx".into(), ..Default::default() };
        StatefulSet {
            metadata: meta("web"),
            spec: Some(StatefulSetSpec {
                replicas: Some(3),
                selector: Some(LabelSelector { match_labels: labels(), ..Default::default() }),
                template: Some(PodTemplateSpec {
                    metadata: meta(""),
                    spec: Some(PodSpec { containers: vec![container], ..Default::default() }),
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn pod(name: &str, ready: bool) -> Pod {
        let mut pod = Pod {
            metadata: meta(name),
            spec: Some(PodSpec { node_name: "n1".into(), ..Default::default() }),
            status: Some(PodStatus {
                phase: "Running".into(),
                conditions: vec![Condition {
                    r#type: "Ready".into(),
                    status: if ready { "True" } else { "False" }.into(),
                    last_transition_time: Some(Time { seconds: 100, nanos: 0 }),
                    ..Default::default()
                }],
                container_statuses: vec![ContainerStatus { name: "nginx".into(), ready, ..Default::default() }],
                ..Default::default()
            }),
            ..Default::default()
        };
        pod.meta_mut().owner_references = vec![OwnerReference {
            kind: "StatefulSet".into(),
            name: "web".into(),
            uid: "uid-web".into(),
            controller: Some(true),
            ..Default::default()
        }];
        pod
    }

    fn ask(asked: &Asked, pods: &[&Pod]) -> WhyResponse {
        let set = set();
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let facts = Facts {
            now,
            set: Some(&set),
            pods,
            claims: &[],
            revisions: &[],
            services: &[],
            nodes: &[],
            budgets: &[],
            events: &[],
        };
        explain(asked, &facts)
    }

    #[test]
    fn a_missing_pod_is_explained_by_the_one_that_holds_it_up() {
        let (first, second) = (pod("web-0", true), pod("web-1", false));
        let answer = ask(&Asked::Pod("web-2".into()), &[&first, &second]);
        let reasons: Vec<_> = answer.reasons.iter().map(|r| (r.object.as_str(), r.reason.as_str())).collect();
        assert_eq!(reasons[..2], [("pod/web-2", "PredecessorNotReady"), ("pod/web-1", "NotReady")], "{answer:#?}");
        assert!(answer.summary.contains("web-1 has to be ready"), "{}", answer.summary);
        assert!(answer.reasons.iter().any(|r| r.message.contains("readiness probe does not hold")));
        assert_eq!(answer.reasons[1].since, Some(Time { seconds: 100, nanos: 0 }));
        assert!(answer.reasons[1].advice.contains("berth logs web-1"));
    }

    #[test]
    fn a_pod_that_a_budget_holds_back_is_explained_by_the_pod_that_is_down() {
        let mut set = set();
        set.spec.as_mut().unwrap().replicas = Some(1);
        let (first, second, down) = (pod("web-0", true), pod("web-1", true), pod("other-0", false));
        let budget = PodDisruptionBudget {
            metadata: meta("pdb"),
            spec: Some(PodDisruptionBudgetSpec {
                min_available: Some(IntOrString::int(2)),
                selector: Some(LabelSelector::default()),
                ..Default::default()
            }),
            ..Default::default()
        };
        let pods = [&first, &second, &down];
        let facts = Facts {
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            set: Some(&set),
            pods: &pods,
            claims: &[],
            revisions: &[],
            services: &[],
            nodes: &[],
            budgets: &[Budget::of(&budget, &pods, &[&set])],
            events: &[],
        };
        let answer = explain(&Asked::Pod("web-1".into()), &facts);
        let reason = &answer.reasons[0];
        assert_eq!((reason.object.as_str(), reason.reason.as_str()), ("pod/web-1", "DisruptionBudget"), "{answer:#?}");
        assert_eq!(
            reason.message,
            "web-1 is to go, but disruption budget pdb (minAvailable 2) needs 2 of 3 pods healthy and has 2"
        );
        assert!(reason.advice.contains("`berth why other-0` says what holds that up"), "{}", reason.advice);
        assert!(reason.advice.contains("spec.budgetPolicy: Ignore"), "{}", reason.advice);
    }

    #[test]
    fn a_pod_on_a_silent_node_has_a_way_out() {
        let mut stuck = pod("web-0", true);
        stuck.meta_mut().deletion_timestamp = Some(Time { seconds: 100, nanos: 0 });
        let silent = Condition { r#type: "Ready".into(), status: "Unknown".into(), ..Default::default() };
        let node = Node {
            metadata: meta("n1"),
            status: Some(NodeStatus { conditions: vec![silent], ..Default::default() }),
            ..Default::default()
        };
        let (set, pods, nodes) = (set(), [&stuck], [&node]);
        let facts = Facts {
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            set: Some(&set),
            pods: &pods,
            claims: &[],
            revisions: &[],
            services: &[],
            nodes: &nodes,
            budgets: &[],
            events: &[],
        };
        let answer = explain(&Asked::Pod("web-0".into()), &facts);
        let advice = answer.reasons.iter().map(|reason| reason.advice.as_str()).collect::<Vec<_>>().join("\n");
        assert!(!advice.contains("--grace-period=0"), "{answer:#?}");
        assert!(advice.contains("`berth taint node n1 node.kubernetes.io/out-of-service=off:NoExecute`"), "{advice}");
        assert!(advice.contains("`berth delete node n1`"), "{advice}");
    }

    #[test]
    fn a_pod_behind_one_that_is_about_to_be_created_is_wanted() {
        let first = pod("web-0", true);
        let answer = ask(&Asked::Pod("web-2".into()), &[&first]);
        assert_eq!(answer.summary, "web-2 is not created yet: web-1 comes first", "{answer:#?}");
        assert_eq!(answer.reasons[0].reason, "ControllerDue");
    }

    #[test]
    fn a_set_that_went_back_or_missed_its_deadline_says_so_and_what_to_do() {
        let mut set = set();
        set.spec.as_mut().unwrap().progress_deadline_seconds = Some(60);
        let broken = pod("web-0", false);
        let pods = [&broken];
        let asked = |set: &StatefulSet| {
            let now = "2026-01-01T00:00:00Z".parse().unwrap();
            let facts = Facts {
                now,
                set: Some(set),
                pods: &pods,
                claims: &[],
                revisions: &[],
                services: &[],
                nodes: &[],
                budgets: &[],
                events: &[],
            };
            let answer = explain(&Asked::Set, &facts);
            let last = answer.reasons.last().cloned().unwrap();
            (last, planned(set, &facts).status)
        };
        // The status as the controller writes it, and then nothing moves for a minute.
        let (_, status) = asked(&set);
        plan::statefulset::stamp::status(&status, set.status.get_or_insert_default());
        let stored = set.status.as_mut().unwrap();
        stored.last_progress_time = Some(Time { seconds: 1_767_225_540, nanos: 0 });
        let (overdue, status) = asked(&set);
        assert_eq!((overdue.object.as_str(), overdue.reason.as_str()), ("statefulset/web", "ProgressDeadlineExceeded"));
        assert!(overdue.advice.contains("`berth rollout undo sts/web`"), "{}", overdue.advice);

        let stored = set.status.as_mut().unwrap();
        stored.failed_revision = "web-bad".into();
        stored.complete_revision = status.update_revision.unwrap().to_string();
        stored.last_progress_time = Some(Time { seconds: 1_767_225_590, nanos: 0 });
        let (reverted, _) = asked(&set);
        assert_eq!(reverted.reason, "RolloutReverted");
        assert!(reverted.message.contains("revision web-bad missed its deadline"), "{}", reverted.message);
    }

    #[test]
    fn a_complete_set_has_no_reasons() {
        let pods = [pod("web-0", true), pod("web-1", true), pod("web-2", true)];
        let pods: Vec<&Pod> = pods.iter().collect();
        let answer = ask(&Asked::Set, &pods);
        assert_eq!(answer.summary, "statefulset web has 3 of 3 replicas available", "{answer:#?}");
        assert!(ask(&Asked::Pod("web-9".into()), &pods).summary.contains("not wanted"));
    }
}
