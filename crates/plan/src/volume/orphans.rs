//! Volumes of a driver that no object knows.
//!
//! A volume is made before the transaction that writes its object. If that transaction never comes, the driver has a
//! volume too many. It is adopted after two looks: an object is written for it, Released, and reclaiming goes its usual
//! way: it is deleted if the driver says that it was never used, else kept for a person to decide. It may be the data of
//! an object that a person deleted, or of a store that was lost. Every transaction that binds a new volume rests on there being no object of its name, so a late one fails.
//!
//! Must never: adopt a volume that an object names, or that a claim may still get from someone whose transaction would
//! not fail then; adopt what Berth did not name; have data deleted that somebody may have written.

use std::collections::BTreeMap;

use jiff::Timestamp;
use pb::{
    ObjectExt,
    csi::v1 as csi,
    objects::{
        CsiPersistentVolumeSource, NodeSelector, ObjectMeta, ObjectReference, PersistentVolume, PersistentVolumeClaim,
        PersistentVolumeSpec, PersistentVolumeStatus, Quantity, VolumeNodeAffinity,
    },
};

use super::{PROVISIONED_BY, STORAGE, VOLUME_PROTECTION, digest, held, reachable, reaches};

/// Where volumes were listed.
#[derive(Clone, Debug)]
pub struct Listing<'a> {
    /// The driver.
    pub driver: &'a str,
    /// The node whose driver was asked, with its labels; None: a driver without places of its own.
    pub node: Option<(&'a str, &'a BTreeMap<String, String>)>,
    /// What it listed.
    pub volumes: &'a [csi::Volume],
}

/// The ids of listed volumes that Berth named and that no object names.
pub fn unknown<'a>(listing: &Listing<'a>, objects: &[impl AsRef<PersistentVolume>]) -> Vec<&'a csi::Volume> {
    let mut known: BTreeMap<&str, Vec<&PersistentVolume>> = BTreeMap::new();
    for object in objects {
        let object = object.as_ref();
        let csi = object.spec.as_ref().and_then(|spec| spec.csi.as_ref());
        if let Some(csi) = csi.filter(|csi| csi.driver == listing.driver) {
            known.entry(csi.volume_handle.as_str()).or_default().push(object);
            // While it is being made its id is not known yet.
            known.entry(object.name()).or_default().push(object);
        }
    }
    let is_known = |volume: &&csi::Volume| {
        let objects = known.get(volume.volume_id.as_str()).map(Vec::as_slice).unwrap_or_default();
        objects.iter().any(|object| match listing.node {
            Some((node, labels)) => reaches(reachable(object), node, labels),
            None => true,
        })
    };
    listing.volumes.iter().filter(|volume| is_ours(&volume.volume_id) && !is_known(volume)).collect()
}

/// Whether a volume's id is a name that Berth gives: `pvc-<uid>`, with something behind it perhaps.
fn is_ours(id: &str) -> bool {
    id.strip_prefix("pvc-").is_some_and(|uid| !uid.is_empty()) && model::names::dns_subdomain(id).is_ok()
}

/// Whether a volume was made for a claim.
pub fn is_for(id: &str, claim: &PersistentVolumeClaim) -> bool {
    let uid = id.strip_prefix("pvc-").and_then(|rest| rest.strip_prefix(claim.uid()));
    !claim.uid().is_empty() && uid.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// Whether what is being done with the claim's data may be about to take the volume.
pub fn may_be_taken(claim: &PersistentVolumeClaim) -> bool {
    held(claim).is_some()
}

/// In the context of a listed volume: the driver knows that it was never staged.
pub const UNUSED: &str = "volume.berth.dev/unused";

/// The object for a volume that nobody took. `namesake` says that an object of the volume's name exists (of the same
/// volume elsewhere): then it gets a name of its own.
pub fn adopted(
    listing: &Listing<'_>,
    volume: &csi::Volume,
    namesake: bool,
    place: Option<NodeSelector>,
    uid: &str,
    now: Timestamp,
) -> PersistentVolume {
    let node = listing.node.map(|(node, _)| node).unwrap_or_default();
    let id = &volume.volume_id;
    let name = if namesake { format!("{id}-{}", digest(&[listing.driver, node, id].join("\n"))) } else { id.clone() };
    let owner = id.strip_prefix("pvc-").unwrap_or_default();
    let unused = volume.volume_context.get(UNUSED).is_some_and(|unused| unused == "true");
    let (policy, message) = if unused {
        ("Delete", "the driver had this volume, unused, and no object named it; it is deleted".to_owned())
    } else {
        let how = "to delete it, set spec.persistentVolumeReclaimPolicy to Delete";
        ("Retain", format!("the driver had this volume and no object named it: the data in it is kept; {how}"))
    };
    let mut context = volume.volume_context.clone();
    context.remove(UNUSED);
    let capacity = (volume.capacity_bytes > 0)
        .then(|| (STORAGE.to_owned(), Quantity { value: volume.capacity_bytes.to_string() }));
    PersistentVolume {
        metadata: Some(ObjectMeta {
            name,
            uid: uid.to_owned(),
            generation: 1,
            creation_timestamp: Some(now.into()),
            annotations: BTreeMap::from([(PROVISIONED_BY.to_owned(), listing.driver.to_owned())]),
            finalizers: vec![VOLUME_PROTECTION.to_owned()],
            ..ObjectMeta::default()
        }),
        spec: Some(PersistentVolumeSpec {
            capacity: capacity.into_iter().collect(),
            csi: Some(CsiPersistentVolumeSource {
                driver: listing.driver.to_owned(),
                volume_handle: id.clone(),
                volume_attributes: context,
                ..CsiPersistentVolumeSource::default()
            }),
            claim_ref: Some(ObjectReference {
                kind: "PersistentVolumeClaim".to_owned(),
                uid: owner.to_owned(),
                api_version: "v1".to_owned(),
                ..ObjectReference::default()
            }),
            persistent_volume_reclaim_policy: policy.to_owned(),
            volume_mode: Some("Filesystem".to_owned()),
            node_affinity: place.map(|required| VolumeNodeAffinity { required: Some(required) }),
            ..PersistentVolumeSpec::default()
        }),
        status: Some(PersistentVolumeStatus {
            phase: "Released".to_owned(),
            reason: "Adopted".to_owned(),
            message,
            last_phase_transition_time: Some(now.into()),
        }),
        ..PersistentVolume::default()
    }
}
