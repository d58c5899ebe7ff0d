//! The pair of a claim and its volume, bound to each other. Whoever writes them writes both or none.

use std::collections::BTreeMap;

use jiff::Timestamp;
use pb::{
    Object, ObjectExt,
    csi::v1::{self as csi},
    objects::{
        CsiPersistentVolumeSource, NodeSelector, ObjectMeta, ObjectReference, PersistentVolume, PersistentVolumeClaim,
        PersistentVolumeClaimStatus, PersistentVolumeSpec, PersistentVolumeStatus, Quantity, StorageClass,
        VolumeNodeAffinity,
    },
};

use super::{
    BIND_COMPLETED, BOUND_BY, CONTENT, Content, PROVISIONED_BY, SELECTED_NODE, STORAGE, VOLUME_PROTECTION, bytes,
    fs_type, requested_size, topology::affinity, volume_name,
};

/// A volume as a driver made it, on the way to become an object.
#[derive(Clone, Copy, Debug)]
pub struct Made<'a> {
    /// What the driver answered.
    pub volume: &'a csi::Volume,
    /// The node that it was made for; empty if for none.
    pub node: &'a str,
    /// A fresh uid for the volume object.
    pub uid: &'a str,
    /// Now.
    pub now: Timestamp,
}

/// A claim and its new volume, bound to each other.
pub fn bind(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    made: Made<'_>,
) -> (PersistentVolumeClaim, PersistentVolume) {
    let mut volume = draft(claim, class, made.uid, made.now);
    let size = size(claim, made.volume);
    let spec = volume.spec.get_or_insert_default();
    spec.capacity = size.into_iter().map(|size| (STORAGE.to_owned(), size)).collect();
    spec.node_affinity = affinity(&made.volume.accessible_topology);
    let csi = spec.csi.get_or_insert_default();
    csi.volume_handle.clone_from(&made.volume.volume_id);
    csi.volume_attributes.clone_from(&made.volume.volume_context);
    volume.status = in_phase("Bound", made.now);
    let claim = bound(claim, &volume, made.node);
    (claim, volume)
}

/// A claim and a volume that there is already, bound to each other.
pub fn bind_existing(
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
    node: &str,
    now: Timestamp,
) -> (PersistentVolumeClaim, PersistentVolume) {
    let mut volume = volume.clone();
    let meta = volume.meta_mut();
    if !meta.finalizers.iter().any(|finalizer| finalizer == VOLUME_PROTECTION) {
        meta.finalizers.push(VOLUME_PROTECTION.to_owned());
    }
    let spec = volume.spec.get_or_insert_default();
    if spec.claim_ref.is_none() {
        volume.metadata.get_or_insert_default().annotations.insert(BOUND_BY.to_owned(), "yes".to_owned());
    }
    volume.spec.get_or_insert_default().claim_ref = Some(reference(claim));
    volume.status = in_phase("Bound", now);
    let claim = bound(claim, &volume, node);
    (claim, volume)
}

/// A volume that is about to be made, for drivers that do not list theirs: with all that is needed to ask for it again,
/// and to end it if nobody takes it.
pub fn intent(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    content: Option<&Content>,
    places: Option<NodeSelector>,
    uid: &str,
    now: Timestamp,
) -> PersistentVolume {
    let mut volume = draft(claim, class, uid, now);
    let size = requested_size(claim).cloned();
    let spec = volume.spec.get_or_insert_default();
    spec.capacity = size.into_iter().map(|size| (STORAGE.to_owned(), size)).collect();
    spec.node_affinity = places.map(|required| VolumeNodeAffinity { required: Some(required) });
    spec.csi.get_or_insert_default().volume_attributes.clone_from(&class.parameters);
    if let Some(content) = content {
        volume.meta_mut().annotations.insert(CONTENT.to_owned(), content.to_string());
    }
    volume.status = in_phase("Pending", now);
    volume
}

/// What a volume has from its claim and class alone.
fn draft(claim: &PersistentVolumeClaim, class: &StorageClass, uid: &str, now: Timestamp) -> PersistentVolume {
    let spec = claim.spec.clone().unwrap_or_default();
    PersistentVolume {
        metadata: Some(ObjectMeta {
            name: volume_name(claim),
            uid: uid.to_owned(),
            generation: 1,
            creation_timestamp: Some(now.into()),
            annotations: BTreeMap::from([(PROVISIONED_BY.to_owned(), class.provisioner.clone())]),
            finalizers: vec![VOLUME_PROTECTION.to_owned()],
            ..ObjectMeta::default()
        }),
        spec: Some(PersistentVolumeSpec {
            csi: Some(CsiPersistentVolumeSource {
                driver: class.provisioner.clone(),
                fs_type: fs_type(class).to_owned(),
                ..CsiPersistentVolumeSource::default()
            }),
            access_modes: spec.access_modes,
            claim_ref: Some(reference(claim)),
            persistent_volume_reclaim_policy: class.reclaim_policy.clone().unwrap_or_else(|| "Delete".to_owned()),
            storage_class_name: class.name().to_owned(),
            volume_mode: Some(spec.volume_mode.unwrap_or_else(|| "Filesystem".to_owned())),
            mount_options: class.mount_options.clone(),
            ..PersistentVolumeSpec::default()
        }),
        ..PersistentVolume::default()
    }
}

fn reference(claim: &PersistentVolumeClaim) -> ObjectReference {
    ObjectReference {
        kind: "PersistentVolumeClaim".to_owned(),
        namespace: claim.namespace().to_owned(),
        name: claim.name().to_owned(),
        uid: claim.uid().to_owned(),
        api_version: "v1".to_owned(),
        ..ObjectReference::default()
    }
}

/// The claim's half.
fn bound(claim: &PersistentVolumeClaim, volume: &PersistentVolume, node: &str) -> PersistentVolumeClaim {
    let of_volume = volume.spec.clone().unwrap_or_default();
    let mut claim = claim.clone();
    let annotations = &mut claim.meta_mut().annotations;
    if !node.is_empty() {
        annotations.insert(SELECTED_NODE.to_owned(), node.to_owned());
    }
    annotations.insert(BIND_COMPLETED.to_owned(), "yes".to_owned());
    let spec = claim.spec.get_or_insert_default();
    volume.name().clone_into(&mut spec.volume_name);
    spec.storage_class_name = Some(of_volume.storage_class_name);
    spec.volume_mode = Some(of_volume.volume_mode.unwrap_or_else(|| "Filesystem".to_owned()));
    claim.status = Some(PersistentVolumeClaimStatus {
        phase: "Bound".to_owned(),
        access_modes: of_volume.access_modes,
        capacity: of_volume.capacity,
        ..claim.status.unwrap_or_default()
    });
    claim
}

fn in_phase(phase: &str, now: Timestamp) -> Option<PersistentVolumeStatus> {
    Some(PersistentVolumeStatus {
        phase: phase.to_owned(),
        last_phase_transition_time: Some(now.into()),
        ..PersistentVolumeStatus::default()
    })
}

/// The size of a volume: as the claim has it, if the driver made it so or does not say.
fn size(claim: &PersistentVolumeClaim, made: &csi::Volume) -> Option<Quantity> {
    let actual = made.capacity_bytes;
    let as_wanted = |wanted: &&Quantity| actual == 0 || bytes(wanted) == Some(actual);
    let in_bytes = || (actual > 0).then(|| Quantity { value: actual.to_string() });
    requested_size(claim).filter(as_wanted).cloned().or_else(in_bytes)
}
