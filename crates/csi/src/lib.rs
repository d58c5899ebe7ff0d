//! The Container Storage Interface: what its callers share ([`client`]) and the built-in driver ([`local`]).
//!
//! CSI is the one interface between Berth and storage. A driver is a process of its own behind a unix socket; the volume
//! manager calls its controller service, node agents call its node service, and neither knows which driver it talks to.

pub mod client;
pub mod local;
