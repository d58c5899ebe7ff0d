//! Deterministic simulation of the control plane: one process, one thread, one seed, a clock that is a number.
//!
//! The planner and the controller's apply step are the real ones, over the store's model of etcd. Everything around
//! them is simulated: nodes that run pods, users, time. A seed chooses who acts next and what goes wrong: the
//! controller crashes before or after any call, loses an answer, sees old caches, is paused and replaced as the leader
//! while it still acts; nodes report late or not at all. After every commit `check` runs. When the faults end the
//! system must settle by itself, be complete, and then write nothing.
//!
//! The same seed gives the same history: [`Outcome::hash`] is over every committed byte and every choice.
//!
//! [`script`] plays chosen stories over the same parts, with every call going wrong in turn.
//!
//! Not simulated yet: volumes on nodes.

mod chance;
mod eyes;
pub mod many;
mod nodes;
mod ports;
mod process;
pub mod script;
pub mod shrink;
mod simulation;
mod wire;
mod witness;

pub use simulation::{Failure, Options, Outcome, run, tell};
pub use wire::{Crash, Trouble, When};
