//! What the steps of an operation write.

use jiff::Timestamp;
use pb::{
    Object, ObjectExt,
    csi::v1 as csi,
    objects::{
        ClaimOperation, CsiPersistentVolumeSource, ObjectMeta, ObjectReference, PersistentVolume,
        PersistentVolumeClaim, PersistentVolumeStatus,
    },
};

use super::{COPYING, DONE, FAILED, OPERATION, RESTORE, SWITCHING, WAITING, copy_name};
use crate::volume::{
    KEEP, Known, PROVISIONED_BY, SELECTED_NODE, STORAGE, held,
    observe::{amount, in_phase, volume_bytes, with_status},
    reachable,
    topology::affinity,
};

/// What one step writes: all of it in one transaction, or none.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The claim as it shall be.
    pub claim: PersistentVolumeClaim,
    /// Volumes as they shall be. Those without a revision are new, and nothing may stand under their names.
    pub put: Vec<PersistentVolume>,
    /// Volumes' objects that end. Their data does not: other objects name it.
    pub delete: Vec<PersistentVolume>,
    /// Volumes that must be as they were read.
    pub unchanged: Vec<PersistentVolume>,
}

impl Change {
    fn of(claim: PersistentVolumeClaim) -> Self {
        Self { claim, put: Vec::new(), delete: Vec::new(), unchanged: Vec::new() }
    }
}

fn with_operation(claim: &PersistentVolumeClaim, change: impl FnOnce(&mut ClaimOperation)) -> PersistentVolumeClaim {
    with_status(claim, |status| change(status.operation.get_or_insert_default()))
}

/// Says what it waits for; None if it says so already.
pub(super) fn waiting(claim: &PersistentVolumeClaim, message: &str) -> Option<Change> {
    let after = with_operation(claim, |operation| message.clone_into(&mut operation.message));
    (after != *claim).then(|| Change::of(after))
}

/// Nobody has the volume: copying begins.
pub(super) fn started(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Change {
    let claim = with_operation(claim, |operation| {
        COPYING.clone_into(&mut operation.phase);
        operation.message.clear();
        operation.done_bytes = 0;
        operation.total_bytes = 0;
    });
    Change { unchanged: vec![volume.clone()], ..Change::of(claim) }
}

/// Whether an object is the copy of an operation that has not ended.
pub(super) fn is_copy(volume: &PersistentVolume, operation: &ClaimOperation) -> bool {
    let pending = volume.status.as_ref().is_some_and(|status| status.phase == "Pending");
    pending && volume.meta().annotations.get(OPERATION).is_some_and(|id| *id == operation.id)
}

/// The driver has made the new volume: it gets its object. `uid` is a fresh one. Fails the operation if the driver
/// gave what cannot be used, or the very volume that the claim has.
pub fn created(
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
    made: &csi::Volume,
    uid: &str,
    now: Timestamp,
) -> Change {
    let Some(operation) = held(claim) else { return Change::of(claim.clone()) };
    let spec = volume.spec.clone().unwrap_or_default();
    let old = spec.csi.clone().unwrap_or_default();
    let node_affinity = affinity(&made.accessible_topology);
    if made.volume_id == old.volume_handle && node_affinity == spec.node_affinity {
        let message = "the driver answered with the volume that the claim has; it cannot do this".to_owned();
        return failed(claim, None, &message, now);
    }
    let size = volume_bytes(volume).max(made.capacity_bytes);
    let like = spec.capacity.get(STORAGE).cloned();
    let mut copy = PersistentVolume {
        metadata: Some(ObjectMeta {
            name: copy_name(claim, operation),
            uid: uid.to_owned(),
            generation: 1,
            creation_timestamp: Some(now.into()),
            annotations: [
                (PROVISIONED_BY.to_owned(), old.driver.clone()),
                (OPERATION.to_owned(), operation.id.clone()),
            ]
            .into(),
            ..ObjectMeta::default()
        }),
        spec: Some(pb::objects::PersistentVolumeSpec {
            capacity: [(STORAGE.to_owned(), amount(size, like.as_ref()))].into(),
            csi: Some(CsiPersistentVolumeSource {
                volume_handle: made.volume_id.clone(),
                volume_attributes: made.volume_context.clone(),
                ..old
            }),
            node_affinity,
            persistent_volume_reclaim_policy: "Delete".to_owned(),
            ..spec
        }),
        status: Some(PersistentVolumeStatus::default()),
        ..PersistentVolume::default()
    };
    let message = format!("it is being filled for claim {}/{}", claim.namespace(), claim.name());
    in_phase(&mut copy, "Pending", &operation.r#type, message, now);
    if operation.r#type == super::MOVE && reachable(&copy).is_some_and(|to| reachable(volume) == Some(to)) {
        let message = "the driver made the new volume where the old one is; it cannot move volumes";
        return failed(claim, Some(&copy), message, now);
    }
    Change { put: vec![copy], unchanged: vec![volume.clone()], ..Change::of(claim.clone()) }
}

/// So much has arrived. None if that says nothing new, or the claim is not being copied by this operation.
pub fn progress(claim: &PersistentVolumeClaim, id: &str, done: i64, total: i64) -> Option<PersistentVolumeClaim> {
    held(claim).filter(|operation| operation.id == id && operation.phase == COPYING)?;
    let after = with_operation(claim, |operation| {
        operation.done_bytes = done;
        operation.total_bytes = total;
        operation.message.clear();
    });
    (after != *claim).then_some(after)
}

/// The new data is complete and proven.
pub fn verified(claim: &PersistentVolumeClaim) -> Change {
    Change::of(with_operation(claim, |operation| {
        SWITCHING.clone_into(&mut operation.phase);
        operation.message.clear();
        operation.done_bytes = operation.done_bytes.max(operation.total_bytes);
    }))
}

/// The claim's volume takes the copy's place in the driver; the place it had gets an object of its own.
pub(super) fn switched(
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
    copy: &PersistentVolume,
    now: Timestamp,
) -> Change {
    let operation = held(claim).cloned().unwrap_or_default();
    let new = copy.spec.clone().unwrap_or_default();
    let size = volume_bytes(volume).max(volume_bytes(copy));

    let mut after = volume.clone();
    let spec = after.spec.get_or_insert_default();
    spec.csi = new.csi;
    spec.node_affinity = new.node_affinity;
    let like = spec.capacity.get(STORAGE).cloned();
    spec.capacity.insert(STORAGE.to_owned(), amount(size, like.as_ref()));

    let before = replaced(volume, copy.uid(), &operation, now);
    let kept = before.name().to_owned();
    let mut claim = with_operation(claim, |operation| {
        DONE.clone_into(&mut operation.phase);
        operation.ended_at = Some(now.into());
        operation.message = match operation.r#type.as_str() {
            RESTORE => format!("the data that was there before is kept as persistentvolume {kept:?}"),
            _ => String::new(),
        };
    });
    let annotations = &mut claim.meta_mut().annotations;
    match operation.r#type.as_str() {
        // The pod goes where the volume can be reached.
        RESTORE => annotations.remove(SELECTED_NODE),
        _ => annotations.insert(SELECTED_NODE.to_owned(), operation.target_node),
    };
    Change { claim, put: vec![after, before], delete: vec![copy.clone()], unchanged: Vec::new() }
}

/// The object that the old data has after the switch. It has the copy's uid, whose object ends with that.
fn replaced(volume: &PersistentVolume, uid: &str, operation: &ClaimOperation, now: Timestamp) -> PersistentVolume {
    let mut before = volume.clone();
    let meta = before.meta_mut();
    *meta = ObjectMeta {
        name: format!("{}-before-{}", meta.name, operation.id),
        uid: uid.to_owned(),
        generation: 1,
        creation_timestamp: Some(now.into()),
        labels: std::mem::take(&mut meta.labels),
        annotations: std::mem::take(&mut meta.annotations),
        ..ObjectMeta::default()
    };
    let restored = operation.r#type == RESTORE;
    if restored {
        meta.annotations.insert(KEEP.to_owned(), "true".to_owned());
    }
    let spec = before.spec.get_or_insert_default();
    if restored {
        "Retain".clone_into(&mut spec.persistent_volume_reclaim_policy);
    }
    release(&mut before, operation, now);
    before
}

/// No claim has it any more. Whose it was can be told by names; the uid is one that no claim has.
fn release(volume: &mut PersistentVolume, operation: &ClaimOperation, now: Timestamp) {
    let spec = volume.spec.get_or_insert_default();
    let owner: &mut ObjectReference = spec.claim_ref.get_or_insert_default();
    owner.uid = format!("{}-{}", owner.uid, operation.id);
    let (reason, message) = match operation.r#type.as_str() {
        RESTORE => ("Restored", "a snapshot's data took its place; delete it when it is not needed any more"),
        _ => ("Moved", "the data has been moved to another node"),
    };
    in_phase(volume, "Released", reason, message.to_owned(), now);
}

/// The operation has ended without success: all is as it was, and the copy, if there is one, is let go.
pub fn failed(claim: &PersistentVolumeClaim, copy: Option<&PersistentVolume>, message: &str, now: Timestamp) -> Change {
    let claim = with_operation(claim, |operation| {
        FAILED.clone_into(&mut operation.phase);
        operation.ended_at = Some(now.into());
        operation.message = format!("{message}. The data is where it was");
    });
    Change { put: copy.map(|copy| let_go(copy, now)).into_iter().collect(), ..Change::of(claim) }
}

fn let_go(copy: &PersistentVolume, now: Timestamp) -> PersistentVolume {
    let mut copy = copy.clone();
    let id = copy.meta().annotations.get(OPERATION).cloned().unwrap_or_default();
    let operation = ClaimOperation { id, ..ClaimOperation::default() };
    release(&mut copy, &operation, now);
    let message = "it was to take a volume's place, and did not".to_owned();
    in_phase(&mut copy, "Released", "OperationFailed", message, now);
    copy
}

/// A copy whose operation does not go on: it is let go. `claim` is what is known of the claim that it names.
pub fn stray(
    volume: &PersistentVolume,
    claim: Known<'_, PersistentVolumeClaim>,
    now: Timestamp,
) -> Option<PersistentVolume> {
    let id = volume.meta().annotations.get(OPERATION)?;
    let this = ClaimOperation { id: id.clone(), ..ClaimOperation::default() };
    if !is_copy(volume, &this) {
        return None;
    }
    let owner = volume.spec.as_ref()?.claim_ref.as_ref()?;
    let goes_on = match claim {
        Known::Unreadable(_) => true,
        Known::Absent => false,
        Known::Is(claim) => {
            claim.uid() == owner.uid
                && held(claim).is_some_and(|operation| operation.id == *id && operation.phase != WAITING)
        }
    };
    (!goes_on).then(|| let_go(volume, now))
}
