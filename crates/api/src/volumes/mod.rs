//! Volumes at the front door: what users may do with them, beyond what one object by itself tells.

mod admit;

pub use admit::owned_by_users;
