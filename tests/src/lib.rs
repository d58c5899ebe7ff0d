//! What the end-to-end tests and the benchmark share.
//!
//! [`control`] runs etcd and the services as processes with hollow nodes, for what is about the control plane alone;
//! the lab (crate `lab`) runs everything with real nodes. [`client`] is a user's view of either.

pub mod client;
pub mod control;
pub mod process;
