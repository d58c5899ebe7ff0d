//! The built-in drivers of the Container Storage Interface.
//!
//! CSI is the one interface between Berth and storage. A driver is a process of its own behind a unix socket; the volume
//! manager calls its controller service, node agents call its node service, and neither knows which driver it talks to:
//! nothing but the role of the driver itself links this crate.
//!
//! There are two: [`local`], whose volumes are on one node, and [`shared`], whose volumes are in a directory that all
//! nodes reach. They differ in where a volume can be used and in whether it is attached to nodes; a volume is the same
//! in both: a directory, or a file with a file system of its own.
//!
//! Must never: make data where some should be and is missing (I5); follow a symbolic link or leave the data directory on
//! the way to a volume; delete anything inside a mount (I21); have two calls for one volume in flight (I4).

mod args;
mod attachment;
mod copy;
mod disk;
mod driver;
mod error;
mod filesystem;
mod id;
pub mod local;
mod lock;
mod loopdev;
mod mounts;
mod provision;
mod record;
mod registration;
mod service;
pub mod shared;
mod staging;
mod tools;

pub use disk::Disk;
pub use driver::{Driver, serve};
pub use error::Error;
pub use id::{BadVolumeId, VolumeId};
