//! Makes and ends snapshots: `plan::volume::snapshot` says how.

use jiff::Timestamp;
use pb::{
    Kind, ObjectExt,
    csi::v1::{self as csi, controller_service_capability::rpc::Type as Rpc},
    objects::{PersistentVolumeClaim, VolumeSnapshot},
};
use plan::volume::{
    self,
    operation::{self, RESTORE},
    snapshot::{self, Asked, End, Step, View},
};
use runtime::{Leadership, Queue};
use store::{
    Key, Op, Prefix, Txn, TxnOutcome,
    objects::{delete, put, unchanged},
};
use tonic::Code;

use crate::{
    VolumeManager,
    data::claim_key,
    drivers::{CallError, Place, VolumeKey},
    lookup::Lookup,
    worker::{Next, Trouble, Worker, follow, work},
};

/// Works until leadership is lost.
pub(crate) async fn run(manager: VolumeManager, leadership: Leadership) {
    work(Snapshotter { manager, leadership: leadership.clone() }, leadership).await;
}

struct Snapshotter {
    manager: VolumeManager,
    leadership: Leadership,
}

impl Worker for Snapshotter {
    /// Key of a snapshot.
    type Key = Key;

    const NAME: &'static str = "snapshot";
    const WIDTH: usize = 4;

    async fn feed(&self, queue: &Queue<Key>) {
        let inner = &self.manager.inner;
        let everything = || inner.snapshots.all().iter().map(|snapshot| Key::of(&**snapshot)).collect();
        let of_snapshot = |snapshot: &VolumeSnapshot| Some(Key::of(snapshot));
        let of_claim = |claim: &PersistentVolumeClaim| {
            let mut snapshots = inner.snapshots.list(&Prefix::namespace(Kind::VolumeSnapshot, claim.namespace()));
            snapshots.retain(|snapshot| source_of(snapshot) == claim.name() || uses(claim, snapshot.name()));
            snapshots.iter().map(|snapshot| Key::of(&**snapshot)).collect::<Vec<_>>()
        };
        tokio::join!(
            follow(&inner.snapshots, queue, of_snapshot, everything),
            follow(&inner.claims, queue, of_claim, everything),
        );
    }

    async fn look_at(&self, key: &Key) -> Result<Next, Trouble> {
        let inner = &self.manager.inner;
        let Some(snapshot) = inner.snapshots.get(key) else { return Ok(Next::Done) };
        match self.step(&snapshot).await? {
            Step::Nothing => Ok(Next::Done),
            Step::Write(after) => Ok(self.write(&snapshot, vec![put(&*after)]).await?.into()),
            Step::End(end) => self.end(&snapshot, end).await,
            Step::Create(_) | Step::Delete { .. } => self.call(&snapshot).await,
        }
    }
}

/// The claim that a snapshot is of.
fn source_of(snapshot: &VolumeSnapshot) -> &str {
    let source = snapshot.spec.as_ref().and_then(|spec| spec.source.as_ref());
    source.map_or("", |source| source.persistent_volume_claim_name.as_str())
}

/// Whether a claim's data is being made of a snapshot.
fn uses(claim: &PersistentVolumeClaim, snapshot: &str) -> bool {
    let restored =
        volume::held(claim).is_some_and(|operation| operation.r#type == RESTORE && operation.snapshot == snapshot);
    let spec = claim.spec.clone().unwrap_or_default();
    let source = spec.data_source.or(spec.data_source_ref);
    let begun = source.is_some_and(|source| source.kind == "VolumeSnapshot" && source.name == snapshot);
    let switching = volume::held(claim).is_some_and(|operation| operation.phase == operation::SWITCHING);
    (restored && !switching) || (begun && volume::bound_to(claim).is_none())
}

impl Snapshotter {
    async fn step(&self, snapshot: &VolumeSnapshot) -> Result<Step, Trouble> {
        let inner = &self.manager.inner;
        let claim = claim_key(snapshot.namespace(), source_of(snapshot));
        let claim = inner.look_up(&inner.claims, &claim).await?;
        let volume = match claim.object() {
            Some(claim) => inner.volume_of(claim).await?,
            None => Lookup::Absent,
        };
        let mut users = Vec::new();
        if snapshot.is_terminating() {
            users = inner.claims.list(&Prefix::namespace(Kind::PersistentVolumeClaim, snapshot.namespace()));
            users.retain(|claim| uses(claim, snapshot.name()));
        }
        let user = users.first().map(|claim| claim.name());
        let view = View { snapshot, claim: claim.known(), volume: volume.known(), user, now: Timestamp::now() };
        Ok(snapshot::next(&view))
    }

    async fn write(&self, before: &VolumeSnapshot, ops: Vec<Op>) -> Result<TxnOutcome, store::Error> {
        let guards = vec![self.leadership.guard.clone(), unchanged(before)];
        self.manager.inner.store.txn(Txn { guards, ops }).await
    }

    /// Writes it if it says anything new.
    async fn news(&self, before: &VolumeSnapshot, after: &VolumeSnapshot) -> Result<Next, Trouble> {
        if before == after {
            return Ok(Next::Done);
        }
        Ok(self.write(before, vec![put(after)]).await?.into())
    }

    async fn end(&self, snapshot: &VolumeSnapshot, end: End) -> Result<Next, Trouble> {
        let op = match end {
            End::Delete => delete(snapshot),
            End::Write(after) => put(&*after),
        };
        Ok(self.write(snapshot, vec![op]).await?.into())
    }

    /// Takes the turn of the volume that it is of, decides once more on what the store holds then, and calls.
    async fn call(&self, seen: &VolumeSnapshot) -> Result<Next, Trouble> {
        let inner = &self.manager.inner;
        let status = seen.status.clone().unwrap_or_default();
        let _turn = inner.drivers.turn(&VolumeKey::new(&status.driver, &status.volume_name)).await;
        let Lookup::Is(snapshot) = inner.read::<VolumeSnapshot>(&Key::of(seen)).await? else {
            return Ok(Next::Done);
        };
        match self.step(&snapshot).await? {
            Step::Create(asked) => self.create(&snapshot, asked).await,
            Step::Delete { driver, handle, reachable } => {
                let place = reachable.as_ref().map_or(Place::Anywhere, Place::Reachable);
                let deleted = match inner.drivers.controller(&driver, place).await {
                    Ok(controller) => controller.delete_snapshot(&handle).await,
                    Err(error) => Err(error),
                };
                match deleted {
                    Ok(()) => {
                        tracing::info!(snapshot = snapshot.name(), handle, "deleted a snapshot");
                        self.end(&snapshot, snapshot::gone(&snapshot)).await
                    }
                    Err(error) => {
                        let why = format!("it is not deleted yet: {error}");
                        self.news(&snapshot, &snapshot::kept(&snapshot, &why, Timestamp::now())).await?;
                        Err(error.into())
                    }
                }
            }
            // Somebody wrote in between: the change is looked at.
            Step::Nothing | Step::Write(_) | Step::End(_) => Ok(Next::Again),
        }
    }

    async fn create(&self, snapshot: &VolumeSnapshot, asked: Asked) -> Result<Next, Trouble> {
        let volume = snapshot.status.as_ref().map_or("", |status| status.volume_name.as_str());
        match self.ask_driver(asked, volume).await {
            Ok(made) => {
                tracing::info!(
                    snapshot = snapshot.name(),
                    handle = made.snapshot_id,
                    ready = made.ready_to_use,
                    "a snapshot"
                );
                let after = snapshot::made(snapshot, &made);
                let next = self.news(snapshot, &after).await?;
                // Asked again until it is ready, later each time.
                let waits = next == Next::Done && !made.ready_to_use && !snapshot.is_terminating();
                Ok(if waits { Next::Again } else { next })
            }
            Err(error) => {
                let (why, now) = (error.to_string(), Timestamp::now());
                let after = match error {
                    CallError::Refused { .. } => {
                        snapshot::refused(snapshot, self.volume_now(snapshot).await?.as_deref(), &why, now)
                    }
                    CallError::Uncertain { .. } | CallError::NoController { .. } => snapshot::kept(snapshot, &why, now),
                };
                self.news(snapshot, &after).await?;
                Err(error.into())
            }
        }
    }

    /// The driver's id of the volume that the claim has now.
    async fn volume_now(&self, snapshot: &VolumeSnapshot) -> Result<Option<String>, Trouble> {
        let inner = &self.manager.inner;
        let claim = claim_key(snapshot.namespace(), source_of(snapshot));
        let Lookup::Is(claim) = inner.read::<PersistentVolumeClaim>(&claim).await? else { return Ok(None) };
        let volume = inner.volume_of(&claim).await?;
        Ok(volume.object().and_then(|volume| Some(volume.spec.as_ref()?.csi.as_ref()?.volume_handle.clone())))
    }

    async fn ask_driver(&self, asked: Asked, volume: &str) -> Result<csi::Snapshot, CallError> {
        // Where a volume is mounted, its driver can make what is written to it stand still for a moment.
        let attached = self.manager.inner.attached_to(volume);
        let anywhere = || asked.reachable.as_ref().map_or(Place::Anywhere, Place::Reachable);
        let place = attached.as_deref().map_or_else(anywhere, Place::Node);
        let controller = self.manager.inner.drivers.controller(&asked.driver, place).await?;
        if !controller.can(Rpc::CreateDeleteSnapshot) {
            let message = format!("the CSI driver {:?} cannot make snapshots", asked.driver);
            return Err(CallError::Refused { code: Code::Unimplemented, message });
        }
        let request = csi::CreateSnapshotRequest {
            source_volume_id: asked.volume_handle,
            name: asked.name,
            ..Default::default()
        };
        controller.create_snapshot(request).await
    }
}
