//! The families of scenarios that the controller's own tests in Kubernetes go through, and those of what Berth adds, as
//! stories: each for both pod management policies and all four retention policies, first without faults and then with
//! any one call of the controller or of the collector of garbage going wrong (an error before the call is done, an error
//! after, a crash before, a crash after). `sim::script` says how.
//!
//! Each fault is played in one of the eight cases; `EVERY_FAULT=1` plays each in all of them, best with `--release`.
//!
//! # The ten invariants
//!
//! Held after every commit of every history unless it says otherwise. Ids such as I7 are those of `check`; 2.4/3 and the
//! like are laws of the script.
//!
//! | | invariant | held by |
//! |---|---|---|
//! | 1 | one pod, and one process, for each identity | I1; 2.4/1: a node starts no second process of a name |
//! | 2 | OrderedReady: a pod is created only when all lower ones are available, without gaps | I7, I8 |
//! | 3 | whatever else is broken, a pod has the right name, labels, owner, claims and volumes | 2.4/3 at its creation; `control::repairs_the_identity_of_a_pod` later |
//! | 4 | OrderedReady: the first pods are of the current revision, the last of the update revision | 2.4/4 in stories that are `orderly` (nothing else takes pods away, no template changes in the middle); I9, I10 |
//! | 5 | all claims of a pod are there at its creation and stay; their owners are those of the retention table | 2.4/5 at creation and where a story settles; I6/owner, I6/first, I6/settled |
//! | 6 | no claim goes but by its owner's removal under the policy, or by a user | I6; 2.4/6: where a story settles none is left that the policy gives up |
//! | 7 | Parallel: an update never makes more pods unavailable than maxUnavailable, unless more were so before | 2.4/7, I9 |
//! | 8 | the counts of every written status fit together, observedGeneration never falls | I22, I22/observed; I22/true where a story settles |
//! | 9 | from every crash and every failed call: all pods, available, at their revision | 2.4/9 comes to rest, I24, I25 complete; it comes to rest in the same state as without the fault |
//! | 10 | nothing is written when nothing is left to do | 2.4/10: processes that start anew write nothing, and no story ends in a loop |
//!
//! # Where the families are
//!
//! | in Kubernetes' tests | here |
//! |---|---|
//! | creates, scales, replaces pods; recreates failed and succeeded ones; pending pod without claim; start ordinal; scale-down that cannot delete; burst; halts; blocks | `control` |
//! | create-pod, update-pod, delete-pod, status and claim failures | every story: each call fails once |
//! | claims by retention policy, stale claims, owners of old sets, foreign controllers, orphans with a policy that deletes | `claims` |
//! | revisions: first, none, change, roll back, collision with equal and with other data, history limit, adoption | `revisions` |
//! | rolling update, OnDelete, partition, maxUnavailable, minReadySeconds, roll back, Recreate; healing, pause, deadline | `update` |
//! | adoption, release, deletion of the set | `members` |
//! | (Berth's own) claims that grow, data that is kept | `volumes` |
//! | what the caches show is no longer so | `meanwhile`: others act between any two calls of the controller |

mod claims;
mod control;
mod histories;
mod meanwhile;
mod members;
mod revisions;
mod update;
mod volumes;

use sim::script::{Faults, Story};

/// The story holds in every case, also when any one call goes wrong.
fn hold(story: &Story) {
    let faults = if std::env::var_os("EVERY_FAULT").is_some() { Faults::Every } else { Faults::Spread };
    match story.hold(faults) {
        Ok(tally) => println!("{} histories, {} commits", tally.histories, tally.commits),
        Err(failure) => panic!("{failure}"),
    }
}
