//! Which volumes the claims of an ordinal get, and where they can be reached.
//!
//! [`prepare`] says for one claim whether it has its volume, will get one when its pod has a node, or cannot get one
//! and why. [`bind`] makes the pair of a claim and its new volume, bound to each other. [`reclaim`] says what becomes of
//! a volume whose claim is gone.
//!
//! Must never: take a volume for a claim of another uid, or an empty volume in place of a lost one (I5); let a volume
//! go because of something that is not known. Binding mode `Immediate` is treated as `WaitForFirstConsumer`: all
//! volumes that there are so far belong to a node, and which one is known only when the pod has its node.

mod topology;

use std::collections::BTreeMap;

use jiff::Timestamp;
use pb::{
    Object, ObjectExt,
    csi::v1::{
        self as csi, VolumeCapability,
        volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode},
    },
    objects::{
        CsiPersistentVolumeSource, NodeSelector, ObjectMeta, ObjectReference, PersistentVolume, PersistentVolumeClaim,
        PersistentVolumeClaimStatus, PersistentVolumeSpec, PersistentVolumeStatus, Quantity, StorageClass,
    },
};

use topology::affinity;
pub use topology::{allowed, both, either, label_of, place_of, places_in, reaches, selector_of, selector_text};

/// The resource that a volume's size stands under.
pub const STORAGE: &str = "storage";

/// On the class that claims without a class get.
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
/// On a claim: the node that its volume was made for.
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On a claim: its binding is complete.
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On a volume: the driver that made it.
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";

/// What is known of an object.
#[derive(Debug)]
pub enum Known<'a, T> {
    /// It is this.
    Is(&'a T),
    /// There is none.
    Absent,
    /// Something is there that cannot be read. It says what.
    Unreadable(&'a str),
}

impl<T> Clone for Known<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Known<'_, T> {}

/// What is known of a claim.
#[derive(Clone, Debug, PartialEq)]
pub enum ClaimState<'a> {
    /// It has its volume.
    Bound(&'a PersistentVolume),
    /// It gets one of this class when its pod has a node.
    Unbound(&'a StorageClass),
    /// It cannot get one as things are.
    Problem(Problem),
}

/// Why a claim cannot get its volume, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// One word in CamelCase.
    pub reason: &'static str,
    /// A sentence that says what to do.
    pub message: String,
}

fn problem<'a>(reason: &'static str, message: String) -> ClaimState<'a> {
    ClaimState::Problem(Problem { reason, message })
}

/// What the state of a claim is. `volume` is what is known of the volume that `spec.volumeName` names, and is not
/// looked at if it names none. `drivers` are those that volumes can be made with.
pub fn prepare<'a>(
    claim: &PersistentVolumeClaim,
    volume: Known<'a, PersistentVolume>,
    classes: impl IntoIterator<Item = &'a StorageClass>,
    drivers: &[&str],
) -> ClaimState<'a> {
    let name = claim.name();
    if claim.is_terminating() {
        return problem(
            "ClaimTerminating",
            format!("persistentvolumeclaim {name:?} is being deleted; a new one is made when it is gone"),
        );
    }
    if bound_to(claim).is_some() { bound(claim, volume) } else { unbound(claim, classes, drivers) }
}

/// The name of the volume that a claim is bound to.
pub fn bound_to(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.spec.as_ref().map(|spec| spec.volume_name.as_str()).filter(|name| !name.is_empty())
}

fn bound<'a>(claim: &PersistentVolumeClaim, volume: Known<'a, PersistentVolume>) -> ClaimState<'a> {
    let (name, volume_name) = (claim.name(), bound_to(claim).unwrap_or_default());
    let volume = match volume {
        Known::Is(volume) => volume,
        Known::Absent => {
            return problem(
                "VolumeLost",
                format!(
                    "persistentvolumeclaim {name:?} is bound to persistentvolume {volume_name:?}, which is gone; \
                     create it again from a backup, or delete the claim to begin with an empty volume"
                ),
            );
        }
        Known::Unreadable(why) => {
            return problem("VolumeUnreadable", format!("persistentvolume {volume_name:?} cannot be read: {why}"));
        }
    };
    match claim_of(volume) {
        Some(owner) if owner.uid == claim.uid() => ClaimState::Bound(volume),
        owner => problem(
            "VolumeMisbound",
            format!(
                "persistentvolumeclaim {name:?} names persistentvolume {volume_name:?}, which belongs to {}; delete \
                 the claim, or name its own volume",
                owner.map_or_else(
                    || "no claim".to_owned(),
                    |o| format!("claim {}/{} with uid {:?}", o.namespace, o.name, o.uid)
                ),
            ),
        ),
    }
}

fn unbound<'a>(
    claim: &PersistentVolumeClaim,
    classes: impl IntoIterator<Item = &'a StorageClass>,
    drivers: &[&str],
) -> ClaimState<'a> {
    if let Some(problem) = unsupported(claim) {
        return ClaimState::Problem(problem);
    }
    let name = claim.name();
    let wanted = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    let class = match wanted {
        Some("") => {
            return problem(
                "NoClass",
                format!(
                    "persistentvolumeclaim {name:?} asks for no class (storageClassName: \"\") and names no volume; \
                     set spec.volumeName or a class"
                ),
            );
        }
        Some(wanted) => classes.into_iter().find(|class| class.name() == wanted),
        None => default_class(classes),
    };
    match (class, wanted) {
        (Some(class), _) if !drivers.contains(&class.provisioner.as_str()) => problem(
            "UnknownProvisioner",
            format!(
                "storageclass {:?} names the driver {:?}; the drivers that are there are {}",
                class.name(),
                class.provisioner,
                drivers.join(", ")
            ),
        ),
        (Some(class), _) => ClaimState::Unbound(class),
        (None, Some(wanted)) => problem(
            "ClassNotFound",
            format!("storageclass {wanted:?} of persistentvolumeclaim {name:?} does not exist; create it"),
        ),
        (None, None) => problem(
            "NoDefaultClass",
            format!(
                "persistentvolumeclaim {name:?} names no class and there is no default one; set storageClassName, or \
                 annotate a class with {DEFAULT_CLASS}: \"true\""
            ),
        ),
    }
}

/// What a claim asks for that no volume can give.
fn unsupported(claim: &PersistentVolumeClaim) -> Option<Problem> {
    let spec = claim.spec.as_ref();
    let name = claim.name();
    if let Some(mode) = spec.and_then(|spec| spec.volume_mode.as_deref()).filter(|mode| *mode != "Filesystem") {
        let message =
            format!("persistentvolumeclaim {name:?}: volumeMode {mode:?} is not supported; use \"Filesystem\"");
        return Some(Problem { reason: "UnsupportedVolumeMode", message });
    }
    let single = |mode: &&String| matches!(mode.as_str(), "ReadWriteOnce" | "ReadWriteOncePod");
    if let Some(mode) = spec.and_then(|spec| spec.access_modes.iter().find(|mode| !single(mode))) {
        let message = format!(
            "persistentvolumeclaim {name:?}: access mode {mode:?} is not supported; use \"ReadWriteOnce\" or \
             \"ReadWriteOncePod\""
        );
        return Some(Problem { reason: "UnsupportedAccessMode", message });
    }
    None
}

/// The default class; of several the newest, then the first by name, as in Kubernetes.
fn default_class<'a>(classes: impl IntoIterator<Item = &'a StorageClass>) -> Option<&'a StorageClass> {
    let is_default = |class: &&StorageClass| class.meta().annotations.get(DEFAULT_CLASS).is_some_and(|v| v == "true");
    let created = |class: &StorageClass| class.meta().creation_timestamp.map(|at| at.timestamp());
    classes.into_iter().filter(is_default).min_by(|a, b| created(b).cmp(&created(a)).then(a.name().cmp(b.name())))
}

/// From where a volume can be reached; everywhere if None.
pub fn reachable(volume: &PersistentVolume) -> Option<&NodeSelector> {
    volume.spec.as_ref()?.node_affinity.as_ref()?.required.as_ref()
}

/// The claim that a volume belongs to.
fn claim_of(volume: &PersistentVolume) -> Option<&ObjectReference> {
    volume.spec.as_ref()?.claim_ref.as_ref()
}

/// The name of the volume that is made for a claim: the same for every try.
pub fn volume_name(claim: &PersistentVolumeClaim) -> String {
    format!("pvc-{}", claim.uid())
}

/// The size that a claim asks for, as it was written.
pub fn requested_size(claim: &PersistentVolumeClaim) -> Option<&Quantity> {
    claim.spec.as_ref()?.resources.as_ref()?.requests.get(STORAGE)
}

/// How a file system with these access modes (Kubernetes' names) is used, in CSI's words. The widest mode counts.
pub fn capability(access_modes: &[String], fs_type: &str) -> VolumeCapability {
    let has = |name: &str| access_modes.iter().any(|mode| mode == name);
    let mode = if has("ReadWriteMany") {
        Mode::MultiNodeMultiWriter
    } else if has("ReadOnlyMany") {
        Mode::MultiNodeReaderOnly
    } else if has("ReadWriteOncePod") && !has("ReadWriteOnce") {
        Mode::SingleNodeSingleWriter
    } else {
        Mode::SingleNodeWriter
    };
    let mount = MountVolume { fs_type: fs_type.to_owned(), ..MountVolume::default() };
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(mount)),
    }
}

/// A volume as a driver made it, on the way to become an object.
#[derive(Clone, Copy, Debug)]
pub struct Made<'a> {
    /// What the driver answered.
    pub volume: &'a csi::Volume,
    /// The node that it was made for.
    pub node: &'a str,
    /// A fresh uid for the volume object.
    pub uid: &'a str,
    /// Now.
    pub now: Timestamp,
}

/// A claim and its new volume, bound to each other. Whoever writes them writes both or none.
pub fn bind(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    made: Made<'_>,
) -> (PersistentVolumeClaim, PersistentVolume) {
    let name = volume_name(claim);
    let spec = claim.spec.clone().unwrap_or_default();
    let size = size(claim, made.volume);
    let capacity: BTreeMap<_, _> = size.into_iter().map(|size| (STORAGE.to_owned(), size)).collect();
    let mode = spec.volume_mode.clone().unwrap_or_else(|| "Filesystem".to_owned());

    let volume = PersistentVolume {
        metadata: Some(ObjectMeta {
            name: name.clone(),
            uid: made.uid.to_owned(),
            generation: 1,
            creation_timestamp: Some(made.now.into()),
            annotations: BTreeMap::from([(PROVISIONED_BY.to_owned(), class.provisioner.clone())]),
            ..ObjectMeta::default()
        }),
        spec: Some(PersistentVolumeSpec {
            capacity: capacity.clone(),
            csi: Some(CsiPersistentVolumeSource {
                driver: class.provisioner.clone(),
                volume_handle: made.volume.volume_id.clone(),
                fs_type: String::new(),
                volume_attributes: made.volume.volume_context.clone(),
                read_only: false,
            }),
            access_modes: spec.access_modes.clone(),
            claim_ref: Some(ObjectReference {
                kind: "PersistentVolumeClaim".to_owned(),
                namespace: claim.namespace().to_owned(),
                name: claim.name().to_owned(),
                uid: claim.uid().to_owned(),
                api_version: "v1".to_owned(),
                ..ObjectReference::default()
            }),
            persistent_volume_reclaim_policy: class.reclaim_policy.clone().unwrap_or_else(|| "Delete".to_owned()),
            storage_class_name: class.name().to_owned(),
            volume_mode: Some(mode.clone()),
            node_affinity: affinity(&made.volume.accessible_topology),
            mount_options: class.mount_options.clone(),
        }),
        status: Some(PersistentVolumeStatus { phase: "Bound".to_owned(), ..PersistentVolumeStatus::default() }),
        ..PersistentVolume::default()
    };

    let mut claim = claim.clone();
    let annotations = &mut claim.meta_mut().annotations;
    annotations.insert(SELECTED_NODE.to_owned(), made.node.to_owned());
    annotations.insert(BIND_COMPLETED.to_owned(), "yes".to_owned());
    let bound_spec = claim.spec.get_or_insert_default();
    bound_spec.volume_name = name;
    bound_spec.storage_class_name = Some(class.name().to_owned());
    bound_spec.volume_mode = Some(mode);
    claim.status = Some(PersistentVolumeClaimStatus {
        phase: "Bound".to_owned(),
        access_modes: spec.access_modes,
        capacity,
        ..claim.status.unwrap_or_default()
    });
    (claim, volume)
}

/// The size of a volume: as the claim has it, if the driver made it so or does not say.
fn size(claim: &PersistentVolumeClaim, made: &csi::Volume) -> Option<Quantity> {
    let actual = made.capacity_bytes;
    let as_wanted = |wanted: &&Quantity| {
        actual == 0 || wanted.value.parse().is_ok_and(|wanted: model::quantity::Quantity| wanted.as_units() == actual)
    };
    let in_bytes = || (actual > 0).then(|| Quantity { value: actual.to_string() });
    requested_size(claim).filter(as_wanted).cloned().or_else(in_bytes)
}

/// What becomes of a volume.
#[derive(Clone, Debug, PartialEq)]
pub enum Reclaim {
    /// Nothing: its claim lives, or it never had one, or not enough is known.
    Keep,
    /// Its claim is gone: write this, and nothing more. The data stays.
    Release(Box<PersistentVolume>),
}

/// What becomes of a volume. `claim` is what is known of the claim that the volume names, no older than the volume
/// itself.
///
/// The reclaim policy `Delete` is not acted upon: the data of a node's own volumes can be deleted only on that node, and
/// nothing tells a node to do so yet. A volume is released, says so, and keeps its data.
pub fn reclaim(volume: &PersistentVolume, claim: Known<'_, PersistentVolumeClaim>) -> Reclaim {
    let Some(owner) = claim_of(volume).filter(|owner| !owner.uid.is_empty()) else { return Reclaim::Keep };
    match claim {
        Known::Unreadable(_) => return Reclaim::Keep,
        Known::Is(claim) if claim.uid() == owner.uid => return Reclaim::Keep,
        Known::Is(_) | Known::Absent => {}
    }
    let phase = volume.status.as_ref().map_or("", |status| status.phase.as_str());
    if phase == "Released" {
        return Reclaim::Keep;
    }
    let message = format!(
        "claim {}/{} is gone; the data is kept until its directory on the node and this volume are deleted by hand",
        owner.namespace, owner.name
    );
    let mut released = volume.clone();
    released.status = Some(PersistentVolumeStatus {
        phase: "Released".to_owned(),
        message,
        reason: "ClaimDeleted".to_owned(),
        last_phase_transition_time: None,
    });
    Reclaim::Release(Box::new(released))
}

#[cfg(test)]
mod tests;
