//! Finds volumes of drivers that no object knows, and adopts them: reclaiming then deletes them.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use parking_lot::Mutex;
use pb::{
    Kind, Object, ObjectExt,
    csi::v1::{self as csi, controller_service_capability::rpc::Type as Rpc},
    objects::{Node, PersistentVolume, PersistentVolumeClaim},
};
use plan::volume::{
    self,
    orphans::{Listing, adopted, is_for, may_be_taken, unknown},
};
use runtime::{Leadership, Queue};
use store::{
    Key, Txn, TxnOutcome,
    objects::{absent, put, unchanged},
};
use tokio::time::Instant;

use crate::{
    VolumeManager,
    drivers::Place,
    lookup::Lookup,
    provision::new_uid,
    worker::{Next, Trouble, Worker, work},
};

/// Works until leadership is lost.
pub(crate) async fn run(manager: VolumeManager, leadership: Leadership) {
    work(Orphans { manager, leadership: leadership.clone(), seen: Mutex::default() }, leadership).await;
}

/// A driver, and the node where it is asked; empty: anywhere.
type Source = (String, String);

struct Orphans {
    manager: VolumeManager,
    leadership: Leadership,
    /// When each volume that nobody knows was seen first.
    seen: Mutex<BTreeMap<Source, BTreeMap<String, Instant>>>,
}

impl Worker for Orphans {
    type Key = Source;

    const NAME: &'static str = "orphans";
    const WIDTH: usize = 4;

    async fn feed(&self, queue: &Queue<Source>) {
        let inner = &self.manager.inner;
        let everything = || inner.drivers.names().into_iter().flat_map(|name| self.sources(&name)).collect();
        let of_node = |node: &Node| -> Vec<Source> {
            let drivers = node.status.iter().flat_map(|status| &status.csi_drivers);
            drivers.map(|driver| source(&driver.name, &driver.topology_keys, node.name())).collect()
        };
        let mut met = inner.drivers.met();
        let sockets = async {
            while met.changed().await.is_ok() {
                inner.drivers.names().iter().flat_map(|name| self.sources(name)).for_each(|source| queue.add(source));
            }
        };
        // A node that reports is no news: only what is there at the start, and new drivers, are looked at out of turn.
        let nodes = async {
            let mut changes = inner.nodes.subscribe();
            while let Some(change) = changes.next().await {
                let runtime::Change::Applied { old, new, .. } = change else { continue };
                let before = old.as_deref().map(of_node).unwrap_or_default();
                of_node(&new).into_iter().filter(|s| !before.contains(s)).for_each(|source| queue.add(source));
            }
        };
        let start = async {
            inner.nodes.synced().await;
            let all: Vec<Source> = everything();
            all.into_iter().for_each(|source| queue.add(source));
        };
        tokio::join!(nodes, start, sockets);
    }

    async fn look_at(&self, source: &Source) -> Result<Next, Trouble> {
        let (driver, node) = source;
        let inner = &self.manager.inner;
        self.manager.ready().await;
        if !self.sources(driver).contains(source) {
            self.seen.lock().remove(source);
            return Ok(Next::Done);
        }
        let place = if node.is_empty() { Place::Anywhere } else { Place::Node(node) };
        let settings = inner.settings;
        let Ok(controller) = inner.drivers.controller(driver, place).await else {
            return Ok(Next::After(settings.orphan_period));
        };
        if !controller.can(Rpc::ListVolumes) {
            return Ok(Next::After(settings.orphan_period));
        }
        let volumes = controller.list_volumes().await?;
        let object = inner.drivers.node(node);
        let here = object.as_ref().map(|node| (node.name(), &node.meta().labels));
        let listing = Listing { driver, node: here, volumes: &volumes };
        let old = self.still_unknown(source, &listing);
        for orphan in old {
            self.adopt(&listing, orphan).await?;
        }
        let waiting = self.seen.lock().get(source).is_some_and(|seen| !seen.is_empty());
        Ok(Next::After(if waiting { settings.orphan_grace } else { settings.orphan_period }))
    }
}

impl Orphans {
    /// Where a driver lists all its volumes, one place at a time.
    fn sources(&self, driver: &str) -> Vec<Source> {
        let drivers = &self.manager.inner.drivers;
        if drivers.is_central(driver) {
            return vec![(driver.to_owned(), String::new())];
        }
        let mut sources: Vec<(Option<csi::Topology>, Source)> = Vec::new();
        for node in drivers.nodes_of(driver) {
            let keys = drivers.on_node(driver, node.name()).map(|on| on.topology_keys).unwrap_or_default();
            let place = volume::place_of(&node, &keys);
            if !sources.iter().any(|(known, _)| *known == place) {
                sources.push((place, self::source(driver, &keys, node.name())));
            }
        }
        sources.into_iter().map(|(_, source)| source).collect()
    }

    /// Volumes that nobody has known for long enough.
    fn still_unknown<'a>(&self, source: &Source, listing: &Listing<'a>) -> Vec<&'a csi::Volume> {
        let inner = &self.manager.inner;
        let unknown = unknown(listing, &inner.volumes.all());
        let mut all = self.seen.lock();
        let before = all.remove(source).unwrap_or_default();
        let since = |id: &str| before.get(id).copied().unwrap_or_else(Instant::now);
        let now: BTreeMap<String, Instant> =
            unknown.iter().map(|v| (v.volume_id.clone(), since(&v.volume_id))).collect();
        let old = |volume: &&csi::Volume| since(&volume.volume_id).elapsed() >= inner.settings.orphan_grace;
        let old = unknown.into_iter().filter(old).collect();
        all.insert(source.clone(), now);
        old
    }

    async fn adopt(&self, listing: &Listing<'_>, orphan: &csi::Volume) -> Result<(), Trouble> {
        let inner = &self.manager.inner;
        let mut guards = vec![self.leadership.guard.clone()];
        // What is being done with a claim's data may be about to take the volume.
        if let Some(claim) = inner.claims.all().iter().find(|claim| is_for(&orphan.volume_id, claim)) {
            match inner.read::<PersistentVolumeClaim>(&Key::of(&**claim)).await? {
                Lookup::Is(claim) if may_be_taken(&claim) => return Ok(()),
                Lookup::Is(claim) => guards.push(unchanged(&*claim)),
                Lookup::Absent => guards.push(absent(&**claim)),
                Lookup::Unreadable(_) => return Ok(()),
            }
        }
        let namesake: Lookup<PersistentVolume> =
            inner.read(&Key::object(Kind::PersistentVolume, "", &orphan.volume_id)).await?;
        let namesake: Option<Arc<PersistentVolume>> = match namesake {
            Lookup::Is(object) => Some(object),
            Lookup::Absent => None,
            Lookup::Unreadable(_) => return Ok(()),
        };
        guards.extend(namesake.as_ref().map(|object| unchanged(&**object)));
        let place = volume::selector_of(&orphan.accessible_topology).or_else(|| self.place(listing));
        let volume = adopted(listing, orphan, namesake.is_some(), place, &new_uid(), Timestamp::now());
        guards.push(absent(&volume));
        let outcome = inner.store.txn(Txn { guards, ops: vec![put(&volume)] }).await?;
        if let TxnOutcome::Committed(_) = outcome {
            let node = listing.node.map(|(node, _)| node).unwrap_or_default();
            tracing::warn!(volume = volume.name(), driver = listing.driver, node, "adopted a volume that nobody took");
        }
        Ok(())
    }

    /// The place where volumes were listed.
    fn place(&self, listing: &Listing<'_>) -> Option<pb::objects::NodeSelector> {
        let drivers = &self.manager.inner.drivers;
        let (name, _) = listing.node?;
        let keys = drivers.on_node(listing.driver, name)?.topology_keys;
        volume::selector_of(&[volume::place_of(&*drivers.node(name)?, &keys)?])
    }
}

fn source(driver: &str, keys: &[String], node: &str) -> Source {
    (driver.to_owned(), if keys.is_empty() { String::new() } else { node.to_owned() })
}
