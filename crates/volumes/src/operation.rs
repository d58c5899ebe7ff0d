//! Carries out what is asked to be done with a claim's data as a whole: `plan::volume::operation` says how.

mod copy;

use std::{collections::BTreeMap, time::Duration};

use futures::{StreamExt, stream};
use jiff::Timestamp;
use parking_lot::Mutex;
use pb::{
    Kind, ObjectExt,
    agent::v1::InspectVolumeRequest,
    csi::v1::{CreateVolumeRequest, controller_service_capability::rpc::Type as Rpc},
    objects::{ClaimOperation, PersistentVolume, PersistentVolumeClaim, Pod, VolumeAttachment, VolumeSnapshot},
};
use plan::volume::{
    self, Known, held,
    operation::{self, Change, Inspected, OPERATION, Step, View, Where},
};
use runtime::{Leadership, Queue};
use store::{
    Key, Prefix, Txn, TxnOutcome,
    objects::{absent, delete, put, unchanged},
};
use tokio::time::Instant;
use tonic::Code;

use crate::{
    VolumeManager,
    data::{ask, claims_of, owner_key, volume_key},
    drivers::{CallError, Place, VolumeKey},
    lookup::Lookup,
    worker::{Next, Trouble, Worker, follow, work},
};

/// After this time an operation that waits is looked at again: what nodes have in use is in no cache.
const WAITS: Duration = Duration::from_secs(2);
/// Agents asked at the same time.
const ASKED: usize = 8;
/// How long an agent may take to say whether a volume is in use.
const INSPECTION: Duration = Duration::from_secs(5);
/// How often a copy may break off in the middle.
const BREAKS: u32 = 10;

/// Works until leadership is lost.
pub(crate) async fn run(manager: VolumeManager, leadership: Leadership) {
    // An operation that comes to nothing for so long ends: its claim is needed.
    let patience = manager.inner.settings.call * 3;
    let operator = Operator { manager, leadership: leadership.clone(), patience, troubles: Mutex::default() };
    work(operator, leadership).await;
}

struct Operator {
    manager: VolumeManager,
    leadership: Leadership,
    patience: Duration,
    /// By the id of an operation: how its calls went wrong.
    troubles: Mutex<BTreeMap<String, Troubles>>,
}

/// How the calls of an operation went wrong.
#[derive(Default)]
struct Troubles {
    /// Since when they come to nothing.
    since: Option<Instant>,
    /// How often a call that had begun well broke off.
    breaks: u32,
    begun: bool,
}

/// What is looked at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    /// A claim.
    Claim(Key),
    /// The object of a copy.
    Copy(String),
}

impl Worker for Operator {
    type Key = Subject;

    const NAME: &'static str = "operation";
    const WIDTH: usize = 8;

    async fn feed(&self, queue: &Queue<Subject>) {
        let inner = &self.manager.inner;
        let is_held = |key: &Key| inner.claims.get(key).is_some_and(|claim| held(&claim).is_some());
        let all_held = || {
            let claims = inner.claims.all();
            claims.iter().filter(|claim| held(claim).is_some()).map(|claim| Key::of(&**claim)).collect::<Vec<_>>()
        };
        let claims = || all_held().into_iter().map(Subject::Claim).collect();
        let copies = || {
            let volumes = inner.volumes.all();
            volumes.iter().filter(|v| is_copy(v)).map(|v| Subject::Copy(v.name().to_owned())).collect()
        };
        let of_claim = |claim: &PersistentVolumeClaim| {
            let this = held(claim).map(|_| Subject::Claim(Key::of(claim)));
            let copy = claim.status.as_ref().and_then(|status| status.operation.as_ref());
            this.into_iter().chain(copy.map(|operation| Subject::Copy(operation::copy_name(claim, operation))))
        };
        let of_volume = |volume: &PersistentVolume| {
            let claim = owner_key(volume).filter(is_held).map(Subject::Claim);
            claim.into_iter().chain(is_copy(volume).then(|| Subject::Copy(volume.name().to_owned())))
        };
        let of_pod = |pod: &Pod| claims_of(pod).into_iter().filter(is_held).map(Subject::Claim).collect::<Vec<_>>();
        let of_attachment = |attachment: &VolumeAttachment| {
            let volume = inner.volumes.get(&volume_key(attached_volume(attachment)));
            volume.and_then(|volume| owner_key(&volume)).filter(is_held).map(Subject::Claim)
        };
        let of_snapshot = |snapshot: &VolumeSnapshot| {
            let mut claims = inner.claims.list(&Prefix::namespace(Kind::PersistentVolumeClaim, snapshot.namespace()));
            claims.retain(|claim| held(claim).is_some_and(|operation| operation.snapshot == snapshot.name()));
            claims.iter().map(|claim| Subject::Claim(Key::of(&**claim))).collect::<Vec<_>>()
        };
        tokio::join!(
            follow(&inner.claims, queue, of_claim, claims),
            follow(&inner.volumes, queue, of_volume, copies),
            follow(&inner.pods, queue, of_pod, Vec::new),
            follow(&inner.attachments, queue, of_attachment, Vec::new),
            follow(&inner.snapshots, queue, of_snapshot, Vec::new),
        );
    }

    async fn look_at(&self, subject: &Subject) -> Result<Next, Trouble> {
        match subject {
            Subject::Claim(key) => self.claim(key).await,
            Subject::Copy(name) => self.copy(name).await,
        }
    }
}

fn is_copy(volume: &PersistentVolume) -> bool {
    volume::phase(volume) == "Pending" && pb::Object::meta(volume).annotations.contains_key(OPERATION)
}

fn attached_volume(attachment: &VolumeAttachment) -> &str {
    let source = attachment.spec.as_ref().and_then(|spec| spec.source.as_ref());
    source.map_or("", |source| source.persistent_volume_name.as_str())
}

/// What the store says of a claim with an operation.
struct Facts {
    claim: std::sync::Arc<PersistentVolumeClaim>,
    operation: ClaimOperation,
    volume: Lookup<PersistentVolume>,
    copy: Lookup<PersistentVolume>,
}

impl Operator {
    /// A copy whose operation does not go on.
    async fn copy(&self, name: &str) -> Result<Next, Trouble> {
        let inner = &self.manager.inner;
        let Some(volume) = inner.volumes.get(&volume_key(name)) else { return Ok(Next::Done) };
        let Some(key) = owner_key(&volume) else { return Ok(Next::Done) };
        let claim = inner.read::<PersistentVolumeClaim>(&key).await?;
        let Some(after) = operation::stray(&volume, claim.known(), Timestamp::now()) else { return Ok(Next::Done) };
        let as_it_is = claim.object().map_or(store::Guard::Absent(key), |claim| unchanged(&**claim));
        let guards = vec![self.leadership.guard.clone(), unchanged(&*volume), as_it_is];
        Ok(inner.store.txn(Txn { guards, ops: vec![put(&after)] }).await?.into())
    }

    /// One step of a claim's operation, in the turn of its volume.
    async fn claim(&self, key: &Key) -> Result<Next, Trouble> {
        let inner = &self.manager.inner;
        if inner.claims.get(key).is_none_or(|claim| held(&claim).is_none()) {
            return Ok(Next::Done);
        }
        let Some(facts) = self.facts(key).await? else { return Ok(Next::Done) };
        let driver = facts.volume.object().and_then(|v| Some(v.spec.as_ref()?.csi.as_ref()?.driver.clone()));
        let name = volume::bound_to(&facts.claim).unwrap_or_default();
        let _turn = inner.drivers.turn(&VolumeKey::new(&driver.unwrap_or_default(), name)).await;
        // What came before may have changed it.
        let Some(facts) = self.facts(key).await? else { return Ok(Next::Done) };
        inner.seen(key.namespace()).await?;

        let mut step = self.next(&facts, None).await?;
        if let Step::Inspect(nodes) = step {
            let inspected = self.inspect(&facts, nodes).await;
            step = self.next(&facts, Some(&inspected)).await?;
        }
        self.carry_out(&facts, step).await
    }

    /// What the store holds now; None if there is nothing to do.
    async fn facts(&self, key: &Key) -> Result<Option<Facts>, Trouble> {
        let inner = &self.manager.inner;
        let Lookup::Is(claim) = inner.read::<PersistentVolumeClaim>(key).await? else { return Ok(None) };
        let Some(operation) = held(&claim).cloned() else { return Ok(None) };
        let volume = match volume::bound_to(&claim) {
            Some(name) => inner.read(&volume_key(name)).await?,
            None => Lookup::Absent,
        };
        let copy = inner.read(&volume_key(&operation::copy_name(&claim, &operation))).await?;
        Ok(Some(Facts { claim, operation, volume, copy }))
    }

    async fn next(&self, facts: &Facts, inspected: Option<&Inspected>) -> Result<Step, Trouble> {
        let inner = &self.manager.inner;
        let key = Key::of(&*facts.claim);
        let class = facts.volume.object().and_then(|v| Some(v.spec.as_ref()?.storage_class_name.clone()));
        let class = inner.class(&class.unwrap_or_default()).await?;
        let snapshot = match facts.operation.snapshot.as_str() {
            "" => Lookup::Absent,
            name => {
                let key = Key::object(Kind::VolumeSnapshot, key.namespace(), name);
                inner.look_up(&inner.snapshots, &key).await?
            }
        };
        let pods = inner.pods_of(&key);
        let pods: Vec<&Pod> = pods.iter().map(|pod| &**pod).collect();
        let name = volume::bound_to(&facts.claim).unwrap_or_default();
        let attachments = inner.attachments.all();
        let attached: Vec<&str> = attachments
            .iter()
            .filter(|attachment| attached_volume(attachment) == name)
            .map(|attachment| attachment.spec.as_ref().map_or("", |spec| spec.node_name.as_str()))
            .collect();
        Ok(operation::next(&View {
            claim: &facts.claim,
            volume: facts.volume.known(),
            copy: facts.copy.known(),
            class: class.known(),
            snapshot: snapshot.known(),
            nodes: &inner.all_nodes(),
            pods: &pods,
            attached: &attached,
            inspected,
            now: Timestamp::now(),
        }))
    }

    /// Asks agents whether they have the volume in use.
    async fn inspect(&self, facts: &Facts, nodes: Vec<String>) -> Inspected {
        let csi = facts.volume.object().and_then(|v| v.spec.as_ref()?.csi.clone()).unwrap_or_default();
        let asked = nodes.into_iter().map(|node| {
            let request = InspectVolumeRequest {
                driver: csi.driver.clone(),
                volume_handle: csi.volume_handle.clone(),
                stats: false,
            };
            async move {
                let answer = match self.manager.inner.drivers.agent(&node) {
                    Ok(mut agent) => {
                        let call = |request| async move { agent.inspect_volume(request).await };
                        ask(&node, "say whether it has the volume in use", INSPECTION, request, call).await
                    }
                    Err(error) => Err(error),
                };
                match answer {
                    Ok(answer) if !answer.in_use => None,
                    Ok(_) => Some(format!("node {node:?} has the volume in use still; it is being unmounted")),
                    Err(error) => Some(error.to_string()),
                }
            }
        });
        let mut busy: Vec<String> =
            stream::iter(asked).buffer_unordered(ASKED).filter_map(std::future::ready).collect().await;
        busy.sort();
        busy.into_iter().next().map_or(Inspected::Idle, Inspected::Busy)
    }

    async fn carry_out(&self, facts: &Facts, step: Step) -> Result<Next, Trouble> {
        match step {
            Step::Nothing => Ok(Next::Done),
            Step::Wait | Step::Inspect(_) => Ok(Next::After(WAITS)),
            Step::Write(change) => {
                // A reason to wait that was written is looked at by time as well.
                let waits = held(&change.claim).is_some_and(|operation| !operation.message.is_empty());
                let next = self.write(facts, &change).await?;
                Ok(if waits && next == Next::Done { Next::After(WAITS) } else { next })
            }
            Step::Create { driver, place, request } => self.create(facts, &driver, &place, *request).await,
            Step::Copy { from, to } => self.fill(facts, &from, &to).await,
        }
    }

    /// Writes a step.
    async fn write(&self, facts: &Facts, change: &Change) -> Result<Next, Trouble> {
        let mut guards = vec![self.leadership.guard.clone(), unchanged(&*facts.claim)];
        let kept = change.unchanged.iter().chain(&change.delete);
        let stored = change.put.iter().filter(|volume| volume.mod_revision() > 0);
        guards.extend(kept.chain(stored).map(unchanged));
        guards.extend(change.put.iter().filter(|volume| volume.mod_revision() == 0).map(absent));
        let mut ops: Vec<_> = change.put.iter().map(put).chain(change.delete.iter().map(delete)).collect();
        if change.claim != *facts.claim {
            ops.push(put(&change.claim));
        }
        let outcome = self.manager.inner.store.txn(Txn { guards, ops }).await?;
        if outcome != TxnOutcome::Conflict {
            let after = change.claim.status.as_ref().and_then(|status| status.operation.as_ref());
            let (phase, why) = after.map_or(("", ""), |operation| (&operation.phase, &operation.message));
            tracing::info!(claim = facts.claim.name(), operation = facts.operation.id, phase, why, "an operation");
        }
        Ok(outcome.into())
    }

    async fn create(
        &self,
        facts: &Facts,
        driver: &str,
        place: &Where,
        request: CreateVolumeRequest,
    ) -> Result<Next, Trouble> {
        let Some(volume) = facts.volume.object() else { return Ok(Next::Again) };
        let place = match place {
            Where::Anywhere => Place::Anywhere,
            Where::Node(node) => Place::Node(node),
            Where::Reachable(selector) => Place::Reachable(selector),
        };
        let made = match self.manager.inner.drivers.controller(driver, place).await {
            Ok(controller) if request.volume_content_source.is_some() && !controller.can(Rpc::CreateDeleteSnapshot) => {
                let message = format!("the CSI driver {driver:?} cannot make volumes of snapshots");
                Err(CallError::Refused { code: Code::Unimplemented, message })
            }
            Ok(controller) => controller.create_volume(request).await,
            Err(error) => Err(error),
        };
        match made {
            Ok(made) => {
                self.forget(facts);
                let uid = uuid::Uuid::new_v4().to_string();
                let change = operation::created(&facts.claim, volume, &made, &uid, Timestamp::now());
                self.write(facts, &change).await
            }
            Err(error) => self.went_wrong(facts, error).await,
        }
    }

    async fn fill(&self, facts: &Facts, from: &str, to: &str) -> Result<Next, Trouble> {
        match self.import(facts, from, to).await {
            Ok(claim) => {
                self.forget(facts);
                let facts =
                    Facts { claim, operation: facts.operation.clone(), volume: Lookup::Absent, copy: Lookup::Absent };
                self.write(&facts, &operation::verified(&facts.claim)).await
            }
            Err(Trouble::Driver(error)) => self.went_wrong(facts, error).await,
            Err(trouble) => Err(trouble),
        }
    }

    /// A call that was refused, and one that comes to nothing for too long, ends the operation.
    async fn went_wrong(&self, facts: &Facts, error: CallError) -> Result<Next, Trouble> {
        let key = Key::of(&*facts.claim);
        let Some(facts) = self.facts(&key).await?.filter(|now| now.operation.id == facts.operation.id) else {
            self.forget(facts);
            return Ok(Next::Done);
        };
        if error.refused().is_none() && self.bears(&facts.operation.id) {
            return Err(error.into());
        }
        self.forget(&facts);
        let copy = match facts.copy.known() {
            Known::Is(copy) if is_copy(copy) => Some(copy),
            Known::Is(_) | Known::Absent | Known::Unreadable(_) => None,
        };
        let change = operation::failed(&facts.claim, copy, &error.to_string(), Timestamp::now());
        self.write(&facts, &change).await
    }

    /// Notes that a call came to nothing; whether it is made again.
    fn bears(&self, id: &str) -> bool {
        let mut troubles = self.troubles.lock();
        let trouble = troubles.entry(id.to_owned()).or_default();
        trouble.breaks += u32::from(std::mem::take(&mut trouble.begun));
        let since = *trouble.since.get_or_insert_with(Instant::now);
        since.elapsed() < self.patience && trouble.breaks < BREAKS
    }

    /// A copy is under way: patience begins anew.
    fn begun(&self, id: &str) {
        let mut troubles = self.troubles.lock();
        let trouble = troubles.entry(id.to_owned()).or_default();
        trouble.since = None;
        trouble.begun = true;
    }

    /// A call was done, or the operation has ended.
    fn forget(&self, facts: &Facts) {
        self.troubles.lock().remove(&facts.operation.id);
    }
}
