//! Nodes with an agent and a CSI driver that does as it is told, over a real etcd.

#![allow(dead_code, unused_imports, clippy::unwrap_used, clippy::expect_used, reason = "each test uses a part")]

mod cluster;
mod data;
mod driver;

pub use cluster::{Cluster, bound, claim, class, in_time, node_of, pod, pvc};
pub use driver::{Disk, Driver, Fault, Kind as DriverKind};
