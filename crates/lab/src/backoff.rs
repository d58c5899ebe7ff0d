//! When a process that has ended starts again.
//!
//! Pure: a function of how long its last runs lasted. A process that ran for a while starts again at once; so does
//! one that failed fast for the first time. One that keeps failing fast waits longer each time, up to a bound.

use std::time::Duration;

/// A run at least this long counts as one that worked.
pub const HEALTHY_RUN: Duration = Duration::from_secs(2);

/// The wait after the second fast failure in a row; doubled for each further one.
pub const FIRST_WAIT: Duration = Duration::from_millis(100);

/// No wait is longer.
pub const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// More runs than this change nothing: the wait has reached its bound before.
pub const HISTORY: usize = 8;

/// The wait before the next start, from the lengths of the runs so far, oldest first.
pub fn next_wait(runs: &[Duration]) -> Duration {
    let failures = runs.iter().rev().take_while(|run| **run < HEALTHY_RUN).count();
    match failures {
        0 | 1 => Duration::ZERO,
        n => {
            let doublings = u32::try_from(n - 2).unwrap_or(u32::MAX).min(10);
            LONGEST_WAIT.min(FIRST_WAIT * 2u32.pow(doublings))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: Duration = Duration::from_millis(10);
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn starts_at_once_after_a_long_run() {
        assert_eq!(next_wait(&[FAST, FAST, FAST, LONG]), Duration::ZERO);
        assert_eq!(next_wait(&[LONG, FAST]), Duration::ZERO);
        assert_eq!(next_wait(&[]), Duration::ZERO);
    }

    #[test]
    fn waits_longer_for_each_fast_failure_in_a_row_up_to_the_bound() {
        let waits: Vec<_> = (1..=20).map(|n| next_wait(&vec![FAST; n]).as_millis()).collect();
        assert_eq!(waits[..8], [0, 100, 200, 400, 800, 1600, 3200, 5000], "doubles, then stays");
        assert!(waits[8..].iter().all(|w| *w == 5000));
    }

    #[test]
    fn the_kept_history_is_long_enough_to_reach_the_bound() {
        assert_eq!(next_wait(&[FAST; HISTORY]), LONGEST_WAIT);
    }
}
