//! What an application must hold: every number that it acknowledged, and none that nobody wrote.
//!
//! Pure. A number that was sent and not acknowledged may be there or not.

use std::collections::BTreeSet;

/// What is known of the numbers that one writer wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    next: u64,
    acknowledged: BTreeSet<u64>,
}

impl Ledger {
    /// The first and the last of so many numbers that were never sent before.
    pub fn issue(&mut self, count: u64) -> (u64, u64) {
        let first = self.next;
        self.next += count.max(1);
        (first, self.next - 1)
    }

    /// Takes what a client printed: one acknowledged number in a line.
    pub fn acknowledge(&mut self, printed: &str) -> usize {
        let before = self.acknowledged.len();
        let whole = printed.rfind('\n').and_then(|end| printed.get(..end)).unwrap_or_default();
        self.acknowledged.extend(numbers(whole).into_iter().filter(|number| *number < self.next));
        self.acknowledged.len() - before
    }

    /// What must be there.
    pub fn acknowledged(&self) -> &BTreeSet<u64> {
        &self.acknowledged
    }

    /// What is wrong with what was read.
    pub fn check(&self, found: &BTreeSet<u64>) -> Vec<String> {
        let lost = self.acknowledged.difference(found).map(|number| format!("{number} was acknowledged and is lost"));
        let invented = found.iter().filter(|number| **number >= self.next);
        lost.chain(invented.map(|number| format!("{number} is there and was never sent"))).collect()
    }
}

/// The numbers that stand on lines of their own.
pub fn numbers(printed: &str) -> BTreeSet<u64> {
    printed.lines().filter_map(|line| line.trim().parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_acknowledged_must_be_there_and_what_was_only_sent_may_be() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.issue(3), (0, 2));
        assert_eq!(ledger.acknowledge("0\nnoise\n1\n"), 2);
        assert_eq!(ledger.check(&BTreeSet::from([0, 1])), Vec::<String>::new());
        assert_eq!(ledger.check(&BTreeSet::from([0, 1, 2])), Vec::<String>::new());
        assert_eq!(ledger.check(&BTreeSet::from([1])), ["0 was acknowledged and is lost"]);
        assert_eq!(ledger.check(&BTreeSet::from([0, 1, 3])), ["3 is there and was never sent"]);
    }

    #[test]
    fn a_line_that_was_cut_off_acknowledges_nothing() {
        let mut ledger = Ledger::default();
        ledger.issue(20);
        assert_eq!(ledger.acknowledge("0\n1"), 1);
        assert_eq!(ledger.acknowledged(), &BTreeSet::from([0]));
    }
}
