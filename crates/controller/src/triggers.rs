//! Which sets a change wakes (STALE-3).

use model::identity::PodName;
use pb::{Kind, Object, ObjectExt, objects::*};
use plan::statefulset::ClaimView;
use runtime::{
    cache::{Change, Changes},
    queue::Queue,
};
use store::Key;

use crate::{budgets, caches::Caches, observed::SetKey};

/// Wakes sets for as long as it runs.
pub async fn run(caches: &Caches, queue: &Queue<SetKey>) {
    // Subscribed before anything is looked at: no change falls in between.
    let (sets, pods, claims) = (caches.sets.subscribe(), caches.pods.subscribe(), caches.claims.subscribe());
    let (revisions, services) = (caches.revisions.subscribe(), caches.services.subscribe());
    let snapshots = caches.snapshots.subscribe();
    let triggers = Triggers { caches, queue };
    triggers.all();
    tokio::join!(
        triggers.follow(sets, |set, _| triggers.add(SetKey::of(set))),
        triggers.follow(pods, |pod, _| triggers.pod(pod)),
        triggers.claims(claims),
        triggers.follow(snapshots, |snapshot, _| triggers.snapshot(snapshot)),
        triggers.follow(revisions, |revision, _| triggers.owner(revision.meta())),
        triggers.follow(services, |service, gone| triggers.service(service, gone)),
        budgets::follow(caches, |budget| triggers.budget(budget)),
    );
}

struct Triggers<'a> {
    caches: &'a Caches,
    queue: &'a Queue<SetKey>,
}

impl Triggers<'_> {
    async fn follow<T: Object>(&self, mut changes: Changes<T>, wake: impl Fn(&T, bool)) {
        while let Some(change) = changes.next().await {
            match change {
                Change::Applied { old, new, .. } => {
                    // Who owned it before is concerned as well.
                    let moved = old.filter(|old| old.meta().owner_references != new.meta().owner_references);
                    moved.iter().for_each(|old| wake(old, false));
                    wake(&new, false);
                }
                Change::Deleted { old, .. } => wake(&old, true),
                Change::Resynced => self.all(),
            }
        }
    }

    fn all(&self) {
        self.caches.sets.all().iter().for_each(|set| self.add(SetKey::of(set)));
    }

    fn add(&self, key: SetKey) {
        self.queue.add(key);
    }

    fn exists(&self, namespace: &str, name: &str) -> bool {
        self.caches.sets.get(&Key::object(Kind::StatefulSet, namespace, name)).is_some()
    }

    fn named(&self, namespace: &str, name: &str) {
        if self.exists(namespace, name) {
            self.add(SetKey { namespace: namespace.to_owned(), name: name.to_owned() });
        }
    }

    fn owner(&self, meta: &ObjectMeta) {
        let owner = meta.owner_references.iter().find(|owner| owner.controller == Some(true));
        if let Some(owner) = owner.filter(|owner| owner.kind == Kind::StatefulSet.name()) {
            self.named(&meta.namespace, &owner.name);
        }
    }

    /// A pod concerns the set that its name speaks of: its owner, one that may adopt it, or one whose name it takes.
    fn pod(&self, pod: &Pod) {
        match PodName::from(pod.name()).split() {
            Some((set, _)) => self.named(pod.namespace(), set.as_str()),
            None => self.owner(pod.meta()),
        }
    }

    /// A claim concerns a set when it goes or is about to: a new one is needed (PVC-5, PVC-8), when its owners change,
    /// and when it comes to look otherwise to its set: it has grown, it is held, its volume is lost.
    async fn claims(&self, mut changes: Changes<PersistentVolumeClaim>) {
        while let Some(change) = changes.next().await {
            match change {
                Change::Applied { old, new, .. } => {
                    let owned = |claim: &PersistentVolumeClaim| !claim.meta().owner_references.is_empty();
                    let always = new.is_terminating() || owned(&new) || old.as_deref().is_some_and(owned);
                    self.claim(&new, |set| always || old.as_ref().is_some_and(|old| look_different(set, old, &new)));
                }
                Change::Deleted { old, .. } => self.claim(&old, |_| true),
                Change::Resynced => self.all(),
            }
        }
    }

    /// A claim's name ends in `-<set>-<ordinal>`, where both parts may hold dashes.
    fn claim(&self, claim: &PersistentVolumeClaim, concerns: impl Fn(&StatefulSet) -> bool) {
        for name in sets_by_claim(claim.name()) {
            let set = self.caches.sets.get(&Key::object(Kind::StatefulSet, claim.namespace(), name));
            if let Some(set) = set.filter(|set| concerns(set)) {
                self.add(SetKey::of(&set));
            }
        }
    }

    /// A snapshot concerns the set of its claim, which may wait for it.
    fn snapshot(&self, snapshot: &VolumeSnapshot) {
        let source = snapshot.spec.as_ref().and_then(|spec| spec.source.as_ref());
        let claim = source.map_or("", |source| source.persistent_volume_claim_name.as_str());
        sets_by_claim(claim).for_each(|set| self.named(snapshot.namespace(), set));
    }

    /// What a budget comes to may let a set go on that it held back.
    fn budget(&self, budget: &PodDisruptionBudget) {
        budgets::sets_of(self.caches, budget).into_iter().for_each(|set| self.add(set));
    }

    /// A Service that is gone is made again for the sets that name it.
    fn service(&self, service: &Service, gone: bool) {
        if !gone {
            return;
        }
        let namespace = service.namespace();
        for set in self.caches.sets.list(&store::Prefix::namespace(Kind::StatefulSet, namespace)) {
            if set.spec.as_ref().is_some_and(|spec| spec.service_name == service.name()) {
                self.add(SetKey::of(&set));
            }
        }
    }
}

/// Whether a change of a claim is one that its set looks at.
fn look_different(set: &StatefulSet, old: &PersistentVolumeClaim, new: &PersistentVolumeClaim) -> bool {
    ClaimView::seen(old, set) != ClaimView::seen(new, set)
}

/// The names of sets that a claim of this name could be of.
fn sets_by_claim(claim: &str) -> impl Iterator<Item = &str> {
    let base = claim.rsplit_once('-').filter(|(_, ordinal)| ordinal.bytes().all(|digit| digit.is_ascii_digit()));
    let base = base.map_or("", |(base, _)| base);
    base.match_indices('-').filter_map(|(dash, _)| base.get(dash + 1..))
}
