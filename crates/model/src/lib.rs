//! What Berth's objects mean: names and identity, revisions, and the rules that make an object valid.
//!
//! Pure: no clock, no I/O, no randomness.

pub mod identity;
pub mod revision;
