//! Which of etcd's fixes a server lacks.

/// A fix, and the first patch release of each branch that has it: 3.4, 3.5, 3.6. None: never.
const FIXES: &[(&str, [Option<u64>; 3])] = &[
    ("duplicate watch events", [Some(24), Some(8), Some(0)]),
    ("watches that go back in time after a snapshot", [Some(25), Some(8), Some(0)]),
    ("watch events lost after compaction", [Some(31), Some(13), Some(0)]),
    ("leases revoked by an old leader", [Some(31), Some(13), Some(0)]),
    ("a deletion missing at the compacted revision", [Some(36), Some(18), Some(0)]),
    ("old events on a watch of a future revision", [Some(38), Some(22), Some(2)]),
    ("lease renewals that succeed after the end", [Some(38), Some(23), Some(5)]),
    ("stale reads after a pause of the process", [Some(42), Some(28), Some(9)]),
    ("authentication bypass CVE-2026-33413 and CVE-2026-33343", [Some(42), Some(28), Some(9)]),
    ("watch permission leak", [None, Some(33), Some(14)]),
];

/// The fixes that a version lacks; None if it is no version.
pub(super) fn missing_fixes(version: &str) -> Option<Vec<&'static str>> {
    let mut parts = version.split(['.', '-', '+']);
    let (major, minor, patch): (u64, u64, u64) =
        (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let lacks = |first: &[Option<u64>; 3]| match (major, minor) {
        (3, 4..=6) => first[(minor - 4) as usize].is_none_or(|first| patch < first),
        (major, minor) => (major, minor) < (3, 4),
    };
    Some(FIXES.iter().filter(|(_, first)| lacks(first)).map(|(fix, _)| *fix).collect())
}

#[cfg(test)]
mod tests {
    use super::missing_fixes;

    #[test]
    fn floors() {
        assert_eq!(missing_fixes("3.5.33"), Some(vec![]));
        assert_eq!(missing_fixes("3.6.14"), Some(vec![]));
        assert_eq!(missing_fixes("3.7.0-rc.1"), Some(vec![]));
        assert_eq!(missing_fixes("3.6.13"), Some(vec!["watch permission leak"]));
        assert_eq!(missing_fixes("3.4.45"), Some(vec!["watch permission leak"]));
        assert_eq!(missing_fixes("3.4.23").map(|missing| missing.len()), Some(10));
        assert_eq!(missing_fixes("3.3.1").map(|missing| missing.len()), Some(10));
        assert_eq!(missing_fixes("devel"), None);
    }
}
