//! What a step about one set looks at: stored objects, as the caches show them.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use pb::{ObjectExt, objects::*};
use plan::{
    budget::Budget,
    statefulset::{Objects, Snapshot},
};
use store::Revision;

/// Names a set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetKey {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl SetKey {
    /// The key of a set.
    pub fn of(set: &StatefulSet) -> Self {
        Self { namespace: set.namespace().to_owned(), name: set.name().to_owned() }
    }
}

impl std::fmt::Display for SetKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The objects around one set.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The set.
    pub set: Arc<StatefulSet>,
    /// Every pod of the namespace that could matter to the set, by name.
    pub pods: BTreeMap<String, Arc<Pod>>,
    /// No pod that is missing in `pods`, or differs from it, was written at this revision or before.
    pub pods_at: Revision,
    /// Every claim of the namespace that could matter to the set, by name.
    pub claims: BTreeMap<String, Arc<PersistentVolumeClaim>>,
    /// Every revision of the namespace that could matter to the set, by name.
    pub revisions: BTreeMap<String, Arc<ControllerRevision>>,
    /// As `pods_at`, for `revisions`.
    pub revisions_at: Revision,
    /// VolumeSnapshots of the set's claims, by name; none if the set does not take any.
    pub snapshots: BTreeMap<String, Arc<VolumeSnapshot>>,
    /// Whether there is a Service of the name that the set gives.
    pub service_exists: bool,
    /// Disruption budgets that count a pod of the set, with all pods that they count.
    pub budgets: Vec<Budget>,
    /// As `pods_at`, for disruption budgets.
    pub budgets_at: Revision,
}

impl Observed {
    /// Puts objects in order of their names.
    pub fn by_name<T: ObjectExt>(objects: impl IntoIterator<Item = Arc<T>>) -> BTreeMap<String, Arc<T>> {
        objects.into_iter().map(|object| (object.name().to_owned(), object)).collect()
    }

    /// What the planner looks at.
    pub fn snapshot(&self, now: Timestamp) -> Snapshot {
        let pods: Vec<_> = self.pods.values().map(Arc::as_ref).collect();
        let claims: Vec<_> = self.claims.values().map(Arc::as_ref).collect();
        let revisions: Vec<_> = self.revisions.values().map(Arc::as_ref).collect();
        let service_exists = self.service_exists;
        let (pods, claims, revisions, budgets) = (&pods[..], &claims[..], &revisions[..], &self.budgets[..]);
        let objects = Objects { set: &self.set, pods, claims, revisions, service_exists, budgets };
        Snapshot::of(now, objects).with_snapshots(self.snapshots.values().map(Arc::as_ref))
    }
}
