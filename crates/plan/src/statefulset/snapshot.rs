//! What a decision about one set looks at.
//!
//! The views hold raw facts, as small as the decision needs them; every judgment (is it ready, is it ours, does its
//! storage fit) is made by the planner. The controller, the simulator and the oracle all build them; `view` makes them
//! from stored objects.

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;
use model::{
    identity::{ClaimName, ModRevision, NodeName, Ordinal, PodName, RevisionName, SetName, Uid},
    ordinals::{OrdinalRanges, Ordinals},
    overrides,
    quantity::Quantity,
    revision::TemplateBytes,
};

use super::status::Status;
use crate::budget::Budget;

/// Everything that a decision about one set looks at.
///
/// All of it must come from one revision of the store, or from a cache that is not older than the decider's own last
/// write (I17).
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// The time of the decision.
    pub now: Timestamp,
    /// The set.
    pub set: SetView,
    /// Every pod of the namespace that has a name this set could give, that the selector matches, or that the set
    /// owns. More do no harm.
    pub pods: Vec<PodView>,
    /// Every claim of the namespace with a name that this set could give. More do no harm.
    pub claims: BTreeMap<ClaimName, ClaimView>,
    /// Every revision of the namespace that the selector matches, that the set owns, or whose name begins with the
    /// set's. More do no harm.
    pub revisions: Vec<RevisionView>,
    /// Whether a Service of the name `serviceName` exists in the namespace. True if the set names none.
    pub service_exists: bool,
    /// Disruption budgets that count a pod of the set. More do no harm.
    pub budgets: Vec<Budget>,
    /// VolumeSnapshots of the set's claims, by name. More do no harm; none are needed unless `volumePolicy` takes them.
    pub snapshots: BTreeMap<String, SnapshotView>,
}

/// One StatefulSet. The default is an empty set as Kubernetes' defaults have it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SetView {
    /// metadata.name
    pub name: SetName,
    /// metadata.uid
    pub uid: Uid,
    /// Revision of the last change.
    pub at: ModRevision,
    /// metadata.generation
    pub generation: i64,
    /// Whether deletion was asked for.
    pub deleting: bool,
    /// Whether the set's deletion waits until its pods are gone, the highest ordinal first: it has the finalizer.
    pub ordered_deletion: bool,
    /// spec.deletionOrder is Ordered.
    pub wants_ordered_deletion: bool,
    /// spec.replicas, spec.ordinals
    pub ordinals: Ordinals,
    /// spec.podManagementPolicy
    pub policy: Policy,
    /// spec.updateStrategy
    pub strategy: Strategy,
    /// spec.maxConcurrentStart; None is 1.
    pub max_concurrent_start: Option<u32>,
    /// spec.paused
    pub paused: bool,
    /// spec.overrides, as far as pods are replaced for them.
    pub overrides: Vec<Override>,
    /// spec.budgetPolicy is Ignore: updates and scale-downs do not ask disruption budgets.
    pub ignores_budgets: bool,
    /// spec.progressDeadlineSeconds
    pub progress_deadline_seconds: Option<u32>,
    /// spec.autoRevert
    pub auto_revert: bool,
    /// spec.minReadySeconds
    pub min_ready_seconds: u32,
    /// spec.persistentVolumeClaimRetentionPolicy
    pub retention: Retention,
    /// spec.volumeClaimTemplates, in order.
    pub claim_templates: Vec<ClaimTemplate>,
    /// spec.volumePolicy
    pub volume_policy: VolumePolicy,
    /// spec.revisionHistoryLimit; None keeps all.
    pub history_limit: Option<u32>,
    /// spec.template
    pub template: TemplateBytes,
    /// spec.serviceName; empty if there is none.
    pub service_name: String,
    /// status
    pub status: Status,
}

impl SetView {
    /// The digests of the overrides of a pod's ordinal, as its annotation holds them.
    pub fn overrides_of(&self, pod: &PodName) -> String {
        let Some(ordinal) = self.name.ordinal_of(pod) else { return String::new() };
        let own = self.overrides.iter().filter(|one| one.ordinals.contains(ordinal));
        overrides::joined(own.map(|one| one.digest.as_str()))
    }

    /// The size that the claim of an ordinal should have at least; None if nothing says so.
    pub fn size_of(&self, template: &ClaimTemplate, ordinal: Ordinal) -> Option<Quantity> {
        let own = self.overrides.iter().rev().filter(|one| one.ordinals.contains(ordinal));
        own.filter_map(|one| one.sizes.get(&template.name)).next().copied().or(template.size)
    }
}

/// What claims are made from, as far as claims that are there already are changed for it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClaimTemplate {
    /// metadata.name
    pub name: String,
    /// spec.resources.requests.storage; None if it cannot be read.
    pub size: Option<Quantity>,
}

impl From<&str> for ClaimTemplate {
    /// A template that says nothing but its name.
    fn from(name: &str) -> Self {
        Self { name: name.to_owned(), size: None }
    }
}

/// What becomes of data when disks are lost and when the set is updated. The default waits and keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumePolicy {
    /// After how many seconds lost volumes are made anew, empty; None waits for the node.
    pub recreate_after_seconds: Option<u32>,
    /// snapshotBeforeUpdate
    pub snapshot_before_update: bool,
    /// restoreOnRevert
    pub restore_on_revert: bool,
}

/// In which order pods come and go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// One after the other: each waits for its predecessors.
    #[default]
    OrderedReady,
    /// All at once.
    Parallel,
}

/// How a change of the template reaches the pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// The set replaces its pods, from the highest ordinal down.
    Rolling {
        /// Pods with a lower index than this keep the current revision. None if spec.updateStrategy.rollingUpdate is
        /// absent, which is the same as 0.
        partition: Option<u32>,
        /// How many pods may be unavailable. None is the classic walk, one pod at a time (UPD-4); Some, also of 1,
        /// counts the unavailable pods of the whole set (MU-2, MU-3).
        max_unavailable: Option<MaxUnavailable>,
    },
    /// Pods are replaced when somebody deletes them.
    OnDelete,
    /// All outdated pods go, and only when they are gone does any pod come (KEP-3541).
    Recreate,
}

impl Default for Strategy {
    fn default() -> Self {
        Self::Rolling { partition: Some(0), max_unavailable: None }
    }
}

/// What some ordinals have otherwise than the template.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Override {
    /// The ordinals.
    pub ordinals: OrdinalRanges,
    /// Stands for what is different in the pod. Two overrides of one digest make the same pod.
    pub digest: String,
    /// Sizes of claims, by the name of their template.
    pub sizes: BTreeMap<String, Quantity>,
}

/// A bound on unavailable pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxUnavailable {
    /// So many pods.
    Count(u32),
    /// So many percent of `replicas`, rounded down (MU-1, D1).
    Percent(u32),
}

impl MaxUnavailable {
    /// The bound for a set of this size; at least 1.
    pub fn of(self, replicas: u32) -> u32 {
        match self {
            Self::Count(count) => count.max(1),
            Self::Percent(percent) => {
                let share = u64::from(replicas) * u64::from(percent) / 100;
                u32::try_from(share).unwrap_or(u32::MAX).max(1)
            }
        }
    }
}

/// What becomes of claims. The default keeps them always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// whenDeleted is Delete: claims go with the set.
    pub delete_with_set: bool,
    /// whenScaled is Delete: claims go with a pod that is scaled away.
    pub delete_when_scaled: bool,
}

impl Retention {
    /// Whether no claim ever has an owner.
    pub fn keeps_all(self) -> bool {
        self == Self::default()
    }
}

/// Who controls an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// This set, by uid.
    Ours,
    /// Nobody: it can be adopted.
    Nobody,
    /// Somebody else, or an older set of the same name.
    Other,
}

/// status.phase of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are Kubernetes' own")]
pub enum Phase {
    #[default]
    Pending,
    Running,
    Succeeded,
    Failed,
    Unknown,
}

impl Phase {
    /// The word in status.phase.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Unknown => "Unknown",
        }
    }

    /// Whether the pod will never run again.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// One pod.
#[derive(Clone, Debug, PartialEq)]
pub struct PodView {
    /// metadata.name
    pub name: PodName,
    /// metadata.uid
    pub uid: Uid,
    /// Revision of the last change.
    pub at: ModRevision,
    /// The controller.
    pub control: Control,
    /// Whether the set's selector matches its labels.
    pub selected: bool,
    /// Whether deletion was asked for.
    pub terminating: bool,
    /// Label controller-revision-hash.
    pub revision: Option<RevisionName>,
    /// Digest of the overrides that it was made with; empty if there were none.
    pub overrides: String,
    /// Label statefulset.kubernetes.io/pod-name.
    pub name_label: Option<PodName>,
    /// The claim that each volume names, by name of the volume.
    pub volumes: BTreeMap<String, ClaimName>,
    /// status.phase
    pub phase: Phase,
    /// Since when the condition Ready is True; None while it is not.
    pub ready_since: Option<Timestamp>,
    /// The node it is bound to.
    pub node: Option<NodeName>,
    /// Why it is not bound or not ready, in the words of whoever knows (conditions, container states). May be empty.
    pub trouble: String,
}

/// One claim.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClaimView {
    /// metadata.name
    pub name: ClaimName,
    /// metadata.uid
    pub uid: Uid,
    /// Revision of the last change.
    pub at: ModRevision,
    /// Whether deletion was asked for.
    pub terminating: bool,
    /// For whom it was made, as `stamp::made_for` says it; empty if no set made it.
    pub made_for: String,
    /// metadata.ownerReferences, in order.
    pub owners: Vec<ClaimOwner>,
    /// Whether it has a volume.
    pub bound: bool,
    /// spec.resources.requests.storage
    pub size: Option<Quantity>,
    /// status.capacity.storage
    pub capacity: Option<Quantity>,
    /// What is in the way of its growing.
    pub resize: Resize,
    /// The condition VolumeLost, while it holds.
    pub lost: Option<Lost>,
    /// status.operation
    pub operation: Option<OperationView>,
    /// The revision whose pod had it last, as far as it says so.
    pub revision: Option<RevisionName>,
    /// Whether it was made for the set and lacks a label or annotation of its template. Looked at where the view is made:
    /// there is no need to carry all of them around.
    pub labels_differ: bool,
}

impl ClaimView {
    /// Whether something is being done with its data as a whole: no pod may get it.
    pub fn is_held(&self) -> bool {
        self.operation.as_ref().is_some_and(|operation| operation.phase == OperationPhase::Underway)
    }

    /// Whether its volume is smaller than it asks for.
    pub fn is_growing(&self) -> bool {
        self.bound && self.capacity.zip(self.size).is_some_and(|(capacity, size)| capacity < size)
    }
}

/// What is in the way of a claim's growing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Resize {
    /// Nothing.
    #[default]
    Unhindered,
    /// The volume has grown, and what is in it grows when its pod starts anew, or now if the node can do that.
    AtStart,
    /// It cannot grow.
    Infeasible(String),
}

/// A volume whose only node is gone for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Since when.
    pub since: Timestamp,
    /// The node that the volume was made for.
    pub node: Option<NodeName>,
    /// Why, in the words of the volume manager.
    pub message: String,
}

/// Something that is or was done with a claim's data as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperationView {
    /// What: Move or Restore.
    pub kind: String,
    /// The snapshot that is restored.
    pub restores: Option<String>,
    /// The node that the data goes to.
    pub target: Option<NodeName>,
    /// How far it is.
    pub phase: OperationPhase,
    /// What it waits for, or why it failed.
    pub message: String,
}

impl fmt::Display for OperationView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.restores, &self.target) {
            (Some(snapshot), _) => write!(f, "its restore from {snapshot}")?,
            (None, Some(node)) => write!(f, "its move to {node}")?,
            (None, None) => write!(f, "its {}", self.kind.to_lowercase())?,
        }
        f.write_str(match self.phase {
            OperationPhase::Underway => " is under way",
            OperationPhase::Done => " is done",
            OperationPhase::Failed => " failed",
        })?;
        if self.message.is_empty() { Ok(()) } else { write!(f, ": {}", self.message) }
    }
}

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationPhase {
    /// It has not ended: the claim is held.
    Underway,
    /// It has ended well.
    Done,
    /// It has ended, and the data is what it was.
    Failed,
}

/// One VolumeSnapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotView {
    /// metadata.name
    pub name: String,
    /// The claim that it is of.
    pub claim: ClaimName,
    /// Whether deletion was asked for.
    pub terminating: bool,
    /// Whether volumes can be made from it.
    pub ready: bool,
    /// Why it is not ready; may be empty.
    pub error: String,
    /// The revision whose rollout it was made before, if a set made it.
    pub before: Option<RevisionName>,
    /// The number that this revision had in that rollout.
    pub rollout: Option<i64>,
}

/// One owner of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimOwner {
    /// What sort of object.
    pub kind: OwnerKind,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: Uid,
    /// Whether it is the controller.
    pub controller: bool,
}

/// Kinds of owners that matter to claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnerKind {
    /// A StatefulSet of apps/v1 or berth/v1.
    Set,
    /// A Pod.
    Pod,
    /// Anything else.
    Other {
        /// apiVersion
        api_version: String,
        /// kind
        kind: String,
    },
}

/// One ControllerRevision.
#[derive(Clone, Debug, PartialEq)]
pub struct RevisionView {
    /// metadata.name
    pub name: RevisionName,
    /// metadata.uid
    pub uid: Uid,
    /// Revision of the store at the last change.
    pub at: ModRevision,
    /// `.revision`: the order among the revisions of a set.
    pub number: i64,
    /// The controller.
    pub control: Control,
    /// Whether the set's selector matches its labels.
    pub selected: bool,
    /// `.data`
    pub template: TemplateBytes,
    /// Whether the template means the same as the set's present one although its bytes differ, because defaults were
    /// added since (REV-7).
    pub equivalent: bool,
    /// When it was made: breaks ties between equal numbers.
    pub created: Timestamp,
}
