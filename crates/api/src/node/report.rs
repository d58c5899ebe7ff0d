//! Taking what nodes observe of their pods: the path that every ordinal waits on.
//!
//! One guarded transaction for each pod that changed, none for one that did not; the pods of one report are written at
//! the same time. A node speaks only for pods that are bound to it, by uid: what it says of a pod that was replaced
//! meanwhile is answered with Gone (I27).

use futures::{StreamExt, stream};
use pb::{
    Kind, Object, ObjectExt,
    agent::v1::{PodRef, PodReport, ReportResult, ReportStatusRequest, ReportStatusResponse},
    objects::{Condition, Pod, PodStatus},
};
use plan::node::CONDITIONS;
use store::{Guard, Key, Kv, Op, objects};

use crate::{
    Shared,
    error::{Error, Result, Violation},
    object::may_go,
};

/// How often a report is decided again when others change the pod at the same time.
const ATTEMPTS: usize = 5;
/// Pods of one report that are written at the same time.
const AT_ONCE: usize = 32;
/// Pods of one report.
const PODS: usize = 4096;

/// What became of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The status was written.
    Written,
    /// The status was so already.
    Unchanged,
    /// The pod's object is gone, as was asked for.
    Removed,
    /// There is no such pod on that node.
    Gone,
}

/// What a report makes of a pod.
#[derive(Clone, Debug, PartialEq)]
enum Decision {
    Write(Box<Pod>),
    Remove,
    Nothing,
    NotYours,
}

impl Outcome {
    fn text(self) -> &'static str {
        match self {
            Self::Written => "Written",
            Self::Unchanged => "Unchanged",
            Self::Removed => "Removed",
            Self::Gone => "Gone",
        }
    }
}

/// Whether a node may speak for a pod.
fn speaks_for(node: &str, uid: &str, pod: &Pod) -> bool {
    pod.uid() == uid && pod.spec.as_ref().is_some_and(|spec| spec.node_name == node)
}

fn decide(node: &str, uid: &str, report: &PodReport, pod: &Pod) -> Decision {
    if !speaks_for(node, uid, pod) {
        return Decision::NotYours;
    }
    let mut new = pod.clone();
    if let Some(status) = &report.status {
        new.status = Some(observed(pod.status.as_ref(), status));
    }
    if report.stopped && pod.is_terminating() {
        // Nothing runs any more: what keeps the object now are finalizers alone.
        new.meta_mut().deletion_grace_period_seconds = Some(0);
        if may_go(&new.clone().into_any()) {
            return Decision::Remove;
        }
    }
    if new == *pod { Decision::Nothing } else { Decision::Write(Box::new(new)) }
}

/// The status as the node observes it. What is others' stays as it is, whatever the node says of it: conditions of types
/// that no node tells of (readiness gates among them), and the node that was nominated.
fn observed(old: Option<&PodStatus>, reported: &PodStatus) -> PodStatus {
    let mut status = reported.clone();
    let nodes = |condition: &Condition| CONDITIONS.contains(&condition.r#type.as_str());
    let said = |kind: &str| reported.conditions.iter().any(|condition| condition.r#type == kind);
    let others = old.map(|old| old.conditions.as_slice()).unwrap_or_default();
    let mut conditions: Vec<_> =
        others.iter().filter(|condition| !nodes(condition) || !said(&condition.r#type)).cloned().collect();
    conditions.extend(status.conditions.drain(..).filter(nodes));
    status.conditions = conditions;
    status.nominated_node_name = old.map(|old| old.nominated_node_name.clone()).unwrap_or_default();
    status
}

impl Shared {
    /// Takes a node's report.
    pub async fn report_status(&self, request: ReportStatusRequest) -> Result<ReportStatusResponse> {
        if request.node_name.is_empty() {
            return Err(Error::field("nodeName", "Required value"));
        }
        if request.pods.len() > PODS {
            let why = format!("Too many: {}: must have at most {PODS} items", request.pods.len());
            return Err(Error::field("pods", why));
        }
        let node = request.node_name.as_str();
        let each: Vec<_> = request.pods.iter().map(|report| self.report_one(node, report)).collect();
        let results: Vec<Result<Outcome>> = stream::iter(each).buffered(AT_ONCE).collect().await;
        let results = results.into_iter().map(|outcome| Ok(ReportResult { outcome: outcome?.text().to_owned() }));
        Ok(ReportStatusResponse { results: results.collect::<Result<_>>()? })
    }

    async fn report_one(&self, node: &str, report: &PodReport) -> Result<Outcome> {
        let Some(PodRef { namespace, name, uid }) = &report.pod else {
            return Err(Error::Invalid(vec![Violation::new("pods[].pod", "Required value")]));
        };
        let key = Key::object(Kind::Pod, namespace, name);
        // What the cache shows is good enough to write from: the guard finds out if it was old. Where nothing would be
        // written there is no guard, and the store is asked.
        let cached = self.caches.of(Kind::Pod).last_known(&key);
        let mut pod = cached.as_deref().and_then(|stored| stored.typed::<Pod>()).cloned();
        let writes = |pod: &Pod| matches!(decide(node, uid, report, pod), Decision::Write(_) | Decision::Remove);
        if !pod.as_ref().is_some_and(writes) {
            pod = self.pod_now(&key).await?;
        }
        for _ in 0..ATTEMPTS {
            let Some(known) = pod else { return Ok(Outcome::Gone) };
            let guards = vec![Guard::ModRevision(key.clone(), known.mod_revision())];
            let (op, outcome) = match decide(node, uid, report, &known) {
                Decision::NotYours => return Ok(Outcome::Gone),
                Decision::Nothing => return Ok(Outcome::Unchanged),
                Decision::Remove => (Op::Delete(key.clone()), Outcome::Removed),
                Decision::Write(new) => (objects::put(&*new), Outcome::Written),
            };
            if self.commit(Kind::Pod, guards, vec![op]).await?.is_some() {
                return Ok(outcome);
            }
            pod = self.pod_now(&key).await?;
        }
        Err(Error::contended(&format!("pod {namespace}/{name}")))
    }

    async fn pod_now(&self, key: &Key) -> Result<Option<Pod>> {
        let kv: Option<Kv> = self.store.get(key).await?;
        Ok(kv.map(|kv| objects::decode(&kv)).transpose()?)
    }
}

#[cfg(test)]
mod tests {
    use pb::objects::{ObjectMeta, PodSpec, Time};

    use super::*;

    fn condition(kind: &str, status: &str) -> Condition {
        Condition { r#type: kind.into(), status: status.into(), ..Default::default() }
    }

    fn pod() -> Pod {
        Pod {
            metadata: Some(ObjectMeta { name: "web-0".into(), uid: "u".into(), ..Default::default() }),
            spec: Some(PodSpec { node_name: "n1".into(), ..Default::default() }),
            status: Some(PodStatus { conditions: vec![condition("PodScheduled", "True")], ..Default::default() }),
            ..Default::default()
        }
    }

    fn running(stopped: bool) -> PodReport {
        let status =
            PodStatus { phase: "Running".into(), conditions: vec![condition("Ready", "True")], ..Default::default() };
        PodReport { status: Some(status), stopped, ..Default::default() }
    }

    #[test]
    fn a_node_speaks_only_for_its_own_pods() {
        assert_eq!(decide("n2", "u", &running(false), &pod()), Decision::NotYours);
        assert_eq!(decide("n1", "old", &running(true), &pod()), Decision::NotYours);
    }

    #[test]
    fn a_status_is_written_once_and_keeps_what_others_said() {
        let Decision::Write(written) = decide("n1", "u", &running(false), &pod()) else { panic!() };
        let kinds: Vec<_> = written.status.as_ref().unwrap().conditions.iter().map(|c| c.r#type.as_str()).collect();
        assert_eq!(kinds, ["PodScheduled", "Ready"]);
        assert_eq!(decide("n1", "u", &running(false), &written), Decision::Nothing);
    }

    #[test]
    fn a_node_neither_removes_nor_writes_conditions_of_others() {
        let mut gated = pod();
        let status = gated.status.as_mut().unwrap();
        status.conditions.push(condition("example.com/leader", "True"));
        status.nominated_node_name = "n2".into();
        let mut report = running(false);
        report.status.as_mut().unwrap().conditions.push(condition("example.com/leader", "False"));
        let Decision::Write(written) = decide("n1", "u", &report, &gated) else { panic!() };
        let status = written.status.unwrap();
        assert_eq!(status.nominated_node_name, "n2");
        let found: Vec<_> = status.conditions.iter().filter(|c| c.r#type == "example.com/leader").collect();
        assert_eq!(found, [&condition("example.com/leader", "True")]);
    }

    #[test]
    fn a_stopped_pod_goes_only_if_it_shall() {
        assert!(matches!(decide("n1", "u", &running(true), &pod()), Decision::Write(_)));
        let mut terminating = pod();
        terminating.meta_mut().deletion_timestamp = Some(Time::default());
        terminating.meta_mut().deletion_grace_period_seconds = Some(30);
        assert_eq!(decide("n1", "u", &running(true), &terminating), Decision::Remove);
        terminating.meta_mut().finalizers.push("x".into());
        let Decision::Write(kept) = decide("n1", "u", &running(true), &terminating) else { panic!() };
        assert_eq!(kept.meta().deletion_grace_period_seconds, Some(0));
    }
}
