//! Ports of nodes that lead into pods: each can lead into one at a time.

use std::collections::BTreeMap;

use pb::objects::ContainerPort;

/// Every address of the node.
const ANY: &str = "0.0.0.0";

/// A port of a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct HostPort {
    port: i32,
    protocol: String,
    ip: String,
}

impl HostPort {
    /// The node's port that leads to a container's; None if there is none.
    pub(super) fn of(port: &ContainerPort) -> Option<Self> {
        let or = |text: &str, default: &str| if text.is_empty() { default.to_owned() } else { text.to_owned() };
        (port.host_port > 0).then(|| Self {
            port: port.host_port,
            protocol: or(&port.protocol, "TCP"),
            ip: or(&port.host_ip, ANY),
        })
    }

    /// Whether both cannot be on one node.
    pub(super) fn conflicts(&self, other: &Self) -> bool {
        (self.port, &self.protocol) == (other.port, &other.protocol)
            && (self.ip == other.ip || self.ip == ANY || other.ip == ANY)
    }
}

/// Ports that are taken, with by how many pods: more than one where somebody bound pods by hand.
pub(super) type Taken = BTreeMap<HostPort, u32>;
