//! Volumes at the front door: what users may do with them, beyond what one object by itself tells.
//!
//! Snapshots of a set, and the operations Move and Restore, are asked for here, each in one transaction under guards, and
//! carried out by the volume manager. Nothing here calls a driver. What must never happen: an operation on a part of a
//! pod's claims only, or a second one beside the first.

mod admit;
mod operate;
mod owner;
mod snapshot;
mod usage;

pub use admit::owned_by_users;
pub use owner::claims_named;
