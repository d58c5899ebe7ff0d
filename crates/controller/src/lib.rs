//! The controller: makes what is so for StatefulSets, nodes, disruption budgets and garbage.
//!
//! Snapshot, plan, apply: caches show what is stored ([`caches`]), a pure function decides (`plan::statefulset`,
//! `plan::gc`), and each action becomes one guarded transaction ([`apply`], the private `birth`). Invariants that live
//! here: every transaction compares the leader's fence (I18) and everything that its decision rests on (I7, I13, I27);
//! no decision is made from caches older than the controller's own last write about the set (I17); a settled system is
//! written nothing to (I24).
//!
//! The way of one ordinal takes two sequential commits: the pod with its claims and volumes, and the node's report that
//! it is ready. Not on that way, and therefore gathered: the set's status (at most one write in 100 ms while it
//! moves) and events (in the background, on leases).

pub mod apply;
mod birth;
pub mod budgets;
pub mod caches;
mod config;
mod controller;
pub mod events;
pub mod gc;
pub mod host;
pub mod metrics;
pub mod nodes;
pub mod object;
pub mod observed;
pub mod ports;
pub mod priorities;
pub mod step;
pub mod stranded;
pub mod tainted;
mod tell;
pub mod tried;
mod triggers;
pub mod write;

pub use config::{Config, serve as run};
pub use controller::{Parts, ROLE, run as run_parts};
