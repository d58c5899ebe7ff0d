//! Room for a pod that fits nowhere, at the expense of less important ones.
//!
//! Who has to go is `plan::schedule`'s decision. They are asked to go as users ask: with their own grace, and all in one
//! transaction with the word in the pod's status that the node is meant for it. It compares that every victim is still as
//! it was seen, and that this process still leads. Until they are gone the ledger keeps their room for the pod.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use model::leaving::{because, terminating};
use pb::{
    Kind, Object, ObjectExt,
    objects::{Event, EventSource, ObjectMeta, ObjectReference, Pod, Time},
};
use plan::schedule::{Budget, Preemption, Request, Verdict};
use store::{
    Guard, Key, Op, Txn, TxnOutcome,
    objects::{absent, encode, put, unchanged},
};

use crate::{
    Inner,
    bind::{BindError, Outcome, Wait, set_unschedulable},
    metrics,
};

/// How long the event about a pod that had to go stays.
const TOLD_FOR: Duration = Duration::from_secs(3600);
/// Why, in Kubernetes' word.
const BY_SCHEDULER: &str = "PreemptionByScheduler";

/// Asks less important pods to go for one that fits nowhere, if that helps.
pub(crate) async fn make_room(
    inner: &Inner,
    fence: &Guard,
    pod: &Pod,
    request: &Request,
    message: String,
) -> Result<Result<Outcome, Wait>, BindError> {
    let budgets: Vec<Budget> = inner.budgets.all().iter().map(|budget| Budget::of(budget)).collect();
    let verdict = inner.state.lock().ledger.preempt(request, &budgets);
    let waits = |forlorn| Ok(Err(Wait { message: message.clone(), outcome: Outcome::NoRoom, forlorn }));
    match verdict {
        Verdict::Take(preemption) => take(inner, fence, pod, &preemption, message).await.map(Ok),
        Verdict::Wait => waits(false),
        Verdict::Nothing => waits(true),
    }
}

async fn take(
    inner: &Inner,
    fence: &Guard,
    pod: &Pod,
    preemption: &Preemption,
    message: String,
) -> Result<Outcome, BindError> {
    let now = Time::from(Timestamp::now());
    let mut guards = vec![fence.clone(), unchanged(pod)];
    let mut victims = Vec::new();
    for victim in preemption.victims.iter().filter(|victim| !victim.terminating) {
        let known = inner.pods.get(&Key::object(Kind::Pod, &victim.name.namespace, &victim.name.name));
        let Some(known) = known.filter(|known| known.mod_revision() == victim.revision) else {
            return Ok(Outcome::Conflict);
        };
        guards.push(unchanged(known.as_ref()));
        victims.push(leaving(Pod::clone(&known), now));
    }
    let mut waiting = pod.clone();
    set_unschedulable(&mut waiting, message);
    waiting.status.get_or_insert_default().nominated_node_name.clone_from(&preemption.node);
    let ops = victims.iter().chain([&waiting]).map(put).collect();
    let TxnOutcome::Committed(revision) = inner.store.txn(Txn { guards, ops }).await? else {
        metrics::get().conflicts.inc();
        return Ok(Outcome::Conflict);
    };
    {
        // The next choice knows of it, whenever the caches show it.
        let mut state = inner.state.lock();
        for mut written in victims.iter().chain([&waiting]).cloned() {
            written.meta_mut().resource_version = revision.to_string();
            state.ledger.set_pod(&written);
        }
    }
    for victim in &victims {
        let (name, namespace) = (victim.name(), victim.namespace());
        tracing::info!(pod = name, namespace, node = preemption.node, "asked to go for a more important pod");
        metrics::get().preempted.inc();
        tell(inner, victim, pod, &preemption.node, now).await;
    }
    Ok(Outcome::NoRoom)
}

/// The pod on its way out, with the reason among its conditions.
fn leaving(pod: Pod, now: Time) -> Pod {
    let mut pod = terminating(pod, now);
    because(&mut pod, BY_SCHEDULER, "asked to go for a pod of higher priority", now);
    pod
}

/// Tells people. It has happened by then, so a failure is only noted.
async fn tell(inner: &Inner, victim: &Pod, pod: &Pod, node: &str, now: Time) {
    let told = async {
        let lease = inner.store.grant_lease(TOLD_FOR).await?;
        let event = event(victim, pod, node, now);
        let ops = vec![Op::Put(Key::of(&event), encode(&event), Some(lease))];
        Arc::clone(&inner.store).txn(Txn { guards: vec![absent(&event)], ops }).await
    };
    if let Err(error) = told.await {
        tracing::debug!(%error, pod = victim.name(), "the event about a pod that had to go was not written");
    }
}

fn event(victim: &Pod, pod: &Pod, node: &str, now: Time) -> Event {
    let uid = uuid::Uuid::new_v4();
    let tail: String = uid.simple().to_string().chars().take(16).collect();
    Event {
        metadata: Some(ObjectMeta {
            name: format!("{}.{tail}", victim.name()),
            namespace: victim.namespace().to_owned(),
            uid: uid.to_string(),
            creation_timestamp: Some(now),
            ..ObjectMeta::default()
        }),
        involved_object: Some(ObjectReference {
            kind: Kind::Pod.name().to_owned(),
            api_version: Kind::Pod.api_version().to_owned(),
            namespace: victim.namespace().to_owned(),
            name: victim.name().to_owned(),
            uid: victim.uid().to_owned(),
            ..ObjectReference::default()
        }),
        reason: "Preempted".to_owned(),
        message: format!("Preempted by pod {}/{} on node {node}", pod.namespace(), pod.name()),
        source: Some(EventSource { component: "scheduler".to_owned(), host: String::new() }),
        first_timestamp: Some(now),
        last_timestamp: Some(now),
        count: 1,
        r#type: "Normal".to_owned(),
        ..Event::default()
    }
}
