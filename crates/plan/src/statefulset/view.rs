//! Snapshots from stored objects.
//!
//! Total: a field that is missing gets the default that the front door would have given it, and a word that this
//! version does not know gets the meaning that holds things still (an unknown phase is `Unknown`, an unknown policy
//! keeps claims).

use std::collections::BTreeMap;

use jiff::Timestamp;
use model::{
    bound::Bound,
    identity::{ModRevision, NodeName, Ordinal, SetName, Uid},
    mutant::{Mutant, planted},
    ordinals::{OrdinalRanges, Ordinals},
    overrides,
    quantity::Quantity,
    revision::TemplateBytes,
    selector::Selector,
};
use pb::{
    Object, ObjectExt,
    objects::{
        ClaimOperation, Condition, ContainerState, ControllerRevision, IntOrString, ObjectMeta, OwnerReference,
        PersistentVolumeClaim, PersistentVolumeClaimSpec, PersistentVolumeClaimStatus, Pod, PodTemplateSpec,
        StatefulSet, StatefulSetClaimsStatus, StatefulSetOverride, StatefulSetSpec, StatefulSetStatus,
        StatefulSetVolumePolicy, VolumeSnapshot,
    },
};

use super::{
    conditions,
    snapshot::{
        ClaimOwner, ClaimTemplate, ClaimView, Control, Lost, MaxUnavailable, OperationPhase, OperationView, Override,
        OwnerKind, Phase, PodView, Policy, Resize, Retention, RevisionView, SetView, Snapshot, SnapshotView, Strategy,
        VolumePolicy,
    },
    stamp::{
        self, DATA_REVISION_ANNOTATION, MADE_FOR_ANNOTATION, ORDERED_DELETION, OVERRIDES_ANNOTATION, POD_NAME_LABEL,
        REVISION_LABEL, ROLLOUT_ANNOTATION,
    },
    status::{self, BlockedOn, ClaimsStatus, Status},
};
use crate::budget::Budget;

/// The objects that a decision about one set looks at.
///
/// `pods`, `claims` and `revisions` may hold more than the set's: all of the namespace do no harm, only cost time.
#[derive(Clone, Copy, Debug)]
pub struct Objects<'a> {
    /// The set.
    pub set: &'a StatefulSet,
    /// Pods of the namespace.
    pub pods: &'a [&'a Pod],
    /// Claims of the namespace.
    pub claims: &'a [&'a PersistentVolumeClaim],
    /// Revisions of the namespace.
    pub revisions: &'a [&'a ControllerRevision],
    /// Whether the Service that `serviceName` names exists.
    pub service_exists: bool,
    /// Disruption budgets of the namespace.
    pub budgets: &'a [Budget],
}

impl Snapshot {
    /// What the objects say at `now`.
    pub fn of(now: Timestamp, objects: Objects<'_>) -> Self {
        let set = set(objects.set);
        let template = objects.set.spec.as_ref().and_then(|spec| spec.template.as_ref());
        let selector = Selects::of(objects.set);
        let concerns = |meta: &ObjectMeta, control: Control, selected: bool| {
            selected || control == Control::Ours || meta.name.starts_with(set.name.as_str())
        };
        let pods = objects.pods.iter().map(|object| pod(object, &set.uid, &selector));
        let pods = pods.filter(|p| p.selected || p.control == Control::Ours || set.name.ordinal_of(&p.name).is_some());
        let claims = objects.claims.iter().map(|object| claim(object, objects.set));
        let revisions = objects.revisions.iter().filter_map(|object| {
            let (control, selected) = (control(object.meta(), &set.uid), selector.selects(object.meta()));
            concerns(object.meta(), control, selected).then(|| revision(object, control, selected, template))
        });
        let pods: Vec<_> = pods.collect();
        let counted = |budget: &&Budget| pods.iter().any(|pod| budget.health_of(&pod.name).is_some());
        let budgets = objects.budgets.iter().filter(counted).cloned().collect();
        Self {
            now,
            pods,
            claims: claims.map(|claim| (claim.name.clone(), claim)).collect(),
            revisions: revisions.collect(),
            service_exists: objects.service_exists,
            budgets,
            snapshots: BTreeMap::new(),
            set,
        }
    }

    /// With the VolumeSnapshots of the namespace. Only `volumePolicy` looks at them.
    #[must_use]
    pub fn with_snapshots<'a>(mut self, snapshots: impl IntoIterator<Item = &'a VolumeSnapshot>) -> Self {
        self.snapshots = snapshots.into_iter().map(volume_snapshot).map(|one| (one.name.clone(), one)).collect();
        self
    }
}

impl ClaimView {
    /// What a set sees of a claim, whatever its revision in the store: two that are equal are the same to it.
    pub fn seen(object: &PersistentVolumeClaim, set: &StatefulSet) -> Self {
        Self { at: ModRevision(0), ..claim(object, set) }
    }
}

/// The set's selector. A set without one, or with one that cannot be read, selects nothing.
struct Selects(Option<Selector>);

impl Selects {
    fn of(set: &StatefulSet) -> Self {
        let selector = set.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        Self(selector.and_then(|selector| Selector::of(selector).ok()))
    }

    fn selects(&self, meta: &ObjectMeta) -> bool {
        self.0.as_ref().is_some_and(|selector| selector.matches(&meta.labels))
    }
}

/// The template as the bytes that revisions are compared by.
pub fn template_bytes(template: &PodTemplateSpec) -> TemplateBytes {
    // The mapping writes plain fields, maps and numbers: there is nothing in it that JSON could not hold. Were it to
    // fail all the same, all templates would look alike and nothing would be replaced.
    TemplateBytes::from_json(&serde_json::to_value(template).unwrap_or_default())
}

fn set(set: &StatefulSet) -> SetView {
    let empty = StatefulSetSpec::default();
    let spec = set.spec.as_ref().unwrap_or(&empty);
    let claim_templates = spec.volume_claim_templates.iter().map(|template| ClaimTemplate {
        name: template.name().to_owned(),
        size: template.spec.as_ref().and_then(requested),
    });
    SetView {
        name: SetName::from(set.name()),
        uid: Uid::from(set.uid()),
        at: ModRevision(set.mod_revision()),
        generation: set.meta().generation,
        deleting: set.is_terminating(),
        ordered_deletion: set.meta().finalizers.iter().any(|finalizer| finalizer == ORDERED_DELETION),
        wants_ordered_deletion: spec.deletion_order == "Ordered",
        ordinals: Ordinals::of(spec),
        policy: if spec.pod_management_policy == "Parallel" { Policy::Parallel } else { Policy::OrderedReady },
        strategy: strategy(spec),
        max_concurrent_start: spec.max_concurrent_start.map(unsigned),
        paused: spec.paused,
        overrides: spec.overrides.iter().map(override_view).collect(),
        ignores_budgets: spec.budget_policy == "Ignore",
        progress_deadline_seconds: spec.progress_deadline_seconds.map(unsigned),
        auto_revert: spec.auto_revert,
        min_ready_seconds: unsigned(spec.min_ready_seconds),
        retention: spec.persistent_volume_claim_retention_policy.as_ref().map_or_else(Retention::default, |policy| {
            Retention {
                delete_with_set: policy.when_deleted == "Delete",
                delete_when_scaled: policy.when_scaled == "Delete",
            }
        }),
        claim_templates: claim_templates.collect(),
        volume_policy: spec.volume_policy.as_ref().map(volume_policy).unwrap_or_default(),
        history_limit: u32::try_from(spec.revision_history_limit.unwrap_or(DEFAULT_HISTORY_LIMIT)).ok(),
        template: spec.template.as_ref().map_or_else(|| TemplateBytes::new([]), template_bytes),
        service_name: spec.service_name.clone(),
        status: set.status.as_ref().map_or_else(Status::default, Status::from),
    }
}

fn override_view(one: &StatefulSetOverride) -> Override {
    let sizes = one.volume_claims.iter().filter_map(|claim| {
        let size = claim.storage.as_ref()?.try_into().ok()?;
        Some((claim.name.clone(), size))
    });
    Override { ordinals: OrdinalRanges::of(&one.ordinals), digest: overrides::digest(one), sizes: sizes.collect() }
}

fn volume_policy(policy: &StatefulSetVolumePolicy) -> VolumePolicy {
    let after = policy.recreate_after_seconds.map_or(RECREATE_AFTER_SECONDS, unsigned);
    VolumePolicy {
        recreate_after_seconds: (policy.on_node_lost == "Recreate").then_some(after),
        snapshot_before_update: policy.snapshot_before_update,
        restore_on_revert: policy.restore_on_revert,
    }
}

/// volumePolicy.recreateAfterSeconds, where it is not set.
const RECREATE_AFTER_SECONDS: u32 = 600;

fn requested(claim: &PersistentVolumeClaimSpec) -> Option<Quantity> {
    claim.resources.as_ref()?.requests.get(STORAGE)?.try_into().ok()
}

/// DEF: revisionHistoryLimit.
const DEFAULT_HISTORY_LIMIT: i32 = 10;

fn strategy(spec: &StatefulSetSpec) -> Strategy {
    let strategy = spec.update_strategy.as_ref();
    match strategy.map(|strategy| strategy.r#type.as_str()) {
        Some("OnDelete") => return Strategy::OnDelete,
        Some("Recreate") => return Strategy::Recreate,
        _ => {}
    }
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    Strategy::Rolling {
        partition: rolling.map(|rolling| unsigned(rolling.partition.unwrap_or(0))),
        max_unavailable: rolling.and_then(|rolling| rolling.max_unavailable.as_ref()).map(max_unavailable),
    }
}

/// What cannot be read bounds the update to one pod.
fn max_unavailable(bound: &IntOrString) -> MaxUnavailable {
    match Bound::read(bound) {
        Ok(Bound::Count(count)) => MaxUnavailable::Count(count),
        Ok(Bound::Percent(percent)) => MaxUnavailable::Percent(percent),
        Err(_) => MaxUnavailable::Count(1),
    }
}

impl From<&StatefulSetStatus> for Status {
    fn from(status: &StatefulSetStatus) -> Self {
        let revision = |name: &str| if name.is_empty() { None } else { Some(name.into()) };
        Self {
            observed_generation: status.observed_generation,
            replicas: status.replicas,
            ready: status.ready_replicas,
            available: status.available_replicas,
            current: status.current_replicas,
            updated: status.updated_replicas,
            current_revision: revision(&status.current_revision),
            update_revision: revision(&status.update_revision),
            collisions: status.collision_count.map(unsigned),
            complete_revision: revision(&status.complete_revision),
            failed_revision: revision(&status.failed_revision),
            last_progress: status.last_progress_time.as_ref().map(|time| time.timestamp()),
            conditions: status
                .conditions
                .iter()
                .filter(|c| conditions::is_own(&c.r#type))
                .map(condition_view)
                .collect(),
            volume_claims: status.volume_claims.iter().map(claims_status).collect(),
            blocked_on: status.blocked_on.as_ref().map(|blocked| BlockedOn {
                ordinal: blocked.ordinal.map(|ordinal| Ordinal(unsigned(ordinal))),
                reason: blocked.reason.clone(),
                since: blocked.since.as_ref().map_or(Timestamp::MIN, |time| time.timestamp()),
            }),
        }
    }
}

fn claims_status(claims: &StatefulSetClaimsStatus) -> ClaimsStatus {
    ClaimsStatus {
        name: claims.name.clone(),
        replicas: claims.replicas,
        fitting: claims.fitting_replicas,
        expanding: claims.expanding.map(|ordinal| Ordinal(unsigned(ordinal))),
        message: claims.message.clone(),
    }
}

fn condition_view(condition: &Condition) -> status::Condition {
    status::Condition {
        kind: condition.r#type.clone(),
        holds: condition.status == "True",
        since: since(condition),
        reason: condition.reason.clone(),
        message: condition.message.clone(),
    }
}

fn pod(pod: &Pod, set: &Uid, selector: &Selects) -> PodView {
    let meta = pod.meta();
    let label = |key: &str| meta.labels.get(key);
    let status = pod.status.as_ref();
    let condition = |kind: &str| status.and_then(|s| s.conditions.iter().find(|condition| condition.r#type == kind));
    let ready = condition("Ready").filter(|ready| ready.status == "True");
    PodView {
        name: meta.name.as_str().into(),
        uid: meta.uid.as_str().into(),
        at: ModRevision(pod.mod_revision()),
        control: control(meta, set),
        selected: selector.selects(meta),
        terminating: pod.is_terminating(),
        revision: label(REVISION_LABEL).filter(|name| !name.is_empty()).map(|name| name.as_str().into()),
        overrides: meta.annotations.get(OVERRIDES_ANNOTATION).cloned().unwrap_or_default(),
        name_label: label(POD_NAME_LABEL).map(|name| name.as_str().into()),
        volumes: claim_volumes(pod),
        phase: phase(status.map_or("", |status| status.phase.as_str())),
        ready_since: ready.map(since),
        node: pod
            .spec
            .as_ref()
            .map(|spec| &spec.node_name)
            .filter(|node| !node.is_empty())
            .map(|n| NodeName::from(n.as_str())),
        trouble: trouble(pod, condition("PodScheduled")),
    }
}

/// When a condition came to hold. Without a time it has held since ever, as far as anybody knows.
fn since(condition: &Condition) -> Timestamp {
    condition.last_transition_time.as_ref().map_or(Timestamp::MIN, |time| time.timestamp())
}

fn claim_volumes(pod: &Pod) -> BTreeMap<String, model::identity::ClaimName> {
    let volumes = pod.spec.iter().flat_map(|spec| &spec.volumes);
    let claims = volumes.filter_map(|volume| {
        let source = volume.persistent_volume_claim.as_ref()?;
        Some((volume.name.clone(), source.claim_name.as_str().into()))
    });
    claims.collect()
}

fn phase(word: &str) -> Phase {
    match word {
        "" | "Pending" => Phase::Pending,
        "Running" => Phase::Running,
        "Succeeded" => Phase::Succeeded,
        "Failed" => Phase::Failed,
        _ => Phase::Unknown,
    }
}

/// What the scheduler or the node say is wrong, the most telling first.
fn trouble(pod: &Pod, scheduled: Option<&Condition>) -> String {
    if let Some(unbound) = scheduled.filter(|condition| condition.status == "False") {
        return unbound.message.clone();
    }
    let Some(status) = &pod.status else { return String::new() };
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses);
    let waiting = containers.filter(|container| !container.ready).find_map(|container| {
        let ContainerState { waiting, terminated, .. } = container.state.as_ref()?;
        let waiting = waiting.as_ref().map(|waiting| (&waiting.reason, &waiting.message));
        let (reason, message) = waiting.or_else(|| terminated.as_ref().map(|end| (&end.reason, &end.message)))?;
        let reason = format!("container {} {reason} {message}", container.name);
        Some(reason.trim_end().to_owned())
    });
    waiting.unwrap_or_else(|| status.message.clone())
}

fn claim(claim: &PersistentVolumeClaim, set: &StatefulSet) -> ClaimView {
    let meta = claim.meta();
    let annotation = |key: &str| meta.annotations.get(key);
    let made_for = annotation(MADE_FOR_ANNOTATION).cloned().unwrap_or_default();
    let (of, template) = made_for.split_once('/').unwrap_or_default();
    let labels_differ =
        of == set.name() && set.spec.as_ref().is_some_and(|spec| stamp::lacks_labels(spec, template, claim));
    let spec = claim.spec.as_ref();
    let status = claim.status.as_ref();
    ClaimView {
        name: meta.name.as_str().into(),
        uid: meta.uid.as_str().into(),
        at: ModRevision(claim.mod_revision()),
        terminating: claim.is_terminating(),
        owners: meta.owner_references.iter().map(ClaimOwner::from).collect(),
        bound: spec.is_some_and(|spec| !spec.volume_name.is_empty()),
        size: spec.and_then(requested),
        capacity: status.and_then(|status| status.capacity.get(STORAGE)?.try_into().ok()),
        resize: status.map(resize).unwrap_or_default(),
        lost: status.and_then(|status| lost(status, annotation(SELECTED_NODE))),
        operation: status.and_then(|status| status.operation.as_ref()).map(operation),
        revision: annotation(DATA_REVISION_ANNOTATION).filter(|name| !name.is_empty()).map(|n| n.as_str().into()),
        labels_differ,
        made_for,
    }
}

/// The resource that a claim asks for.
const STORAGE: &str = "storage";
/// Annotation of a claim: the node that its volume was made for.
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

fn holds<'a>(status: &'a PersistentVolumeClaimStatus, kind: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|condition| condition.r#type == kind && condition.status == "True")
}

/// The words of Kubernetes for how far a claim is that grows.
fn resize(status: &PersistentVolumeClaimStatus) -> Resize {
    let step = status.allocated_resource_statuses.get(STORAGE).map_or("", String::as_str);
    if step.ends_with("ResizeInfeasible") {
        let said = ["ControllerResizeError", "NodeResizeError", "Resizing"];
        let why = said.iter().find_map(|kind| Some(holds(status, kind)?.message.clone()));
        return Resize::Infeasible(why.unwrap_or_default());
    }
    if step == "NodeResizePending" || holds(status, "FileSystemResizePending").is_some() {
        return Resize::AtStart;
    }
    Resize::Unhindered
}

fn lost(status: &PersistentVolumeClaimStatus, node: Option<&String>) -> Option<Lost> {
    let condition = holds(status, "VolumeLost")?;
    let node = node.map(|node| NodeName::from(node.as_str()));
    Some(Lost { since: since(condition), node, message: condition.message.clone() })
}

/// What has not ended holds the claim, also in a phase of a later version.
fn operation(operation: &ClaimOperation) -> OperationView {
    let said = |text: &String| Some(text).filter(|text| !text.is_empty()).cloned();
    OperationView {
        kind: operation.r#type.clone(),
        restores: said(&operation.snapshot).filter(|_| operation.r#type == "Restore"),
        target: said(&operation.target_node).map(|node| NodeName::from(node.as_str())),
        phase: match operation.phase.as_str() {
            "Done" => OperationPhase::Done,
            "Failed" => OperationPhase::Failed,
            _ => OperationPhase::Underway,
        },
        message: operation.message.clone(),
    }
}

fn volume_snapshot(snapshot: &VolumeSnapshot) -> SnapshotView {
    let meta = snapshot.meta();
    let source = snapshot.spec.as_ref().and_then(|spec| spec.source.as_ref());
    let status = snapshot.status.as_ref();
    let before = meta.annotations.get(DATA_REVISION_ANNOTATION);
    SnapshotView {
        name: meta.name.clone(),
        claim: source.map_or("", |source| source.persistent_volume_claim_name.as_str()).into(),
        terminating: snapshot.is_terminating(),
        ready: status.is_some_and(|status| status.ready_to_use),
        error: status.and_then(|status| status.error.as_ref()).map(|error| error.message.clone()).unwrap_or_default(),
        before: before.map(|name| name.as_str().into()),
        rollout: meta.annotations.get(ROLLOUT_ANNOTATION).and_then(|number| number.parse().ok()),
    }
}

impl From<&OwnerReference> for ClaimOwner {
    fn from(owner: &OwnerReference) -> Self {
        let kind = match (owner.kind.as_str(), group(&owner.api_version)) {
            ("StatefulSet", "apps" | "berth") => OwnerKind::Set,
            ("Pod", "") => OwnerKind::Pod,
            _ => OwnerKind::Other { api_version: owner.api_version.clone(), kind: owner.kind.clone() },
        };
        let controller = owner.controller.unwrap_or(false);
        Self { kind, name: owner.name.clone(), uid: owner.uid.as_str().into(), controller }
    }
}

fn group(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

fn revision(
    revision: &ControllerRevision,
    control: Control,
    selected: bool,
    template: Option<&PodTemplateSpec>,
) -> RevisionView {
    let meta = revision.meta();
    RevisionView {
        name: meta.name.as_str().into(),
        uid: meta.uid.as_str().into(),
        at: ModRevision(revision.mod_revision()),
        number: revision.revision,
        control,
        selected,
        template: revision.data.as_ref().map_or_else(|| TemplateBytes::new([]), template_bytes),
        equivalent: defaulted(revision.data.as_ref()) == defaulted(template),
        created: meta.creation_timestamp.as_ref().map_or(Timestamp::MIN, |time| time.timestamp()),
    }
}

/// A template with today's defaults: what an older version stored may lack some (REV-7).
fn defaulted(template: Option<&PodTemplateSpec>) -> Option<PodTemplateSpec> {
    let mut template = template?.clone();
    model::default::pod_template(&mut template);
    Some(template)
}

fn control(meta: &ObjectMeta, set: &Uid) -> Control {
    match meta.owner_references.iter().find(|owner| owner.controller == Some(true)) {
        Some(owner) if owner.uid == set.as_str() || planted(Mutant::IgnoreOwnerUid) => Control::Ours,
        Some(_) => Control::Other,
        None => Control::Nobody,
    }
}

fn unsigned(number: i32) -> u32 {
    u32::try_from(number).unwrap_or(0)
}
