//! Small things that the planners of a claim's data share: its conditions, its sizes, who may reach it.

use jiff::Timestamp;
use pb::objects::{
    Condition, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus, PersistentVolumeStatus, Quantity,
};

use super::STORAGE;

/// Writes a condition that holds. The time moves only when it comes to hold.
pub(super) fn set_condition(
    status: &mut PersistentVolumeClaimStatus,
    kind: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    let before = status.conditions.iter().find(|condition| condition.r#type == kind && condition.status == "True");
    let since = before.and_then(|condition| condition.last_transition_time).unwrap_or_else(|| now.into());
    let condition = Condition {
        r#type: kind.to_owned(),
        status: "True".to_owned(),
        reason: reason.to_owned(),
        message,
        last_transition_time: Some(since),
        ..Condition::default()
    };
    match status.conditions.iter_mut().find(|condition| condition.r#type == kind) {
        Some(place) => *place = condition,
        None => status.conditions.push(condition),
    }
}

/// Takes a condition away.
pub(super) fn clear_condition(status: &mut PersistentVolumeClaimStatus, kind: &str) {
    status.conditions.retain(|condition| condition.r#type != kind);
}

/// The claim with another status.
pub(super) fn with_status(
    claim: &PersistentVolumeClaim,
    change: impl FnOnce(&mut PersistentVolumeClaimStatus),
) -> PersistentVolumeClaim {
    let mut claim = claim.clone();
    change(claim.status.get_or_insert_default());
    claim
}

/// The volume in another phase.
pub(super) fn in_phase(volume: &mut PersistentVolume, phase: &str, reason: &str, message: String, now: Timestamp) {
    let before = volume.status.take().unwrap_or_default();
    let since = if before.phase == phase { before.last_phase_transition_time } else { Some(now.into()) };
    volume.status = Some(PersistentVolumeStatus {
        phase: phase.to_owned(),
        reason: reason.to_owned(),
        message,
        last_phase_transition_time: since,
    });
}

/// Bytes of an amount of storage; 0 if there is none or it cannot be read.
pub(super) fn bytes_of(amount: Option<&Quantity>) -> i64 {
    let parsed = amount.and_then(|amount| amount.value.parse::<model::quantity::Quantity>().ok());
    parsed.map_or(0, model::quantity::Quantity::as_units)
}

/// Bytes of a volume.
pub(super) fn volume_bytes(volume: &PersistentVolume) -> i64 {
    bytes_of(volume.spec.as_ref().and_then(|spec| spec.capacity.get(STORAGE)))
}

/// So many bytes, written as `like` is if that is as much.
pub(super) fn amount(bytes: i64, like: Option<&Quantity>) -> Quantity {
    let same = like.filter(|like| bytes_of(Some(like)) == bytes);
    same.cloned().unwrap_or_else(|| Quantity { value: model::quantity::Quantity::bytes(bytes).to_string() })
}
