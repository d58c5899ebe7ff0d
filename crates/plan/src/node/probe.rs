//! What follows from the results of a probe.
//!
//! Thresholds and periods are Kubernetes'. What is added: a readiness or startup probe over the network is tried in quick
//! succession until it succeeds for the first time, so that "ready" is not late by a period. The quick tries do not use up
//! the failure threshold: at most one failure counts per period.

use jiff::{SignedDuration, Timestamp};
use pb::objects::{Container, Probe};

/// The first wait between quick tries; doubled each time, up to the period.
const QUICK: SignedDuration = SignedDuration::from_millis(50);

/// Which question a probe answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Has it come up?
    Startup,
    /// May it be sent work?
    Readiness,
    /// Does it still work?
    Liveness,
}

impl Kind {
    /// The container's probe of this kind.
    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Kind::Startup => container.startup_probe.as_ref(),
            Kind::Readiness => container.readiness_probe.as_ref(),
            Kind::Liveness => container.liveness_probe.as_ref(),
        }
    }

    /// As people write it.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Startup => "startup",
            Kind::Readiness => "readiness",
            Kind::Liveness => "liveness",
        }
    }
}

/// A probe's times and thresholds, with Kubernetes' defaults in the place of zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// From the container's start to the first try.
    pub initial_delay: SignedDuration,
    /// Between tries.
    pub period: SignedDuration,
    /// For one try.
    pub timeout: SignedDuration,
    success_threshold: u32,
    failure_threshold: u32,
    /// Whether to try in quick succession at first.
    quick: bool,
}

impl Timing {
    /// The times of a probe.
    pub fn of(kind: Kind, probe: &Probe) -> Self {
        let at_least = |value: i32, least: i32, default: i32| if value == 0 { default } else { value.max(least) };
        let seconds = |value: i32| SignedDuration::from_secs(value.into());
        let count = |value: i32| u32::try_from(value).unwrap_or(1).max(1);
        Self {
            initial_delay: seconds(probe.initial_delay_seconds.max(0)),
            period: seconds(at_least(probe.period_seconds, 1, 10)),
            timeout: seconds(at_least(probe.timeout_seconds, 1, 1)),
            success_threshold: count(at_least(probe.success_threshold, 1, 1)),
            failure_threshold: count(at_least(probe.failure_threshold, 1, 3)),
            quick: kind != Kind::Liveness && probe.exec.is_none(),
        }
    }
}

/// What a probe says now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Too few results.
    Unknown,
    /// As many successes in a row as the threshold asks for.
    Success,
    /// As many failures in a row as the threshold asks for.
    Failure,
}

/// The results of one probe of one run of a container.
#[derive(Clone, Debug)]
pub struct State {
    timing: Timing,
    verdict: Verdict,
    successes: u32,
    failures: u32,
    tries: u32,
    counted_at: Option<Timestamp>,
}

impl State {
    /// Before the first try. `verdict` is what is known from before the agent started.
    pub fn new(timing: Timing, verdict: Verdict) -> Self {
        Self { timing, verdict, successes: 0, failures: 0, tries: 0, counted_at: None }
    }

    /// What the probe says.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// When to try first.
    pub fn first(&self, container_started: Timestamp, now: Timestamp) -> Timestamp {
        later(container_started, self.timing.initial_delay).max(now)
    }

    /// Takes the result of a try that ended at `at`, and says when to try next.
    pub fn record(&mut self, at: Timestamp, success: bool) -> Timestamp {
        self.tries = self.tries.saturating_add(1);
        if success {
            self.failures = 0;
            self.counted_at = None;
            self.successes = self.successes.saturating_add(1);
            if self.successes >= self.timing.success_threshold {
                self.verdict = Verdict::Success;
            }
        } else {
            self.successes = 0;
            if self.counts(at) {
                self.counted_at = Some(at);
                self.failures = self.failures.saturating_add(1);
            }
            if self.failures >= self.timing.failure_threshold {
                self.verdict = Verdict::Failure;
            }
        }
        later(at, self.wait())
    }

    fn counts(&self, at: Timestamp) -> bool {
        self.counted_at.is_none_or(|before| at.duration_since(before) >= self.timing.period)
    }

    fn wait(&self) -> SignedDuration {
        let warming_up = self.verdict == Verdict::Unknown;
        if self.timing.quick && warming_up {
            let doublings = self.tries.saturating_sub(1).min(16);
            QUICK.saturating_mul(1 << doublings).min(self.timing.period)
        } else {
            self.timing.period
        }
    }
}

fn later(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.checked_add(by).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use pb::objects::{ExecAction, HttpGetAction};

    use super::*;

    fn http() -> Probe {
        Probe { http_get: Some(HttpGetAction::default()), period_seconds: 1, ..Default::default() }
    }

    fn at(milliseconds: i64) -> Timestamp {
        Timestamp::from_millisecond(milliseconds).unwrap()
    }

    /// The moments of the tries if every one fails at once, up to `until`, and the moment of the verdict.
    fn failing(kind: Kind, probe: &Probe, until: i64) -> (Vec<i64>, Option<i64>) {
        let mut state = State::new(Timing::of(kind, probe), Verdict::Unknown);
        let mut now = state.first(at(0), at(0));
        let (mut tries, mut failed) = (Vec::new(), None);
        while now <= at(until) {
            tries.push(now.as_millisecond());
            let next = state.record(now, false);
            if failed.is_none() && state.verdict() == Verdict::Failure {
                failed = Some(now.as_millisecond());
            }
            now = next;
        }
        (tries, failed)
    }

    #[test]
    fn the_first_tries_over_the_network_come_quickly_and_count_once_a_period() {
        let (tries, failed) = failing(Kind::Readiness, &http(), 4000);
        assert_eq!(tries[..6], [0, 50, 150, 350, 750, 1550]);
        assert_eq!(failed, Some(2550), "third counted failure: at 0, 1550 and 2550");
    }

    #[test]
    fn liveness_and_commands_keep_to_their_period() {
        let command = Probe { exec: Some(ExecAction::default()), period_seconds: 2, ..Default::default() };
        assert_eq!(failing(Kind::Startup, &command, 6000), (vec![0, 2000, 4000, 6000], Some(4000)));
        assert_eq!(failing(Kind::Liveness, &http(), 3000), (vec![0, 1000, 2000, 3000], Some(2000)));
    }

    #[test]
    fn a_delayed_probe_waits_from_the_containers_start() {
        let probe = Probe { initial_delay_seconds: 5, ..http() };
        let state = State::new(Timing::of(Kind::Liveness, &probe), Verdict::Unknown);
        assert_eq!(state.first(at(1000), at(2000)), at(6000));
        assert_eq!(state.first(at(1000), at(9000)), at(9000), "an agent that starts later tries at once");
    }

    #[test]
    fn thresholds_need_results_in_a_row() {
        let probe = Probe { success_threshold: 2, failure_threshold: 2, ..http() };
        let mut state = State::new(Timing::of(Kind::Readiness, &probe), Verdict::Unknown);
        let mut now = 0;
        let mut try_one = |success| {
            now += 1000;
            state.record(at(now), success);
            state.verdict()
        };
        assert_eq!(try_one(true), Verdict::Unknown);
        assert_eq!(try_one(false), Verdict::Unknown);
        assert_eq!(try_one(true), Verdict::Unknown);
        assert_eq!(try_one(true), Verdict::Success);
        assert_eq!(try_one(false), Verdict::Success);
        assert_eq!(try_one(true), Verdict::Success);
        assert_eq!(try_one(false), Verdict::Success);
        assert_eq!(try_one(false), Verdict::Failure);
    }
}
