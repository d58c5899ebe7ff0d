//! When a container that has ended starts again.
//!
//! The first end is answered at once. Each further early end in a row doubles the wait, from 10 s up to 5 min; a run of
//! at least 10 min starts the counting anew. The count travels in the container itself, so it survives the agent.

use jiff::{SignedDuration, Timestamp};

use super::{Container, ContainerState};

/// The wait after the second early end.
const FIRST: SignedDuration = SignedDuration::from_secs(10);

/// No wait is longer.
const LONGEST: SignedDuration = SignedDuration::from_mins(5);

/// A run at least this long counts as one that worked.
pub const HEALTHY_RUN: SignedDuration = SignedDuration::from_mins(10);

/// Whether a container that ended with this exit code shall run again, by the pod's restartPolicy. An empty policy is
/// Always, the default.
pub fn wanted(policy: &str, code: i32) -> bool {
    match policy {
        "Never" => false,
        "OnFailure" => code != 0,
        _ => true,
    }
}

/// Early ends in a row, this run included; None while it has not ended.
pub fn crashes(run: &Container) -> Option<u32> {
    match &run.state {
        ContainerState::Exited { started_at, finished_at, .. } => {
            let lasted = finished_at.duration_since(*started_at);
            Some(if lasted >= HEALTHY_RUN { 1 } else { run.crashes.saturating_add(1) })
        }
        _ => None,
    }
}

/// The moment from which on the container may start again; None while it has not ended.
pub fn due(run: &Container) -> Option<Timestamp> {
    let ContainerState::Exited { finished_at, .. } = &run.state else { return None };
    let wait = delay(crashes(run)?);
    Some(finished_at.checked_add(wait).unwrap_or(*finished_at))
}

/// The wait after so many early ends in a row.
pub fn delay(crashes: u32) -> SignedDuration {
    match crashes {
        0 | 1 => SignedDuration::ZERO,
        n => {
            let doublings = (n - 2).min(10);
            FIRST.saturating_mul(1 << doublings).min(LONGEST)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_five_minutes() {
        let waits: Vec<_> = (1..=8).map(|n| delay(n).as_secs()).collect();
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(delay(u32::MAX), LONGEST);
    }

    #[test]
    fn policy_decides_by_exit_code() {
        for (policy, after_success, after_failure) in
            [("Always", true, true), ("", true, true), ("OnFailure", false, true), ("Never", false, false)]
        {
            assert_eq!(wanted(policy, 0), after_success, "{policy} after success");
            assert_eq!(wanted(policy, 1), after_failure, "{policy} after failure");
        }
    }
}
