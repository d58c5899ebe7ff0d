//! What is done with a claim's data as a whole: Move takes it to another node, Restore puts the data of a snapshot in its
//! place.
//!
//! [`next`] says the one next step; [`Change`] is what a step writes, in one transaction. The new data is made beside the
//! old, in a volume that has an object of its own from the moment the driver has made it (the *copy*: phase Pending,
//! annotation [`OPERATION`]). Switching is one transaction, in which the claim's volume and the copy change places: the
//! volume keeps its name and its claim and has the copy's place in the driver; the old place gets an object of its own,
//! Released. On failure it is the copy that becomes Released. Nothing here deletes data: what is Released is reclaimed
//! like any other volume, or kept.
//!
//! Must never: leave a claim with data that is not complete; name one place in a driver by two objects that are both in use;
//! begin while a pod may write. Everything that a step rests on stands in the store, so that any step can be repeated by
//! whoever leads then.

mod change;

use std::fmt;

use jiff::Timestamp;
use pb::{
    Object, ObjectExt,
    csi::v1::{
        self as csi, CapacityRange, CreateVolumeRequest, TopologyRequirement, VolumeContentSource,
        volume_content_source::{SnapshotSource, Type as Source},
    },
    objects::{
        ClaimOperation, Node, NodeSelector, PersistentVolume, PersistentVolumeClaim, Pod, StorageClass, VolumeSnapshot,
    },
};

pub use change::{Change, created, failed, progress, stray, verified};

use super::{
    Known, bound_to, capability, held,
    lost::{self, Nodes, living},
    observe::{bytes_of, volume_bytes},
    place_of, places_in, reachable, reaches, snapshot,
};

/// On a volume's object: it is the copy that an operation makes, with the operation's id.
pub const OPERATION: &str = "volume.berth.dev/operation";

/// `type` of an operation that takes the data to another node.
pub const MOVE: &str = "Move";
/// `type` of an operation that puts a snapshot's data in the place of the data.
pub const RESTORE: &str = "Restore";

/// Phase: asked for; the claim is still in use, or may be.
pub const WAITING: &str = "Waiting";
/// Phase: the new data is being made.
pub const COPYING: &str = "Copying";
/// Phase: the new data is complete and takes the place of the old.
pub const SWITCHING: &str = "Switching";
/// Phase: it has ended well.
pub const DONE: &str = "Done";
/// Phase: it has ended; all is as it was.
pub const FAILED: &str = "Failed";

/// The name of the copy: as a volume's object, and as the name that the driver is asked to make it under. Each
/// operation has its own, so that no try ever meets what another left behind.
pub fn copy_name(claim: &PersistentVolumeClaim, operation: &ClaimOperation) -> String {
    format!("pvc-{}-{}", claim.uid(), operation.id)
}

/// What a decision rests on.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The claim.
    pub claim: &'a PersistentVolumeClaim,
    /// The volume that it names.
    pub volume: Known<'a, PersistentVolume>,
    /// What stands under [`copy_name`].
    pub copy: Known<'a, PersistentVolume>,
    /// The class that the volume names.
    pub class: Known<'a, StorageClass>,
    /// The snapshot that a Restore names.
    pub snapshot: Known<'a, VolumeSnapshot>,
    /// All nodes.
    pub nodes: &'a Nodes,
    /// Pods that name the claim, no older than the claim itself.
    pub pods: &'a [&'a Pod],
    /// Nodes that the volume is attached to, or may be.
    pub attached: &'a [&'a str],
    /// Whether a node has the volume in use; None: not asked yet.
    pub inspected: Option<&'a Inspected>,
    /// Now.
    pub now: Timestamp,
}

/// What the agents of the nodes say that could have the volume in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inspected {
    /// No node has it.
    Idle,
    /// This one has, or does not say. A sentence.
    Busy(String),
}

/// Where the driver's controller is to be called.
#[derive(Clone, Debug, PartialEq)]
pub enum Where {
    /// Anywhere.
    Anywhere,
    /// For this node.
    Node(String),
    /// Where such nodes are.
    Reachable(NodeSelector),
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// No operation is going on.
    Nothing,
    /// Nothing until something changes; it may have to be looked at again by time.
    Wait,
    /// Write this.
    Write(Box<Change>),
    /// Ask the agents of these nodes whether they have the volume in use, then ask [`next`] again.
    Inspect(Vec<String>),
    /// CreateVolume, then write what [`created`] or [`failed`] says.
    Create {
        /// Name of the driver.
        driver: String,
        /// Where.
        place: Where,
        /// What is asked.
        request: Box<CreateVolumeRequest>,
    },
    /// Let the agent of `to` import the volume into the copy from the agent of `from`, then write what [`verified`] or
    /// [`failed`] says; [`progress`] meanwhile.
    Copy {
        /// The node that has the data.
        from: String,
        /// The node that gets it.
        to: String,
    },
}

/// What ends an operation without success: a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
struct End(String);

/// What a part of the decision comes to before the last.
enum Early {
    /// It cannot succeed.
    End(End),
    /// It has to wait; why.
    Wait(String),
    /// Agents have to be asked.
    Inspect(Vec<String>),
}

impl From<End> for Early {
    fn from(end: End) -> Self {
        Self::End(end)
    }
}

fn end<T>(message: impl fmt::Display) -> Result<T, Early> {
    Err(Early::End(End(message.to_string())))
}

fn wait<T>(message: impl fmt::Display) -> Result<T, Early> {
    Err(Early::Wait(message.to_string()))
}

/// The next step of a claim's operation.
pub fn next(view: &View<'_>) -> Step {
    let Some(operation) = held(view.claim) else { return Step::Nothing };
    match advance(view, operation) {
        Ok(step) => step,
        Err(Early::Inspect(nodes)) => Step::Inspect(nodes),
        Err(Early::Wait(message)) => match change::waiting(view.claim, &message) {
            Some(change) => Step::Write(Box::new(change)),
            None => Step::Wait,
        },
        Err(Early::End(End(message))) => {
            let copy = match view.copy {
                Known::Is(copy) if change::is_copy(copy, operation) => Some(copy),
                Known::Is(_) | Known::Absent | Known::Unreadable(_) => None,
            };
            Step::Write(Box::new(failed(view.claim, copy, &message, view.now)))
        }
    }
}

fn advance(view: &View<'_>, operation: &ClaimOperation) -> Result<Step, Early> {
    let name = view.claim.name();
    if view.claim.is_terminating() {
        return end(format!("persistentvolumeclaim {name:?} is being deleted"));
    }
    let volume = volume(view)?;
    let copy = copy(view, operation)?;
    if operation.phase == SWITCHING {
        return switch(view, operation, volume, copy);
    }
    let route = Route::find(view, operation, volume)?;
    idle(view, volume)?;
    if operation.phase != COPYING {
        return Ok(write(change::started(view.claim, volume)));
    }
    match (copy, route) {
        (None, route) => create(view, operation, volume, &route),
        (Some(_), Route::Move { from, to }) => Ok(Step::Copy { from: from.to_owned(), to: to.name().to_owned() }),
        // The driver has made it of the snapshot: it is complete.
        (Some(_), Route::Restore { .. }) => Ok(write(verified(view.claim))),
    }
}

/// Neither the source nor the snapshot is needed any more.
fn switch(
    view: &View<'_>,
    operation: &ClaimOperation,
    volume: &PersistentVolume,
    copy: Option<&PersistentVolume>,
) -> Result<Step, Early> {
    let Some(copy) = copy else {
        return end("the new data was deleted before it could take its place; ask again");
    };
    if operation.r#type == MOVE {
        target(view, operation)?;
    }
    Ok(write(change::switched(view.claim, volume, copy, view.now)))
}

/// The node that a Move goes to.
fn target<'a>(view: &View<'a>, operation: &ClaimOperation) -> Result<&'a Node, Early> {
    let name = operation.target_node.as_str();
    match view.nodes.get(name) {
        None => end(format!("node {name:?} does not exist (any more); choose another")),
        Some(node) if lost::is_off(node) => end(format!("node {name:?} is out of service; choose another")),
        Some(node) => Ok(node),
    }
}

fn write(change: Change) -> Step {
    Step::Write(Box::new(change))
}

/// The claim's own volume.
fn volume<'a>(view: &View<'a>) -> Result<&'a PersistentVolume, Early> {
    let name = bound_to(view.claim).unwrap_or_default();
    match view.volume {
        _ if name.is_empty() => end("the claim has no volume yet; start its pod once, or delete the claim"),
        Known::Unreadable(why) => wait(format!("persistentvolume {name:?} cannot be read: {why}")),
        Known::Absent => end(format!("persistentvolume {name:?} is gone, and its data with it")),
        Known::Is(volume) => {
            let spec = volume.spec.as_ref();
            let owner = spec.and_then(|spec| spec.claim_ref.as_ref());
            if owner.is_none_or(|owner| owner.uid != view.claim.uid()) {
                return end(format!("persistentvolume {name:?} belongs to another claim"));
            }
            if spec.and_then(|spec| spec.csi.as_ref()).is_none() {
                return end(format!("persistentvolume {name:?} has no CSI driver; move its data by hand"));
            }
            Ok(volume)
        }
    }
}

/// The copy, if it has been made.
fn copy<'a>(view: &View<'a>, operation: &ClaimOperation) -> Result<Option<&'a PersistentVolume>, Early> {
    match view.copy {
        Known::Absent => Ok(None),
        Known::Unreadable(why) => wait(format!("the copy cannot be read: {why}")),
        Known::Is(copy) if change::is_copy(copy, operation) => Ok(Some(copy)),
        Known::Is(copy) => end(format!(
            "persistentvolume {:?} took the name of the copy, in phase {}; ask again",
            copy.name(),
            copy.status.as_ref().map_or("", |status| status.phase.as_str())
        )),
    }
}

/// From where to where.
enum Route<'a> {
    Move { from: &'a str, to: &'a Node },
    Restore { snapshot: &'a VolumeSnapshot },
}

impl<'a> Route<'a> {
    fn find(view: &View<'a>, operation: &'a ClaimOperation, volume: &'a PersistentVolume) -> Result<Self, Early> {
        match operation.r#type.as_str() {
            MOVE => Self::find_move(view, operation, volume),
            RESTORE => Self::find_restore(view, operation, volume),
            other => end(format!("{other:?} is no operation; those that there are: {MOVE}, {RESTORE}")),
        }
    }

    fn find_move(view: &View<'a>, operation: &'a ClaimOperation, volume: &'a PersistentVolume) -> Result<Self, Early> {
        let (name, to) = (operation.target_node.as_str(), target(view, operation)?);
        let Some(selector) = reachable(volume) else {
            return end("the volume can be reached from every node: there is nothing to move");
        };
        if reaches(Some(selector), name, &to.meta().labels) {
            return end(format!("the volume can be reached from node {name:?} as it is; start the pod there"));
        }
        let driver = driver_of(volume);
        if keys(to, driver).is_empty() {
            return end(format!("node {name:?} does not have the CSI driver {driver:?}; register it there"));
        }
        if let Some(why) = lost::lost(volume, view.nodes) {
            return end(format!("the data cannot be read: {why}"));
        }
        let mut from = living(Some(selector), view.nodes).filter(|(_, node)| !keys(node, driver).is_empty());
        match from.next() {
            Some((from, _)) => Ok(Self::Move { from, to }),
            None => wait(format!("no node that has the data has the CSI driver {driver:?} registered now")),
        }
    }

    fn find_restore(
        view: &View<'a>,
        operation: &'a ClaimOperation,
        volume: &'a PersistentVolume,
    ) -> Result<Self, Early> {
        let name = &operation.snapshot;
        let snapshot = match view.snapshot {
            Known::Is(snapshot) => snapshot,
            Known::Absent => return end(format!("volumesnapshot {name:?} does not exist (any more)")),
            Known::Unreadable(why) => return wait(format!("volumesnapshot {name:?} cannot be read: {why}")),
        };
        if snapshot.is_terminating() && !matches!(view.copy, Known::Is(_)) {
            return end(format!("volumesnapshot {name:?} is being deleted"));
        }
        let status = snapshot.status.clone().unwrap_or_default();
        if !status.ready_to_use {
            let why = status.error.map_or_else(String::new, |error| format!(": {}", error.message));
            return wait(format!("volumesnapshot {name:?} is not ready{why}"));
        }
        let driver = driver_of(volume);
        if status.driver != driver {
            let other = status.driver;
            return end(format!(
                "volumesnapshot {name:?} is of the CSI driver {other:?}, the claim's volume of {driver:?}; make a new \
                 claim of the snapshot instead"
            ));
        }
        let (size, needed) = (volume_bytes(volume), bytes_of(snapshot::restore_size(snapshot)));
        if needed > size {
            return end(format!(
                "volumesnapshot {name:?} needs {needed} bytes, the claim has {size}; expand the claim first"
            ));
        }
        Ok(Self::Restore { snapshot })
    }
}

fn driver_of(volume: &PersistentVolume) -> &str {
    volume.spec.as_ref().and_then(|spec| spec.csi.as_ref()).map_or("", |csi| csi.driver.as_str())
}

/// The topology keys of a driver on a node; none if it is not there.
fn keys<'a>(node: &'a Node, driver: &str) -> &'a [String] {
    let drivers = node.status.as_ref().map(|status| status.csi_drivers.as_slice()).unwrap_or_default();
    drivers.iter().find(|there| there.name == driver).map(|there| there.topology_keys.as_slice()).unwrap_or_default()
}

/// Waits until nobody can write to the volume.
fn idle(view: &View<'_>, volume: &PersistentVolume) -> Result<(), Early> {
    for pod in view.pods {
        let node = pod.spec.as_ref().map_or("", |spec| spec.node_name.as_str());
        if !node.is_empty() {
            return wait(format!("pod {:?} on node {node:?} has the claim; delete the pod to go on", pod.name()));
        }
    }
    if let Some(node) = view.attached.first() {
        return wait(format!("the volume is attached to node {node:?} still; it is being detached"));
    }
    match view.inspected {
        Some(Inspected::Idle) => Ok(()),
        Some(Inspected::Busy(why)) => wait(why),
        None => {
            let driver = driver_of(volume);
            let has = |node: &Node| {
                node.status.iter().flat_map(|status| &status.csi_drivers).any(|there| there.name == driver)
            };
            let near = living(reachable(volume), view.nodes).filter(|(_, node)| has(node));
            let nodes: Vec<String> = near.map(|(name, _)| name.to_owned()).collect();
            if nodes.is_empty() { Ok(()) } else { Err(Early::Inspect(nodes)) }
        }
    }
}

fn create(
    view: &View<'_>,
    operation: &ClaimOperation,
    volume: &PersistentVolume,
    route: &Route<'_>,
) -> Result<Step, Early> {
    let spec = volume.spec.clone().unwrap_or_default();
    let csi = spec.csi.unwrap_or_default();
    let class = spec.storage_class_name;
    let parameters = match view.class {
        Known::Is(class) => class.parameters.clone(),
        Known::Absent if class.is_empty() => Default::default(),
        Known::Absent => {
            return wait(format!("storageclass {class:?} of the volume does not exist; create it to go on"));
        }
        Known::Unreadable(why) => return wait(format!("storageclass {class:?} cannot be read: {why}")),
    };
    let (place, source, places) = match route {
        Route::Move { to, .. } => {
            let place = place_of(to, keys(to, &csi.driver));
            (Where::Node(to.name().to_owned()), None, place.into_iter().collect())
        }
        Route::Restore { snapshot } => {
            let status = snapshot.status.clone().unwrap_or_default();
            let places = status.reachable.as_ref().map(places_in).unwrap_or_default();
            let source = SnapshotSource { snapshot_id: status.snapshot_handle };
            let place = status.reachable.map_or(Where::Anywhere, Where::Reachable);
            (place, Some(VolumeContentSource { r#type: Some(Source::Snapshot(source)) }), places)
        }
    };
    let request = CreateVolumeRequest {
        name: copy_name(view.claim, operation),
        capacity_range: Some(CapacityRange { required_bytes: volume_bytes(volume), limit_bytes: 0 }),
        volume_capabilities: vec![capability(&spec.access_modes, &csi.fs_type)],
        parameters,
        volume_content_source: source,
        accessibility_requirements: requirement(places),
        ..CreateVolumeRequest::default()
    };
    Ok(Step::Create { driver: csi.driver, place, request: Box::new(request) })
}

fn requirement(places: Vec<csi::Topology>) -> Option<TopologyRequirement> {
    (!places.is_empty()).then(|| TopologyRequirement { requisite: places.clone(), preferred: places })
}

#[cfg(test)]
mod tests;
