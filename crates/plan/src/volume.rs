//! Which volumes the claims of an ordinal get, where they can be reached, and what becomes of them.
//!
//! [`prepare`] says for one claim whether it has its volume, will get one when its pod has a node, or cannot get one
//! and why. [`bind`] makes the pair of a claim and its new volume, [`bind_existing`] that of a claim and a volume that a person
//! made. [`attach`](mod@attach) says to which nodes a volume is attached, [`reclaim`](mod@reclaim) what becomes of it when its claim
//! is gone, [`orphans`] which volumes of a driver no object knows. How claims grow, snapshots, and what is done with data
//! as a whole have modules of their own.
//!
//! Must never: take a volume for a claim of another uid, or an empty volume in place of a lost one (I5); let a volume
//! go because of something that is not known.

pub mod attach;
mod bind;
mod capacity;
pub mod expand;
pub mod lost;
mod matching;
mod observe;
pub mod operation;
pub mod orphans;
mod prepare;
pub mod reclaim;
pub mod snapshot;
mod topology;

use pb::{
    Object, ObjectExt,
    csi::v1::{
        VolumeCapability,
        volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode},
    },
    objects::{
        ClaimOperation, NodeSelector, ObjectReference, PersistentVolume, PersistentVolumeClaim, Quantity, StorageClass,
    },
};

pub use bind::{Made, bind, bind_existing, intent};
pub use capacity::{Room, Space, room};
pub use matching::{is_free, smallest};
pub use prepare::{Around, Choice, ClaimState, Content, Problem, Source, SourceName, prepare, source_of};
pub use topology::{allowed, both, either, label_of, place_of, places_in, reaches, selector_of, selector_text};

/// The resource that a volume's size stands under.
pub const STORAGE: &str = "storage";
/// The provisioner of classes whose volumes people make.
pub const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
/// Finalizer of a volume: it does not go while a claim has it.
pub const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";
/// On a volume: it is never deleted by itself.
pub const KEEP: &str = "volume.berth.dev/keep";

/// On the class that claims without a class get.
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
/// On a claim: the node that its volume was made for.
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On a claim: its binding is complete.
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On a volume: the driver that made it.
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// On a volume: its claim was found for it, and not named by a person.
const BOUND_BY: &str = "pv.kubernetes.io/bound-by-controller";
/// On a volume that is being made: what it begins with.
const CONTENT: &str = "volume.berth.dev/content";

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

/// The name of the volume that a claim is bound to.
pub fn bound_to(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.spec.as_ref().map(|spec| spec.volume_name.as_str()).filter(|name| !name.is_empty())
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

/// What is being done with a claim's data as a whole. Until it has ended no pod gets the claim.
pub fn held(claim: &PersistentVolumeClaim) -> Option<&ClaimOperation> {
    let operation = claim.status.as_ref()?.operation.as_ref()?;
    (!matches!(operation.phase.as_str(), "" | "Done" | "Failed")).then_some(operation)
}

/// Bytes in a quantity; None if it cannot be read.
pub fn bytes(quantity: &Quantity) -> Option<i64> {
    quantity.value.parse().ok().map(|size: model::quantity::Quantity| size.as_units())
}

/// Bytes that a claim asks for; 0 if it does not say.
pub fn requested_bytes(claim: &PersistentVolumeClaim) -> Option<i64> {
    requested_size(claim).map_or(Some(0), bytes)
}

/// The size of a volume in bytes; 0 if it is not known.
pub fn volume_size(volume: &PersistentVolume) -> i64 {
    let capacity = volume.spec.as_ref().and_then(|spec| spec.capacity.get(STORAGE));
    capacity.and_then(bytes).unwrap_or(0)
}

/// The phase of a volume; empty if it has none yet.
pub fn phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().map_or("", |status| status.phase.as_str())
}

/// The type of file system that a class asks for; empty: the driver's own choice.
pub fn fs_type(class: &StorageClass) -> &str {
    let named = |key: &str| class.parameters.get(key).map(String::as_str);
    named("csi.storage.k8s.io/fstype").or_else(|| named("fsType")).unwrap_or_default()
}

/// What a volume that is being made begins with.
pub fn content_in(volume: &PersistentVolume) -> Option<SourceName> {
    volume.meta().annotations.get(CONTENT)?.parse().ok()
}

/// Sixteen hex digits that tell texts apart (FNV-1a, 64 bits): for names that must be the same for every try.
fn digest(text: &str) -> String {
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    format!("{:016x}", text.bytes().fold(0xcbf2_9ce4_8422_2325, fnv))
}

/// Whether volumes with these access modes are used from one node at a time.
pub fn is_single_node(access_modes: &[String]) -> bool {
    !access_modes.iter().any(|mode| matches!(mode.as_str(), "ReadWriteMany" | "ReadOnlyMany"))
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
