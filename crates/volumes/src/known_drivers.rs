//! A CsiDriver object for each driver that was met and has none.

use jiff::Timestamp;
use pb::{
    Kind,
    csi::v1::controller_service_capability::rpc::Type as Rpc,
    objects::{CsiDriver, CsiDriverSpec, Node, ObjectMeta},
};
use runtime::{Leadership, Queue};
use store::{
    Key, Txn,
    objects::{absent, put},
};

use crate::{
    VolumeManager,
    drivers::Place,
    lookup::Lookup,
    provision::new_uid,
    worker::{Next, Trouble, Worker, follow, work},
};

/// The drivers that come with Berth. Their volumes are files of the node whatever they are made of.
const BUILT_IN: [&str; 2] = ["local", "shared"];

/// Who gives a volume's files to the pod's group: for a driver that nobody described, what Kubernetes takes.
fn fs_group_policy(driver: &str) -> &'static str {
    if BUILT_IN.contains(&driver) { "File" } else { "ReadWriteOnceWithFSType" }
}

/// Works until leadership is lost.
pub(crate) async fn run(manager: VolumeManager, leadership: Leadership) {
    work(KnownDrivers { manager, leadership: leadership.clone() }, leadership).await;
}

struct KnownDrivers {
    manager: VolumeManager,
    leadership: Leadership,
}

impl Worker for KnownDrivers {
    /// Name of a driver.
    type Key = String;

    const NAME: &'static str = "drivers";
    const WIDTH: usize = 2;

    async fn feed(&self, queue: &Queue<String>) {
        let inner = &self.manager.inner;
        let everything = || inner.drivers.names().into_iter().collect();
        let of_node = |node: &Node| -> Vec<String> {
            let status = node.status.iter().flat_map(|status| &status.csi_drivers);
            status.map(|driver| driver.name.clone()).collect()
        };
        let of_driver = |driver: &CsiDriver| Some(pb::ObjectExt::name(driver).to_owned());
        let mut met = inner.drivers.met();
        let sockets = async {
            loop {
                inner.drivers.names().into_iter().for_each(|name| queue.add(name));
                if met.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::join!(
            follow(&inner.nodes, queue, of_node, everything),
            follow(&inner.csi_drivers, queue, of_driver, everything),
            sockets
        );
    }

    async fn look_at(&self, name: &String) -> Result<Next, Trouble> {
        let inner = &self.manager.inner;
        let key = Key::object(Kind::CsiDriver, "", name);
        let known = inner.look_up(&inner.csi_drivers, &key).await?;
        if !matches!(known, Lookup::Absent) || !inner.drivers.names().contains(name) {
            return Ok(Next::Done);
        }
        let controller = inner.drivers.controller(name, Place::Anywhere).await?;
        let driver = CsiDriver {
            metadata: Some(ObjectMeta {
                name: name.clone(),
                uid: new_uid(),
                generation: 1,
                creation_timestamp: Some(Timestamp::now().into()),
                ..ObjectMeta::default()
            }),
            spec: Some(CsiDriverSpec {
                attach_required: Some(controller.can(Rpc::PublishUnpublishVolume)),
                storage_capacity: Some(controller.can(Rpc::GetCapacity)),
                pod_info_on_mount: Some(false),
                requires_republish: Some(false),
                fs_group_policy: Some(fs_group_policy(name).to_owned()),
                volume_lifecycle_modes: vec!["Persistent".to_owned()],
            }),
            ..CsiDriver::default()
        };
        let guards = vec![self.leadership.guard.clone(), absent(&driver)];
        Ok(inner.store.txn(Txn { guards, ops: vec![put(&driver)] }).await?.into())
    }
}
