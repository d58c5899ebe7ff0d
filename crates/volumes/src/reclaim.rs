//! Releases volumes whose claims are gone. Only the leader does, and its fence is in every transaction.

use std::sync::Arc;

use pb::{
    Kind, ObjectExt,
    objects::{PersistentVolume, PersistentVolumeClaim},
};
use plan::volume::{self, Reclaim};
use runtime::{Change, Leadership, Queue};
use store::{
    Guard, Key, Txn, TxnOutcome,
    objects::{put, unchanged},
};

use crate::{VolumeManager, service::Lookup};

/// Volumes looked at at the same time.
const WORKERS: usize = 2;

/// Works until leadership is lost.
pub(crate) async fn run(manager: VolumeManager, leadership: Leadership) {
    let queue: Queue<String> = Queue::new();
    let workers = (0..WORKERS).map(|_| work(&manager, &leadership, &queue));
    let all = async { tokio::join!(feed(&manager, &queue), futures::future::join_all(workers)) };
    leadership.lost.run_until_cancelled(all).await;
}

/// Queues each volume whose claim may have gone.
async fn feed(manager: &VolumeManager, queue: &Queue<String>) {
    let inner = &manager.inner;
    let (mut claims, mut volumes) = (inner.claims.subscribe(), inner.volumes.subscribe());
    inner.claims.synced().await;
    inner.volumes.synced().await;
    let everything = || inner.volumes.all().iter().for_each(|volume| queue.add(volume.name().to_owned()));
    let of_claim = |claim: &PersistentVolumeClaim| {
        if let Some(name) = volume::bound_to(claim) {
            queue.add(name.to_owned());
        }
    };
    everything();
    loop {
        tokio::select! {
            change = claims.next() => match change {
                Some(Change::Applied { old: Some(old), new, .. }) if old.uid() != new.uid() => of_claim(&old),
                Some(Change::Applied { .. }) => {}
                Some(Change::Deleted { old, .. }) => of_claim(&old),
                Some(Change::Resynced) => everything(),
                None => return,
            },
            change = volumes.next() => match change {
                // The end of its claim may have been seen before the volume itself.
                Some(Change::Applied { old: None, new, .. }) => queue.add(new.name().to_owned()),
                Some(Change::Applied { .. } | Change::Deleted { .. }) => {}
                Some(Change::Resynced) => everything(),
                None => return,
            },
        }
    }
}

async fn work(manager: &VolumeManager, leadership: &Leadership, queue: &Queue<String>) {
    while let Some(work) = queue.take().await {
        let key = Key::object(Kind::PersistentVolume, "", &work);
        let Some(volume) = manager.inner.volumes.get(&key) else { continue };
        match look_at(manager, leadership, &volume).await {
            Ok(TxnOutcome::Committed(_)) => work.forget(),
            Ok(TxnOutcome::Conflict) => work.retry(),
            Err(error) => {
                tracing::warn!(volume = *work, %error, "the volume could not be looked at; trying again");
                work.retry();
            }
        }
    }
}

async fn look_at(
    manager: &VolumeManager,
    leadership: &Leadership,
    volume: &Arc<PersistentVolume>,
) -> store::Result<TxnOutcome> {
    let owner = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    let Some(owner) = owner else { return Ok(TxnOutcome::Committed(0)) };
    let claim_key = Key::object(Kind::PersistentVolumeClaim, &owner.namespace, &owner.name);
    let claim = manager.inner.look_up(&manager.inner.claims, &claim_key).await?;
    let Reclaim::Release(released) = volume::reclaim(volume, claim.known()) else {
        return Ok(TxnOutcome::Committed(0));
    };
    let claim_gone = match &claim {
        Lookup::Is(successor) => unchanged(&**successor),
        Lookup::Absent | Lookup::Unreadable(_) => Guard::Absent(claim_key),
    };
    let txn =
        Txn { guards: vec![leadership.guard.clone(), unchanged(&**volume), claim_gone], ops: vec![put(&*released)] };
    let outcome = manager.inner.store.txn(txn).await?;
    if let TxnOutcome::Committed(revision) = outcome {
        tracing::info!(volume = volume.name(), claim = owner.name, revision, "released a volume; its data stays");
    }
    Ok(outcome)
}
