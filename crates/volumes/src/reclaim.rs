//! Keeps the phases of volumes, and ends volumes whose claims are gone. Only the leader does, and its fence is in every
//! transaction.
//!
//! Data is deleted on the store's own word, read while the volume's turn is held; the object goes after the data.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use pb::{
    Kind, Object, ObjectExt,
    csi::v1::{CapacityRange, CreateVolumeRequest, TopologyRequirement},
    objects::{CsiPersistentVolumeSource, PersistentVolume, PersistentVolumeClaim, VolumeAttachment},
};
use plan::volume::{
    self,
    attach::volume_of,
    reclaim::{Around, Reclaim, failed, let_go, reclaim},
};
use runtime::{Leadership, Queue};
use store::{
    Guard, Key, Op, Txn,
    objects::{delete, put, unchanged},
};
use tonic::Code;

use crate::{
    VolumeManager,
    drivers::{CallError, Place, VolumeKey, is_ready},
    lookup::Lookup,
    worker::{Next, Trouble, Worker, follow, work},
};

/// How long a driver may say that a volume is still in use before that counts as a failure.
const LETTING_GO: Duration = Duration::from_secs(60);
/// Nodes that are asked whether they use a volume before it is deleted. A volume that more can reach is attached, or its
/// driver looks after it.
const MOST_NODES: usize = 3;

/// Works until leadership is lost.
pub(crate) async fn run(manager: VolumeManager, leadership: Leadership) {
    work(Reclaimer { manager, leadership: leadership.clone() }, leadership).await;
}

struct Reclaimer {
    manager: VolumeManager,
    leadership: Leadership,
}

impl Worker for Reclaimer {
    /// Name of a volume.
    type Key = String;

    const NAME: &'static str = "reclaim";
    const WIDTH: usize = 8;

    async fn feed(&self, queue: &Queue<String>) {
        let inner = &self.manager.inner;
        let everything = || inner.volumes.all().iter().map(|volume| volume.name().to_owned()).collect();
        let of_claim = |claim: &PersistentVolumeClaim| {
            [volume::volume_name(claim)].into_iter().chain(volume::bound_to(claim).map(str::to_owned))
        };
        let of_volume = |volume: &PersistentVolume| Some(volume.name().to_owned());
        let of_attachment = |attachment: &VolumeAttachment| Some(volume_of(attachment).to_owned());
        tokio::join!(
            follow(&inner.claims, queue, of_claim, everything),
            follow(&inner.volumes, queue, of_volume, everything),
            follow(&inner.attachments, queue, of_attachment, everything),
        );
    }

    async fn look_at(&self, name: &String) -> Result<Next, Trouble> {
        let inner = &self.manager.inner;
        inner.attachments.synced().await;
        let key = Key::object(Kind::PersistentVolume, "", name);
        let Some(volume) = inner.volumes.get(&key) else { return Ok(Next::Done) };
        let claim = self.claim(&volume, false).await?;
        match self.decide(&volume, &claim) {
            Reclaim::Keep => Ok(Next::Done),
            Reclaim::Later(delay) => Ok(Next::After(delay)),
            Reclaim::Write(written) => {
                let guards = vec![self.leadership.guard.clone(), unchanged(&*volume), guard_of(&volume, &claim)];
                let outcome = inner.store.txn(Txn { guards, ops: vec![put(&*written)] }).await?;
                tracing::info!(volume = name, phase = volume::phase(&written), ?outcome, "the phase of a volume");
                Ok(outcome.into())
            }
            Reclaim::Forget => self.end(&volume).await,
            Reclaim::Delete => self.delete(&key, &volume).await,
        }
    }
}

impl Reclaimer {
    /// What is known of the claim that a volume names. Volumes that were adopted name a uid alone: no claim has them.
    async fn claim(&self, volume: &PersistentVolume, fresh: bool) -> store::Result<Lookup<PersistentVolumeClaim>> {
        let inner = &self.manager.inner;
        let owner = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
        let Some(owner) = owner.filter(|owner| !owner.name.is_empty()) else { return Ok(Lookup::Absent) };
        let key = Key::object(Kind::PersistentVolumeClaim, &owner.namespace, &owner.name);
        if fresh { inner.read(&key).await } else { inner.look_up(&inner.claims, &key).await }
    }

    fn decide(&self, volume: &PersistentVolume, claim: &Lookup<PersistentVolumeClaim>) -> Reclaim {
        let inner = &self.manager.inner;
        let ends = matches!(volume::phase(volume), "Released" | "Failed");
        let around = Around {
            claim: claim.known(),
            attached: ends && inner.attachments.all().iter().any(|a| volume_of(a) == volume.name()),
            shared: ends && self.is_shared(volume),
            grace: inner.settings.orphan_grace,
            now: Timestamp::now(),
        };
        reclaim(volume, &around)
    }

    /// Whether another object names the same data.
    fn is_shared(&self, volume: &PersistentVolume) -> bool {
        let csi = source(volume);
        let place = volume::reachable(volume);
        !csi.volume_handle.is_empty()
            && self.manager.inner.volumes.all().iter().any(|other| {
                let theirs = source(other);
                let same = theirs.driver == csi.driver && theirs.volume_handle == csi.volume_handle;
                let elsewhere =
                    volume::reachable(other).is_some() && place.is_some() && volume::reachable(other) != place;
                same && other.name() != volume.name() && !elsewhere
            })
    }

    async fn delete(&self, key: &Key, seen: &Arc<PersistentVolume>) -> Result<Next, Trouble> {
        let inner = &self.manager.inner;
        let csi = source(seen);
        let _turn = inner.drivers.turn(&VolumeKey::new(&csi.driver, seen.name())).await;
        // What was true before the turn came may not be true any more.
        let Lookup::Is(volume) = inner.read::<PersistentVolume>(key).await? else { return Ok(Next::Done) };
        let claim = self.claim(&volume, true).await?;
        if volume.mod_revision() != seen.mod_revision() || self.decide(&volume, &claim) != Reclaim::Delete {
            return Ok(Next::Again);
        }
        match self.call(&volume, &csi).await {
            Ok(true) => {
                tracing::info!(volume = volume.name(), handle = csi.volume_handle, "the data of a volume is deleted");
                self.end(&volume).await
            }
            Ok(false) => Ok(Next::After(Duration::from_secs(1))),
            Err(error) => self.failed(&volume, error).await,
        }
    }

    /// Deletes the data. False: a node still has it.
    async fn call(&self, volume: &PersistentVolume, csi: &CsiPersistentVolumeSource) -> Result<bool, CallError> {
        let inner = &self.manager.inner;
        let controller = inner.drivers.controller(&csi.driver, Place::of(volume)).await?;
        if self.is_in_use(volume, csi).await? {
            return Ok(false);
        }
        let handle = if csi.volume_handle.is_empty() {
            // Nobody heard the id. The driver tells it again.
            match controller.create_volume(again(volume, csi)).await {
                Ok(made) => made.volume_id,
                Err(error) if error.refused().is_some() => return Ok(true),
                Err(error) => return Err(error),
            }
        } else {
            csi.volume_handle.clone()
        };
        controller.delete_volume(&handle).await?;
        Ok(true)
    }

    /// Whether one of the few nodes that reach the volume still has it.
    async fn is_in_use(&self, volume: &PersistentVolume, csi: &CsiPersistentVolumeSource) -> Result<bool, CallError> {
        let inner = &self.manager.inner;
        let Some(place) = volume::reachable(volume).filter(|_| !inner.drivers.is_central(&csi.driver)) else {
            return Ok(false);
        };
        let mut near = inner.drivers.nodes_of(&csi.driver);
        near.retain(|node| volume::reaches(Some(place), node.name(), &node.meta().labels));
        if near.len() > MOST_NODES || csi.volume_handle.is_empty() {
            return Ok(false);
        }
        for node in near.iter().filter(|node| is_ready(node)) {
            let patience = Duration::from_secs(5);
            if inner.inspect(node.name(), &csi.driver, &csi.volume_handle, false, patience).await?.in_use {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn failed(&self, volume: &PersistentVolume, error: CallError) -> Result<Next, Trouble> {
        let status = volume.status.clone().unwrap_or_default();
        let since = status.last_phase_transition_time.map(|at| Timestamp::now().duration_since(at.timestamp()));
        let lately = since.is_some_and(|age| Duration::try_from(age).is_ok_and(|age| age < LETTING_GO));
        match error.refused() {
            None => return Err(error.into()),
            Some(Code::FailedPrecondition) if lately => return Err(error.into()),
            Some(_) => {}
        }
        let why = format!("the data is not deleted: {error}; it is tried again");
        tracing::warn!(volume = volume.name(), why);
        let failed = failed(volume, &why, Timestamp::now());
        let guards = vec![self.leadership.guard.clone(), unchanged(volume)];
        Ok(self.manager.inner.store.txn(Txn { guards, ops: vec![put(&failed)] }).await?.into())
    }

    /// Ends the object.
    async fn end(&self, volume: &PersistentVolume) -> Result<Next, Trouble> {
        let op: Op = match let_go(volume) {
            None => delete(volume),
            Some(mut held) => {
                held.meta_mut().deletion_timestamp.get_or_insert_with(|| Timestamp::now().into());
                put(&held)
            }
        };
        let guards = vec![self.leadership.guard.clone(), unchanged(volume)];
        Ok(self.manager.inner.store.txn(Txn { guards, ops: vec![op] }).await?.into())
    }
}

/// The claim is still what the decision rests on.
fn guard_of(volume: &PersistentVolume, claim: &Lookup<PersistentVolumeClaim>) -> Guard {
    match claim {
        Lookup::Is(claim) => unchanged(&**claim),
        Lookup::Absent | Lookup::Unreadable(_) => {
            let owner = volume.spec.as_ref().and_then(|spec| spec.claim_ref.clone()).unwrap_or_default();
            if owner.name.is_empty() {
                unchanged(volume)
            } else {
                Guard::Absent(Key::object(Kind::PersistentVolumeClaim, &owner.namespace, &owner.name))
            }
        }
    }
}

fn source(volume: &PersistentVolume) -> CsiPersistentVolumeSource {
    volume.spec.as_ref().and_then(|spec| spec.csi.clone()).unwrap_or_default()
}

/// The same question that made the volume, as its object remembers it.
fn again(volume: &PersistentVolume, csi: &CsiPersistentVolumeSource) -> CreateVolumeRequest {
    let spec = volume.spec.clone().unwrap_or_default();
    let place = volume::reachable(volume).map(volume::places_in);
    let mut capability = volume::capability(&spec.access_modes, &csi.fs_type);
    if let Some(pb::csi::v1::volume_capability::AccessType::Mount(mount)) = &mut capability.access_type {
        mount.mount_flags = spec.mount_options;
    }
    CreateVolumeRequest {
        name: volume.name().to_owned(),
        capacity_range: Some(CapacityRange { required_bytes: volume::volume_size(volume), limit_bytes: 0 }),
        volume_capabilities: vec![capability],
        parameters: crate::provision::parameters(&csi.volume_attributes),
        volume_content_source: volume::content_in(volume).as_ref().map(Into::into),
        accessibility_requirements: place
            .map(|places| TopologyRequirement { requisite: places.clone(), preferred: places }),
        ..CreateVolumeRequest::default()
    }
}
