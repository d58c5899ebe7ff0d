//! Releases volumes whose claims are gone. Only the leader does, and its fence is in every transaction.

use pb::{
    Kind, ObjectExt,
    objects::{PersistentVolume, PersistentVolumeClaim},
};
use plan::volume::{self, Reclaim};
use runtime::{Leadership, Queue};
use store::{
    Guard, Key, Txn, TxnOutcome,
    objects::{put, unchanged},
};

use crate::{
    VolumeManager,
    lookup::Lookup,
    worker::{Next, Trouble, Worker, follow, work},
};

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
    const WIDTH: usize = 4;

    async fn feed(&self, queue: &Queue<String>) {
        let inner = &self.manager.inner;
        let everything = || inner.volumes.all().iter().map(|volume| volume.name().to_owned()).collect();
        let of_claim = |claim: &PersistentVolumeClaim| volume::bound_to(claim).map(str::to_owned);
        let of_volume = |volume: &PersistentVolume| Some(volume.name().to_owned());
        tokio::join!(
            follow(&inner.claims, queue, of_claim, everything),
            follow(&inner.volumes, queue, of_volume, everything),
        );
    }

    async fn look_at(&self, name: &String) -> Result<Next, Trouble> {
        let inner = &self.manager.inner;
        let Some(volume) = inner.volumes.get(&Key::object(Kind::PersistentVolume, "", name)) else {
            return Ok(Next::Done);
        };
        let owner = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
        let Some(owner) = owner else { return Ok(Next::Done) };
        let claim_key = Key::object(Kind::PersistentVolumeClaim, &owner.namespace, &owner.name);
        let claim = inner.look_up(&inner.claims, &claim_key).await?;
        let Reclaim::Release(released) = volume::reclaim(&volume, claim.known()) else { return Ok(Next::Done) };
        let claim_gone = match &claim {
            Lookup::Is(successor) => unchanged(&**successor),
            Lookup::Absent | Lookup::Unreadable(_) => Guard::Absent(claim_key),
        };
        let guards = vec![self.leadership.guard.clone(), unchanged(&*volume), claim_gone];
        let outcome = inner.store.txn(Txn { guards, ops: vec![put(&*released)] }).await?;
        if let TxnOutcome::Committed(revision) = outcome {
            tracing::info!(volume = volume.name(), claim = owner.name, revision, "released a volume; its data stays");
        }
        Ok(outcome.into())
    }
}
