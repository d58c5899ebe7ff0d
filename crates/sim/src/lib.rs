//! Deterministic simulation of the control plane: one thread, one seed, a clock that is a number.
//!
//! The planner, the controller's apply step, its caches and its garbage collector are the real ones, over the store's
//! model of etcd. Everything around them is simulated: nodes that run pods, users, time. A seed chooses who acts next and
//! what goes wrong. After every commit `check` runs. When the faults end the system must settle by itself, be complete,
//! and then write nothing. `docs/simulation.md` says what is simulated and how to play a failing seed again.
//!
//! The same seed gives the same history: [`Outcome::hash`] is over every committed byte and every choice. Every choice
//! draws from a source of its own, so that a failing history can be made shorter ([`shrink`]).
//!
//! [`script`] plays stories instead of chance over the same parts.

mod chance;
mod eyes;
pub mod many;
mod nodes;
mod ports;
mod process;
pub mod script;
pub mod shrink;
mod simulation;
mod storage;
mod wire;
mod witness;

pub use simulation::{Failure, Options, Outcome, run, tell};
pub use wire::{Crash, Trouble, When};
