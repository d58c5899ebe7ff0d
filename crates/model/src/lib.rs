//! What Berth's objects mean: names and identity, quantities, selectors, defaults, revisions, and the rules that make an
//! object valid.
//!
//! Pure: no clock, no I/O, no randomness. The rules are Kubernetes'; where Berth's differ, the place says so and why.

pub mod bound;
pub mod decode;
pub mod default;
pub mod error;
pub mod identity;
pub mod leaving;
pub mod mutant;
pub mod names;
pub mod ordinals;
pub mod overrides;
pub mod priority;
pub mod qos;
pub mod quantity;
pub mod revision;
pub mod selector;
pub mod service;
pub mod source;
mod unsupported;
pub mod validate;
pub mod view;
