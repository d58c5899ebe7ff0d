//! Says which volumes are lost with their nodes: `plan::volume::lost` decides.

use std::time::Duration;

use jiff::Timestamp;
use pb::{
    Kind, Object, ObjectExt,
    objects::{Node, PersistentVolume, PersistentVolumeClaim},
};
use plan::volume::{
    self,
    lost::{self, Nodes},
};
use runtime::{Change, Leadership, Queue};
use store::{
    Guard, Key, Txn,
    objects::{put, unchanged},
};

use crate::{
    VolumeManager,
    data::{owner_key, volume_key},
    lookup::Lookup,
    worker::{Next, Trouble, Worker, follow, work},
};

/// After this time a cache that lags behind the store shows what the store said.
const LAG: Duration = Duration::from_secs(1);

/// Works until leadership is lost.
pub(crate) async fn run(manager: VolumeManager, leadership: Leadership) {
    work(Watcher { manager, leadership: leadership.clone() }, leadership).await;
}

struct Watcher {
    manager: VolumeManager,
    leadership: Leadership,
}

impl Worker for Watcher {
    /// Name of a volume.
    type Key = String;

    const NAME: &'static str = "lost";
    const WIDTH: usize = 2;

    async fn feed(&self, queue: &Queue<String>) {
        let inner = &self.manager.inner;
        inner.nodes.synced().await;
        let everything = || inner.volumes.all().iter().map(|volume| volume.name().to_owned()).collect();
        let of_claim = |claim: &PersistentVolumeClaim| volume::bound_to(claim).map(str::to_owned);
        let of_volume = |volume: &PersistentVolume| Some(volume.name().to_owned());
        tokio::join!(
            follow(&inner.claims, queue, of_claim, everything),
            follow(&inner.volumes, queue, of_volume, everything),
            self.nodes(queue),
        );
    }

    async fn look_at(&self, name: &String) -> Result<Next, Trouble> {
        let inner = &self.manager.inner;
        let Some(volume) = inner.volumes.get(&volume_key(name)) else { return Ok(Next::Done) };
        let claim = match owner_key(&volume) {
            Some(key) => inner.look_up(&inner.claims, &key).await?,
            None => Lookup::Absent,
        };
        let owner = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()).map_or("", |owner| &owner.uid);
        let claim = claim.object().filter(|claim| claim.uid() == owner && volume::bound_to(claim) == Some(name));
        let nodes = inner.all_nodes();
        let verdict = lost::verdict(&volume, claim.map(|claim| &**claim), &nodes, Timestamp::now());
        if verdict == lost::Verdict::default() {
            return Ok(Next::Done);
        }
        let Some(absent) = self.certain(&volume, &nodes).await? else { return Ok(Next::After(LAG)) };
        let mut guards = vec![self.leadership.guard.clone(), unchanged(&*volume)];
        guards.extend(absent);
        guards.extend(claim.map(|claim| unchanged(&**claim)));
        let claim_after = verdict.claim.as_deref().map(put);
        let ops = verdict.volume.as_deref().map(put).into_iter().chain(claim_after).collect();
        Ok(inner.store.txn(Txn { guards, ops }).await?.into())
    }
}

impl Watcher {
    /// Everything is looked at when a node comes, goes, or is no longer what matters here.
    async fn nodes(&self, queue: &Queue<String>) {
        let inner = &self.manager.inner;
        let mut changes = inner.nodes.subscribe();
        let same =
            |old: &Node, new: &Node| lost::is_off(old) == lost::is_off(new) && old.meta().labels == new.meta().labels;
        let all = || inner.volumes.all().iter().for_each(|volume| queue.add(volume.name().to_owned()));
        all();
        while let Some(change) = changes.next().await {
            match change {
                Change::Applied { old: Some(old), new, .. } if same(&old, &new) => {}
                Change::Applied { .. } | Change::Deleted { .. } | Change::Resynced => all(),
            }
        }
    }

    /// The nodes that the volume names and that the caches do not show: "gone" is the store's own word. Gives the
    /// guards that they are not there; None if one is.
    async fn certain(&self, volume: &PersistentVolume, nodes: &Nodes) -> Result<Option<Vec<Guard>>, Trouble> {
        let mut guards = Vec::new();
        for name in
            volume::reachable(volume).into_iter().flat_map(lost::named).filter(|name| !nodes.contains_key(*name))
        {
            let key = Key::object(Kind::Node, "", name);
            if self.manager.inner.store.get(&key).await?.is_some() {
                return Ok(None);
            }
            guards.push(Guard::Absent(key));
        }
        Ok(Some(guards))
    }
}
