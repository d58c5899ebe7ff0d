//! What a claim has or will get.

use std::{collections::BTreeSet, fmt, str::FromStr};

use pb::{
    Object, ObjectExt,
    csi::v1::{
        VolumeContentSource,
        volume_content_source::{SnapshotSource, Type, VolumeSource},
    },
    objects::{
        NodeSelector, PersistentVolume, PersistentVolumeClaim, Pod, StorageClass, TypedLocalObjectReference,
        VolumeSnapshot,
    },
};

use super::{
    BIND_COMPLETED, DEFAULT_CLASS, Known, NO_PROVISIONER, allowed, both, bound_to, claim_of, either, held,
    matching::{candidates, misfit},
    reachable, requested_bytes, volume_size,
};

/// What is known of a claim.
#[derive(Clone, Debug, PartialEq)]
pub enum ClaimState<'a> {
    /// It has its volume.
    Bound(&'a PersistentVolume),
    /// It gets one of these when its pod has a node.
    Unbound(Choice<'a>),
    /// It cannot get one as things are.
    Problem(Problem),
}

/// What an unbound claim may get.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice<'a> {
    /// Name of the class; empty: none.
    pub class_name: &'a str,
    /// The class that a new volume is made of, where none of `existing` can be reached; None: none is made.
    pub class: Option<&'a StorageClass>,
    /// Volumes that there are and that the claim may get.
    pub existing: Vec<&'a PersistentVolume>,
    /// What a new volume begins with.
    pub content: Option<Content>,
    /// Where the claim can get a volume; everywhere if None.
    pub reachable: Option<NodeSelector>,
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

fn problem<T>(reason: &'static str, message: String) -> Result<T, Problem> {
    Err(Problem { reason, message })
}

/// What stands around a claim.
#[derive(Clone, Debug)]
pub struct Around<'a> {
    /// All classes.
    pub classes: Vec<&'a StorageClass>,
    /// Volumes that wait for a claim.
    pub free: Vec<&'a PersistentVolume>,
    /// Names of the drivers that volumes can be made with.
    pub drivers: &'a BTreeSet<String>,
    /// What is known of the claim's data source.
    pub source: Source<'a>,
    /// Pods that use the claim and have a node.
    pub users: Vec<&'a Pod>,
    /// Whether the answer is for the one who binds claims of classes that bind at once.
    pub at_once: bool,
}

/// What is known of a claim's data source.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// It has none.
    None,
    /// A snapshot.
    Snapshot(Known<'a, VolumeSnapshot>),
    /// Another claim, and the volume that it names.
    Claim(Known<'a, PersistentVolumeClaim>, Known<'a, PersistentVolume>),
}

/// What a new volume begins with, in the driver's words.
#[derive(Clone, Debug, PartialEq)]
pub struct Content {
    /// Which.
    pub source: SourceName,
    /// Where it can be read; everywhere if None.
    pub reachable: Option<NodeSelector>,
}

/// The driver's id of what a volume begins with. As text: `snapshot:<id>` or `volume:<id>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceName {
    /// Of a snapshot.
    Snapshot(String),
    /// Of a volume.
    Volume(String),
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            SourceName::Snapshot(id) => write!(f, "snapshot:{id}"),
            SourceName::Volume(id) => write!(f, "volume:{id}"),
        }
    }
}

impl FromStr for SourceName {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.split_once(':') {
            Some(("snapshot", id)) => Ok(Self::Snapshot(id.to_owned())),
            Some(("volume", id)) => Ok(Self::Volume(id.to_owned())),
            _ => Err(()),
        }
    }
}

impl From<&SourceName> for VolumeContentSource {
    fn from(name: &SourceName) -> Self {
        let source = match name {
            SourceName::Snapshot(id) => Type::Snapshot(SnapshotSource { snapshot_id: id.clone() }),
            SourceName::Volume(id) => Type::Volume(VolumeSource { volume_id: id.clone() }),
        };
        Self { r#type: Some(source) }
    }
}

/// The data source of a claim, in either of Kubernetes' words.
pub fn source_of(claim: &PersistentVolumeClaim) -> Option<&TypedLocalObjectReference> {
    let spec = claim.spec.as_ref()?;
    spec.data_source.as_ref().or(spec.data_source_ref.as_ref())
}

/// What the state of a claim is. `volume` is what is known of the volume that `spec.volumeName` names, and is not
/// looked at if it names none.
pub fn prepare<'a>(
    claim: &'a PersistentVolumeClaim,
    volume: Known<'a, PersistentVolume>,
    around: &Around<'a>,
) -> ClaimState<'a> {
    let state = || {
        usable(claim, around)?;
        if bound_to(claim).is_some() { bound(claim, volume, around) } else { unbound(claim, around) }
    };
    state().unwrap_or_else(ClaimState::Problem)
}

/// What keeps a claim from any pod.
fn usable(claim: &PersistentVolumeClaim, around: &Around<'_>) -> Result<(), Problem> {
    let name = claim.name();
    if claim.is_terminating() {
        return problem(
            "ClaimTerminating",
            format!("persistentvolumeclaim {name:?} is being deleted; a new one is made when it is gone"),
        );
    }
    if let Some(operation) = held(claim) {
        let what = format!(
            "persistentvolumeclaim {name:?} is held by the operation {} ({}); its pod starts when that has ended",
            operation.r#type, operation.phase
        );
        return problem("ClaimHeld", what);
    }
    let spec = claim.spec.as_ref();
    if let Some(mode) = spec.and_then(|spec| spec.volume_mode.as_deref()).filter(|mode| *mode != "Filesystem") {
        return problem(
            "UnsupportedVolumeMode",
            format!("persistentvolumeclaim {name:?}: volumeMode {mode:?} is not supported; use \"Filesystem\""),
        );
    }
    let one_pod = spec.is_some_and(|spec| spec.access_modes.iter().any(|mode| mode == "ReadWriteOncePod"));
    if one_pod
        && bound_to(claim).is_some()
        && let Some(user) = around.users.first()
    {
        return problem(
            "ClaimInUse",
            format!(
                "persistentvolumeclaim {name:?} is ReadWriteOncePod and pod {:?} uses it; it is free when that pod is \
                 gone",
                user.name()
            ),
        );
    }
    Ok(())
}

fn bound<'a>(
    claim: &'a PersistentVolumeClaim,
    volume: Known<'a, PersistentVolume>,
    around: &Around<'a>,
) -> Result<ClaimState<'a>, Problem> {
    let (name, volume_name) = (claim.name(), bound_to(claim).unwrap_or_default());
    // A user may name a volume before it is the claim's.
    let complete = claim.meta().annotations.contains_key(BIND_COMPLETED)
        || claim.status.as_ref().is_some_and(|status| status.phase == "Bound");
    let volume = match volume {
        Known::Is(volume) => volume,
        Known::Absent if !complete => {
            return problem(
                "VolumeNotFound",
                format!(
                    "persistentvolumeclaim {name:?} names persistentvolume {volume_name:?}, which does not exist; \
                     create it"
                ),
            );
        }
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
        Some(owner) if owner.uid == claim.uid() && !owner.uid.is_empty() => Ok(ClaimState::Bound(volume)),
        owner if owner.is_none_or(|owner| owner.uid.is_empty()) => {
            let (class_name, class) = class(claim, around)?;
            match misfit(claim, class_name, volume) {
                None => Ok(ClaimState::Unbound(existing(class_name, class, vec![volume]))),
                Some(why) => problem(
                    "VolumeMismatch",
                    format!(
                        "persistentvolumeclaim {name:?} names persistentvolume {volume_name:?}, but {why}; change \
                         one of the two"
                    ),
                ),
            }
        }
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

fn existing<'a>(
    class_name: &'a str,
    class: Option<&'a StorageClass>,
    volumes: Vec<&'a PersistentVolume>,
) -> Choice<'a> {
    let place = either(volumes.iter().map(|volume| reachable(volume)));
    let reachable = both(class.and_then(allowed), place);
    Choice { class_name, class: None, existing: volumes, content: None, reachable }
}

fn unbound<'a>(claim: &'a PersistentVolumeClaim, around: &Around<'a>) -> Result<ClaimState<'a>, Problem> {
    let name = claim.name();
    let (class_name, class) = class(claim, around)?;
    let sourced = source_of(claim).is_some();
    // What a volume holds that a person made is not known.
    let found = if sourced { Vec::new() } else { candidates(claim, class_name, around.free.iter().copied()) };
    let provisions = class.filter(|class| class.provisioner != NO_PROVISIONER);
    let Some(class) = provisions else {
        if !found.is_empty() {
            let choice = existing(class_name, class, found);
            return waits_for_leader(claim, class, around).map(|()| ClaimState::Unbound(choice));
        }
        return match class {
            None if class_name.is_empty() => problem(
                "NoClass",
                format!(
                    "persistentvolumeclaim {name:?} asks for no class (storageClassName: \"\") and no free volume \
                     without class fits; create one, or set a class"
                ),
            ),
            None => problem(
                "ClassNotFound",
                format!("storageclass {class_name:?} of persistentvolumeclaim {name:?} does not exist; create it"),
            ),
            Some(_) => problem(
                "NoVolume",
                format!(
                    "no free persistentvolume of class {class_name:?} fits persistentvolumeclaim {name:?} (size, access \
                     modes, selector); create one"
                ),
            ),
        };
    };
    waits_for_leader(claim, Some(class), around)?;
    let made = new(claim, class, around);
    match (made, found.is_empty()) {
        (Err(problem), true) => Err(problem),
        (Err(_), false) => Ok(ClaimState::Unbound(existing(class_name, Some(class), found))),
        (Ok((content, place)), none) => {
            // A volume that a person made may be beyond where new ones can be made.
            let found_at = found.iter().map(|volume| reachable(volume));
            let reachable = if none { place.clone() } else { either(found_at.chain([place.as_ref()])) };
            Ok(ClaimState::Unbound(Choice { class_name, class: Some(class), existing: found, content, reachable }))
        }
    }
}

/// Whether a volume can be made, of what, and where.
fn new(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    around: &Around<'_>,
) -> Result<(Option<Content>, Option<NodeSelector>), Problem> {
    if !around.drivers.contains(&class.provisioner) {
        let drivers: Vec<&str> = around.drivers.iter().map(String::as_str).collect();
        return problem(
            "UnknownProvisioner",
            format!(
                "storageclass {:?} names the driver {:?}; the drivers that are there are {}",
                class.name(),
                class.provisioner,
                drivers.join(", ")
            ),
        );
    }
    if claim.spec.as_ref().is_some_and(|spec| spec.selector.is_some()) {
        let message = format!(
            "persistentvolumeclaim {:?} has a selector, no free volume matches it, and new volumes have no labels; \
             create a volume with these labels, or leave the selector out",
            claim.name()
        );
        return problem("SelectorUnmatched", message);
    }
    let content = content(claim, class, around.source)?;
    let place = both(allowed(class), content.as_ref().and_then(|content| content.reachable.clone()));
    Ok((content, place))
}

/// A stored claim of a class that binds at once gets its volume from the leader, whether or not it has a pod. One that
/// is about to be stored together with its pod gets it with the pod, which is the same to everybody.
fn waits_for_leader(
    claim: &PersistentVolumeClaim,
    class: Option<&StorageClass>,
    around: &Around<'_>,
) -> Result<(), Problem> {
    let at_once = class.is_some_and(binds_at_once);
    if at_once && claim.mod_revision() > 0 && !around.at_once {
        return problem(
            "WaitForBinding",
            format!(
                "persistentvolumeclaim {:?} is of a class that binds at once and has no volume yet; `berth describe pvc \
                 {0}` says what it waits for",
                claim.name()
            ),
        );
    }
    Ok(())
}

/// Whether claims of a class get their volume before their pod has a node.
pub(super) fn binds_at_once(class: &StorageClass) -> bool {
    class.volume_binding_mode.as_deref() == Some("Immediate")
}

/// The class of a claim: its name, and the class itself if there is one.
fn class<'a>(
    claim: &'a PersistentVolumeClaim,
    around: &Around<'a>,
) -> Result<(&'a str, Option<&'a StorageClass>), Problem> {
    let named = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    match named {
        Some(named) => Ok((named, around.classes.iter().copied().find(|class| class.name() == named))),
        None => match default_class(around.classes.iter().copied()) {
            Some(class) => Ok((class.name(), Some(class))),
            None => problem(
                "NoDefaultClass",
                format!(
                    "persistentvolumeclaim {:?} names no class and there is no default one; set storageClassName, or \
                     annotate a class with {DEFAULT_CLASS}: \"true\"",
                    claim.name()
                ),
            ),
        },
    }
}

/// The default class; of several the newest, then the first by name, as in Kubernetes.
fn default_class<'a>(classes: impl IntoIterator<Item = &'a StorageClass>) -> Option<&'a StorageClass> {
    let is_default = |class: &&StorageClass| class.meta().annotations.get(DEFAULT_CLASS).is_some_and(|v| v == "true");
    let created = |class: &StorageClass| class.meta().creation_timestamp.map(|at| at.timestamp());
    classes.into_iter().filter(is_default).min_by(|a, b| created(b).cmp(&created(a)).then(a.name().cmp(b.name())))
}

/// What the volume of a claim begins with.
fn content(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    source: Source<'_>,
) -> Result<Option<Content>, Problem> {
    let Some(reference) = source_of(claim) else { return Ok(None) };
    let (claim_name, what) = (claim.name(), format!("{} {:?}", reference.kind, reference.name));
    let absent = |advice: &str| {
        problem(
            "DataSourceNotFound",
            format!("persistentvolumeclaim {claim_name:?} begins with {what}, which does not exist; {advice}"),
        )
    };
    let unreadable = |why: &str| problem("DataSourceUnreadable", format!("{what} cannot be read: {why}"));
    let (driver, least, content) = match source {
        Source::None => {
            return problem(
                "UnsupportedDataSource",
                format!(
                    "persistentvolumeclaim {claim_name:?} begins with {what}; a VolumeSnapshot or a \
                     PersistentVolumeClaim can be named"
                ),
            );
        }
        Source::Snapshot(Known::Absent) => return absent("take the snapshot, or name another"),
        Source::Claim(Known::Absent, _) => return absent("create it, or name another"),
        Source::Snapshot(Known::Unreadable(why))
        | Source::Claim(Known::Unreadable(why), _)
        | Source::Claim(_, Known::Unreadable(why)) => return unreadable(why),
        Source::Snapshot(Known::Is(snapshot)) => {
            let status = snapshot.status.clone().unwrap_or_default();
            if !status.ready_to_use || status.snapshot_handle.is_empty() || snapshot.is_terminating() {
                let why = status.error.map(|error| format!(": {}", error.message)).unwrap_or_default();
                let state = if snapshot.is_terminating() { "is being deleted" } else { "is not ready yet" };
                return problem("DataSourceNotReady", format!("{what} of {claim_name:?} {state}{why}"));
            }
            let least = status.restore_size.as_ref().and_then(super::bytes).unwrap_or(0);
            let source = SourceName::Snapshot(status.snapshot_handle);
            (status.driver, least, Content { source, reachable: status.reachable })
        }
        Source::Claim(Known::Is(source), volume) => {
            if let Some(operation) = held(source) {
                let message =
                    format!("{what} is held by the operation {}; it can be copied afterwards", operation.r#type);
                return problem("DataSourceNotReady", message);
            }
            let Known::Is(volume) = volume else {
                return problem(
                    "DataSourceNotReady",
                    format!("{what} has no volume yet, with which persistentvolumeclaim {claim_name:?} begins"),
                );
            };
            let csi = volume.spec.clone().unwrap_or_default().csi.unwrap_or_default();
            let source = SourceName::Volume(csi.volume_handle);
            (csi.driver, volume_size(volume), Content { source, reachable: reachable(volume).cloned() })
        }
    };
    if driver != class.provisioner {
        return problem(
            "DataSourceElsewhere",
            format!(
                "{what} belongs to the driver {driver:?}, and storageclass {:?} makes volumes with {:?}; name a class \
                 of the same driver",
                class.name(),
                class.provisioner
            ),
        );
    }
    if requested_bytes(claim).is_none_or(|bytes| bytes < least) {
        return problem(
            "DataSourceTooLarge",
            format!("{what} needs {least} bytes; ask for as much in persistentvolumeclaim {claim_name:?}"),
        );
    }
    Ok(Some(content))
}
