//! What a plan asks for, and what must hold for it.

use std::{fmt, time::Duration};

use model::{
    identity::{ClaimName, ModRevision, Ordinal, PodName, RevisionName, Uid},
    revision::TemplateBytes,
};

use super::{
    snapshot::{ClaimOwner, Phase},
    status::Status,
    wait::Wait,
};
use crate::budget::BudgetAt;

/// What to do about one set now.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Writes, in the order in which they are to be made. When one fails, the rest is void and the set is planned
    /// again; only `UpdateStatus` may be tried all the same. Neighbours that create pods, or delete pods, do not
    /// depend on each other and may be made at the same time. Guards speak of objects as the snapshot has them: an
    /// object that an earlier action of the plan wrote is compared at that write, or the guard fails and the set is
    /// planned again.
    pub actions: Vec<Action>,
    /// Why what is wanted is not there yet. Empty when the set is settled.
    pub waits: Vec<Wait>,
    /// Claims that the retention policy would have deleted one day and that another controller owns: they are left
    /// alone, which people should know.
    pub disputed: Vec<ClaimName>,
    /// The status as of the snapshot. `Op::UpdateStatus` is among the actions where it differs from the stored one.
    pub status: Status,
    /// After how long to plan again although nothing happened.
    pub requeue_after: Option<Duration>,
}

impl Plan {
    /// Whether something stands in the way that does not go away with the set's own progress, such as a claim that is
    /// being deleted: the set is to be tried again with a growing delay even if no watch reports a change.
    pub fn is_obstructed(&self) -> bool {
        self.waits.iter().any(|wait| wait.reason.is_obstacle())
    }

    /// Whether there is nothing to write and nothing to wait for.
    pub fn is_settled(&self) -> bool {
        self.actions.is_empty() && self.waits.is_empty()
    }
}

/// One write, and what must still hold when it is made.
#[derive(Clone, Debug, PartialEq)]
pub struct Action {
    /// The write.
    pub op: Op,
    /// What the transaction must compare. That an object to be created does not exist is among them.
    pub guards: Vec<Guard>,
}

/// A write. `stamp` makes the objects.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Make the headless Service that `serviceName` names, owned by the set.
    CreateService {
        /// Its name.
        name: String,
    },
    /// Make the set the controller of an orphaned revision (AD-5).
    AdoptRevision {
        /// The revision.
        name: RevisionName,
    },
    /// Make the set the controller of an orphaned pod (AD-1).
    AdoptPod {
        /// The pod.
        pod: PodName,
    },
    /// Take the set's owner reference off a pod that is no longer a member (AD-2).
    ReleasePod {
        /// The pod.
        pod: PodName,
    },
    /// Give an older revision the highest number: the template was set back to it (REV-6).
    RenumberRevision {
        /// The revision.
        name: RevisionName,
        /// Its new number.
        number: i64,
    },
    /// Store the set's present template (REV-8).
    CreateRevision {
        /// Its name.
        name: RevisionName,
        /// Its number.
        number: i64,
        /// What it stores.
        template: TemplateBytes,
    },
    /// Make a claim without its pod: the pod exists and is Pending, or cannot be made yet (PVC-2, PVC-8).
    CreateClaim(NewClaim),
    /// Make a pod together with the claims that it lacks, in one transaction.
    CreatePod(NewPod),
    /// Make a claim that is there as its template says: labels and annotations, and its size (VCT-1).
    FitClaim {
        /// The claim.
        claim: ClaimName,
        /// The claim template.
        template: String,
        /// The ordinal.
        ordinal: Ordinal,
        /// Whether the size is raised.
        grow: bool,
    },
    /// Make a VolumeSnapshot of a claim before a pod of another revision gets it (VOL-4).
    CreateSnapshot(NewSnapshot),
    /// Ask for the data of all these claims of one ordinal to be taken back to snapshots (VOL-6).
    RestoreClaims {
        /// The ordinal.
        ordinal: Ordinal,
        /// The claims, each with its snapshot.
        claims: Vec<(ClaimName, String)>,
    },
    /// Give up the volumes of an ordinal, which are lost: its pod and all of its claims go together (VOL-2).
    RecreateVolumes {
        /// The ordinal.
        ordinal: Ordinal,
        /// Its pod, if there is one that is not on its way out.
        pod: Option<PodName>,
        /// All of its claims.
        claims: Vec<ClaimName>,
    },
    /// Replace the owners of a claim (RET-1).
    UpdateClaimOwners {
        /// The claim.
        claim: ClaimName,
        /// All of its owners from now on.
        owners: Vec<ClaimOwner>,
    },
    /// Put a pod's labels and volumes right (ID-11, PVC-7).
    RepairPod {
        /// The pod.
        pod: PodName,
        /// Its ordinal.
        ordinal: Ordinal,
        /// Labels are to be written.
        identity: bool,
        /// Volumes are to be pointed at the right claims.
        storage: bool,
    },
    /// Ask for graceful deletion of a pod.
    DeletePod {
        /// The pod.
        pod: PodName,
        /// Its ordinal.
        ordinal: Ordinal,
        /// Why.
        why: DeleteReason,
    },
    /// Set the template back to that of an older revision: the rollout missed its deadline.
    RevertTemplate {
        /// The revision that it came from.
        from: RevisionName,
        /// The revision that it goes back to.
        to: RevisionName,
    },
    /// Let a deleted set go: its pods have gone in order.
    ReleaseSet,
    /// Write the status.
    UpdateStatus(Status),
    /// Delete a revision that is past the history limit (REV-11).
    DeleteRevision {
        /// The revision.
        name: RevisionName,
    },
}

/// A pod to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct NewPod {
    /// Its name.
    pub pod: PodName,
    /// Its ordinal.
    pub ordinal: Ordinal,
    /// The revision whose template it is made from.
    pub revision: RevisionName,
    /// Claims to be made with it, in the order of the templates.
    pub claims: Vec<NewClaim>,
    /// Claims that exist already, whatever they hold (PVC-4).
    pub reused: Vec<ClaimName>,
    /// Whether all of them say from now on that a pod of this revision had them last (VOL-4).
    pub marks: bool,
}

/// A VolumeSnapshot to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSnapshot {
    /// Its name.
    pub name: String,
    /// The claim that it is of.
    pub claim: ClaimName,
    /// The ordinal.
    pub ordinal: Ordinal,
    /// The revision that comes next.
    pub before: RevisionName,
    /// The number of that revision.
    pub rollout: i64,
}

/// A claim to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct NewClaim {
    /// Its name.
    pub name: ClaimName,
    /// The claim template.
    pub template: String,
    /// The ordinal.
    pub ordinal: Ordinal,
    /// Its owners by the retention policy.
    pub owners: Vec<ClaimOwner>,
}

/// Why a pod is deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeleteReason {
    /// It has ended and is to be made anew (UP-1).
    Ended(Phase),
    /// Its ordinal is out of range (DN-1).
    ScaledAway,
    /// The set is being deleted, in order.
    SetDeleted,
    /// Its volumes are lost and given up, and it with them (VOL-2).
    VolumesLost,
    /// It is not at the update revision (UPD-3).
    Outdated {
        /// The revision that it has.
        from: Option<RevisionName>,
        /// The revision that replaces it.
        to: RevisionName,
    },
}

impl fmt::Display for DeleteReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended(phase) => write!(f, "it has ended ({})", phase.as_str()),
            Self::ScaledAway => f.write_str("its ordinal is out of range"),
            Self::SetDeleted => f.write_str("the set is being deleted"),
            Self::VolumesLost => f.write_str("its volumes are lost and are made anew, empty"),
            Self::Outdated { from: Some(from), to } if from == to => {
                f.write_str("the overrides of its ordinal have changed")
            }
            Self::Outdated { to, .. } => write!(f, "it is replaced by one of revision {to}"),
        }
    }
}

/// A precondition of an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guard {
    /// The set has not been changed: spec, status and deletion are as they were seen.
    SetUnchanged {
        /// Its uid.
        uid: Uid,
        /// The revision at which it was seen.
        at: ModRevision,
    },
    /// The pod has not been changed: it is the same object, as ready and as little terminating as it was seen.
    PodUnchanged(PodAt),
    /// Each of these pods has not been changed: the pods that OrderedReady waits for, at the revisions at which they
    /// were available (I7), or the pods of whatever set that a disruption budget counts on.
    PodsUnchanged(Vec<PodAt>),
    /// No pod has this name.
    PodAbsent(PodName),
    /// The claim has not been changed: it exists and is not terminating.
    ClaimUnchanged {
        /// Its name.
        claim: ClaimName,
        /// Its uid.
        uid: Uid,
        /// The revision at which it was seen.
        at: ModRevision,
    },
    /// No claim has this name.
    ClaimAbsent(ClaimName),
    /// The revision has not been changed.
    RevisionUnchanged {
        /// Its name.
        name: RevisionName,
        /// Its uid.
        uid: Uid,
        /// The revision of the store at which it was seen.
        at: ModRevision,
    },
    /// No revision has this name.
    RevisionAbsent(RevisionName),
    /// No Service has this name.
    ServiceAbsent(String),
    /// The disruption budget has not been changed. Pods that it counts are guarded by `PodsUnchanged`.
    BudgetUnchanged(BudgetAt),
}

/// A pod as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodAt {
    /// Its name.
    pub pod: PodName,
    /// Its uid.
    pub uid: Uid,
    /// The revision at which it was seen.
    pub at: ModRevision,
}
