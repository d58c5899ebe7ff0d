//! Garbage: dependents of what is gone, claims that nobody uses any more, pods that never ran.
//!
//! `plan::gc` decides about owners and dependents. That an owner is gone is compared by the store when its dependent is
//! deleted: a cache that lags deletes nothing (I6, I27). Volumes whose claim is gone are the volume manager's.

mod claim;
mod family;

use pb::{Kind, Object, ObjectExt, objects::*};
use runtime::{
    cache::{Change, Changes},
    queue::Queue,
};
use store::Key;

use crate::{
    caches::Caches,
    metrics,
    object::may_vanish,
    step::Surroundings,
    write::{Draft, Fault},
};
use family::OwnerKey;

/// Jobs that are worked on at the same time.
const WORKERS: usize = 4;

/// Something to look at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Job {
    /// An owner that is gone or going, with all that it owns.
    Owner(OwnerKey),
    /// A claim that is being deleted.
    Claim(Key),
    /// A pod that is being deleted and has no node.
    Pod(Key),
}

/// Collects garbage until dropped.
pub async fn run(caches: Caches, around: Surroundings) {
    let collector = Collector { caches, around, queue: Queue::new() };
    let workers = (0..WORKERS).map(|_| collector.work());
    tokio::join!(collector.follow(), futures::future::join_all(workers));
}

/// Does once all that is due as far as the caches show. For those that keep time themselves, such as the simulator.
///
/// # Errors
/// The first that a job ended with. One that fails does not keep the others.
pub async fn sweep(caches: &Caches, around: &Surroundings) -> Result<(), Fault> {
    let collector = Collector { caches: caches.clone(), around: around.clone(), queue: Queue::new() };
    collector.all();
    let mut result = Ok(());
    while !collector.queue.is_empty() {
        let Some(work) = collector.queue.take().await else { break };
        result = result.and(collector.job(&work).await);
    }
    result
}

struct Collector {
    caches: Caches,
    around: Surroundings,
    queue: Queue<Job>,
}

impl Collector {
    async fn work(&self) {
        while let Some(work) = self.queue.take().await {
            match self.job(&work).await {
                Ok(()) => work.forget(),
                Err(fault) => {
                    match &fault {
                        Fault::Conflict => metrics::get().conflicts.inc(),
                        _ => metrics::get().failures.inc(),
                    };
                    tracing::debug!(job = ?*work, error = %fault, "garbage is looked at again");
                    work.retry();
                }
            }
        }
    }

    async fn job(&self, job: &Job) -> Result<(), Fault> {
        match job {
            Job::Owner(owner) => family::collect(&self.caches, &self.around, owner).await,
            Job::Claim(key) => claim::release(&self.caches, &self.around, key).await,
            Job::Pod(key) => self.forget_pod(key).await,
        }
    }

    /// A pod without a node runs nowhere: once it is to go, it goes (NL-5).
    async fn forget_pod(&self, key: &Key) -> Result<(), Fault> {
        let Some(pod) = self.caches.pods.get(key) else { return Ok(()) };
        if !pod.is_terminating() || !may_vanish(&pod) {
            return Ok(());
        }
        let mut draft = Draft::new([store::objects::unchanged(pod.as_ref())]);
        draft.delete(pod.as_ref());
        draft.commit(self.around.store.as_ref(), self.around.fence.as_ref()).await.map(drop)
    }

    async fn follow(&self) {
        // Subscribed before anything is looked at: no change falls in between.
        let (sets, pods, claims) =
            (self.caches.sets.subscribe(), self.caches.pods.subscribe(), self.caches.claims.subscribe());
        let (revisions, services) = (self.caches.revisions.subscribe(), self.caches.services.subscribe());
        self.all();
        tokio::join!(
            self.each(sets, |set, gone| self.set(set, gone)),
            self.each(pods, |pod, gone| self.pod(pod, gone)),
            self.each(claims, |claim, gone| self.claim(claim, gone)),
            self.each(revisions, |revision, _| self.dependent(revision)),
            self.each(services, |service, _| self.dependent(service)),
        );
    }

    async fn each<T: Object>(&self, mut changes: Changes<T>, look: impl Fn(&T, bool)) {
        while let Some(change) = changes.next().await {
            match change {
                Change::Applied { new, .. } => look(&new, false),
                Change::Deleted { old, .. } => look(&old, true),
                Change::Resynced => self.all(),
            }
        }
    }

    fn all(&self) {
        self.caches.sets.all().iter().for_each(|set| self.set(set, false));
        self.caches.pods.all().iter().for_each(|pod| self.pod(pod, false));
        self.caches.claims.all().iter().for_each(|claim| self.claim(claim, false));
        self.caches.revisions.all().iter().for_each(|revision| self.dependent(revision.as_ref()));
        self.caches.services.all().iter().for_each(|service| self.dependent(service.as_ref()));
    }

    fn set(&self, set: &StatefulSet, gone: bool) {
        if gone || set.is_terminating() {
            self.queue.add(Job::Owner(OwnerKey::of(set)));
        }
    }

    fn pod(&self, pod: &Pod, gone: bool) {
        self.dependent(pod);
        let ended = pod.status.as_ref().is_some_and(|status| matches!(status.phase.as_str(), "Failed" | "Succeeded"));
        if gone || ended {
            for claim in claim::used_by(pod) {
                let key = Key::object(Kind::PersistentVolumeClaim, pod.namespace(), claim);
                if let Some(claim) = self.caches.claims.get(&key) {
                    self.claim(&claim, false);
                }
            }
        }
        if !gone && pod.is_terminating() && may_vanish(pod) {
            self.queue.add(Job::Pod(Key::of(pod)));
        }
    }

    fn claim(&self, claim: &PersistentVolumeClaim, gone: bool) {
        self.dependent(claim);
        if !gone && claim.is_terminating() {
            self.queue.add(Job::Claim(Key::of(claim)));
        }
    }

    /// Looks at the owners of a dependent that do not simply live.
    fn dependent<T: Object>(&self, dependent: &T) {
        for owner in OwnerKey::all_of(dependent) {
            if !family::lives(&self.caches, &owner) {
                self.queue.add(Job::Owner(owner));
            }
        }
    }
}
