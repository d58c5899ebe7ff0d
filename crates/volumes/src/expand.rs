//! Makes claims grow: `plan::volume::expand` says how.

use std::sync::Arc;

use jiff::Timestamp;
use pb::{
    ObjectExt,
    agent::v1::ExpandVolumeRequest,
    csi::v1::{self as csi, CapacityRange, controller_service_capability::rpc::Type as Rpc},
    objects::{PersistentVolume, PersistentVolumeClaim, Pod, StorageClass},
};
use plan::volume::{
    self,
    expand::{self, Failure, Grown, Step, View},
};
use runtime::{Leadership, Queue};
use store::{
    Key, Txn,
    objects::{put, unchanged},
};
use tonic::Code;

use crate::{
    VolumeManager,
    data::{ask, claims_of, node_of, owner_key},
    drivers::{CallError, Place, VolumeKey},
    lookup::Lookup,
    worker::{Next, Trouble, Worker, follow, work},
};

/// Works until leadership is lost.
pub(crate) async fn run(manager: VolumeManager, leadership: Leadership) {
    work(Expander { manager, leadership: leadership.clone() }, leadership).await;
}

struct Expander {
    manager: VolumeManager,
    leadership: Leadership,
}

impl Worker for Expander {
    /// Key of a claim.
    type Key = Key;

    const NAME: &'static str = "expand";
    const WIDTH: usize = 4;

    async fn feed(&self, queue: &Queue<Key>) {
        let inner = &self.manager.inner;
        let growing = |claim: &Arc<PersistentVolumeClaim>| expand::concerns(claim);
        let everything = || inner.claims.all().iter().filter(|claim| growing(claim)).map(|c| Key::of(&**c)).collect();
        let of_claim = |claim: &PersistentVolumeClaim| expand::concerns(claim).then(|| Key::of(claim));
        let if_growing = |key: &Key| inner.claims.get(key).is_some_and(|claim| growing(&claim));
        let of_volume = |volume: &PersistentVolume| owner_key(volume).filter(if_growing);
        let of_pod = |pod: &Pod| claims_of(pod).into_iter().filter(if_growing).collect::<Vec<_>>();
        let of_class = |class: &StorageClass| {
            let claims = inner.claims.all().into_iter().filter(|claim| {
                let spec = claim.spec.as_ref();
                growing(claim) && spec.is_some_and(|spec| spec.storage_class_name.as_deref() == Some(class.name()))
            });
            claims.map(|claim| Key::of(&*claim)).collect::<Vec<_>>()
        };
        tokio::join!(
            follow(&inner.claims, queue, of_claim, everything),
            follow(&inner.volumes, queue, of_volume, Vec::new),
            follow(&inner.pods, queue, of_pod, Vec::new),
            follow(&inner.classes, queue, of_class, Vec::new),
        );
    }

    async fn look_at(&self, key: &Key) -> Result<Next, Trouble> {
        let inner = &self.manager.inner;
        let Some(claim) = inner.claims.get(key) else { return Ok(Next::Done) };
        if !expand::concerns(&claim) {
            return Ok(Next::Done);
        }
        let volume = inner.volume_of(&claim).await?;
        match self.step(&claim, &volume).await? {
            Step::Nothing => Ok(Next::Done),
            Step::Write(after) => Ok(inner.write_claim(&self.leadership, &claim, &after).await?.into()),
            Step::GrowVolume { .. } | Step::GrowFileSystem { .. } => match volume.object() {
                Some(volume) => self.call(key, volume).await,
                None => Ok(Next::Done),
            },
        }
    }
}

impl Expander {
    async fn step(&self, claim: &PersistentVolumeClaim, volume: &Lookup<PersistentVolume>) -> Result<Step, Trouble> {
        let inner = &self.manager.inner;
        let class = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref()).unwrap_or_default();
        let class = inner.class(class).await?;
        let used = inner.pods_of(&Key::of(claim)).iter().any(|pod| !node_of(pod).is_empty());
        let view = View { claim, volume: volume.known(), class: class.known(), used, now: Timestamp::now() };
        Ok(expand::next(&view))
    }

    /// Takes the volume's turn, decides once more on what the store holds then, and calls.
    async fn call(&self, key: &Key, volume: &PersistentVolume) -> Result<Next, Trouble> {
        let inner = &self.manager.inner;
        let driver = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref()).map_or("", |csi| csi.driver.as_str());
        let _turn = inner.drivers.turn(&VolumeKey::new(driver, volume.name())).await;
        let Lookup::Is(claim) = inner.read::<PersistentVolumeClaim>(key).await? else { return Ok(Next::Done) };
        let now = inner.read::<PersistentVolume>(&Key::of(volume)).await?;
        let Lookup::Is(volume) = &now else { return Ok(Next::Done) };
        match self.step(&claim, &now).await? {
            Step::Nothing => Ok(Next::Done),
            Step::Write(after) => Ok(inner.write_claim(&self.leadership, &claim, &after).await?.into()),
            Step::GrowVolume { bytes } => self.grow_volume(&claim, volume, bytes).await,
            Step::GrowFileSystem { bytes } => self.grow_file_system(&claim, volume, bytes).await,
        }
    }

    async fn grow_volume(
        &self,
        claim: &PersistentVolumeClaim,
        volume: &PersistentVolume,
        bytes: i64,
    ) -> Result<Next, Trouble> {
        let inner = &self.manager.inner;
        match self.ask_driver(volume, bytes).await {
            Ok(grown) => {
                let (claim_after, volume_after) = expand::volume_grew(claim, volume, grown, Timestamp::now());
                if volume_after == *volume {
                    // The driver gave less than it was asked for: it is asked again, later each time.
                    inner.write_claim(&self.leadership, claim, &claim_after).await?;
                    return Ok(Next::Again);
                }
                let guards = vec![self.leadership.guard.clone(), unchanged(claim), unchanged(volume)];
                let ops = vec![put(&claim_after), put(&volume_after)];
                let outcome = inner.store.txn(Txn { guards, ops }).await?;
                tracing::info!(claim = claim.name(), volume = volume.name(), bytes, "a volume has grown");
                Ok(outcome.into())
            }
            Err(error) => {
                let failure = match error.refused() {
                    Some(
                        Code::OutOfRange
                        | Code::InvalidArgument
                        | Code::Unimplemented
                        | Code::NotFound
                        | Code::PermissionDenied,
                    ) => Failure::Final(error.to_string()),
                    _ => Failure::NotNow(error.to_string()),
                };
                let after = expand::volume_did_not_grow(claim, &failure, Timestamp::now());
                inner.write_claim(&self.leadership, claim, &after).await?;
                match failure {
                    Failure::Final(_) => Ok(Next::Done),
                    Failure::NotNow(_) => Err(error.into()),
                }
            }
        }
    }

    async fn ask_driver(&self, volume: &PersistentVolume, bytes: i64) -> Result<Grown, CallError> {
        let spec = volume.spec.clone().unwrap_or_default();
        let csi = spec.csi.unwrap_or_default();
        let controller = self.manager.inner.drivers.controller(&csi.driver, Place::of(volume)).await?;
        if !controller.can(Rpc::ExpandVolume) {
            let message = format!("the CSI driver {:?} cannot enlarge volumes", csi.driver);
            return Err(CallError::Refused { code: Code::Unimplemented, message });
        }
        let request = csi::ControllerExpandVolumeRequest {
            volume_id: csi.volume_handle,
            capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            volume_capability: Some(volume::capability(&spec.access_modes, &csi.fs_type)),
            ..Default::default()
        };
        let answer = controller.expand(request).await?;
        Ok(Grown { bytes: answer.capacity_bytes, on_node: answer.node_expansion_required })
    }

    async fn grow_file_system(
        &self,
        claim: &PersistentVolumeClaim,
        volume: &PersistentVolume,
        bytes: i64,
    ) -> Result<Next, Trouble> {
        let inner = &self.manager.inner;
        let mut nodes: Vec<String> = inner.pods_of(&Key::of(claim)).iter().map(|pod| node_of(pod).to_owned()).collect();
        nodes.retain(|node| !node.is_empty());
        nodes.sort();
        nodes.dedup();
        let mut staged = false;
        for node in &nodes {
            match self.ask_agent(node, volume, bytes).await {
                Ok(there) => staged |= there,
                Err(error) => {
                    let after = expand::file_system_did_not_grow(claim, &error.to_string(), Timestamp::now());
                    inner.write_claim(&self.leadership, claim, &after).await?;
                    // A refusal stands until a pod that uses the claim changes.
                    return if error.refused().is_some() { Ok(Next::Done) } else { Err(error.into()) };
                }
            }
        }
        // It is staged soon, or pods are going: either is seen as a change of a pod.
        if !staged {
            return Ok(Next::Done);
        }
        let after = expand::file_system_grew(claim, volume);
        let guards = vec![self.leadership.guard.clone(), unchanged(claim), unchanged(volume)];
        let outcome = inner.store.txn(Txn { guards, ops: vec![put(&after)] }).await?;
        tracing::info!(claim = claim.name(), volume = volume.name(), bytes, "a claim has grown");
        Ok(outcome.into())
    }

    /// Whether the volume is staged on the node; then its file system has grown.
    async fn ask_agent(&self, node: &str, volume: &PersistentVolume, bytes: i64) -> Result<bool, CallError> {
        let inner = &self.manager.inner;
        let mut agent = inner.drivers.agent(node)?;
        let request = ExpandVolumeRequest { volume: Some(volume.clone()), required_bytes: bytes };
        let answer = ask(node, "grow the file system", inner.settings.call, request, |request| async move {
            agent.expand_volume(request).await
        });
        Ok(answer.await?.staged)
    }
}
