//! What stands around a claim, gathered from the caches: what the pure decisions look at.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use parking_lot::RwLock;
use pb::{
    Kind, ObjectExt,
    objects::{PersistentVolume, PersistentVolumeClaim, Pod, StorageClass, VolumeSnapshot},
};
use plan::volume::{self, Around, ClaimState, Source};
use runtime::{Cache, Change};
use store::{Key, Prefix};
use tonic::Status;

use crate::{Inner, lookup::Lookup};

/// Volumes that wait for a claim, and drivers whose ids of volumes are not the names that they were given. Kept beside the
/// cache of all volumes, since every question about a new claim needs them.
#[derive(Default)]
pub(crate) struct Index {
    shared: RwLock<Indexed>,
}

#[derive(Default)]
struct Indexed {
    free: BTreeMap<String, Arc<PersistentVolume>>,
    foreign_ids: BTreeSet<String>,
}

impl Index {
    /// Follows the cache until it ends.
    pub(crate) async fn follow(self: Arc<Self>, volumes: Cache<PersistentVolume>) {
        let mut changes = volumes.subscribe();
        volumes.synced().await;
        self.reset(&volumes);
        while let Some(change) = changes.next().await {
            match change {
                Change::Applied { new, .. } => self.shared.write().apply(&new),
                Change::Deleted { old, .. } => {
                    self.shared.write().free.remove(old.name());
                }
                Change::Resynced => self.reset(&volumes),
            }
        }
    }

    fn reset(&self, volumes: &Cache<PersistentVolume>) {
        let mut indexed = Indexed::default();
        volumes.all().iter().for_each(|volume| indexed.apply(volume));
        *self.shared.write() = indexed;
    }

    fn free(&self) -> Vec<Arc<PersistentVolume>> {
        self.shared.read().free.values().cloned().collect()
    }

    /// Whether the driver has given a volume an id that does not begin with the name that Berth gave it.
    pub(crate) fn has_foreign_ids(&self, driver: &str) -> bool {
        self.shared.read().foreign_ids.contains(driver)
    }

    /// Remembers what a driver's id of a volume looks like.
    pub(crate) fn note_id(&self, driver: &str, id: &str) {
        if !id.starts_with("pvc-") {
            self.shared.write().foreign_ids.insert(driver.to_owned());
        }
    }
}

impl Indexed {
    fn apply(&mut self, volume: &Arc<PersistentVolume>) {
        if volume::is_free(volume) {
            self.free.insert(volume.name().to_owned(), Arc::clone(volume));
        } else {
            self.free.remove(volume.name());
        }
        let csi = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref());
        if let Some(csi) = csi
            && volume.name().starts_with("pvc-")
            && !csi.volume_handle.is_empty()
            && !csi.volume_handle.starts_with("pvc-")
        {
            self.foreign_ids.insert(csi.driver.clone());
        }
    }
}

/// What stands around one claim.
pub(crate) struct Facts {
    volume: Lookup<PersistentVolume>,
    classes: Vec<Arc<StorageClass>>,
    free: Vec<Arc<PersistentVolume>>,
    drivers: BTreeSet<String>,
    source: SourceFacts,
    users: Vec<Arc<Pod>>,
    at_once: bool,
}

enum SourceFacts {
    None,
    Snapshot(Lookup<VolumeSnapshot>),
    Claim(Lookup<PersistentVolumeClaim>, Lookup<PersistentVolume>),
}

impl Facts {
    /// What is known of the claim.
    pub(crate) fn state<'a>(&'a self, claim: &'a PersistentVolumeClaim) -> ClaimState<'a> {
        let source = match &self.source {
            SourceFacts::None => Source::None,
            SourceFacts::Snapshot(snapshot) => Source::Snapshot(snapshot.known()),
            SourceFacts::Claim(claim, volume) => Source::Claim(claim.known(), volume.known()),
        };
        let around = Around {
            classes: self.classes.iter().map(Arc::as_ref).collect(),
            free: self.free.iter().map(Arc::as_ref).collect(),
            drivers: &self.drivers,
            source,
            users: self.users.iter().map(Arc::as_ref).collect(),
            at_once: self.at_once,
        };
        volume::prepare(claim, self.volume.known(), &around)
    }

    /// The class of that name.
    pub(crate) fn class(&self, name: &str) -> Option<&Arc<StorageClass>> {
        self.classes.iter().find(|class| class.name() == name)
    }

    /// The snapshot that the claim's volume begins with.
    pub(crate) fn snapshot(&self) -> Option<&Arc<VolumeSnapshot>> {
        match &self.source {
            SourceFacts::Snapshot(snapshot) => snapshot.object(),
            SourceFacts::None | SourceFacts::Claim(..) => None,
        }
    }
}

impl Inner {
    /// Gathers what stands around a claim. `at_once`: for the leader, who binds claims of classes that bind at once.
    pub(crate) async fn facts(&self, claim: &PersistentVolumeClaim, at_once: bool) -> store::Result<Facts> {
        let bound = volume::bound_to(claim);
        let volume = self.volume_named(bound).await?;
        let one_pod =
            claim.spec.as_ref().is_some_and(|spec| spec.access_modes.iter().any(|mode| mode == "ReadWriteOncePod"));
        let users = if one_pod { self.users(claim.namespace(), claim.name()) } else { Vec::new() };
        let source = if bound.is_some() { SourceFacts::None } else { self.source(claim).await? };
        Ok(Facts {
            volume,
            classes: self.classes.all(),
            free: self.index.free(),
            drivers: self.drivers.names(),
            source,
            users,
            at_once,
        })
    }

    async fn volume_named(&self, name: Option<&str>) -> store::Result<Lookup<PersistentVolume>> {
        match name {
            Some(name) => self.look_up(&self.volumes, &Key::object(Kind::PersistentVolume, "", name)).await,
            None => Ok(Lookup::Absent),
        }
    }

    async fn source(&self, claim: &PersistentVolumeClaim) -> store::Result<SourceFacts> {
        let Some(source) = volume::source_of(claim) else { return Ok(SourceFacts::None) };
        let key = |kind| Key::object(kind, claim.namespace(), &source.name);
        Ok(match source.kind.as_str() {
            "VolumeSnapshot" => SourceFacts::Snapshot(self.look_up(&self.snapshots, &key(Kind::VolumeSnapshot)).await?),
            "PersistentVolumeClaim" => {
                let source = self.look_up(&self.claims, &key(Kind::PersistentVolumeClaim)).await?;
                let bound = source.object().and_then(|claim| volume::bound_to(claim)).map(str::to_owned);
                SourceFacts::Claim(source, self.volume_named(bound.as_deref()).await?)
            }
            _ => SourceFacts::None,
        })
    }

    /// Pods that have a node, have not ended and use a claim.
    pub(crate) fn users(&self, namespace: &str, claim: &str) -> Vec<Arc<Pod>> {
        let mut pods = self.pods.list(&Prefix::namespace(Kind::Pod, namespace));
        pods.retain(|pod| {
            let has_node = pod.spec.as_ref().is_some_and(|spec| !spec.node_name.is_empty());
            has_node && !has_ended(pod) && uses(pod, claim)
        });
        pods
    }

    /// A problem may only seem to be one: a class that cannot be read, a driver that has not said its name yet.
    pub(crate) fn is_certain(&self, problem: &volume::Problem) -> Result<(), Status> {
        if let Some(class) = self.classes.undecodable(&Prefix::kind(Kind::StorageClass)).first()
            && matches!(problem.reason, "ClassNotFound" | "NoDefaultClass")
        {
            return Err(Status::unavailable(class.to_string()));
        }
        let silent = self.drivers.silent();
        if problem.reason == "UnknownProvisioner" && !silent.is_empty() {
            return Err(Status::unavailable(format!(
                "the CSI driver at {} has not answered yet; check that it runs",
                silent.join(", ")
            )));
        }
        Ok(())
    }
}

/// Whether a pod's volumes name a claim.
pub(crate) fn uses(pod: &Pod, claim: &str) -> bool {
    claims_of(pod).any(|name| name == claim)
}

/// Names of the claims that a pod's volumes name.
pub(crate) fn claims_of(pod: &Pod) -> impl Iterator<Item = &str> {
    let volumes = pod.spec.iter().flat_map(|spec| &spec.volumes);
    volumes.filter_map(|volume| Some(volume.persistent_volume_claim.as_ref()?.claim_name.as_str()))
}

/// Whether all of a pod has ended.
pub(crate) fn has_ended(pod: &Pod) -> bool {
    pod.status.as_ref().is_some_and(|status| matches!(status.phase.as_str(), "Succeeded" | "Failed"))
}
