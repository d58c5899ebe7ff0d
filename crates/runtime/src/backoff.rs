//! How long to wait before the next try: doubling, bounded, without jitter (Berth has few clients of one kind, and a
//! schedule that can be foretold is easier to test).

use std::time::Duration;

/// A doubling delay.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// The first delay.
    pub first: Duration,
    /// No delay is longer.
    pub longest: Duration,
}

impl Backoff {
    /// For connections and streams: 50 ms to 2 s.
    pub const RECONNECT: Self = Self { first: Duration::from_millis(50), longest: Duration::from_secs(2) };

    /// For work that failed: 10 ms to 10 s.
    pub const WORK: Self = Self { first: Duration::from_millis(10), longest: Duration::from_secs(10) };

    /// The delay after so many failures in a row (1 or more).
    pub fn after(self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        self.first.saturating_mul(1 << doublings).min(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_bound() {
        let delays: Vec<_> = [1, 2, 3, 6, 7, 1000].map(|n| Backoff::RECONNECT.after(n).as_millis()).into();
        assert_eq!(delays, [50, 100, 200, 1600, 2000, 2000]);
    }
}
