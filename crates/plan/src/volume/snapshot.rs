//! How a VolumeSnapshot comes to be and ends.
//!
//! [`next`] says the one next step. Before a driver is asked for the first time the snapshot says which volume it is of,
//! by the driver's own id, and holds a finalizer; every later try, by whoever leads then, asks for the same again. A
//! driver's answer that never came is resolved by asking again, also while the snapshot is being deleted: what may have
//! been made is learnt first and then deleted.
//!
//! Must never: let the object go while the driver may hold the data; ask for the data of another volume under the same
//! name; delete data that a claim is being made of.

use jiff::Timestamp;
use pb::{
    Object, ObjectExt,
    csi::v1 as csi,
    objects::{NodeSelector, PersistentVolume, PersistentVolumeClaim, Quantity, Time, VolumeError, VolumeSnapshot},
};

use super::{Known, bound_to, held, observe::amount, reachable};

/// Keeps a snapshot's object until its data is gone.
pub const FINALIZER: &str = "snapshot.storage.kubernetes.io/volumesnapshot-bound-protection";

/// What a decision rests on.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The snapshot.
    pub snapshot: &'a VolumeSnapshot,
    /// The claim that it names.
    pub claim: Known<'a, PersistentVolumeClaim>,
    /// The volume that the claim names.
    pub volume: Known<'a, PersistentVolume>,
    /// A claim whose data is being made of the snapshot.
    pub user: Option<&'a str>,
    /// Now.
    pub now: Timestamp,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Nothing until something changes.
    Nothing,
    /// Write the snapshot, then look again.
    Write(Box<VolumeSnapshot>),
    /// CreateSnapshot, then write what [`made`] or [`refused`] says.
    Create(Asked),
    /// DeleteSnapshot, then do what [`gone`] says, or write what [`kept`] says.
    Delete {
        /// Name of the driver.
        driver: String,
        /// The driver's id of the snapshot.
        handle: String,
        /// From where it can be reached.
        reachable: Option<NodeSelector>,
    },
    /// The driver holds nothing: do this.
    End(End),
}

/// What a driver is asked for: the same at every try.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// Name of the driver.
    pub driver: String,
    /// The name that makes tries one.
    pub name: String,
    /// Name of the volume's object.
    pub volume_name: String,
    /// The driver's id of the volume.
    pub volume_handle: String,
    /// From where the volume can be reached.
    pub reachable: Option<NodeSelector>,
}

/// How the object of a snapshot ends.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// Delete it.
    Delete,
    /// Others keep it still: write it.
    Write(Box<VolumeSnapshot>),
}

/// The next step of a snapshot.
pub fn next(view: &View<'_>) -> Step {
    let snapshot = view.snapshot;
    let status = snapshot.status.clone().unwrap_or_default();
    let protected = snapshot.meta().finalizers.iter().any(|finalizer| finalizer == FINALIZER);
    if snapshot.is_terminating() {
        return match view.user {
            _ if !protected => Step::Nothing,
            Some(user) => says(view, format!("it goes when persistentvolumeclaim {user:?} has been made of it")),
            None if !status.snapshot_handle.is_empty() => {
                Step::Delete { driver: status.driver, handle: status.snapshot_handle, reachable: status.reachable }
            }
            None if !status.driver.is_empty() => Step::Create(asked(snapshot)),
            None => Step::End(gone(snapshot)),
        };
    }
    if status.ready_to_use && protected {
        return Step::Nothing;
    }
    if !status.driver.is_empty() && protected { Step::Create(asked(snapshot)) } else { begin(view) }
}

fn asked(snapshot: &VolumeSnapshot) -> Asked {
    let status = snapshot.status.clone().unwrap_or_default();
    Asked {
        driver: status.driver,
        name: format!("snapshot-{}", snapshot.uid()),
        volume_name: status.volume_name,
        volume_handle: status.volume_handle,
        reachable: status.reachable,
    }
}

fn begin(view: &View<'_>) -> Step {
    let source = view.snapshot.spec.as_ref().and_then(|spec| spec.source.as_ref());
    let name = source.map_or("", |source| source.persistent_volume_claim_name.as_str());
    let claim = match view.claim {
        Known::Is(claim) => claim,
        Known::Unreadable(why) => return says(view, format!("persistentvolumeclaim {name:?} cannot be read: {why}")),
        Known::Absent => {
            return says(
                view,
                format!("persistentvolumeclaim {name:?} does not exist; delete the snapshot, or create the claim"),
            );
        }
    };
    let Some(volume_name) = bound_to(claim) else {
        return says(
            view,
            format!(
                "persistentvolumeclaim {name:?} has no volume yet; the snapshot is made when it has one, which is when a \
                 pod uses it"
            ),
        );
    };
    if let Some(operation) = held(claim) {
        return says(
            view,
            format!(
                "persistentvolumeclaim {name:?} is held by a {}; the snapshot is made afterwards",
                operation.r#type
            ),
        );
    }
    let volume = match view.volume {
        Known::Is(volume) => volume,
        Known::Unreadable(why) => {
            return says(view, format!("persistentvolume {volume_name:?} cannot be read: {why}"));
        }
        Known::Absent => {
            return says(
                view,
                format!(
                    "persistentvolume {volume_name:?} of the claim is gone, and its data with it; delete the snapshot"
                ),
            );
        }
    };
    let spec = volume.spec.clone().unwrap_or_default();
    let Some(csi) = spec.csi.filter(|_| spec.claim_ref.is_some_and(|owner| owner.uid == claim.uid())) else {
        return says(view, format!("persistentvolume {volume_name:?} does not belong to claim {name:?}; check both"));
    };
    let mut snapshot = view.snapshot.clone();
    let finalizers = &mut snapshot.meta_mut().finalizers;
    if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
        finalizers.push(FINALIZER.to_owned());
    }
    let status = snapshot.status.get_or_insert_default();
    status.driver = csi.driver;
    status.volume_handle = csi.volume_handle;
    status.volume_name = volume_name.to_owned();
    status.reachable = reachable(volume).cloned();
    status.storage_class_name = spec.storage_class_name;
    Step::Write(Box::new(snapshot))
}

/// Write why it is not ready, if that is news.
fn says(view: &View<'_>, message: String) -> Step {
    let after = with_error(view.snapshot, message, view.now);
    if &after == view.snapshot { Step::Nothing } else { Step::Write(Box::new(after)) }
}

fn with_error(snapshot: &VolumeSnapshot, message: String, now: Timestamp) -> VolumeSnapshot {
    let mut snapshot = snapshot.clone();
    let status = snapshot.status.get_or_insert_default();
    if status.error.as_ref().is_none_or(|error| error.message != message) {
        status.error = Some(VolumeError { time: Some(now.into()), message });
    }
    snapshot
}

/// The driver has made it, or is about to: it may still say that it is not ready.
pub fn made(snapshot: &VolumeSnapshot, answer: &csi::Snapshot) -> VolumeSnapshot {
    let mut snapshot = snapshot.clone();
    let status = snapshot.status.get_or_insert_default();
    status.snapshot_handle.clone_from(&answer.snapshot_id);
    // A snapshot that volumes were made of does not cease to be one.
    status.ready_to_use |= answer.ready_to_use;
    if let Some(at) = &answer.creation_time {
        status.creation_time = Some(Time { seconds: at.seconds, nanos: at.nanos });
    }
    if answer.size_bytes > 0 {
        status.restore_size = Some(amount(answer.size_bytes, status.restore_size.as_ref()));
    }
    status.error = None;
    snapshot
}

/// The driver has refused. If it has never said that it has the snapshot, it holds nothing under this name; so a
/// snapshot that is being deleted can go, and one whose claim has another volume now (`volume_now`, by the driver's id)
/// begins anew. Otherwise the same is asked again.
pub fn refused(snapshot: &VolumeSnapshot, volume_now: Option<&str>, message: &str, now: Timestamp) -> VolumeSnapshot {
    let mut snapshot = with_error(snapshot, message.to_owned(), now);
    let terminating = snapshot.is_terminating();
    let status = snapshot.status.get_or_insert_default();
    let other = volume_now.is_some_and(|handle| handle != status.volume_handle);
    if status.snapshot_handle.is_empty() && (terminating || other) {
        status.driver.clear();
        status.volume_name.clear();
        status.volume_handle.clear();
        status.storage_class_name.clear();
        status.reachable = None;
    }
    snapshot
}

/// Something did not succeed and is tried again.
pub fn kept(snapshot: &VolumeSnapshot, message: &str, now: Timestamp) -> VolumeSnapshot {
    with_error(snapshot, message.to_owned(), now)
}

/// The driver holds nothing any more.
pub fn gone(snapshot: &VolumeSnapshot) -> End {
    let mut snapshot = snapshot.clone();
    let finalizers = &mut snapshot.meta_mut().finalizers;
    finalizers.retain(|finalizer| finalizer != FINALIZER);
    if finalizers.is_empty() { End::Delete } else { End::Write(Box::new(snapshot)) }
}

/// The size that a volume of the snapshot has at least, as it was written.
pub fn restore_size(snapshot: &VolumeSnapshot) -> Option<&Quantity> {
    snapshot.status.as_ref()?.restore_size.as_ref()
}

#[cfg(test)]
mod tests;
