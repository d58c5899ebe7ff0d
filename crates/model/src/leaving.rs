//! How a pod is asked to go.

use pb::{
    Object,
    objects::{Condition, Pod, Time},
};

/// Condition of a pod that is asked to go for somebody else's sake.
const DISRUPTION_TARGET: &str = "DisruptionTarget";

/// Seconds that a pod may take to stop when it does not say so (DEF).
pub const DEFAULT_GRACE: i64 = 30;

/// Asks the pod to go. Its own grace of 0 is a wish for SIGKILL, not for being forgotten: its node still has to say
/// that it is gone.
pub fn terminating(mut pod: Pod, now: Time) -> Pod {
    let own = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(DEFAULT_GRACE);
    let grace = own.max(1);
    let meta = pod.meta_mut();
    meta.deletion_timestamp = Some(Time { seconds: now.seconds.saturating_add(grace), nanos: 0 });
    meta.deletion_grace_period_seconds = Some(grace);
    pod
}

/// Says among the pod's conditions why it is asked to go: a word in Kubernetes' vocabulary, and a sentence.
pub fn because(pod: &mut Pod, reason: &str, message: &str, now: Time) {
    let conditions = &mut pod.status.get_or_insert_default().conditions;
    conditions.retain(|condition| condition.r#type != DISRUPTION_TARGET);
    conditions.push(Condition {
        r#type: DISRUPTION_TARGET.to_owned(),
        status: "True".to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: Some(now),
        ..Condition::default()
    });
}
