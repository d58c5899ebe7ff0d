//! What a set says of itself in words: the conditions Available, Progressing and Degraded, and what it is blocked on.
//!
//! A condition's `since` moves only when it comes to hold or ceases to; so does that of `blockedOn` when the ordinal or
//! the reason changes. Messages hold no text that changes by itself, such as back-off times: a set to which nothing
//! happens writes nothing.

use jiff::Timestamp;

use super::{
    draft::Draft,
    progress::Progress,
    snapshot::{MaxUnavailable, Strategy},
    status::{BlockedOn, Condition, Status},
    wait::{Growing, Wait, WaitReason},
};

/// Enough pods are available.
pub const AVAILABLE: &str = "Available";
/// The set is where it is wanted, or comes closer to it.
pub const PROGRESSING: &str = "Progressing";
/// Something is wrong that does not go away by itself.
pub const DEGRADED: &str = "Degraded";
/// The conditions that the controller decides.
const KINDS: [&str; 3] = [AVAILABLE, PROGRESSING, DEGRADED];

/// Reason of Progressing: the deadline was missed.
pub const DEADLINE_EXCEEDED: &str = "ProgressDeadlineExceeded";
/// Reason of Degraded: the rollout missed its deadline and was reverted.
pub const ROLLOUT_REVERTED: &str = "RolloutReverted";
/// Reasons of Progressing: all that is wanted is there.
pub(super) const COMPLETE: [&str; 2] = ["Complete", "RecreateComplete"];

/// Whether the controller decides this condition. Others are somebody else's and left alone.
pub(super) fn is_own(kind: &str) -> bool {
    KINDS.contains(&kind)
}

/// Writes conditions and what the set is blocked on into its status.
pub(super) fn write(draft: &Draft<'_>, progress: Progress, status: &mut Status) {
    let told = [available(draft), progressing(draft, progress, status), degraded(draft, progress, status)];
    let before = &draft.snapshot.set.status;
    let stamped = |(kind, told): (&str, Told)| Condition {
        kind: kind.to_owned(),
        holds: told.holds,
        since: since(before, kind, told.holds, draft.snapshot.now),
        reason: told.reason.to_owned(),
        message: told.message,
    };
    status.conditions = KINDS.into_iter().zip(told).map(stamped).collect();
    status.blocked_on = blocked_on(&draft.waits, before, draft.snapshot.now);
}

struct Told {
    holds: bool,
    reason: &'static str,
    message: String,
}

/// As many pods may be missing as an update may take away, and never all of them.
fn available(draft: &Draft<'_>) -> Told {
    let set = &draft.snapshot.set;
    let wanted = set.ordinals.count;
    let serving = draft.members.replicas.values().filter(|pod| pod.is_serving(draft.snapshot)).count();
    let serving = u32::try_from(serving).unwrap_or(u32::MAX);
    let bound = match set.strategy {
        Strategy::Rolling { max_unavailable: Some(bound), .. } => bound,
        _ => MaxUnavailable::Count(1),
    };
    let holds = wanted.saturating_sub(serving) <= bound.of(wanted).min(wanted.saturating_sub(1));
    Told {
        holds,
        reason: if holds { "MinimumReplicasAvailable" } else { "MinimumReplicasUnavailable" },
        message: format!("{serving} of {wanted} pods are available"),
    }
}

fn progressing(draft: &Draft<'_>, progress: Progress, status: &Status) -> Told {
    let set = &draft.snapshot.set;
    let revision = &draft.revisions.update;
    let wanted = set.ordinals.count;
    let recreate = set.strategy == Strategy::Recreate;
    let so_far =
        format!("{} of {wanted} pods are at revision {revision}, {} are available", status.updated, status.available);
    let holds = |reason, message| Told { holds: true, reason, message };
    match progress {
        _ if set.deleting => holds("Deleting", "the set is being deleted".to_owned()),
        Progress::Done => {
            let [complete, recreated] = COMPLETE;
            holds(if recreate { recreated } else { complete }, so_far)
        }
        Progress::Overdue => Told {
            holds: false,
            reason: DEADLINE_EXCEEDED,
            message: format!(
                "{so_far}; nothing came closer for {} seconds (progressDeadlineSeconds)",
                set.progress_deadline_seconds.unwrap_or(0)
            ),
        },
        Progress::Underway { .. } if set.paused => holds("Paused", format!("{so_far}; the set is paused")),
        Progress::Underway { .. } if recreate && status.current_revision != status.update_revision => {
            holds("RecreateInProgress", so_far)
        }
        Progress::Underway { .. } => holds("Progressing", so_far),
    }
}

fn degraded(draft: &Draft<'_>, progress: Progress, status: &Status) -> Told {
    let holds = |reason, message| Told { holds: true, reason, message };
    let obstacle = draft.waits.iter().find(|wait| wait.reason.is_obstacle());
    match (progress, obstacle, &status.failed_revision) {
        (Progress::Overdue, ..) => {
            holds(DEADLINE_EXCEEDED, format!("{} made no progress in time", draft.revisions.update))
        }
        (_, Some(obstacle), _) => holds(obstacle.reason.as_str(), obstacle.to_string()),
        (_, None, Some(failed)) => {
            let back_at = &draft.revisions.update;
            let message = format!("revision {failed} missed its deadline; the template was set back to {back_at}");
            holds(ROLLOUT_REVERTED, message)
        }
        (_, None, None) => Told { holds: false, reason: "AsExpected", message: String::new() },
    }
}

fn since(before: &Status, kind: &str, holds: bool, now: Timestamp) -> Timestamp {
    let known = before.conditions.iter().find(|condition| condition.kind == kind && condition.holds == holds);
    known.map_or(now, |condition| condition.since)
}

/// Of all waits the one that waits for no other pod of the set, the lowest ordinal first.
fn blocked_on(waits: &[Wait], before: &Status, now: Timestamp) -> Option<BlockedOn> {
    let first = waits.iter().min_by_key(|wait| (remoteness(&wait.reason), wait.ordinal))?;
    let (ordinal, reason) = (first.ordinal, first.reason.as_str());
    let known = before.blocked_on.as_ref().filter(|known| known.ordinal == ordinal && known.reason == reason);
    let since = known.map_or(now, |known| known.since);
    Some(BlockedOn { ordinal, reason: reason.to_owned(), since })
}

/// How far a wait is from what can be done about it.
fn remoteness(reason: &WaitReason) -> u8 {
    match reason {
        WaitReason::PredecessorNotReady { .. }
        | WaitReason::PeerNotReady { .. }
        | WaitReason::SuccessorNotGone { .. }
        | WaitReason::OlderNotGone { .. }
        | WaitReason::DisruptionBudget(_)
        | WaitReason::UpdateBudget { .. } => 1,
        // These wait for people, and for as long as people like.
        WaitReason::UpdateOnDelete | WaitReason::Paused | WaitReason::SetDeleting => 2,
        WaitReason::ClaimGrowing { state: Growing::AtStart, .. } => 2,
        _ => 0,
    }
}
