//! Names, addresses and paths of a lab: where everything that belongs to it lives.
//!
//! Pure. Everything that the lab creates outside its own folder carries the lab's name (bridge, veths, network
//! namespaces, cgroups), so that `down` finds it with nothing but the name, and so that two labs with different
//! names, subnets and ports can run side by side.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The environment variable that marks every process of a lab; its value is the lab's name.
pub const MARKER: &str = "BERTH_LAB";

/// The image that holds a pod's namespaces open; `deploy/images/build.sh` builds it.
pub const PAUSE_IMAGE: &str = "berth.local/pause:1";

/// The most nodes that one lab can have: their addresses end in 11 to 250.
pub const MAX_NODES: u16 = 240;

/// Linux allows 107 bytes and a NUL for the path of a Unix socket.
const SOCKET_PATH_MAX: usize = 107;

/// A lab's name: 1 to 8 of `a-z 0-9`, so that interface names made from it fit into Linux' 15 characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabName(String);

impl LabName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for LabName {
    fn default() -> Self {
        Self("lab".to_owned())
    }
}

impl fmt::Display for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for LabName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fits = (1..=8).contains(&text.len());
        let plain = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if fits && plain {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!("lab name {text:?} must be 1 to 8 lower-case letters or digits"))
        }
    }
}

impl TryFrom<String> for LabName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<LabName> for String {
    fn from(name: LabName) -> Self {
        name.0
    }
}

/// The /24 that joins the nodes of a lab, written as its network address (`10.88.0.0`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Ipv4Addr", into = "Ipv4Addr")]
pub struct Subnet(Ipv4Addr);

impl Subnet {
    /// The address of host `n` in this subnet.
    pub fn host(self, n: u8) -> Ipv4Addr {
        let [a, b, c, _] = self.0.octets();
        Ipv4Addr::new(a, b, c, n)
    }

    /// Whether `address` lies in this subnet.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        self.0.octets()[..3] == address.octets()[..3]
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/24", self.0)
    }
}

impl FromStr for Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let network = text.strip_suffix("/24").unwrap_or(text);
        network
            .parse::<Ipv4Addr>()
            .map_err(|e| e.to_string())
            .and_then(Self::try_from)
            .map_err(|e| format!("subnet {text:?} must be a private /24 such as 10.88.0.0/24: {e}"))
    }
}

impl TryFrom<Ipv4Addr> for Subnet {
    type Error = String;

    fn try_from(network: Ipv4Addr) -> Result<Self, String> {
        if network.octets()[3] != 0 {
            return Err("the last part is not 0".to_owned());
        }
        if !network.is_private() {
            return Err("it is not a private network".to_owned());
        }
        Ok(Self(network))
    }
}

impl From<Subnet> for Ipv4Addr {
    fn from(subnet: Subnet) -> Self {
        subnet.0
    }
}

/// One of the lab's nodes, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeIndex(u8);

impl NodeIndex {
    /// Nodes 1 to `count`; more than [`MAX_NODES`] are cut off, [`Layout::new`] refuses them before.
    pub fn first(count: u16) -> impl DoubleEndedIterator<Item = Self> {
        (1..=count.min(MAX_NODES)).filter_map(|k| u8::try_from(k).ok().map(NodeIndex))
    }

    /// The node's name in the cluster.
    pub fn name(self) -> String {
        format!("node-{}", self.0)
    }
}

/// Where a lab keeps its things and what they are called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// The lab's name.
    pub name: LabName,
    /// The lab's folder, absolute and without links.
    pub dir: PathBuf,
    /// How many nodes there are.
    pub nodes: u16,
    /// The network between the nodes.
    pub subnet: Subnet,
    /// The first TCP port in the root namespace: API, then controller, scheduler, volumes; etcd 30 above.
    pub port_base: u16,
}

impl Layout {
    /// Checks what the type cannot: number of nodes, ports in range, socket paths short enough.
    pub fn new(name: LabName, dir: PathBuf, nodes: u16, subnet: Subnet, port_base: u16) -> Result<Self, String> {
        if !(1..=MAX_NODES).contains(&nodes) {
            return Err(format!("--nodes {nodes}: a lab has 1 to {MAX_NODES} nodes"));
        }
        if !(1024..=65000).contains(&port_base) {
            return Err(format!("--port-base {port_base} must be 1024 to 65000"));
        }
        if !dir.is_absolute() {
            return Err(format!("--dir {} must be absolute", dir.display()));
        }
        let layout = Self { name, dir, nodes, subnet, port_base };
        for node in layout.all_nodes() {
            for socket in [layout.containerd_ttrpc(node), layout.registration_socket(node, "shared")] {
                if socket.as_os_str().len() > SOCKET_PATH_MAX {
                    return Err(format!(
                        "--dir {} is too long: the socket {} would pass {SOCKET_PATH_MAX} characters, choose a shorter folder",
                        layout.dir.display(),
                        socket.display()
                    ));
                }
            }
        }
        Ok(layout)
    }

    /// Every node, in order.
    pub fn all_nodes(&self) -> impl DoubleEndedIterator<Item = NodeIndex> + use<> {
        NodeIndex::first(self.nodes)
    }

    // Names outside the lab's folder.

    /// The bridge in the root namespace that joins the nodes.
    pub fn bridge(&self) -> String {
        bridge(&self.name)
    }

    /// The root namespace's end of a node's cable.
    pub fn veth(&self, node: NodeIndex) -> String {
        format!("{}{}", veth_prefix(&self.name), node.0)
    }

    /// The node's network namespace, as `ip netns` names it.
    pub fn netns(&self, node: NodeIndex) -> String {
        format!("{}{}", netns_prefix(&self.name), node.name())
    }

    /// The cgroup above all pods of a node, the same in every hierarchy.
    pub fn cgroup_parent(&self, node: NodeIndex) -> String {
        format!("/{}/{}", cgroup(&self.name), node.name())
    }

    // Addresses.

    /// The root namespace's address on the bridge, where the nodes reach the API service.
    pub fn gateway(&self) -> Ipv4Addr {
        self.subnet.host(1)
    }

    /// The node's address on the bridge.
    pub fn node_ip(&self, node: NodeIndex) -> Ipv4Addr {
        self.subnet.host(10 + node.0)
    }

    /// Where a control plane service listens, by its place above the port base.
    fn local(&self, offset: u16) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, self.port_base + offset)
    }

    /// The API service, as clients on this machine reach it.
    pub fn api(&self) -> SocketAddrV4 {
        self.local(0)
    }

    /// The controller.
    pub fn controller(&self) -> SocketAddrV4 {
        self.local(1)
    }

    /// The scheduler.
    pub fn scheduler(&self) -> SocketAddrV4 {
        self.local(2)
    }

    /// The volume manager.
    pub fn volumes(&self) -> SocketAddrV4 {
        self.local(3)
    }

    /// etcd's client port.
    pub fn etcd(&self) -> SocketAddrV4 {
        self.local(30)
    }

    /// etcd's peer port.
    pub fn etcd_peer(&self) -> SocketAddrV4 {
        self.local(31)
    }

    /// A node agent's own server; the port is the same on every node.
    pub fn agent(&self, node: NodeIndex) -> SocketAddrV4 {
        SocketAddrV4::new(self.node_ip(node), self.port_base + 10)
    }

    // Files.

    /// The lab's configuration, written by `up`.
    pub fn config_file(&self) -> PathBuf {
        config_file(&self.dir)
    }

    /// What the supervisor says of its processes.
    pub fn state_file(&self) -> PathBuf {
        state_file(&self.dir)
    }

    /// Held by the one supervisor of this lab as long as it lives.
    pub fn supervisor_lock(&self) -> PathBuf {
        self.dir.join("supervisor.lock")
    }

    /// A process' log.
    pub fn log(&self, process: &str) -> PathBuf {
        self.dir.join("log").join(format!("{process}.log"))
    }

    /// etcd's data.
    pub fn etcd_dir(&self) -> PathBuf {
        self.dir.join("etcd")
    }

    /// The classes of storage that the lab makes.
    pub fn classes_file(&self) -> PathBuf {
        self.dir.join("classes.yaml")
    }

    /// Where the driver `shared` keeps its volumes: one folder, which every node reaches.
    pub fn shared_dir(&self) -> PathBuf {
        self.dir.join("shared")
    }

    /// Everything of one node; also the agent's data folder.
    pub fn node_dir(&self, node: NodeIndex) -> PathBuf {
        self.dir.join(node.name())
    }

    /// The sockets of the node's CSI drivers.
    pub fn csi_dir(&self, node: NodeIndex) -> PathBuf {
        self.node_dir(node).join("csi")
    }

    /// The socket on which a driver serves CSI on this node.
    pub fn csi_socket(&self, node: NodeIndex, driver: &str) -> PathBuf {
        self.csi_dir(node).join(format!("{driver}.sock"))
    }

    /// Where drivers make themselves known to the node's agent: each with a socket in this folder.
    pub fn registry(&self, node: NodeIndex) -> PathBuf {
        self.csi_dir(node).join("registry")
    }

    /// The socket by which a driver makes itself known on this node.
    pub fn registration_socket(&self, node: NodeIndex, driver: &str) -> PathBuf {
        self.registry(node).join(format!("{driver}-reg.sock"))
    }

    /// Where the driver `local` keeps this node's volumes.
    pub fn local_dir(&self, node: NodeIndex) -> PathBuf {
        self.node_dir(node).join("local")
    }

    /// Where the agent writes its CNI network once it knows its pod range: `cni/net.d` in its data folder.
    pub fn cni_conf_dir(&self, node: NodeIndex) -> PathBuf {
        self.node_dir(node).join("cni").join("net.d")
    }

    /// The container runtime's own folder.
    pub fn containerd_dir(&self, node: NodeIndex) -> PathBuf {
        self.node_dir(node).join("containerd")
    }

    /// The container runtime's configuration.
    pub fn containerd_config(&self, node: NodeIndex) -> PathBuf {
        self.containerd_dir(node).join("config.toml")
    }

    /// The container runtime's socket, for CRI and for `ctr`.
    pub fn containerd_socket(&self, node: NodeIndex) -> PathBuf {
        self.node_dir(node).join("containerd.sock")
    }

    /// The container runtime's socket for its shims.
    pub fn containerd_ttrpc(&self, node: NodeIndex) -> PathBuf {
        self.node_dir(node).join("containerd.sock.ttrpc")
    }
}

/// The bridge of lab `name`.
pub fn bridge(name: &LabName) -> String {
    format!("berth-{name}")
}

/// What the names of a lab's cables begin with; a number follows.
pub fn veth_prefix(name: &LabName) -> String {
    format!("bv-{name}-")
}

/// What the names of a lab's network namespaces begin with.
pub fn netns_prefix(name: &LabName) -> String {
    format!("berth-{name}-")
}

/// The lab's cgroup, under the root of every hierarchy.
pub fn cgroup(name: &LabName) -> String {
    format!("berth-{name}")
}

/// The lab's configuration in its folder.
pub fn config_file(dir: &Path) -> PathBuf {
    dir.join("lab.json")
}

/// The supervisor's state in the lab's folder.
pub fn state_file(dir: &Path) -> PathBuf {
    dir.join("state.json")
}

/// The folder of lab `name` when none is given.
pub fn default_dir(name: &LabName) -> PathBuf {
    Path::new("/var/lib/berth").join(name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lab(name: &str, nodes: u16) -> Layout {
        Layout::new(
            name.parse().unwrap(),
            PathBuf::from("/var/lib/berth/lab"),
            nodes,
            "10.88.0.0/24".parse().unwrap(),
            7440,
        )
        .unwrap()
    }

    #[test]
    fn interface_names_fit_into_linux_limit() {
        let widest = lab("abcdefgh", MAX_NODES);
        assert!(widest.bridge().len() <= 15);
        for node in widest.all_nodes() {
            assert!(widest.veth(node).len() <= 15, "{}", widest.veth(node));
        }
    }

    #[test]
    fn every_node_has_an_address_of_its_own() {
        let lab = lab("lab", MAX_NODES);
        let addresses: std::collections::BTreeSet<_> = lab.all_nodes().map(|node| lab.node_ip(node)).collect();
        assert_eq!(addresses.len(), usize::from(MAX_NODES));
        assert!(!addresses.contains(&lab.gateway()));
    }

    #[test]
    fn refuses_names_that_could_leave_their_place() {
        for bad in ["", "../x", "Lab", "a-b", "ninechars", "a b"] {
            assert!(bad.parse::<LabName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn refuses_what_cannot_work() {
        let build = |nodes, dir: &str, port| {
            Layout::new("lab".parse().unwrap(), dir.into(), nodes, "10.88.0.0/24".parse().unwrap(), port)
        };
        assert!(build(0, "/lab", 7440).is_err());
        assert!(build(241, "/lab", 7440).is_err());
        assert!(build(3, "lab", 7440).is_err());
        assert!(build(3, "/lab", 80).is_err());
        assert!(build(3, &format!("/{}", "x".repeat(100)), 7440).is_err());
        for bad in ["10.88.0.1/24", "8.8.8.0/24", "10.88.0.0/16"] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }
}
