//! Whether a set comes closer to what is wanted, and what happens when it does not: the deadline, and going back.
//!
//! Progress is what the counts of the status tell: more pods at the update revision, more available ones, a number of
//! pods that is closer to the wanted one, or something new to reach. That a pod is ready for a moment is none while
//! minReadySeconds is asked for, so a pod that crashes over and over does not hold off the deadline.
//!
//! A set that missed its deadline goes back only to the last revision at which all was well, and only if that is
//! another one: where it went back to, it stays. So no two templates take turns.

use std::time::Duration;

use jiff::SignedDuration;
use model::identity::RevisionName;

use super::{
    action::{Action, Op},
    conditions::COMPLETE,
    draft::Draft,
    revisions,
    snapshot::{PodView, Strategy},
    status::{Status, until},
    wait::FROM_OUTSIDE,
};

/// How far a set is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// All that is wanted is there.
    Done,
    /// Not all is there. The deadline comes after so long; None if there is none, or if it is suspended.
    Underway {
        /// How long it is until the deadline.
        left: Option<Duration>,
    },
    /// Not all is there, and the deadline has passed.
    Overdue,
}

impl Progress {
    /// After how long to look again although nothing happened.
    pub(super) fn look_again_after(self) -> Option<Duration> {
        match self {
            Self::Underway { left } => left,
            Self::Done | Self::Overdue => None,
        }
    }
}

/// Judges how far a set is, and notes in the status when it last came closer.
pub(super) fn judge(draft: &Draft<'_>, status: &mut Status) -> Progress {
    let snapshot = draft.snapshot;
    let set = &snapshot.set;
    let done = is_done(draft);
    if has_moved(draft, status, done) {
        status.last_progress = Some(snapshot.now);
    }
    // A new rollout takes away the memory of the one that failed.
    if status.update_revision != status.complete_revision {
        status.failed_revision = None;
    }
    if done {
        return Progress::Done;
    }
    let suspended = set.paused || set.deleting || is_held_up(draft);
    let (Some(deadline), Some(since), false) = (set.progress_deadline_seconds, status.last_progress, suspended) else {
        return Progress::Underway { left: None };
    };
    let deadline = SignedDuration::from_secs(i64::from(deadline));
    let due = since.saturating_add(deadline).unwrap_or(jiff::Timestamp::MAX);
    match until(snapshot.now, due) {
        Some(left) => Progress::Underway { left: Some(left) },
        // Only time is missing, and there is a timer for it already.
        None if ripens(draft) => Progress::Underway { left: None },
        None => Progress::Overdue,
    }
}

/// Goes back to the last complete revision if the deadline was missed and that is wanted.
pub(super) fn revert(draft: &Draft<'_>, status: &Status, progress: Progress) -> Option<Action> {
    let set = &draft.snapshot.set;
    if progress != Progress::Overdue || !set.auto_revert {
        return None;
    }
    // With OnDelete a template that no pod was made from cannot be what is wrong.
    if set.strategy == Strategy::OnDelete && status.updated == 0 {
        return None;
    }
    let from: RevisionName = draft.revisions.update.clone();
    let to = status.complete_revision.clone().filter(|complete| *complete != from)?;
    let kept = revisions::unchanged_if_kept(draft.snapshot, &to)?;
    Some(Action { op: Op::RevertTemplate { from, to }, guards: vec![draft.set_unchanged(), kept] })
}

/// Whether all that is wanted is there. What a partition or OnDelete leaves behind is not wanted yet.
fn is_done(draft: &Draft<'_>) -> bool {
    let set = &draft.snapshot.set;
    let members = &draft.members;
    let kept_back = match set.strategy {
        Strategy::Rolling { partition, .. } => partition.unwrap_or(0),
        Strategy::OnDelete => set.ordinals.count,
        Strategy::Recreate => 0,
    };
    let in_place = |(index, ordinal)| {
        let pod = members.replicas.get(&ordinal).filter(|pod| pod.is_serving(draft.snapshot));
        pod.is_some_and(|pod| index < kept_back || !draft.is_outdated(pod))
    };
    members.condemned.is_empty() && (0..set.ordinals.count).zip(set.ordinals.iter()).all(in_place)
}

/// Whether the set came closer to what is wanted since its status was written, or something new is wanted.
fn has_moved(draft: &Draft<'_>, status: &Status, done: bool) -> bool {
    let set = &draft.snapshot.set;
    let before = &set.status;
    let wanted = i32::try_from(set.ordinals.count).unwrap_or(i32::MAX);
    let missing = |replicas: i32| wanted.abs_diff(replicas);
    let was_done = before.conditions.iter().any(|condition| COMPLETE.contains(&condition.reason.as_str()));
    status.observed_generation > before.observed_generation
        || status.update_revision != before.update_revision
        || status.updated > before.updated
        || status.available > before.available
        || missing(status.replicas) < missing(before.replicas)
        || (!done && (was_done || before.last_progress.is_none()))
        || (was_held_up(before) && !is_held_up(draft))
}

/// Whether a disruption budget keeps an outdated or surplus pod in its place, or storage holds things up: that is no
/// fault of the template.
fn is_held_up(draft: &Draft<'_>) -> bool {
    draft.waits.iter().any(|wait| wait.reason.is_from_outside())
}

fn was_held_up(before: &Status) -> bool {
    before.blocked_on.as_ref().is_some_and(|blocked| FROM_OUTSIDE.contains(&blocked.reason.as_str()))
}

/// Whether a pod is ready and lacks nothing but time.
fn ripens(draft: &Draft<'_>) -> bool {
    let ripens = |pod: &&PodView| !pod.terminating && pod.is_ready() && !pod.is_available(draft.snapshot);
    draft.members.replicas.values().any(ripens)
}
