//! Attaches volumes to the nodes of the pods that use them, and detaches them afterwards.
//!
//! The attachment object is written before the driver is called, and ends after the driver has said that the volume is
//! detached. A node is asked to have let go first, unless its machine is known to be off.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use pb::{
    Kind, Object, ObjectExt,
    csi::v1::ControllerPublishVolumeRequest,
    objects::{
        CsiDriver, CsiPersistentVolumeSource, Node, PersistentVolume, PersistentVolumeClaim, Pod, VolumeAttachment,
    },
};
use plan::volume::{
    self,
    attach::{Around, Step, User, attach, attached, attachment, node_of, retracted, volume_of, with_error},
};
use runtime::{Leadership, Queue};
use store::{
    Key, Op, Txn,
    objects::{absent, delete, put, unchanged},
};

use crate::{
    VolumeManager,
    drivers::{CallError, Place, VolumeKey},
    facts::{claims_of, has_ended},
    lookup::Lookup,
    provision::new_uid,
    worker::{Next, Trouble, Worker, follow, work},
};

/// On an attachment: the driver's name of the node, which may be gone when it is needed.
const NODE_ID: &str = "csi.alpha.kubernetes.io/node-id";
/// How the message of a waiting pod begins.
const MULTI_ATTACH: &str = "Multi-Attach error";
/// How long an agent may take to say whether it uses a volume.
const PATIENCE: Duration = Duration::from_secs(5);
/// Until a node that uses a volume is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Works until leadership is lost.
pub(crate) async fn run(manager: VolumeManager, leadership: Leadership) {
    work(Attacher { manager, leadership: leadership.clone() }, leadership).await;
}

struct Attacher {
    manager: VolumeManager,
    leadership: Leadership,
}

impl Worker for Attacher {
    /// Name of a volume.
    type Key = String;

    const NAME: &'static str = "attach";
    const WIDTH: usize = 8;

    async fn feed(&self, queue: &Queue<String>) {
        let inner = &self.manager.inner;
        let everything = || inner.volumes.all().iter().map(|volume| volume.name().to_owned()).collect();
        let of_pod = |pod: &Pod| -> Vec<String> {
            let key = |name: &str| Key::object(Kind::PersistentVolumeClaim, pod.namespace(), name);
            let claims = claims_of(pod).filter_map(|name| inner.claims.get(&key(name)));
            claims.filter_map(|claim| volume::bound_to(&claim).map(str::to_owned)).collect()
        };
        let of_node = |node: &Node| -> Vec<String> {
            let there = inner.attachments.all();
            there.iter().filter(|a| node_of(a) == node.name()).map(|a| volume_of(a).to_owned()).collect()
        };
        let of_claim = |claim: &PersistentVolumeClaim| volume::bound_to(claim).map(str::to_owned);
        let of_volume = |volume: &PersistentVolume| Some(volume.name().to_owned());
        let of_attachment = |attachment: &VolumeAttachment| Some(volume_of(attachment).to_owned());
        tokio::join!(
            follow(&inner.pods, queue, of_pod, everything),
            follow(&inner.claims, queue, of_claim, Vec::new),
            // Pod, claim and volume come in one transaction and through three caches: whichever shows its part last.
            follow(&inner.volumes, queue, of_volume, everything),
            follow(&inner.nodes, queue, of_node, Vec::new),
            follow(&inner.attachments, queue, of_attachment, everything),
            follow(&inner.csi_drivers, queue, |_: &CsiDriver| everything(), everything),
        );
    }

    async fn look_at(&self, name: &String) -> Result<Next, Trouble> {
        let inner = &self.manager.inner;
        self.manager.ready().await;
        let key = Key::object(Kind::PersistentVolume, "", name);
        let Some(volume) = inner.volumes.get(&key) else {
            // A volume that the cache does not show yet is not gone; its change brings it here.
            return match inner.read::<PersistentVolume>(&key).await? {
                Lookup::Absent => self.without_volume(name).await,
                Lookup::Is(_) | Lookup::Unreadable(_) => Ok(Next::Done),
            };
        };
        let csi = volume.spec.as_ref().and_then(|spec| spec.csi.clone()).unwrap_or_default();
        let required = inner
            .csi_drivers
            .get(&Key::object(Kind::CsiDriver, "", &csi.driver))
            .and_then(|driver| driver.spec.clone())
            .is_some_and(|spec| spec.attach_required.unwrap_or(true));
        let mut attachments = inner.attachments.all();
        attachments.retain(|attachment| volume_of(attachment) == name);
        if !required && attachments.is_empty() {
            return Ok(Next::Done);
        }
        let pods = self.pods(&volume);
        let users = pods.iter().map(|pod| User {
            pod: pod.name(),
            node: node_name(pod),
            starts: !pod.is_terminating() && !has_ended(pod),
        });
        let attachments = attachments.iter().map(Arc::as_ref).collect();
        let around = Around { required, users: users.collect(), attachments };
        let mut next = Next::Done;
        let mut waits = None;
        for step in attach(&volume, &around) {
            let after = match step {
                Step::Want(node) => self.want(&volume, &csi, node).await?,
                Step::Publish(attachment) => self.publish(&volume, &csi, attachment).await?,
                Step::Retract(attachment) => {
                    self.write(attachment, put(&retracted(attachment, Timestamp::now()))).await?
                }
                Step::Unpublish(attachment) => self.unpublish(Some(&volume), &csi, attachment).await?,
                Step::Wait(why) => {
                    waits.get_or_insert(why);
                    Next::Done
                }
            };
            next = sooner(next, after);
        }
        self.tell(&volume, waits).await?;
        Ok(next)
    }
}

impl Attacher {
    /// Pods with a node that use the volume through its claim. Those that have ended count: their node may have it still.
    fn pods(&self, volume: &PersistentVolume) -> Vec<Arc<Pod>> {
        let inner = &self.manager.inner;
        let Some(owner) = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) else { return Vec::new() };
        let mut pods = inner.pods.list(&store::Prefix::namespace(Kind::Pod, &owner.namespace));
        pods.retain(|pod| !node_name(pod).is_empty() && claims_of(pod).any(|claim| claim == owner.name));
        pods
    }

    /// Attachments of a volume whose object is gone cannot be undone at a driver: nothing says which volume it was.
    async fn without_volume(&self, name: &str) -> Result<Next, Trouble> {
        let all = self.manager.inner.attachments.all();
        for attachment in all.iter().filter(|attachment| volume_of(attachment) == name) {
            tracing::warn!(volume = name, node = node_of(attachment), "the volume of an attachment is gone");
            self.write(attachment, delete(&**attachment)).await?;
        }
        Ok(Next::Done)
    }

    async fn want(
        &self,
        volume: &PersistentVolume,
        csi: &CsiPersistentVolumeSource,
        node: &str,
    ) -> Result<Next, Trouble> {
        let inner = &self.manager.inner;
        let mut wanted = attachment(volume.name(), &csi.driver, node, &new_uid(), Timestamp::now());
        let Some(node_id) = self.node_id(&csi.driver, node) else {
            let message = format!(
                "node {node:?} does not have the CSI driver {:?} that volume {:?} needs; register it with the node's agent",
                csi.driver,
                volume.name()
            );
            return Err(CallError::NoController { message }.into());
        };
        wanted.meta_mut().annotations.insert(NODE_ID.to_owned(), node_id);
        let guards = vec![self.leadership.guard.clone(), absent(&wanted), unchanged(volume)];
        Ok(inner.store.txn(Txn { guards, ops: vec![put(&wanted)] }).await?.into())
    }

    fn node_id(&self, driver: &str, node: &str) -> Option<String> {
        let drivers = &self.manager.inner.drivers;
        let registered = drivers.on_node(driver, node).map(|on| on.node_id);
        registered.or_else(|| drivers.is_central(driver).then(|| node.to_owned()))
    }

    async fn publish(
        &self,
        volume: &PersistentVolume,
        csi: &CsiPersistentVolumeSource,
        attachment: &VolumeAttachment,
    ) -> Result<Next, Trouble> {
        let inner = &self.manager.inner;
        let spec = volume.spec.clone().unwrap_or_default();
        let mut capability = volume::capability(&spec.access_modes, &csi.fs_type);
        if let Some(pb::csi::v1::volume_capability::AccessType::Mount(mount)) = &mut capability.access_type {
            mount.mount_flags = spec.mount_options;
        }
        let request = ControllerPublishVolumeRequest {
            volume_id: csi.volume_handle.clone(),
            node_id: node_id_of(attachment),
            volume_capability: Some(capability),
            readonly: csi.read_only,
            volume_context: csi.volume_attributes.clone(),
            ..ControllerPublishVolumeRequest::default()
        };
        let turn = inner.drivers.turn(&VolumeKey::new(&csi.driver, volume.name())).await;
        let called = async {
            let controller = inner.drivers.controller(&csi.driver, Place::Node(node_of(attachment))).await?;
            controller.publish(request).await
        };
        let result = called.await;
        drop(turn);
        match result {
            Ok(metadata) => self.write(attachment, put(&attached(attachment, metadata))).await,
            Err(error @ CallError::Refused { .. }) => match self.node_id(&csi.driver, node_of(attachment)) {
                Some(node_id) if node_id != node_id_of(attachment) => self.rename(csi, attachment, node_id).await,
                _ => self.went_wrong(attachment, error).await,
            },
            Err(error) => self.went_wrong(attachment, error).await,
        }
    }

    /// The driver knows the node by another name than it did when the attachment was made, and refuses the old one. What
    /// may be attached under the old one is undone first.
    async fn rename(
        &self,
        csi: &CsiPersistentVolumeSource,
        attachment: &VolumeAttachment,
        node_id: String,
    ) -> Result<Next, Trouble> {
        let drivers = &self.manager.inner.drivers;
        let turn = drivers.turn(&VolumeKey::new(&csi.driver, volume_of(attachment))).await;
        let called = async {
            let controller = drivers.controller(&csi.driver, Place::Node(node_of(attachment))).await?;
            controller.unpublish(&csi.volume_handle, &node_id_of(attachment)).await
        };
        let result = called.await;
        drop(turn);
        if let Err(error) = result {
            return self.went_wrong(attachment, error).await;
        }
        let mut renamed = attachment.clone();
        renamed.meta_mut().annotations.insert(NODE_ID.to_owned(), node_id);
        self.write(attachment, put(&renamed)).await
    }

    async fn unpublish(
        &self,
        volume: Option<&PersistentVolume>,
        csi: &CsiPersistentVolumeSource,
        attachment: &VolumeAttachment,
    ) -> Result<Next, Trouble> {
        let inner = &self.manager.inner;
        let node = node_of(attachment);
        let turn = inner.drivers.turn(&VolumeKey::new(&csi.driver, volume_of(attachment))).await;
        if self.must_ask(node) {
            match inner.inspect(node, &csi.driver, &csi.volume_handle, false, PATIENCE).await {
                Ok(seen) if seen.in_use => return Ok(Next::After(ASK_AGAIN)),
                Ok(_) => {}
                Err(error) => return self.went_wrong(attachment, error).await,
            }
        }
        let place = volume.map_or(Place::Anywhere, Place::of);
        let called = async {
            let controller = inner.drivers.controller(&csi.driver, place).await?;
            controller.unpublish(&csi.volume_handle, &node_id_of(attachment)).await
        };
        let result = called.await;
        drop(turn);
        match result {
            Ok(()) => self.write(attachment, delete(attachment)).await,
            Err(error) => self.went_wrong(attachment, error).await,
        }
    }

    /// Whether the node is to say that it has let go: not if it is gone, or known to be off.
    fn must_ask(&self, node: &str) -> bool {
        self.manager.inner.drivers.node(node).is_some_and(|node| !volume::lost::is_off(&node))
    }

    async fn went_wrong(&self, attachment: &VolumeAttachment, error: CallError) -> Result<Next, Trouble> {
        if let Some(with) = with_error(attachment, &error.to_string(), Timestamp::now()) {
            self.write(attachment, put(&with)).await?;
        }
        Err(error.into())
    }

    async fn write(&self, attachment: &VolumeAttachment, op: Op) -> Result<Next, Trouble> {
        let guards = vec![self.leadership.guard.clone(), unchanged(attachment)];
        Ok(self.manager.inner.store.txn(Txn { guards, ops: vec![op] }).await?.into())
    }

    /// Says at the volume which pod waits for it.
    async fn tell(&self, volume: &PersistentVolume, waits: Option<String>) -> Result<(), Trouble> {
        let said = volume.status.as_ref().map_or("", |status| status.message.as_str());
        let message = match waits {
            Some(why) if why != said => why,
            None if said.starts_with(MULTI_ATTACH) => String::new(),
            Some(_) | None => return Ok(()),
        };
        let mut with = volume.clone();
        with.status.get_or_insert_default().message = message;
        let guards = vec![self.leadership.guard.clone(), unchanged(volume)];
        self.manager.inner.store.txn(Txn { guards, ops: vec![put(&with)] }).await?;
        Ok(())
    }
}

fn node_name(pod: &Pod) -> &str {
    pod.spec.as_ref().map_or("", |spec| spec.node_name.as_str())
}

fn node_id_of(attachment: &VolumeAttachment) -> String {
    attachment.meta().annotations.get(NODE_ID).cloned().unwrap_or_else(|| node_of(attachment).to_owned())
}

fn sooner(a: Next, b: Next) -> Next {
    match (a, b) {
        (Next::Again, _) | (_, Next::Again) => Next::Again,
        (Next::After(a), Next::After(b)) => Next::After(a.min(b)),
        (Next::After(a), Next::Done) | (Next::Done, Next::After(a)) => Next::After(a),
        (Next::Done, Next::Done) => Next::Done,
    }
}
