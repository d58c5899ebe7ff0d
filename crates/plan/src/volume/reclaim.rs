//! What becomes of a volume: its phase, and its end.
//!
//! A volume is released when its claim is known to be gone, and deleted when it is released, attached nowhere and its
//! policy says so. A volume whose node is lost, and one that a person wants kept, is never deleted by itself.
//!
//! Must never: release or delete a volume whose claim lives or is not known; delete data that another volume object
//! names as well; end an object whose data it should have deleted first.

use jiff::Timestamp;
use pb::{
    Object, ObjectExt,
    objects::{CsiPersistentVolumeSource, PersistentVolume, PersistentVolumeClaim, PersistentVolumeStatus},
};

use super::{KEEP, Known, VOLUME_PROTECTION, bound_to, claim_of, phase};

/// `status.reason` of a volume that is on nodes that are gone for good.
const NODE_LOST: &str = "NodeLost";

/// What is known around a volume.
#[derive(Clone, Copy, Debug)]
pub struct Around<'a> {
    /// The claim that it names; no older than the volume itself.
    pub claim: Known<'a, PersistentVolumeClaim>,
    /// Whether it is attached to a node, or may be.
    pub attached: bool,
    /// Whether another volume object names the same data.
    pub shared: bool,
    /// How long a volume that nobody took is left alone, and one whose data could not be deleted.
    pub grace: std::time::Duration,
    /// Now.
    pub now: Timestamp,
}

/// What becomes of a volume.
#[derive(Clone, Debug, PartialEq)]
pub enum Reclaim {
    /// Nothing.
    Keep,
    /// Nothing yet: it is looked at again after this time.
    Later(std::time::Duration),
    /// Write this, and nothing more. The data stays.
    Write(Box<PersistentVolume>),
    /// Its data goes: call the driver, then end the object.
    Delete,
    /// The object ends. The data stays.
    Forget,
}

/// What becomes of a volume.
pub fn reclaim(volume: &PersistentVolume, around: &Around<'_>) -> Reclaim {
    if phase(volume) == "Pending" && is_being_made(volume) {
        return pending(volume, around);
    }
    let Some(owner) = claim_of(volume).filter(|owner| !owner.uid.is_empty()) else {
        if volume.is_terminating() {
            return Reclaim::Forget;
        }
        return in_phase(volume, "Available", "", "", around.now);
    };
    if matches!(phase(volume), "Released" | "Failed") {
        return released(volume, around);
    }
    match around.claim {
        Known::Unreadable(_) => Reclaim::Keep,
        Known::Is(claim) if claim.uid() == owner.uid => {
            let names_it = bound_to(claim) == Some(volume.name());
            if names_it && phase(volume) != "Bound" {
                return in_phase(volume, "Bound", "", "", around.now);
            }
            Reclaim::Keep
        }
        Known::Is(_) | Known::Absent => {
            let kept = if policy(volume) == "Delete" && !is_kept(volume) { "is deleted" } else { "is kept" };
            let message = format!("claim {}/{} is gone; the data {kept}", owner.namespace, owner.name);
            in_phase(volume, "Released", "ClaimDeleted", &message, around.now)
        }
    }
}

/// Whether a driver is being asked for the volume, and it is no volume that a person described.
fn is_being_made(volume: &PersistentVolume) -> bool {
    source(volume).volume_handle.is_empty()
}

/// A volume that is being made is ended when nobody took it for so long; a transaction that would still take it fails
/// by its guard then.
fn pending(volume: &PersistentVolume, around: &Around<'_>) -> Reclaim {
    if let Known::Is(claim) = around.claim
        && bound_to(claim) == Some(volume.name())
        && claim_of(volume).is_some_and(|owner| owner.uid == claim.uid())
    {
        return Reclaim::Keep;
    }
    if let Known::Unreadable(_) = around.claim {
        return Reclaim::Keep;
    }
    match rest(volume, around) {
        Some(left) => Reclaim::Later(left),
        None => in_phase(
            volume,
            "Released",
            "NotTaken",
            "the volume was asked for and not taken; it is deleted",
            around.now,
        ),
    }
}

fn released(volume: &PersistentVolume, around: &Around<'_>) -> Reclaim {
    if around.shared {
        // Its data belongs to another object now. A person sees both until this one is not wanted any more.
        return if volume.is_terminating() || policy(volume) == "Delete" { Reclaim::Forget } else { Reclaim::Keep };
    }
    if policy(volume) != "Delete" || is_kept(volume) {
        return if volume.is_terminating() { Reclaim::Forget } else { Reclaim::Keep };
    }
    if let Known::Unreadable(_) = around.claim {
        return Reclaim::Keep;
    }
    let owner = claim_of(volume).map(|owner| owner.uid.as_str()).unwrap_or_default();
    if let Known::Is(claim) = around.claim
        && claim.uid() == owner
        && bound_to(claim).is_none_or(|bound| bound == volume.name())
        && source_is_taken(volume)
    {
        return Reclaim::Keep;
    }
    if around.attached {
        return Reclaim::Later(std::time::Duration::from_secs(5));
    }
    match rest(volume, around).filter(|_| phase(volume) == "Failed") {
        Some(left) => Reclaim::Later(left),
        None => Reclaim::Delete,
    }
}

/// How long the volume is still left alone in its phase; None: no longer.
fn rest(volume: &PersistentVolume, around: &Around<'_>) -> Option<std::time::Duration> {
    let since = volume.status.as_ref().and_then(|status| status.last_phase_transition_time.as_ref());
    let age = since.map_or(std::time::Duration::ZERO, |since| age(since.timestamp(), around.now));
    around.grace.checked_sub(age).filter(|left| !left.is_zero())
}

/// A volume that was never handed to its claim may end while the claim lives: the claim gets another.
fn source_is_taken(volume: &PersistentVolume) -> bool {
    let reason = volume.status.as_ref().map_or("", |status| status.reason.as_str());
    !matches!(reason, "NotTaken" | "Adopted")
}

/// Whether the volume is never deleted by itself.
fn is_kept(volume: &PersistentVolume) -> bool {
    let lost = volume.status.as_ref().is_some_and(|status| status.reason == NODE_LOST);
    lost || volume.meta().annotations.contains_key(KEEP)
}

fn policy(volume: &PersistentVolume) -> &str {
    volume.spec.as_ref().map_or("", |spec| spec.persistent_volume_reclaim_policy.as_str())
}

fn source(volume: &PersistentVolume) -> CsiPersistentVolumeSource {
    volume.spec.as_ref().and_then(|spec| spec.csi.clone()).unwrap_or_default()
}

fn age(since: Timestamp, now: Timestamp) -> std::time::Duration {
    std::time::Duration::try_from(now.duration_since(since)).unwrap_or_default()
}

/// The volume in a phase; why the node of its data is lost stays with it.
fn in_phase(volume: &PersistentVolume, phase: &str, reason: &str, message: &str, now: Timestamp) -> Reclaim {
    if super::phase(volume) == phase {
        return Reclaim::Keep;
    }
    Reclaim::Write(Box::new(moved(volume, phase, reason, message, now)))
}

fn moved(volume: &PersistentVolume, phase: &str, reason: &str, message: &str, now: Timestamp) -> PersistentVolume {
    let mut volume = volume.clone();
    let status = volume.status.take().unwrap_or_default();
    let changed = status.phase != phase;
    let stays = [NODE_LOST, "NotTaken", "Adopted"].contains(&status.reason.as_str());
    volume.status = Some(PersistentVolumeStatus {
        phase: phase.to_owned(),
        reason: if stays { status.reason } else { reason.to_owned() },
        message: message.to_owned(),
        last_phase_transition_time: if changed { Some(now.into()) } else { status.last_phase_transition_time },
    });
    volume
}

/// A volume whose data could not be deleted.
pub fn failed(volume: &PersistentVolume, why: &str, now: Timestamp) -> PersistentVolume {
    let mut failed = moved(volume, "Failed", "DeleteFailed", why, now);
    // Each failure is followed by its own rest.
    failed.status.get_or_insert_default().last_phase_transition_time = Some(now.into());
    failed
}

/// A volume that nothing holds any more, on its way out; None if somebody else holds it.
pub fn let_go(volume: &PersistentVolume) -> Option<PersistentVolume> {
    let mut volume = volume.clone();
    volume.meta_mut().finalizers.retain(|finalizer| finalizer != VOLUME_PROTECTION);
    (!volume.meta().finalizers.is_empty()).then_some(volume)
}
