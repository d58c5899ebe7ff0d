//! What the controller adds to the objects that the planner stamps: identity in time, first status, the node.

pub use model::leaving::terminating;
use pb::{Object, objects::*};

/// Keeps a claim for as long as a pod uses it (PVC-12).
pub const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
/// Condition of a pod: whether it has a node.
pub const POD_SCHEDULED: &str = "PodScheduled";

/// What gives a new object its place in time and its own identity.
#[derive(Clone, Debug)]
pub struct Birth {
    /// The object's uid.
    pub uid: String,
    /// When it is made.
    pub at: Time,
}

/// The object as it comes into being.
pub fn born<T: Object>(mut object: T, birth: Birth) -> T {
    let meta = object.meta_mut();
    meta.uid = birth.uid;
    meta.creation_timestamp = Some(birth.at);
    meta.generation = 1;
    object
}

/// The claim as it comes into being: pending, and kept while a pod uses it.
pub fn born_claim(claim: PersistentVolumeClaim, birth: Birth) -> PersistentVolumeClaim {
    let mut claim = born(claim, birth);
    let finalizers = &mut claim.meta_mut().finalizers;
    if !finalizers.iter().any(|finalizer| finalizer == CLAIM_PROTECTION) {
        finalizers.push(CLAIM_PROTECTION.to_owned());
    }
    claim.status = Some(PersistentVolumeClaimStatus { phase: "Pending".to_owned(), ..Default::default() });
    claim
}

/// The pod as it comes into being: pending.
pub fn born_pod(pod: Pod, birth: Birth) -> Pod {
    let mut pod = born(pod, birth);
    pod.spec.get_or_insert_default().node_name.clear();
    pod.status = Some(PodStatus { phase: "Pending".to_owned(), ..PodStatus::default() });
    pod
}

/// Binds the pod to a node: what the node's agent waits for.
pub fn bind(pod: &mut Pod, node: &str, at: Time) {
    pod.spec.get_or_insert_default().node_name = node.to_owned();
    set_scheduled(pod, "True", "", "", at);
}

/// Says why the pod has no node.
pub fn unschedulable(pod: &mut Pod, message: &str, at: Time) {
    set_scheduled(pod, "False", "Unschedulable", message, at);
}

fn set_scheduled(pod: &mut Pod, status: &str, reason: &str, message: &str, at: Time) {
    let condition = Condition {
        r#type: POD_SCHEDULED.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: Some(at),
        ..Condition::default()
    };
    let conditions = &mut pod.status.get_or_insert_default().conditions;
    conditions.retain(|known| known.r#type != POD_SCHEDULED);
    conditions.push(condition);
}

/// Whether nothing of the pod can run anywhere, and nobody holds it: it may go at once (NL-5).
pub fn may_vanish(pod: &Pod) -> bool {
    pod.spec.as_ref().is_none_or(|spec| spec.node_name.is_empty()) && pod.meta().finalizers.is_empty()
}
