//! What the controller knows: one cache for each kind that its decisions look at.

use std::{sync::Arc, time::Duration};

use model::identity::{PodName, SetName};
use pb::{Kind, Object, ObjectExt, objects::*};
use runtime::{Cache, reflect_with, tasks::Tasks};
use store::{
    Key, Kv, Prefix, Store,
    objects::{Undecodable, decode},
};

use crate::{
    budgets,
    observed::{Observed, SetKey},
    write::Wrote,
};

/// How long a step waits for the caches to show the last write about its set.
const CATCH_UP: Duration = Duration::from_secs(5);

/// The caches. Clones share them.
#[derive(Clone)]
pub struct Caches {
    /// StatefulSets.
    pub sets: Cache<StatefulSet>,
    /// Pods.
    pub pods: Cache<Pod>,
    /// Claims.
    pub claims: Cache<PersistentVolumeClaim>,
    /// ControllerRevisions.
    pub revisions: Cache<ControllerRevision>,
    /// Services.
    pub services: Cache<Service>,
    /// Disruption budgets.
    pub budgets: Cache<PodDisruptionBudget>,
    /// VolumeSnapshots.
    pub snapshots: Cache<VolumeSnapshot>,
    /// Nodes.
    pub nodes: Cache<Node>,
    /// The keys that live as long as the nodes' leases: names of nodes.
    pub leases: Cache<String>,
}

/// What keeps caches in step with the store.
pub trait Source {
    /// A cache of all values under a prefix.
    fn reflect<V, F>(&mut self, prefix: Prefix, decode: F) -> Cache<V>
    where
        V: Send + Sync + 'static,
        F: Fn(&Kv) -> Result<V, Undecodable> + Send + Sync + 'static;
}

/// Reflectors on tasks of their own.
struct Reflectors<'a> {
    store: &'a Arc<dyn Store>,
    tasks: &'a Tasks,
}

impl Source for Reflectors<'_> {
    fn reflect<V, F>(&mut self, prefix: Prefix, decode: F) -> Cache<V>
    where
        V: Send + Sync + 'static,
        F: Fn(&Kv) -> Result<V, Undecodable> + Send + Sync + 'static,
    {
        reflect_with(Arc::clone(self.store), prefix, self.tasks, decode)
    }
}

impl Caches {
    /// Starts to reflect the store.
    pub fn start(store: &Arc<dyn Store>, tasks: &Tasks) -> Self {
        Self::of(&mut Reflectors { store, tasks })
    }

    /// The caches, kept in step by `source`.
    pub fn of(source: &mut impl Source) -> Self {
        fn objects<T: Object>(source: &mut impl Source) -> Cache<T> {
            source.reflect(Prefix::kind(T::KIND), decode)
        }
        Self {
            sets: objects(source),
            pods: objects(source),
            claims: objects(source),
            revisions: objects(source),
            services: objects(source),
            budgets: objects(source),
            snapshots: objects(source),
            nodes: objects(source),
            leases: source.reflect(Prefix::node_leases(), |kv| Ok(kv.key.name().to_owned())),
        }
    }

    /// Waits until every cache has its first list.
    pub async fn synced(&self) {
        self.sets.synced().await;
        self.pods.synced().await;
        self.claims.synced().await;
        self.revisions.synced().await;
        self.services.synced().await;
        self.budgets.synced().await;
        self.snapshots.synced().await;
        self.nodes.synced().await;
        self.leases.synced().await;
    }

    /// Waits until the caches show what was written; false if they did not in time.
    pub async fn show(&self, wrote: &Wrote) -> bool {
        let all = async {
            self.sets.reached(wrote.sets).await;
            self.pods.reached(wrote.pods).await;
            self.claims.reached(wrote.claims).await;
            self.revisions.reached(wrote.revisions).await;
            self.services.reached(wrote.services).await;
            self.snapshots.reached(wrote.snapshots).await;
        };
        tokio::time::timeout(CATCH_UP, all).await.is_ok()
    }

    /// What a step about a set looks at; None if there is no such set. An object around the set that cannot be
    /// decoded is not absent: nothing is decided while it is there.
    pub fn observe(&self, key: &SetKey) -> Result<Option<Observed>, Undecodable> {
        let Some(set) = self.sets.get(&Key::object(Kind::StatefulSet, &key.namespace, &key.name)) else {
            return Ok(None);
        };
        let name = SetName::from(set.name());
        let start = format!("{name}-");
        // Read before the objects, so that none written up to here is missing.
        let (pods_at, revisions_at) = (self.pods.revision(), self.revisions.revision());
        let budgets_at = self.budgets.revision();
        let pods = Prefix::names(Kind::Pod, &key.namespace, &start);
        let revisions = Prefix::names(Kind::ControllerRevision, &key.namespace, &start);
        let spec = set.spec.clone().unwrap_or_default();
        let templates = spec.volume_claim_templates.iter();
        let claims = templates.map(|template| {
            let start = format!("{}-{start}", template.name());
            Prefix::names(Kind::PersistentVolumeClaim, &key.namespace, &start)
        });
        let claims: Vec<_> = claims.collect();
        // Looked at by those who take them alone.
        let takes_snapshots = spec.volume_policy.as_ref().is_some_and(|policy| policy.snapshot_before_update);
        let templates = spec.volume_claim_templates.iter().filter(|_| takes_snapshots);
        let snapshots = templates.flat_map(|template| {
            let start = format!("{}-{start}", template.name());
            self.snapshots.list(&Prefix::names(Kind::VolumeSnapshot, &key.namespace, &start))
        });
        let snapshots = Observed::by_name(snapshots);
        let service = Key::object(Kind::Service, &key.namespace, &spec.service_name);

        let its_own = |unknown: &Undecodable| name.ordinal_of(&PodName::from(unknown.key.name())).is_some();
        let unknown = self.pods.undecodable(&pods).into_iter().find(its_own);
        let unknown = unknown.or_else(|| self.revisions.undecodable(&revisions).into_iter().next());
        let unknown = unknown.or_else(|| claims.iter().flat_map(|prefix| self.claims.undecodable(prefix)).next());
        if let Some(unknown) = unknown {
            return Err(unknown);
        }
        // An undecodable Service exists: it is there, whatever it says.
        let prefix = Prefix::from_raw(service.as_str());
        let broken_service = || self.services.undecodable(&prefix).iter().any(|unknown| unknown.key == service);
        let pods = Observed::by_name(self.pods.list(&pods));
        Ok(Some(Observed {
            budgets: budgets::around(self, &key.namespace, &pods),
            pods,
            pods_at,
            claims: Observed::by_name(claims.iter().flat_map(|prefix| self.claims.list(prefix))),
            revisions: Observed::by_name(self.revisions.list(&revisions)),
            revisions_at,
            snapshots,
            budgets_at,
            service_exists: spec.service_name.is_empty() || self.services.get(&service).is_some() || broken_service(),
            set,
        }))
    }
}
