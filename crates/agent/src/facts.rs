//! What a node tells of itself when it registers.

use std::{collections::BTreeMap, net::Ipv4Addr, str::FromStr, sync::Arc};

use anyhow::{Context, bail};
use model::quantity::Quantity as Amount;
use pb::objects::{
    Condition, DaemonEndpoint, Node, NodeAddress, NodeCsiDriver, NodeDaemonEndpoints, NodeStatus, NodeSystemInfo,
    ObjectMeta, Quantity, Time,
};

use plan::node::pressure::Pressures;

use crate::{config::Config, csi::Driver};

/// Label that every node carries: its name.
pub const HOSTNAME_LABEL: &str = "kubernetes.io/hostname";

/// Room for what pods write beside their volumes.
const EPHEMERAL_STORAGE: &str = "ephemeral-storage";

/// What a hollow node pretends to have: enough that no test is about size unless it wants to be.
const HOLLOW_CAPACITY: [(&str, &str); 3] = [("cpu", "256"), ("memory", "1Ti"), ("pods", "10000")];

/// Resources of a node by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// All that there is.
    pub capacity: BTreeMap<String, Amount>,
    /// What is left for pods.
    pub allocatable: BTreeMap<String, Amount>,
}

impl Amounts {
    /// What this machine has, without what is reserved for everything that is no pod.
    pub fn of_machine(config: &Config) -> anyhow::Result<Self> {
        let memory = memory_total(&std::fs::read_to_string("/proc/meminfo")?)
            .ok_or_else(|| anyhow::anyhow!("/proc/meminfo has no line MemTotal: is /proc mounted?"))?;
        let cpus = std::thread::available_parallelism()?.get();
        let disk = nix::sys::statvfs::statvfs(&config.data_dir)
            .with_context(|| format!("--data-dir {}: cannot look at its file system", config.data_dir.display()))?;
        let bytes = |bytes: u64| Amount::bytes(i64::try_from(bytes).unwrap_or(i64::MAX));
        let capacity = BTreeMap::from([
            ("cpu".to_owned(), Amount::units(i64::try_from(cpus)?)),
            ("memory".to_owned(), bytes(memory.saturating_mul(1024))),
            (EPHEMERAL_STORAGE.to_owned(), bytes(disk.blocks().saturating_mul(disk.fragment_size()))),
            ("pods".to_owned(), Amount::units(config.max_pods.into())),
        ]);
        let allocatable = without(&capacity, &config.system_reserved)?;
        Ok(Self { capacity, allocatable })
    }

    /// Bytes of memory.
    pub fn memory(&self) -> i64 {
        self.capacity.get("memory").map_or(0, |memory| memory.as_units())
    }
}

fn without(capacity: &BTreeMap<String, Amount>, reserved: &[Reserved]) -> anyhow::Result<BTreeMap<String, Amount>> {
    let mut left = capacity.clone();
    for Reserved { resource, amount } in reserved {
        let has = left.get(resource).copied().unwrap_or(Amount::ZERO);
        if *amount > has {
            bail!("--system-reserved {resource}={amount}: the node has only {has}: reserve less");
        }
        left.insert(resource.clone(), has - *amount);
    }
    Ok(left)
}

/// An amount of a resource that pods do not get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    resource: String,
    amount: Amount,
}

impl FromStr for Reserved {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (resource, amount) = text.split_once('=').ok_or("must be NAME=AMOUNT, such as memory=1Gi")?;
        if !["cpu", "memory", EPHEMERAL_STORAGE].contains(&resource) {
            return Err(format!("{resource:?} cannot be reserved: use cpu, memory or {EPHEMERAL_STORAGE}"));
        }
        match amount.parse::<Amount>() {
            Ok(amount) if amount.is_negative() => Err(format!("{amount} must not be less than nothing")),
            Ok(amount) => Ok(Self { resource: resource.to_owned(), amount }),
            Err(why) => Err(format!("{amount:?} {why}")),
        }
    }
}

/// The node that this machine is.
pub fn real_node(config: &Config, amounts: &Amounts, runtime_version: &str) -> Node {
    let written = |amounts: &BTreeMap<String, Amount>| -> BTreeMap<String, Quantity> {
        amounts.iter().map(|(name, amount)| (name.clone(), (*amount).into())).collect()
    };
    let port = i32::from(config.listen().port());
    let mut node = node(&config.node_name, config.node_ip, port, written(&amounts.capacity));
    if let Some(status) = &mut node.status {
        status.allocatable = written(&amounts.allocatable);
        status.node_info = Some(NodeSystemInfo {
            kernel_version: first_line("/proc/sys/kernel/osrelease"),
            os_image: os_name(&std::fs::read_to_string("/etc/os-release").unwrap_or_default()),
            container_runtime_version: runtime_version.to_owned(),
            ..system_info()
        });
    }
    node
}

/// Bound on the volumes of a driver: this and the driver's name, among what pods may use.
const ATTACHABLE: &str = "attachable-volumes-csi-";

/// The node with its CSI drivers: their topology as labels, their bounds among what pods may use.
pub fn with_drivers(node: &Node, drivers: &BTreeMap<String, Arc<Driver>>) -> Node {
    let mut node = node.clone();
    for driver in drivers.values() {
        let facts = &driver.facts;
        // One label that the API service refuses would keep the whole node away.
        let (labels, bad): (BTreeMap<_, _>, BTreeMap<_, _>) =
            facts.topology.clone().into_iter().partition(|(key, value)| {
                model::names::label_key(key).is_ok() && model::names::label_value(value).is_ok()
            });
        for (key, value) in bad {
            tracing::warn!(driver = facts.name, key, value, "a topology segment is no label and is left out");
        }
        let status = node.status.get_or_insert_default();
        if facts.max_volumes > 0 {
            let bound = Quantity::from(facts.max_volumes.to_string().as_str());
            status.allocatable.insert(format!("{ATTACHABLE}{}", facts.name), bound);
        }
        status.csi_drivers.push(NodeCsiDriver {
            name: facts.name.clone(),
            node_id: facts.node_id.clone(),
            topology_keys: labels.keys().cloned().collect(),
            max_volumes: facts.max_volumes,
            controller: facts.controller,
        });
        node.metadata.get_or_insert_default().labels.extend(labels);
    }
    node
}

/// The node with what it runs short of.
pub fn with_pressures(mut node: Node, pressures: &Pressures) -> Node {
    let conditions = &mut node.status.get_or_insert_default().conditions;
    conditions.extend(pressures.conditions().cloned());
    node
}

/// A node that only pretends.
pub fn hollow_node(name: &str, address: Ipv4Addr, config: &Config) -> Node {
    let capacity = HOLLOW_CAPACITY.map(|(key, value)| (key.to_owned(), Quantity::from(value)));
    node(name, address, i32::from(config.listen().port()), capacity.into())
}

fn node(name: &str, address: Ipv4Addr, port: i32, capacity: BTreeMap<String, Quantity>) -> Node {
    let now = Time::from(jiff::Timestamp::now());
    Node {
        api_version: "v1".into(),
        kind: "Node".into(),
        metadata: Some(ObjectMeta {
            name: name.into(),
            labels: [(HOSTNAME_LABEL.to_owned(), name.to_owned())].into(),
            ..Default::default()
        }),
        spec: None,
        status: Some(NodeStatus {
            csi_drivers: Vec::new(),
            allocatable: capacity.clone(),
            capacity,
            conditions: vec![Condition {
                r#type: "Ready".into(),
                status: "True".into(),
                last_transition_time: Some(now),
                reason: "AgentReady".into(),
                message: "the node agent is running".into(),
                ..Default::default()
            }],
            addresses: vec![
                NodeAddress { r#type: "InternalIP".into(), address: address.to_string() },
                NodeAddress { r#type: "Hostname".into(), address: name.into() },
            ],
            daemon_endpoints: Some(NodeDaemonEndpoints { agent_endpoint: Some(DaemonEndpoint { port }) }),
            node_info: Some(system_info()),
        }),
    }
}

fn system_info() -> NodeSystemInfo {
    NodeSystemInfo {
        agent_version: env!("CARGO_PKG_VERSION").into(),
        architecture: match std::env::consts::ARCH {
            "x86_64" => "amd64".into(),
            "aarch64" => "arm64".into(),
            other => other.into(),
        },
        ..Default::default()
    }
}

/// Empty if it cannot be read: versions are for people.
fn first_line(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or_default().to_owned()
}

/// KiB of memory, from /proc/meminfo.
fn memory_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// PRETTY_NAME of /etc/os-release.
fn os_name(os_release: &str) -> String {
    let name = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or_default();
    name.trim_matches('"').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reserved_is_not_for_pods() {
        let capacity: BTreeMap<_, _> =
            [("cpu".to_owned(), Amount::units(2)), ("memory".to_owned(), Amount::bytes(4 << 30))].into();
        let reserved = |text: &str| text.parse::<Reserved>();
        let some = [reserved("cpu=250m").unwrap(), reserved("memory=1Gi").unwrap()];
        let left = without(&capacity, &some).unwrap();
        assert_eq!((left["cpu"].as_millis(), left["memory"].as_units()), (1750, 3 << 30));
        let all = [reserved("cpu=3").unwrap()];
        assert!(without(&capacity, &all).unwrap_err().to_string().contains("the node has only 2"));
        for bad in ["cpu", "pods=1", "cpu=x", "memory=-1"] {
            assert!(reserved(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn reads_the_kernels_files() {
        assert_eq!(memory_total("MemTotal:       16316412 kB\nMemFree: 1 kB\n"), Some(16_316_412));
        assert_eq!(memory_total(""), None);
        assert_eq!(
            os_name("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"),
            "Debian GNU/Linux 12 (bookworm)"
        );
    }
}
