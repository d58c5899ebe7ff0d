//! The built-in drivers of the Container Storage Interface.
//!
//! CSI is the one interface between Berth and storage. A driver is a process of its own behind a unix socket; the volume
//! manager calls its controller service, node agents call its node service, and neither knows which driver it talks to:
//! nothing but the role of the driver itself links this crate.

pub mod local;
