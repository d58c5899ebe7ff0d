//! Why something is not there yet: a typed reason for programs, a sentence for people (`berth why`).

use std::fmt;

use jiff::Timestamp;
use model::identity::{ClaimName, Ordinal, PodName};

use super::snapshot::Phase;
use crate::budget::Refusal;

/// The word for a wait for a disruption budget.
pub(super) const DISRUPTION_BUDGET: &str = "DisruptionBudget";

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
}

impl WaitReason {
    /// Whether this is an obstacle that the set's own progress will not remove, so that it must be tried again.
    pub fn is_obstacle(&self) -> bool {
        matches!(self, Self::ClaimTerminating { .. } | Self::ClaimTaken { .. } | Self::NameTaken)
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
