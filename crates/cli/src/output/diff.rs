//! What differs between two texts, as `diff -u` shows it.

use similar::TextDiff;

/// Lines around a difference.
const CONTEXT: usize = 3;

/// The difference; empty if there is none.
pub fn unified(before: &str, after: &str, before_name: &str, after_name: &str) -> String {
    TextDiff::from_lines(before, after)
        .unified_diff()
        .context_radius(CONTEXT)
        .header(before_name, after_name)
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_diff_u_has_it() {
        assert_eq!(unified("a\n", "a\n", "x", "y"), "");
        assert_eq!(unified("a\nb\nc\n", "a\nB\nc\n", "x", "y"), "--- x\n+++ y\n@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n");
        assert_eq!(unified("", "a\n", "x", "y"), "--- x\n+++ y\n@@ -0,0 +1 @@\n+a\n");
    }
}
