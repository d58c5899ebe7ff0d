//! What a pod's facts amount to: ready, available, right. One definition, used by every step.

use jiff::{SignedDuration, Timestamp};
use model::{
    identity::Ordinal,
    mutant::{Mutant, planted},
};

use super::{
    action::{Guard, PodAt},
    snapshot::{Phase, PodView, SetView, Snapshot},
    wait::WaitReason,
};

impl PodView {
    /// Running and Ready.
    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Running && (self.ready_since.is_some() || planted(Mutant::CountUnreadyAsReady))
    }

    /// Ready for minReadySeconds. The phase does not matter here.
    pub fn is_available(&self, snapshot: &Snapshot) -> bool {
        self.available_from(snapshot.set.min_ready_seconds).is_some_and(|from| from <= snapshot.now)
    }

    /// Not available, or on its way out.
    pub fn is_unavailable(&self, snapshot: &Snapshot) -> bool {
        self.terminating && !planted(Mutant::TerminatingIsAvailable) || !self.is_available(snapshot)
    }

    /// Running, Ready, available and not on its way out.
    pub(super) fn is_serving(&self, snapshot: &Snapshot) -> bool {
        self.is_ready() && !self.is_unavailable(snapshot)
    }

    /// When it counts as available, or counted from; None while it is not Ready.
    pub(super) fn available_from(&self, min_ready_seconds: u32) -> Option<Timestamp> {
        let min_ready_seconds = if planted(Mutant::ForgetMinReady) { 0 } else { min_ready_seconds };
        let min_ready = SignedDuration::from_secs(i64::from(min_ready_seconds));
        self.ready_since.map(|since| since.saturating_add(min_ready).unwrap_or(Timestamp::MAX))
    }

    /// Whether the labels say who it is (ID-11). The index label is not looked at (ID-7).
    pub(super) fn identity_fits(&self) -> bool {
        self.name_label.as_ref() == Some(&self.name)
    }

    /// Whether each claim template has its volume (PVC-7).
    pub(super) fn storage_fits(&self, set: &SetView, ordinal: Ordinal) -> bool {
        set.claim_templates
            .iter()
            .all(|template| self.volumes.get(&template.name) == Some(&set.name.claim(&template.name, ordinal)))
    }

    /// The pod as it was seen.
    pub(super) fn seen(&self) -> PodAt {
        PodAt { pod: self.name.clone(), uid: self.uid.clone(), at: self.at }
    }

    /// Guards that it has not changed.
    pub(super) fn unchanged(&self) -> Guard {
        Guard::PodUnchanged(self.seen())
    }

    /// What holds this pod up on the way to being available; None if nothing does.
    pub(super) fn trouble(&self, snapshot: &Snapshot) -> Option<WaitReason> {
        let trouble = || self.trouble.clone();
        if self.terminating {
            Some(WaitReason::PodTerminating)
        } else if self.phase.is_terminal() {
            Some(WaitReason::PodEnded { phase: self.phase })
        } else if self.node.is_none() && self.ready_since.is_none() {
            Some(WaitReason::NodeUnbound { trouble: trouble() })
        } else if !self.is_ready() {
            Some(WaitReason::NotReady { phase: self.phase, trouble: trouble() })
        } else {
            let from = self.available_from(snapshot.set.min_ready_seconds)?;
            (from > snapshot.now).then_some(WaitReason::MinReadySeconds { until: from })
        }
    }
}
