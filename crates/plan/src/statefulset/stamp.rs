//! The objects that a plan asks for: pods, claims, revisions, the Service (ID-5 to ID-10, PVC-3, PVC-6, REV-2).
//!
//! Only what the set decides is filled in. uid, times and revisions are the store's; the node is the scheduler's.

use model::{
    identity::{Ordinal, PodName, RevisionName},
    overrides, source,
};
use pb::{
    Object, ObjectExt,
    objects::{
        ClaimOperation, Condition, ControllerRevision, ObjectMeta, OwnerReference, PersistentVolumeClaim,
        PersistentVolumeClaimVolumeSource, Pod, PodSpec, PodTemplateSpec, Service, ServiceSpec, StatefulSet,
        StatefulSetBlockedOn, StatefulSetClaimsStatus, StatefulSetSpec, StatefulSetStatus, Time, Volume,
        VolumeSnapshot, VolumeSnapshotSource, VolumeSnapshotSpec,
    },
};

use super::{
    action::{NewClaim, NewPod, NewSnapshot},
    snapshot::{ClaimOwner, OwnerKind},
    status::{ClaimsStatus, Status},
};

/// Label of a pod: its own name.
pub const POD_NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
/// Label of a pod: its ordinal.
pub const POD_INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";
/// Label of a pod: the name of its revision.
pub const REVISION_LABEL: &str = "controller-revision-hash";
/// Annotation of a pod: digest of the overrides of its ordinal, if it has any. With the label of the revision it says
/// what the pod was made from.
pub const OVERRIDES_ANNOTATION: &str = "berth.dev/overrides";
/// Annotation of a claim: the set and the claim template that it was made for. Two sets can give a claim the same name:
/// `alpha-beta` of the set `web`, and `alpha` of the set `beta-web` (#41153).
pub const MADE_FOR_ANNOTATION: &str = "berth.dev/made-for";
/// Annotation of a claim: the revision whose pod had it last. Of a snapshot: the revision whose rollout came next.
pub const DATA_REVISION_ANNOTATION: &str = "apps.berth.dev/revision";
/// Annotation of a snapshot: the number that this revision had in that rollout.
pub const ROLLOUT_ANNOTATION: &str = "apps.berth.dev/rollout";
/// Finalizer of a set whose pods go in order when it is deleted.
pub const ORDERED_DELETION: &str = "berth.dev/ordered-deletion";
/// Label of a revision: the hash in its name.
pub const HASH_LABEL: &str = "controller.kubernetes.io/hash";

/// A pod of `set`, made from the template that the revision `new.revision` stores.
pub fn pod(set: &StatefulSet, template: &PodTemplateSpec, new: &NewPod) -> Pod {
    let from = template.metadata.clone().unwrap_or_default();
    let mut pod = Pod {
        metadata: Some(ObjectMeta {
            name: new.pod.to_string(),
            generate_name: format!("{}-", set.name()),
            namespace: set.namespace().to_owned(),
            labels: from.labels,
            annotations: from.annotations,
            finalizers: from.finalizers,
            owner_references: vec![controller(set)],
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            hostname: new.pod.to_string(),
            subdomain: spec(set).map(|spec| spec.service_name.clone()).unwrap_or_default(),
            ..template.spec.clone().unwrap_or_default()
        }),
        ..Pod::default()
    };
    pod.stamp_type();
    let labels = &mut pod.metadata.get_or_insert_default().labels;
    labels.insert(REVISION_LABEL.to_owned(), new.revision.to_string());
    identify(&mut pod, &new.pod, new.ordinal);
    differ(&mut pod, set, new.ordinal);
    connect(&mut pod, set, new.ordinal);
    pod
}

/// Puts a pod's labels right (ID-11).
pub fn identify(pod: &mut Pod, name: &PodName, ordinal: Ordinal) {
    let labels = &mut pod.metadata.get_or_insert_default().labels;
    labels.insert(POD_NAME_LABEL.to_owned(), name.to_string());
    labels.insert(POD_INDEX_LABEL.to_owned(), ordinal.to_string());
}

/// Writes into a pod what its ordinal has otherwise than the template.
fn differ(pod: &mut Pod, set: &StatefulSet, ordinal: Ordinal) {
    let Some(spec) = spec(set) else { return };
    overrides::pod(spec, ordinal, pod.spec.get_or_insert_default());
    let digests: Vec<_> = overrides::of(spec, ordinal).map(overrides::digest).collect();
    let digest = overrides::joined(digests.iter().map(String::as_str));
    if !digest.is_empty() {
        pod.meta_mut().annotations.insert(OVERRIDES_ANNOTATION.to_owned(), digest);
    }
}

/// Points a pod's volumes at its claims (PVC-6, PVC-7). A claim wins over a volume of the same name.
pub fn connect(pod: &mut Pod, set: &StatefulSet, ordinal: Ordinal) {
    let templates = spec(set).map(|spec| spec.volume_claim_templates.as_slice()).unwrap_or_default();
    let mut volumes: Vec<Volume> = Vec::new();
    for template in templates {
        let claim = model::identity::SetName::from(set.name()).claim(template.name(), ordinal);
        let source = PersistentVolumeClaimVolumeSource { claim_name: claim.to_string(), read_only: false };
        volumes.retain(|volume| volume.name != template.name());
        volumes.push(Volume {
            name: template.name().to_owned(),
            persistent_volume_claim: Some(source),
            ..Volume::default()
        });
    }
    let present = &mut pod.spec.get_or_insert_default().volumes;
    present.retain(|volume| templates.iter().all(|template| template.name() != volume.name));
    volumes.append(present);
    *present = volumes;
}

/// For whom a claim is made.
pub fn made_for(set: &str, template: &str) -> String {
    format!("{set}/{template}")
}

/// A claim of `set`; None if it has no such template.
pub fn claim(set: &StatefulSet, new: &NewClaim) -> Option<PersistentVolumeClaim> {
    let spec = spec(set)?;
    // Of two templates of one name the last counts.
    let mut claim = spec.volume_claim_templates.iter().rfind(|template| template.name() == new.template)?.clone();
    let selector = spec.selector.clone().unwrap_or_default().match_labels;
    let meta = claim.metadata.get_or_insert_default();
    meta.name = new.name.to_string();
    meta.namespace = set.namespace().to_owned();
    meta.labels.extend(selector);
    meta.annotations.insert(MADE_FOR_ANNOTATION.to_owned(), made_for(set.name(), &new.template));
    meta.owner_references = new.owners.iter().map(owner_reference).collect();
    let wanted = claim.spec.get_or_insert_default();
    overrides::claim(spec, new.ordinal, &new.template, wanted);
    source::resolve(spec, &new.name, new.ordinal, wanted);
    claim.status = None;
    claim.stamp_type();
    Some(claim)
}

/// Makes a claim that is there as its template says: labels and annotations, and its size if it grows. Nothing else is
/// touched, and nothing taken away.
pub fn fit(set: &StatefulSet, claim: &mut PersistentVolumeClaim, template: &str, ordinal: Ordinal, grow: bool) {
    let Some(spec) = spec(set) else { return };
    let Some(from) = spec.volume_claim_templates.iter().rfind(|one| one.name() == template) else { return };
    let selector = spec.selector.clone().unwrap_or_default().match_labels;
    let meta = claim.metadata.get_or_insert_default();
    meta.labels.extend(from.meta().labels.clone());
    meta.labels.extend(selector);
    meta.annotations.extend(from.meta().annotations.clone());
    if grow {
        let mut wanted = from.spec.clone().unwrap_or_default();
        overrides::claim(spec, ordinal, template, &mut wanted);
        let requests = &mut claim.spec.get_or_insert_default().resources.get_or_insert_default().requests;
        requests.extend(wanted.resources.unwrap_or_default().requests);
    }
}

/// Whether a claim lacks a label or an annotation that its template gives.
pub(super) fn lacks_labels(spec: &StatefulSetSpec, template: &str, claim: &PersistentVolumeClaim) -> bool {
    let Some(from) = spec.volume_claim_templates.iter().rfind(|one| one.name() == template) else { return false };
    let selector = spec.selector.as_ref().map(|selector| &selector.match_labels);
    let has = &claim.meta().labels;
    let selected = |key: &String| selector.is_some_and(|labels| labels.contains_key(key));
    let lacks_label = |(key, value): (&String, &String)| !selected(key) && has.get(key) != Some(value);
    let annotations = &claim.meta().annotations;
    from.meta().labels.iter().any(lacks_label)
        || selector.into_iter().flatten().any(|(key, value)| has.get(key) != Some(value))
        || from.meta().annotations.iter().any(|(key, value)| annotations.get(key) != Some(value))
}

/// Says of a claim that a pod of this revision has it.
pub fn mark(claim: &mut PersistentVolumeClaim, revision: &RevisionName) {
    claim.meta_mut().annotations.insert(DATA_REVISION_ANNOTATION.to_owned(), revision.to_string());
}

/// A snapshot of a claim of `set`. It has no owner: it outlives the set, as the claims do.
pub fn snapshot(set: &StatefulSet, new: &NewSnapshot) -> VolumeSnapshot {
    let selector = spec(set).and_then(|spec| spec.selector.clone()).unwrap_or_default().match_labels;
    let mut snapshot = VolumeSnapshot {
        metadata: Some(ObjectMeta {
            name: new.name.clone(),
            namespace: set.namespace().to_owned(),
            labels: selector,
            annotations: [
                (DATA_REVISION_ANNOTATION.to_owned(), new.before.to_string()),
                (ROLLOUT_ANNOTATION.to_owned(), new.rollout.to_string()),
            ]
            .into(),
            ..ObjectMeta::default()
        }),
        spec: Some(VolumeSnapshotSpec {
            source: Some(VolumeSnapshotSource { persistent_volume_claim_name: new.claim.to_string() }),
        }),
        ..VolumeSnapshot::default()
    };
    snapshot.stamp_type();
    snapshot
}

/// Asks for the data of a claim to be taken back to a snapshot.
pub fn restore(claim: &mut PersistentVolumeClaim, id: String, snapshot: &str, now: Time) {
    claim.status.get_or_insert_default().operation = Some(ClaimOperation {
        id,
        r#type: "Restore".to_owned(),
        snapshot: snapshot.to_owned(),
        phase: "Waiting".to_owned(),
        started_at: Some(now),
        ..ClaimOperation::default()
    });
}

/// A revision that stores the present template of `set`.
pub fn revision(set: &StatefulSet, name: &str, number: i64) -> ControllerRevision {
    let template = spec(set).and_then(|spec| spec.template.clone()).unwrap_or_default();
    let mut labels = template.metadata.clone().unwrap_or_default().labels;
    if let Some((_, hash)) = name.rsplit_once('-') {
        labels.insert(HASH_LABEL.to_owned(), hash.to_owned());
    }
    let mut revision = ControllerRevision {
        metadata: Some(ObjectMeta {
            name: name.to_owned(),
            namespace: set.namespace().to_owned(),
            labels,
            annotations: set.meta().annotations.clone(),
            owner_references: vec![controller(set)],
            ..ObjectMeta::default()
        }),
        data: Some(template),
        revision: number,
        ..ControllerRevision::default()
    };
    revision.stamp_type();
    revision
}

/// The headless Service that a set's pods stand under.
pub fn service(set: &StatefulSet, name: &str) -> Service {
    let selector = spec(set).and_then(|spec| spec.selector.clone()).unwrap_or_default().match_labels;
    let mut service = Service {
        metadata: Some(ObjectMeta {
            name: name.to_owned(),
            namespace: set.namespace().to_owned(),
            labels: selector.clone(),
            owner_references: vec![controller(set)],
            ..ObjectMeta::default()
        }),
        spec: Some(ServiceSpec {
            selector,
            cluster_ip: "None".to_owned(),
            r#type: "ClusterIP".to_owned(),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    };
    service.stamp_type();
    service
}

/// Makes `set` the controller of an object that nobody controls.
pub fn adopt(meta: &mut ObjectMeta, set: &StatefulSet) {
    meta.owner_references.retain(|owner| owner.uid != set.uid());
    meta.owner_references.push(controller(set));
}

/// Takes the owner references to `set` off an object.
pub fn release(meta: &mut ObjectMeta, set: &StatefulSet) {
    meta.owner_references.retain(|owner| owner.uid != set.uid());
}

/// Writes what the plan decided into a status and leaves the rest, such as conditions, as it is.
pub fn status(status: &Status, into: &mut StatefulSetStatus) {
    into.observed_generation = status.observed_generation;
    into.replicas = status.replicas;
    into.ready_replicas = status.ready;
    into.available_replicas = status.available;
    into.current_replicas = status.current;
    into.updated_replicas = status.updated;
    into.current_revision = status.current_revision.clone().map(String::from).unwrap_or_default();
    into.update_revision = status.update_revision.clone().map(String::from).unwrap_or_default();
    into.collision_count = status.collisions.and_then(|count| i32::try_from(count).ok());
    into.complete_revision = status.complete_revision.clone().map(String::from).unwrap_or_default();
    into.failed_revision = status.failed_revision.clone().map(String::from).unwrap_or_default();
    into.last_progress_time = status.last_progress.map(Time::from);
    into.blocked_on = status.blocked_on.as_ref().map(|blocked| StatefulSetBlockedOn {
        ordinal: blocked.ordinal.and_then(|ordinal| i32::try_from(ordinal.0).ok()),
        reason: blocked.reason.clone(),
        since: Some(Time::from(blocked.since)),
    });
    into.volume_claims = status.volume_claims.iter().map(claims_status).collect();
    for condition in &status.conditions {
        into.conditions.retain(|stored| stored.r#type != condition.kind);
        into.conditions.push(Condition {
            r#type: condition.kind.clone(),
            status: if condition.holds { "True" } else { "False" }.to_owned(),
            last_transition_time: Some(Time::from(condition.since)),
            reason: condition.reason.clone(),
            message: condition.message.clone(),
            ..Condition::default()
        });
    }
}

fn claims_status(claims: &ClaimsStatus) -> StatefulSetClaimsStatus {
    StatefulSetClaimsStatus {
        name: claims.name.clone(),
        replicas: claims.replicas,
        fitting_replicas: claims.fitting,
        expanding: claims.expanding.and_then(|ordinal| i32::try_from(ordinal.0).ok()),
        message: claims.message.clone(),
    }
}

/// The owner reference that makes `set` the controller of an object (ID-10).
pub fn controller(set: &StatefulSet) -> OwnerReference {
    owner_reference(&ClaimOwner {
        kind: OwnerKind::Set,
        name: set.name().to_owned(),
        uid: set.uid().into(),
        controller: true,
    })
}

/// An owner as the store has it. Controllers block foreground deletion of the owner (D3).
pub fn owner_reference(owner: &ClaimOwner) -> OwnerReference {
    let (api_version, kind) = match &owner.kind {
        OwnerKind::Set => ("apps/v1", "StatefulSet"),
        OwnerKind::Pod => ("v1", "Pod"),
        OwnerKind::Other { api_version, kind } => (api_version.as_str(), kind.as_str()),
    };
    OwnerReference {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        name: owner.name.clone(),
        uid: owner.uid.to_string(),
        controller: Some(owner.controller),
        block_owner_deletion: Some(owner.controller),
    }
}

/// The owner references of a claim after `UpdateClaimOwners`: references that stay keep all of their fields.
pub fn owner_references(present: &[OwnerReference], wanted: &[ClaimOwner]) -> Vec<OwnerReference> {
    let kept = |owner: &ClaimOwner| present.iter().find(|present| ClaimOwner::from(*present) == *owner).cloned();
    wanted.iter().map(|owner| kept(owner).unwrap_or_else(|| owner_reference(owner))).collect()
}

fn spec(set: &StatefulSet) -> Option<&StatefulSetSpec> {
    set.spec.as_ref()
}
