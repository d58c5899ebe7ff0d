//! Garbage: dependents of what is gone, claims that nobody uses any more, pods that never ran.
//!
//! `plan::gc` decides about owners and dependents. That an owner is gone is compared by the store when its dependent is
//! deleted: a cache that lags deletes nothing (I6, I27). Volumes whose claim is gone are the volume manager's.

mod claim;
mod family;

use std::{cell::RefCell, collections::BTreeSet};

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
pub enum Job {
    /// An owner that is gone or going, with all that it owns.
    Owner(OwnerKey),
    /// A claim that is being deleted.
    Claim(Key),
    /// A pod that is being deleted and has no node.
    Pod(Key),
}

/// Everything that there is to look at, as the caches show it.
pub fn jobs(caches: &Caches) -> BTreeSet<Job> {
    let jobs = RefCell::new(BTreeSet::new());
    Finder { caches, add: |job| jobs.borrow_mut().extend([job]) }.all();
    jobs.into_inner()
}

/// Does what is due about one of them, from what the caches show.
///
/// # Errors
/// What ended it early. It is to be looked at again.
pub async fn collect(caches: &Caches, around: &Surroundings, job: &Job) -> Result<(), Fault> {
    match job {
        Job::Owner(owner) => family::collect(caches, around, owner).await,
        Job::Claim(key) => claim::release(caches, around, key).await,
        Job::Pod(key) => forget_pod(caches, around, key).await,
    }
}

/// A pod without a node runs nowhere: once it is to go, it goes (NL-5).
async fn forget_pod(caches: &Caches, around: &Surroundings, key: &Key) -> Result<(), Fault> {
    let Some(pod) = caches.pods.get(key) else { return Ok(()) };
    if !pod.is_terminating() || !may_vanish(&pod) {
        return Ok(());
    }
    let mut draft = Draft::new([store::objects::unchanged(pod.as_ref())]);
    draft.delete(pod.as_ref());
    draft.commit(around.store.as_ref(), around.fence.as_ref()).await.map(drop)
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
    let mut result = Ok(());
    for job in jobs(caches) {
        result = result.and(collect(caches, around, &job).await);
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
            match collect(&self.caches, &self.around, &work).await {
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

    async fn follow(&self) {
        // Subscribed before anything is looked at: no change falls in between.
        let (sets, pods, claims) =
            (self.caches.sets.subscribe(), self.caches.pods.subscribe(), self.caches.claims.subscribe());
        let (revisions, services) = (self.caches.revisions.subscribe(), self.caches.services.subscribe());
        let finder = Finder { caches: &self.caches, add: |job| self.queue.add(job) };
        finder.all();
        tokio::join!(
            finder.each(sets, |set, gone| finder.set(set, gone)),
            finder.each(pods, |pod, gone| finder.pod(pod, gone)),
            finder.each(claims, |claim, gone| finder.claim(claim, gone)),
            finder.each(revisions, |revision, _| finder.dependent(revision)),
            finder.each(services, |service, _| finder.dependent(service)),
        );
    }
}

/// Finds what there is to look at.
struct Finder<'a, A> {
    caches: &'a Caches,
    add: A,
}

impl<A: Fn(Job)> Finder<'_, A> {
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
            (self.add)(Job::Owner(OwnerKey::of(set)));
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
            (self.add)(Job::Pod(Key::of(pod)));
        }
    }

    fn claim(&self, claim: &PersistentVolumeClaim, gone: bool) {
        self.dependent(claim);
        if !gone && claim.is_terminating() {
            (self.add)(Job::Claim(Key::of(claim)));
        }
    }

    /// Looks at the owners of a dependent that do not simply live.
    fn dependent<T: Object>(&self, dependent: &T) {
        for owner in OwnerKey::all_of(dependent) {
            if !family::lives(self.caches, &owner) {
                (self.add)(Job::Owner(owner));
            }
        }
    }
}
