//! How a pod is asked to go.

use pb::{
    Object,
    objects::{Pod, Time},
};

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
