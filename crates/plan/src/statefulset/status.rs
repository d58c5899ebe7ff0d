//! What a set reports of itself (STAT-1 to STAT-11).
//!
//! Counts are of pods as the snapshot shows them: a pod created by the plan does not count yet, a pod deleted by it
//! still does. Holds I22: what is written is a count over one snapshot, and observedGeneration never falls.

use std::time::Duration;

use jiff::Timestamp;
use model::{
    identity::{Ordinal, RevisionName},
    mutant::{Mutant, planted},
};

use super::{
    draft::Draft,
    snapshot::{PodView, SetView, Snapshot},
};

/// The part of a set's status that its controller decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// status.observedGeneration
    pub observed_generation: i64,
    /// Pods that exist, terminating ones included (STAT-2).
    pub replicas: i32,
    /// Pods that are Running and Ready (STAT-3).
    pub ready: i32,
    /// Those of them that have been ready for minReadySeconds (STAT-4).
    pub available: i32,
    /// Pods at the current revision that are not terminating (STAT-5).
    pub current: i32,
    /// Pods at the update revision, and with the overrides of their ordinals, that are not terminating (STAT-6).
    pub updated: i32,
    /// status.currentRevision
    pub current_revision: Option<RevisionName>,
    /// status.updateRevision
    pub update_revision: Option<RevisionName>,
    /// status.collisionCount
    pub collisions: Option<u32>,
    /// status.completeRevision
    pub complete_revision: Option<RevisionName>,
    /// status.failedRevision
    pub failed_revision: Option<RevisionName>,
    /// status.lastProgressTime
    pub last_progress: Option<Timestamp>,
    /// status.conditions that the controller decides.
    pub conditions: Vec<Condition>,
    /// status.blockedOn
    pub blocked_on: Option<BlockedOn>,
    /// status.volumeClaims
    pub volume_claims: Vec<ClaimsStatus>,
}

/// How far the claims of one template have become what it says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClaimsStatus {
    /// The template.
    pub name: String,
    /// Claims that there are, of ordinals in range.
    pub replicas: i32,
    /// Those of them that have at least the template's size, and its labels and annotations.
    pub fitting: i32,
    /// The ordinal whose claim is growing.
    pub expanding: Option<Ordinal>,
    /// Why it takes so long; may be empty.
    pub message: String,
}

/// One condition of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Which: Available, Progressing, Degraded.
    pub kind: String,
    /// Whether it holds.
    pub holds: bool,
    /// Since when it does, or does not.
    pub since: Timestamp,
    /// Why, in one word.
    pub reason: String,
    /// Why, in a sentence.
    pub message: String,
}

/// The first thing that what is wanted waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockedOn {
    /// The ordinal that is held up; None if it is the set as a whole.
    pub ordinal: Option<Ordinal>,
    /// Why, in one word.
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
}

impl Status {
    /// Counts the set's pods.
    pub(super) fn count(draft: &Draft<'_>, pods: &[&PodView]) -> Self {
        let snapshot = draft.snapshot;
        let current = &draft.revisions.current;
        let of = |test: &dyn Fn(&PodView) -> bool| {
            i32::try_from(pods.iter().filter(|pod| test(pod)).count()).unwrap_or(i32::MAX)
        };
        Self {
            observed_generation: snapshot.set.generation + i64::from(planted(Mutant::ObserveAhead)),
            replicas: of(&|_| true) - i32::from(planted(Mutant::MiscountReplicas)),
            ready: of(&|pod| pod.is_ready()),
            available: of(&|pod| pod.is_ready() && pod.is_available(snapshot)),
            current: of(&|pod| !pod.terminating && pod.revision.as_ref() == Some(current)),
            updated: of(&|pod| !pod.terminating && !draft.is_outdated(pod)),
            current_revision: Some(current.clone()),
            update_revision: Some(draft.revisions.update.clone()),
            collisions: Some(draft.revisions.collisions),
            volume_claims: draft.growth.status.clone(),
            ..snapshot.set.status.clone()
        }
    }

    /// A finished update makes the update revision the current one, whatever the strategy (STAT-9, UPD-8). It is
    /// finished when every pod is updated and available, not merely ready (#136831). A set without pods has shown
    /// nothing, so its revision is none to go back to.
    pub(super) fn complete(&mut self, set: &SetView) {
        let all = i32::try_from(set.ordinals.count).unwrap_or(i32::MAX);
        let available = self.available == all || planted(Mutant::CompleteTooEarly);
        if self.updated == all && available && self.replicas == all {
            self.current = self.updated;
            self.current_revision = self.update_revision.clone();
            if all > 0 {
                self.complete_revision = self.update_revision.clone();
            }
        }
    }

    /// Whether this is worth a write over `stored` (STAT-11). A changed collision count alone is not: the next change
    /// takes it along.
    pub(super) fn differs_from(&self, stored: &Status) -> bool {
        let counted = |status: &Status| Status { observed_generation: 0, collisions: None, ..status.clone() };
        let differs = self.observed_generation > stored.observed_generation || counted(self) != counted(stored);
        differs || planted(Mutant::WriteStatusAlways)
    }
}

/// When a pod that is ready now will have been so for minReadySeconds; the earliest of all (STALE-4).
pub(super) fn requeue_after(snapshot: &Snapshot, pods: &[&PodView], status: &Status) -> Option<Duration> {
    let min_ready = snapshot.set.min_ready_seconds;
    if min_ready == 0 || status.ready == status.available {
        return None;
    }
    let until_available = |pod: &&PodView| until(snapshot.now, pod.available_from(min_ready)?);
    let next = pods.iter().filter_map(until_available).min();
    Some(next.unwrap_or(Duration::from_secs(u64::from(min_ready))))
}

/// How long it is until `then`; None if that is past.
pub(super) fn until(now: Timestamp, then: Timestamp) -> Option<Duration> {
    Duration::try_from(then.duration_since(now)).ok().filter(|left| !left.is_zero())
}
