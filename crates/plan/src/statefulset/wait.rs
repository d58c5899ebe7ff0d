//! Why something is not there yet: a typed reason for programs, a sentence for people (`berth why`).

use std::fmt;

use jiff::Timestamp;
use model::identity::{ClaimName, NodeName, Ordinal, PodName};

use super::snapshot::Phase;
use crate::budget::Refusal;

/// The word for a wait for a disruption budget.
pub(super) const DISRUPTION_BUDGET: &str = "DisruptionBudget";
/// The words for waits for storage.
pub(super) const CLAIM_HELD: &str = "ClaimHeld";
pub(super) const CLAIM_GROWING: &str = "ClaimGrowing";
pub(super) const SNAPSHOT_PENDING: &str = "SnapshotPending";
/// The words for waits that no template can be blamed for.
pub(super) const FROM_OUTSIDE: [&str; 4] = [DISRUPTION_BUDGET, CLAIM_HELD, CLAIM_GROWING, SNAPSHOT_PENDING];

/// One thing that is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// The ordinal that is held up; None if it is the set as a whole.
    pub ordinal: Option<Ordinal>,
    /// The pod of that ordinal, for the sentence.
    pub pod: PodName,
    /// Why.
    pub reason: WaitReason,
}

/// Why an ordinal is not where it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WaitReason {
    /// Its pod is not created because the pod of a lower ordinal is not available (UP-4 to UP-6).
    PredecessorNotReady {
        /// The pod that is waited for.
        predecessor: PodName,
    },
    /// Its pod is to be deleted or replaced, but first this pod of the set has to become available (DN-2, DN-4).
    PeerNotReady {
        /// The pod that is waited for.
        peer: PodName,
    },
    /// Its pod is to be deleted, but first the pod of a higher ordinal has to be gone (DN-3).
    SuccessorNotGone {
        /// The pod that is waited for.
        successor: PodName,
    },
    /// Its pod is bound to no node.
    NodeUnbound {
        /// What the scheduler said; may be empty.
        trouble: String,
    },
    /// Its pod exists and is not Running and Ready.
    NotReady {
        /// Its phase.
        phase: Phase,
        /// What the node says; may be empty.
        trouble: String,
    },
    /// Its pod is ready, but not for minReadySeconds yet.
    MinReadySeconds {
        /// When it will be.
        until: Timestamp,
    },
    /// Its pod is being deleted.
    PodTerminating,
    /// Its pod is being deleted and does not come back.
    PodLeaving,
    /// Its pod has ended and is made anew once it is gone.
    PodEnded {
        /// How it ended.
        phase: Phase,
    },
    /// A claim of its pod is being deleted, and a new one can be made only when it is gone (PVC-5).
    ClaimTerminating {
        /// The claim.
        claim: ClaimName,
    },
    /// A claim belongs to an earlier pod of this name and will be deleted by the retention policy (RET-4).
    ClaimStale {
        /// The claim.
        claim: ClaimName,
    },
    /// A claim of its pod's name was made for another set (#41153).
    ClaimTaken {
        /// The claim.
        claim: ClaimName,
        /// The set and the claim template that it was made for.
        by: String,
    },
    /// A pod of this name exists that is not the set's (AD-2, AD-3).
    NameTaken,
    /// Its pod is outdated, but as many pods are unavailable as may be (MU-2).
    UpdateBudget {
        /// Pods that are unavailable.
        unavailable: u32,
        /// How many may be.
        allowed: u32,
    },
    /// Its pod is to be deleted or replaced, but a disruption budget holds it back (PDB).
    DisruptionBudget(Refusal),
    /// Its pod is outdated and stays so until somebody deletes it: strategy OnDelete (UPD-7).
    UpdateOnDelete,
    /// Its pod is outdated and stays so while the set is paused.
    Paused,
    /// Its pod is not created before the last outdated pod of the set is gone: strategy Recreate.
    OlderNotGone {
        /// A pod that is still there.
        older: PodName,
    },
    /// The set is being deleted: nothing is created or replaced any more.
    SetDeleting,
    /// Something is being done with the data of a claim: no pod gets it before (VOL-7).
    ClaimHeld {
        /// The claim.
        claim: ClaimName,
        /// What is being done, as the end of a sentence.
        operation: String,
    },
    /// A claim is on its way to the size of its template (VCT-2).
    ClaimGrowing {
        /// The claim.
        claim: ClaimName,
        /// How far it is.
        state: Growing,
    },
    /// The data has to be in a snapshot before a pod of another revision gets it (VOL-4).
    SnapshotPending {
        /// The snapshot.
        snapshot: String,
        /// The claim that it is of.
        claim: ClaimName,
        /// Why it is not ready; may be empty.
        trouble: String,
    },
    /// The only node of a volume is gone for good (VOL-1).
    VolumeLost {
        /// The claim.
        claim: ClaimName,
        /// The node.
        node: Option<NodeName>,
        /// Why, in the words of the volume manager; may be empty.
        why: String,
        /// What becomes of it.
        then: Then,
    },
}

/// How far a claim is that grows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Growing {
    /// It grows now.
    Underway,
    /// The volume has grown; the filesystem in it follows when the node can, at the latest when the pod starts anew.
    AtStart,
    /// It cannot grow.
    Infeasible(String),
}

/// What becomes of a volume that is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Then {
    /// Its node is waited for, or a person.
    Wait,
    /// It is given up then.
    At(Timestamp),
    /// It is given up as soon as more than half of the other pods are available.
    Peers {
        /// Other pods that are available.
        available: u32,
        /// Other pods that there should be.
        others: u32,
    },
    /// It is given up now.
    Now,
}

impl WaitReason {
    /// Whether this is an obstacle that the set's own progress will not remove, so that it must be tried again.
    pub fn is_obstacle(&self) -> bool {
        matches!(
            self,
            Self::ClaimTerminating { .. }
                | Self::ClaimTaken { .. }
                | Self::NameTaken
                | Self::VolumeLost { .. }
                | Self::ClaimGrowing { state: Growing::Infeasible(_), .. }
        )
    }

    /// Whether it is no fault of a template that this takes long: a budget or storage holds an update up.
    pub(super) fn is_from_outside(&self) -> bool {
        FROM_OUTSIDE.contains(&self.as_str())
    }

    /// One word for conditions and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::PredecessorNotReady { .. } => "PredecessorNotReady",
            Self::PeerNotReady { .. } => "PeerNotReady",
            Self::SuccessorNotGone { .. } => "SuccessorNotGone",
            Self::NodeUnbound { .. } => "NodeUnbound",
            Self::NotReady { .. } => "NotReady",
            Self::MinReadySeconds { .. } => "MinReadySeconds",
            Self::PodTerminating => "PodTerminating",
            Self::PodLeaving => "PodLeaving",
            Self::PodEnded { .. } => "PodEnded",
            Self::ClaimTerminating { .. } => "ClaimTerminating",
            Self::ClaimStale { .. } => "ClaimStale",
            Self::ClaimTaken { .. } => "ClaimTaken",
            Self::NameTaken => "NameTaken",
            Self::UpdateBudget { .. } => "UpdateBudget",
            Self::DisruptionBudget(_) => DISRUPTION_BUDGET,
            Self::UpdateOnDelete => "UpdateOnDelete",
            Self::Paused => "Paused",
            Self::OlderNotGone { .. } => "OlderNotGone",
            Self::SetDeleting => "SetDeleting",
            Self::ClaimHeld { .. } => CLAIM_HELD,
            Self::ClaimGrowing { .. } => CLAIM_GROWING,
            Self::SnapshotPending { .. } => SNAPSHOT_PENDING,
            Self::VolumeLost { .. } => "VolumeLost",
        }
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pod = &self.pod;
        match &self.reason {
            WaitReason::PredecessorNotReady { predecessor } => {
                write!(f, "{pod} is not created yet: {predecessor} has to be ready and available first")
            }
            WaitReason::PeerNotReady { peer } => {
                write!(f, "{pod} is to go, but first {peer} has to be ready and available")
            }
            WaitReason::SuccessorNotGone { successor } => {
                write!(f, "{pod} is to go, but first {successor} has to be gone")
            }
            WaitReason::NodeUnbound { trouble } => write!(f, "{pod} has no node yet{}", Because(trouble)),
            WaitReason::NotReady { phase, trouble } => {
                write!(f, "{pod} is {} and not ready{}", phase.as_str(), Because(trouble))
            }
            WaitReason::MinReadySeconds { until } => {
                write!(f, "{pod} is ready and counts as available from {until} on (minReadySeconds)")
            }
            WaitReason::PodTerminating => write!(f, "{pod} is being deleted and has to be gone before it is made anew"),
            WaitReason::PodLeaving => write!(f, "{pod} is being deleted and does not come back"),
            WaitReason::PodEnded { phase } => {
                write!(f, "{pod} has ended ({}) and is deleted to be made anew", phase.as_str())
            }
            WaitReason::ClaimTerminating { claim } => {
                write!(f, "{pod} cannot be made: its claim {claim} is being deleted; a new one follows when it is gone")
            }
            WaitReason::ClaimStale { claim } => write!(
                f,
                "{pod} is not created yet: its claim {claim} belongs to an earlier pod of this name and goes away by \
                 whenScaled: Delete"
            ),
            WaitReason::ClaimTaken { claim, by } => write!(
                f,
                "{pod} cannot be made: its claim {claim} was made for {by} and holds that set's data; give this set or \
                 its claim template another name"
            ),
            WaitReason::NameTaken => {
                write!(f, "{pod} cannot be made: a pod of this name exists that is not this set's; delete or rename it")
            }
            WaitReason::UpdateBudget { unavailable, allowed } => write!(
                f,
                "{pod} is outdated, but {unavailable} pods of the set are unavailable and maxUnavailable is {allowed}"
            ),
            WaitReason::DisruptionBudget(refusal) => write!(f, "{pod} is to go, but {refusal}"),
            WaitReason::UpdateOnDelete => write!(f, "{pod} is outdated and is replaced when you delete it (OnDelete)"),
            WaitReason::Paused => write!(f, "{pod} is outdated and is replaced when you resume the set (paused)"),
            WaitReason::OlderNotGone { older } => {
                write!(f, "{pod} is not created yet: {older} is outdated and has to be gone first (Recreate)")
            }
            WaitReason::SetDeleting => {
                write!(f, "the set is being deleted: its pods are not created or replaced any more")
            }
            WaitReason::ClaimHeld { claim, operation } => {
                write!(f, "{pod} is not created yet: nobody may use its claim {claim}, {operation}")
            }
            WaitReason::ClaimGrowing { claim, state: Growing::Underway } => {
                write!(f, "{pod} has to wait until claim {claim} has grown")
            }
            WaitReason::ClaimGrowing { claim, state: Growing::AtStart } => write!(
                f,
                "the volume of claim {claim} has grown, its filesystem has not yet: if it stays so, delete {pod} and it \
                 grows when the pod starts anew"
            ),
            WaitReason::ClaimGrowing { claim, state: Growing::Infeasible(why) } => {
                write!(f, "claim {claim} of {pod} cannot grow, and those below it are not tried{}", Because(why))
            }
            WaitReason::SnapshotPending { snapshot, claim, trouble } => write!(
                f,
                "{pod} is not created yet: the data in claim {claim} has to be in snapshot {snapshot} first{}",
                Because(trouble)
            ),
            WaitReason::VolumeLost { claim, node, why, then } => {
                write!(f, "{pod} has lost the volume of its claim {claim}")?;
                node.iter().try_for_each(|node| write!(f, " on node {node}"))?;
                write!(f, "{}; {then}", Because(why))
            }
        }
    }
}

impl fmt::Display for Then {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wait => f.write_str(
                "it waits for the node; if that never comes back, delete the claim, or set volumePolicy.onNodeLost to \
                 Recreate",
            ),
            Self::At(due) => write!(f, "at {due} it is made anew, empty (volumePolicy)"),
            Self::Peers { available, others } => write!(
                f,
                "it is made anew, empty, when more than half of the other pods are available: {available} of {others} \
                 are (volumePolicy)"
            ),
            Self::Now => f.write_str("it is made anew, empty, when nothing else is done with its claims"),
        }
    }
}

/// A reason after a colon; nothing if there is none.
struct Because<'a>(&'a str);

impl fmt::Display for Because<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ": {}", self.0) }
    }
}
