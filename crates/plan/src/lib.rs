//! What to do next, as pure functions.
//!
//! Each module takes a snapshot of what the store holds and answers with actions, waits and status. A decision is total:
//! it cannot fail, log, ask for the time or remember anything. Every action carries the preconditions that it rests on,
//! and the caller turns them into the guards of one transaction; where a guard fails, the answer is to plan again.

pub mod budget;
pub mod gc;
pub mod node;
pub mod schedule;
pub mod statefulset;
pub mod taints;
pub mod volume;
