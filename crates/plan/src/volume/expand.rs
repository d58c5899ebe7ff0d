//! How a claim grows.
//!
//! [`next`] says the one next step of a claim that asks for more than it has. First the intent is written
//! (`allocatedResources`, ControllerResizeInProgress), then the driver's controller makes the volume larger, then the
//! file system grows on the node where the volume is staged; where it is staged nowhere, it grows when it is staged next.
//! All that is remembered stands in the claim and in its volume, so that any step can be repeated after a crash.
//!
//! Must never: let a capacity fall; ask a driver for less than it was asked for before, unless the driver has refused
//! that for good; say that a claim has grown before the driver, and the node where one is needed, have said so.

use jiff::Timestamp;
use pb::{
    ObjectExt,
    objects::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus, StorageClass},
};

use super::{
    Known, STORAGE, bound_to, held,
    observe::{amount, bytes_of, clear_condition, set_condition, volume_bytes, with_status},
    requested_size,
};

/// Condition of a claim: the driver's controller is making its volume larger.
pub const RESIZING: &str = "Resizing";
/// Condition of a claim: its volume has grown, the file system on it has not yet.
pub const FILE_SYSTEM_PENDING: &str = "FileSystemResizePending";
/// Condition of a claim: its volume does not grow, and why.
pub const RESIZE_ERROR: &str = "ControllerResizeError";

/// Value in `allocatedResourceStatuses`: the driver has been asked, or will be.
pub const IN_PROGRESS: &str = "ControllerResizeInProgress";
/// Value in `allocatedResourceStatuses`: the driver has refused for good.
pub const INFEASIBLE: &str = "ControllerResizeInfeasible";
/// Value in `allocatedResourceStatuses`: what is left is up to the node.
pub const NODE_PENDING: &str = "NodeResizePending";

/// What a decision rests on.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The claim.
    pub claim: &'a PersistentVolumeClaim,
    /// The volume that it names.
    pub volume: Known<'a, PersistentVolume>,
    /// The class that it names.
    pub class: Known<'a, StorageClass>,
    /// Whether a pod that uses the claim has a node.
    pub used: bool,
    /// Now.
    pub now: Timestamp,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Nothing until something changes.
    Nothing,
    /// Write the claim, then look again.
    Write(Box<PersistentVolumeClaim>),
    /// Ask the driver's controller for a volume of so many bytes at least, then write what [`volume_grew`] or
    /// [`volume_did_not_grow`] says.
    GrowVolume {
        /// Bytes.
        bytes: i64,
    },
    /// Ask the agents of the nodes of pods that use the claim for a file system on all of the volume, then write what
    /// [`file_system_grew`] or [`file_system_did_not_grow`] says.
    GrowFileSystem {
        /// Bytes.
        bytes: i64,
    },
}

/// What the driver's controller answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grown {
    /// Bytes that the volume has now; 0 if the driver does not say.
    pub bytes: i64,
    /// Whether the file system has to grow on the node.
    pub on_node: bool,
}

/// Why the driver's controller did not make the volume larger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It never will: not by so much, or not at all.
    Final(String),
    /// It may when it is asked again.
    NotNow(String),
}

/// Whether there can be anything to do: the claim asks for more than it has, or says something about growing.
pub fn concerns(claim: &PersistentVolumeClaim) -> bool {
    let state = State::of(claim);
    let says = |status: &PersistentVolumeClaimStatus| {
        status.conditions.iter().any(|c| matches!(c.r#type.as_str(), RESIZING | FILE_SYSTEM_PENDING | RESIZE_ERROR))
    };
    state.wanted > state.capacity || !state.phase.is_empty() || claim.status.as_ref().is_some_and(says)
}

/// The next step of a claim.
pub fn next(view: &View<'_>) -> Step {
    let claim = view.claim;
    let Known::Is(volume) = view.volume else { return Step::Nothing };
    let owner = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    let own = bound_to(claim).is_some() && owner.is_some_and(|owner| owner.uid == claim.uid());
    if !own || claim.is_terminating() || held(claim).is_some() {
        return Step::Nothing;
    }
    let state = State::of(claim);
    let size = volume_bytes(volume);
    match state.phase {
        IN_PROGRESS if size < state.target => Step::GrowVolume { bytes: state.target },
        IN_PROGRESS => written(claim, wait_for_node(claim, state.target, view.now)),
        NODE_PENDING if view.used => Step::GrowFileSystem { bytes: size.max(state.target) },
        NODE_PENDING => Step::Nothing,
        // The driver's word stands until something else is asked for.
        INFEASIBLE if state.wanted == state.target && state.wanted > size => Step::Nothing,
        _ => begin(view, state, size),
    }
}

/// What a claim says of its own growth.
#[derive(Clone, Copy)]
struct State<'a> {
    /// Bytes asked for.
    wanted: i64,
    /// Bytes that the user has been told.
    capacity: i64,
    /// Bytes that the volume is on its way to.
    target: i64,
    phase: &'a str,
}

impl<'a> State<'a> {
    fn of(claim: &'a PersistentVolumeClaim) -> Self {
        let status = claim.status.as_ref();
        let of = |amounts: fn(&PersistentVolumeClaimStatus) -> &std::collections::BTreeMap<_, _>| {
            bytes_of(status.and_then(|status| amounts(status).get(STORAGE)))
        };
        Self {
            wanted: bytes_of(requested_size(claim)),
            capacity: of(|status| &status.capacity),
            target: of(|status| &status.allocated_resources),
            phase: status.and_then(|status| status.allocated_resource_statuses.get(STORAGE)).map_or("", String::as_str),
        }
    }
}

fn begin(view: &View<'_>, state: State<'_>, size: i64) -> Step {
    let claim = view.claim;
    if state.wanted <= state.capacity || state.capacity == 0 {
        return written(claim, with_status(claim, settle));
    }
    if state.wanted <= size {
        return written(claim, wait_for_node(claim, size, view.now));
    }
    let class = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref()).unwrap_or_default();
    let (reason, message) = match view.class {
        Known::Is(class) if class.allow_volume_expansion == Some(true) => {
            return written(claim, intend(claim, state.wanted, view.now));
        }
        // Nothing is said about what is not known.
        Known::Unreadable(_) => return Step::Nothing,
        Known::Is(_) => (
            "ClassForbidsExpansion",
            format!(
                "storageclass {class:?} does not let its volumes grow; set allowVolumeExpansion: true on it, or ask for \
                 the old size again"
            ),
        ),
        Known::Absent if class.is_empty() => {
            ("NoClass", "volumes without a storageclass do not grow; ask for the old size again".to_owned())
        }
        Known::Absent => (
            "ClassNotFound",
            format!("storageclass {class:?} does not exist; create it with allowVolumeExpansion: true"),
        ),
    };
    let refused = with_status(claim, |status| {
        stop(status);
        // Without a size: it is thought of anew at every look.
        status.allocated_resource_statuses.insert(STORAGE.to_owned(), INFEASIBLE.to_owned());
        set_condition(status, RESIZE_ERROR, reason, message, view.now);
    });
    written(claim, refused)
}

/// Write it if it says anything new.
fn written(before: &PersistentVolumeClaim, after: PersistentVolumeClaim) -> Step {
    if after.status.clone().unwrap_or_default() == before.status.clone().unwrap_or_default() {
        Step::Nothing
    } else {
        Step::Write(Box::new(after))
    }
}

/// No growth is going on, and nothing is wrong.
fn settle(status: &mut PersistentVolumeClaimStatus) {
    stop(status);
    clear_condition(status, RESIZE_ERROR);
}

/// No growth is going on.
fn stop(status: &mut PersistentVolumeClaimStatus) {
    status.allocated_resources.remove(STORAGE);
    status.allocated_resource_statuses.remove(STORAGE);
    clear_condition(status, RESIZING);
    clear_condition(status, FILE_SYSTEM_PENDING);
}

fn intend(claim: &PersistentVolumeClaim, bytes: i64, now: Timestamp) -> PersistentVolumeClaim {
    let target = amount(bytes, requested_size(claim));
    with_status(claim, |status| {
        settle(status);
        status.allocated_resources.insert(STORAGE.to_owned(), target);
        status.allocated_resource_statuses.insert(STORAGE.to_owned(), IN_PROGRESS.to_owned());
        set_condition(status, RESIZING, "Expanding", "the driver is asked for a larger volume".to_owned(), now);
    })
}

fn wait_for_node(claim: &PersistentVolumeClaim, bytes: i64, now: Timestamp) -> PersistentVolumeClaim {
    let target = amount(bytes, requested_size(claim));
    with_status(claim, |status| {
        settle(status);
        status.allocated_resources.insert(STORAGE.to_owned(), target);
        status.allocated_resource_statuses.insert(STORAGE.to_owned(), NODE_PENDING.to_owned());
        let message =
            "the volume has grown; its file system grows where a pod has it, or when a pod is started with it";
        set_condition(status, FILE_SYSTEM_PENDING, "WaitingForNode", message.to_owned(), now);
    })
}

/// The volume is larger: both objects, to be written together.
pub fn volume_grew(
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
    grown: Grown,
    now: Timestamp,
) -> (PersistentVolumeClaim, PersistentVolume) {
    let target = State::of(claim).target;
    let size = volume_bytes(volume);
    if grown.bytes != 0 && grown.bytes < target {
        let less = format!("the driver answered that the volume has {} bytes, less than it was asked for", grown.bytes);
        return (volume_did_not_grow(claim, &Failure::NotNow(less), now), volume.clone());
    }
    let size = size.max(target).max(grown.bytes);
    let mut volume = volume.clone();
    let like = requested_size(claim);
    volume.spec.get_or_insert_default().capacity.insert(STORAGE.to_owned(), amount(size, like));
    let claim = if grown.on_node { wait_for_node(claim, size, now) } else { file_system_grew(claim, &volume) };
    (claim, volume)
}

/// The volume is not larger.
pub fn volume_did_not_grow(claim: &PersistentVolumeClaim, failure: &Failure, now: Timestamp) -> PersistentVolumeClaim {
    with_status(claim, |status| match failure {
        Failure::Final(message) => {
            clear_condition(status, RESIZING);
            status.allocated_resource_statuses.insert(STORAGE.to_owned(), INFEASIBLE.to_owned());
            let message = format!("{message}; ask for another size, or for the old one");
            set_condition(status, RESIZE_ERROR, "Infeasible", message, now);
        }
        Failure::NotNow(message) => {
            set_condition(status, RESIZE_ERROR, "Retrying", format!("{message}; it is asked again"), now);
        }
    })
}

/// The file system has all of the volume: the claim has what it was promised.
pub fn file_system_grew(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> PersistentVolumeClaim {
    let size = volume_bytes(volume).max(State::of(claim).capacity);
    let size = amount(size, requested_size(claim));
    with_status(claim, |status| {
        settle(status);
        status.capacity.insert(STORAGE.to_owned(), size);
    })
}

/// The file system has not grown: it does when a pod is started with it, and this says why not before.
pub fn file_system_did_not_grow(claim: &PersistentVolumeClaim, message: &str, now: Timestamp) -> PersistentVolumeClaim {
    with_status(claim, |status| {
        let message = format!("the volume has grown, its file system has not: {message}");
        set_condition(status, FILE_SYSTEM_PENDING, "NodeRefused", message, now);
    })
}

#[cfg(test)]
mod tests;
