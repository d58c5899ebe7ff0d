//! The leader's work: to know all pods before the first answer, and to bind pods that were created without a node.
//!
//! A binding is one transaction: the pod with its node, and the claims with their new volumes. When no node fits, the
//! pod's PodScheduled condition says why, and is written only when the reason changes.

use std::sync::Arc;

use futures::future::join_all;
use jiff::Timestamp;
use pb::{
    Kind, Object, ObjectExt,
    meta::v1::Guard as PbGuard,
    objects::{Condition, Node, NodeSelector, PersistentVolume, PersistentVolumeClaim, Pod},
    volumes::v1::{PrepareRequest, ProvisionRequest, prepared_claim::State as ClaimState},
};
use plan::schedule::{PodName, RESERVATION_TTL, Request, claims_of};
use runtime::{Leadership, backoff::Backoff};
use store::{
    Guard, Key, Op, PageRequest, Prefix, Txn, TxnOutcome,
    objects::{Undecodable, decode, guard_from_pb, put, unchanged},
};
use tokio::sync::MutexGuard;
use tonic::Status;

use crate::{Inner, feed::needs_node, metrics, place::guards, preempt};

/// Pods bound at the same time.
const WORKERS: usize = 4;

/// The condition that says whether a pod has a node.
const SCHEDULED: &str = "PodScheduled";

#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Undecodable(#[from] Undecodable),
    #[error("the volume manager did not answer {call}: {status}; check that it runs")]
    Volumes { call: &'static str, status: Status },
    #[error("the volume manager's answer makes no sense: {0}")]
    Answer(&'static str),
}

/// What became of a pod.
pub(crate) enum Outcome {
    /// It has a node, or needs none.
    Done,
    /// No node has room. What makes room makes it due again.
    NoRoom,
    /// Its claims stand in the way. Not all that may change that is told here.
    NoVolume,
    /// Something changed meanwhile.
    Conflict,
}

/// Why a pod has to wait.
pub(crate) struct Wait {
    pub(crate) message: String,
    pub(crate) outcome: Outcome,
    /// Whether nobody makes room for it any more.
    pub(crate) forlorn: bool,
}

/// Takes the fence away from answers when leading ends, however it ends.
struct Answering<'a>(&'a Inner);

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        self.0.fence.send_replace(None);
    }
}

/// Works until leadership is lost.
pub(crate) async fn run(inner: Arc<Inner>, leadership: Leadership) {
    tokio::join!(inner.nodes.synced(), inner.pods.synced());
    let mut failures = 0;
    while let Err(error) = learn(&inner).await {
        failures += 1;
        tracing::warn!(%error, failures, "the new leader cannot read nodes and pods; trying again");
        tokio::time::sleep(Backoff::RECONNECT.after(failures)).await;
    }
    let _answering = Answering(&inner);
    inner.fence.send_replace(Some(leadership.guard.clone()));
    for unbound in inner.state.lock().unbound.values() {
        inner.due.add(unbound.due.clone());
    }
    join_all((0..WORKERS).map(|_| work(&inner, &leadership.guard))).await;
}

/// Reads all nodes and pods from the store itself, after the election: nothing that a former leader placed can become
/// a pod after this. So with claims and volumes, of which nothing that is used has to be guessed then.
async fn learn(inner: &Inner) -> Result<(), BindError> {
    let nodes = list::<Node>(inner).await?;
    let pods = list::<Pod>(inner).await?;
    let claims = list::<PersistentVolumeClaim>(inner).await?;
    let volumes = list::<PersistentVolume>(inner).await?;
    let mut state = inner.state.lock();
    for claim in &claims {
        state.ledger.set_claim(claim);
    }
    for volume in &volumes {
        state.ledger.set_volume(volume);
    }
    for node in &nodes {
        state.ledger.set_node(node);
    }
    for pod in &pods {
        state.ledger.set_pod(pod);
    }
    Ok(())
}

/// All objects of a kind. One that cannot be read is left out, since it cannot be counted; the cache reports it.
async fn list<T: Object>(inner: &Inner) -> store::Result<Vec<T>> {
    let (mut objects, mut request) = (Vec::new(), PageRequest::default());
    loop {
        let page = inner.store.list(&Prefix::kind(T::KIND), request.clone()).await?;
        request.revision.get_or_insert(page.revision);
        request.after = page.items.last().map(|kv| kv.key.clone());
        objects.extend(page.items.iter().filter_map(|kv| decode::<T>(kv).ok()));
        if !page.more {
            return Ok(objects);
        }
    }
}

async fn work(inner: &Inner, fence: &Guard) {
    while let Some(work) = inner.due.take().await {
        match look_at(inner, fence, &work.pod).await {
            Ok(Outcome::Done) => work.forget(),
            Ok(Outcome::NoRoom) => {
                // Room that is promised to pods which never come is given back without a sound.
                if inner.state.lock().ledger.counts().1 > 0 {
                    inner.due.add_after(work.clone(), RESERVATION_TTL);
                }
                work.forget();
            }
            Ok(Outcome::NoVolume | Outcome::Conflict) => work.retry(),
            Err(error) => {
                tracing::warn!(namespace = work.pod.namespace, pod = work.pod.name, %error, "cannot bind; trying again");
                work.retry();
            }
        }
    }
}

async fn look_at(inner: &Inner, fence: &Guard, name: &PodName) -> Result<Outcome, BindError> {
    let turn = inner.turn.lock().await;
    let key = Key::object(Kind::Pod, &name.namespace, &name.name);
    let Some(pod) = inner.pods.get(&key).filter(|pod| needs_node(pod)) else { return Ok(Outcome::Done) };
    match attempt(inner, fence, &pod, turn).await? {
        Ok(outcome) => Ok(outcome),
        Err(wait) => write_wait(inner, fence, &pod, wait).await,
    }
}

/// Tries to bind a pod.
async fn attempt(
    inner: &Inner,
    fence: &Guard,
    pod: &Pod,
    turn: MutexGuard<'_, ()>,
) -> Result<Result<Outcome, Wait>, BindError> {
    let claims = match claims(inner, pod).await? {
        Ok(claims) => claims,
        Err(wait) => return Ok(Err(wait)),
    };
    let volumes = match prepare(inner, claims).await? {
        Ok(volumes) => volumes,
        Err(wait) => return Ok(Err(wait)),
    };
    let request = Request::of(pod, volumes.reachable).with_drivers(pod, &volumes.drivers);
    let placed = match inner.choose(&request) {
        Ok(placed) => placed,
        Err(why) => return preempt::make_room(inner, fence, pod, &request, why.to_string()).await,
    };
    drop(turn);

    let mut txn = Txn { guards: volumes.guards, ops: vec![put(&bound(pod, &placed.node))] };
    txn.guards.push(unchanged(pod));
    txn.guards.extend(guards(&placed, fence));
    if !volumes.unbound.is_empty() {
        let request = ProvisionRequest { claims: volumes.unbound, node_name: placed.node.clone() };
        let answer = inner.volumes.clone().provision(request).await;
        let answer = answer.map_err(|status| BindError::Volumes { call: "Provision", status })?;
        for pair in answer.into_inner().claims {
            let (Some(claim), Some(volume)) = (pair.claim, pair.volume) else {
                return Err(BindError::Answer("Provision gave a claim without volume"));
            };
            txn.guards.extend(read_guards(&pair.guards)?);
            txn.ops.extend::<[Op; 2]>([put(&claim), put(&volume)]);
        }
    }
    txn.guards.dedup();
    let outcome = inner.store.txn(txn).await?;
    Ok(Ok(match outcome {
        TxnOutcome::Committed(revision) => {
            tracing::info!(pod = pod.name(), namespace = pod.namespace(), node = placed.node, revision, "bound");
            metrics::get().bound.inc();
            Outcome::Done
        }
        TxnOutcome::Conflict => {
            metrics::get().conflicts.inc();
            Outcome::Conflict
        }
    }))
}

/// The claims of a pod. One that the cache does not show is looked up in the store: it may be newer than the cache.
async fn claims(inner: &Inner, pod: &Pod) -> Result<Result<Vec<PersistentVolumeClaim>, Wait>, BindError> {
    let mut claims = Vec::new();
    for name in claims_of(pod) {
        let key = Key::object(Kind::PersistentVolumeClaim, &name.namespace, &name.name);
        let claim = match inner.claims.get(&key) {
            Some(claim) => (*claim).clone(),
            None => match inner.store.get(&key).await? {
                Some(kv) => decode(&kv)?,
                None => {
                    let message = format!("persistentvolumeclaim {:?} not found; create it", name.name);
                    return Ok(Err(Wait { message, outcome: Outcome::NoVolume, forlorn: false }));
                }
            },
        };
        claims.push(claim);
    }
    Ok(Ok(claims))
}

/// What the volume manager says of a pod's claims.
#[derive(Default)]
struct Volumes {
    reachable: Vec<NodeSelector>,
    /// Of each claim, in their order.
    drivers: Vec<String>,
    unbound: Vec<PersistentVolumeClaim>,
    guards: Vec<Guard>,
}

async fn prepare(inner: &Inner, claims: Vec<PersistentVolumeClaim>) -> Result<Result<Volumes, Wait>, BindError> {
    let mut volumes = Volumes::default();
    if claims.is_empty() {
        return Ok(Ok(volumes));
    }
    let answer = inner.volumes.clone().prepare(PrepareRequest { claims: claims.clone() }).await;
    let answer = answer.map_err(|status| BindError::Volumes { call: "Prepare", status })?.into_inner();
    if answer.claims.len() != claims.len() {
        return Err(BindError::Answer("Prepare answered about another number of claims"));
    }
    for (claim, prepared) in claims.into_iter().zip(answer.claims) {
        volumes.guards.extend(read_guards(&prepared.guards)?);
        match prepared.state {
            Some(ClaimState::Bound(bound)) => {
                volumes.reachable.extend(bound.reachable);
                volumes.drivers.push(bound.driver);
            }
            Some(ClaimState::Unbound(unbound)) => {
                volumes.drivers.push(unbound.driver);
                volumes.reachable.extend(unbound.reachable);
                volumes.unbound.push(claim);
            }
            Some(ClaimState::Problem(problem)) => {
                let message = format!("claim {}: {}", claim.name(), problem.message);
                return Ok(Err(Wait { message, outcome: Outcome::NoVolume, forlorn: false }));
            }
            None => return Err(BindError::Answer("Prepare left a claim's state empty")),
        }
    }
    Ok(Ok(volumes))
}

fn read_guards(guards: &[PbGuard]) -> Result<Vec<Guard>, BindError> {
    let read = |guard| guard_from_pb(guard).ok_or(BindError::Answer("a guard without condition"));
    guards.iter().map(read).collect()
}

/// The pod with its node.
fn bound(pod: &Pod, node: &str) -> Pod {
    let mut pod = pod.clone();
    node.clone_into(&mut pod.spec.get_or_insert_default().node_name);
    set_scheduled(&mut pod, Condition { status: "True".to_owned(), ..Condition::default() });
    pod.status.get_or_insert_default().nominated_node_name.clear();
    pod
}

/// Sets the condition that says why a pod has no node; gives whether that changes anything.
pub(crate) fn set_unschedulable(pod: &mut Pod, message: String) -> bool {
    let reason = "Unschedulable".to_owned();
    set_scheduled(pod, Condition { status: "False".to_owned(), reason, message, ..Condition::default() })
}

/// Says in the pod's status why it waits, if it does not say so already.
async fn write_wait(inner: &Inner, fence: &Guard, pod: &Pod, wait: Wait) -> Result<Outcome, BindError> {
    let mut waiting = pod.clone();
    let told = set_unschedulable(&mut waiting, wait.message);
    let nominated = &mut waiting.status.get_or_insert_default().nominated_node_name;
    let given_up = wait.forlorn && !nominated.is_empty();
    if given_up {
        nominated.clear();
    }
    if !told && !given_up {
        return Ok(wait.outcome);
    }
    let txn = Txn { guards: vec![fence.clone(), unchanged(pod)], ops: vec![put(&waiting)] };
    Ok(match inner.store.txn(txn).await? {
        TxnOutcome::Committed(_) => wait.outcome,
        TxnOutcome::Conflict => Outcome::Conflict,
    })
}

/// Sets the PodScheduled condition; gives whether that changes anything.
fn set_scheduled(pod: &mut Pod, mut condition: Condition) -> bool {
    SCHEDULED.clone_into(&mut condition.r#type);
    let status = pod.status.get_or_insert_default();
    if status.phase.is_empty() {
        "Pending".clone_into(&mut status.phase);
    }
    let old = status.conditions.iter().position(|old| old.r#type == SCHEDULED);
    let old = old.map(|index| status.conditions.remove(index));
    let same_status = old.as_ref().filter(|old| old.status == condition.status);
    condition.last_transition_time =
        same_status.map_or_else(|| Some(Timestamp::now().into()), |old| old.last_transition_time);
    let changed = old.as_ref().is_none_or(|old| {
        (&old.status, &old.reason, &old.message) != (&condition.status, &condition.reason, &condition.message)
    });
    status.conditions.insert(0, condition);
    changed
}
