//! Which node a pod goes to.
//!
//! Filters first (cordon, taints, readiness, labels, ports, room, reachability of the pod's volumes, claims that others
//! use, how many volumes a node can have, spread, other pods), then what is preferred (taints, labels, spread, other
//! pods), and among equals a rank: fewest pods of the same set, then the largest share left free, then fewest pods, then
//! the name. There is no chance in it and no fraction: the same snapshot gives the same node.
//!
//! [`Ledger`] is the snapshot: what every node has, what is taken, and what was promised and is not yet seen. It is
//! kept up to date change by change, so that one question costs as many steps as there are nodes, however many pods run.
//!
//! Must never: put more on a node than it has (I19), counting promises; put a pod where one of its volumes cannot be
//! reached (I5); give a claim that one pod or node may have to two. Must never be guessed: a quantity that cannot be read counts as more than any node has.

mod amounts;
mod ledger;
mod peers;
mod ports;
mod preempt;
mod prefer;
mod reason;
mod rules;
mod selector;
mod volumes;

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use pb::{
    Object, ObjectExt,
    objects::{Node, NodeSelector, Pod, Taint},
};

use crate::taints::{NO_SCHEDULE, UNSCHEDULABLE};

pub use amounts::Amounts;
pub use ledger::{Ledger, Placed, RESERVATION_TTL};
pub use preempt::{Budget, Preemption, Verdict, Victim};
pub use reason::{Reason, Unschedulable};
pub use rules::Rules;
pub use selector::{NODE_TOPOLOGY_KEY, matches};
pub use volumes::{ClaimName, Claims, LIMIT_PREFIX, claims_of};

/// A pod among all pods that there ever are at one time: its namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodName {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl PodName {
    /// The name of this pod.
    pub fn of(pod: &Pod) -> Self {
        Self { namespace: pod.namespace().to_owned(), name: pod.name().to_owned() }
    }
}

/// Pods that shall be spread over nodes: those of one controller, by its uid.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group(String);

impl Group {
    /// The group of a pod; None for a pod that nobody controls.
    pub fn of(pod: &Pod) -> Option<Self> {
        let owners = &pod.meta().owner_references;
        owners.iter().find(|owner| owner.controller == Some(true)).map(|owner| Self(owner.uid.clone()))
    }
}

/// A pod that needs a node.
#[derive(Clone, Debug)]
pub struct Request {
    /// Whose place it is. A pod of this name that the ledger still counts is taken as gone: there is never more than
    /// one of a name, and who asks has seen that there is none.
    pub name: PodName,
    /// Its uid; empty if it has none yet.
    pub uid: String,
    /// What it needs.
    pub amounts: Amounts,
    /// Whom it is spread among.
    pub group: Option<Group>,
    /// What it says about nodes and other pods.
    pub rules: Arc<Rules>,
    /// The node on which others make room for it.
    pub nominated: Option<String>,
    /// From where its volumes can be reached. All must match.
    pub reachable: Vec<NodeSelector>,
    /// The claims that it uses.
    pub claims: Claims,
}

impl Request {
    /// What this pod asks for. The drivers of its volumes are not known yet.
    pub fn of(pod: &Pod, reachable: Vec<NodeSelector>) -> Self {
        let claims = claims_of(pod).into_iter().map(|claim| (claim, None)).collect();
        Self {
            claims,
            name: PodName::of(pod),
            uid: pod.uid().to_owned(),
            amounts: Amounts::of_pod(pod),
            group: Group::of(pod),
            rules: Arc::new(Rules::of(pod)),
            nominated: nominated(pod),
            reachable,
        }
    }

    /// The same with the drivers of its volumes, in the order of [`claims_of`]; empty where that is not known. Drivers
    /// of another number than the pod has claims say nothing.
    #[must_use]
    pub fn with_drivers(mut self, pod: &Pod, drivers: &[String]) -> Self {
        let claims = claims_of(pod);
        if claims.len() == drivers.len() {
            self.claims = claims.into_iter().zip(drivers.iter().map(|d| (!d.is_empty()).then(|| d.clone()))).collect();
        }
        self
    }
}

/// What is known of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether its Ready condition is True.
    pub ready: bool,
    /// Its taints, with those that its cordon and its conditions stand for.
    pub taints: Vec<Taint>,
    /// Whether the node is on its way out.
    pub leaving: bool,
    /// What pods may use of it.
    pub allocatable: Amounts,
    /// How many volumes of a CSI driver it can have, by the driver's name; no bound for one that is not there.
    pub volume_limits: BTreeMap<String, usize>,
    /// The store's revision of the node object that says so.
    pub revision: i64,
}

impl NodeFacts {
    /// What this node object says.
    pub fn of(node: &Node) -> Self {
        let status = node.status.as_ref();
        let ready = status.is_some_and(|s| s.conditions.iter().any(|c| c.r#type == "Ready" && c.status == "True"));
        Self {
            labels: node.meta().labels.clone(),
            ready,
            taints: taints(node),
            leaving: node.is_terminating(),
            allocatable: status.map(|s| Amounts::of_node(&s.allocatable)).unwrap_or_default(),
            volume_limits: volumes::limits_of(node),
            revision: node.mod_revision(),
        }
    }
}

impl NodeFacts {
    /// Whether both say the same of a node, at whatever revision.
    fn same_but_revision(&self, other: &Self) -> bool {
        (self.ready, self.leaving) == (other.ready, other.leaving)
            && self.taints == other.taints
            && (&self.labels, &self.allocatable, &self.volume_limits)
                == (&other.labels, &other.allocatable, &other.volume_limits)
    }
}

/// Conditions that keep pods away, and the taints that they stand for.
const PRESSURES: [(&str, &str); 3] = [
    ("MemoryPressure", rules::MEMORY_PRESSURE),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
];

/// The taints of a node, with those that its cordon and its conditions stand for.
fn taints(node: &Node) -> Vec<Taint> {
    let keeps_away = |key: &str| Taint { key: key.to_owned(), effect: NO_SCHEDULE.to_owned(), ..Taint::default() };
    let cordon = node.spec.iter().filter(|spec| spec.unschedulable).map(|_| keeps_away(UNSCHEDULABLE));
    let own = node.spec.iter().flat_map(|spec| spec.taints.iter().cloned());
    let conditions = node.status.iter().flat_map(|status| &status.conditions).filter(|known| known.status == "True");
    let pressures = conditions.filter_map(|known| PRESSURES.iter().find(|(kind, _)| *kind == known.r#type));
    let taints = cordon.chain(own).chain(pressures.map(|(_, key)| keeps_away(key)));
    // Since when is nothing that a choice rests on.
    taints.map(|taint| Taint { time_added: None, ..taint }).collect()
}

/// The node on which others make room for a pod.
fn nominated(pod: &Pod) -> Option<String> {
    pod.status.as_ref().map(|status| status.nominated_node_name.clone()).filter(|node| !node.is_empty())
}

/// Why this node cannot take the pod, whatever else runs there or is taken of it.
fn rule_out(request: &Request, name: &str, node: &NodeFacts) -> Option<Reason> {
    let rules = &request.rules;
    if node.leaving {
        return Some(Reason::Cordoned);
    }
    if rules.node_name.as_ref().is_some_and(|wanted| wanted != name) {
        return Some(Reason::OtherNode);
    }
    match rules.untolerated(&node.taints) {
        Some(taint) if taint.key == UNSCHEDULABLE => return Some(Reason::Cordoned),
        Some(taint) => return Some(Reason::Tainted { key: taint.key.clone(), value: taint.value.clone() }),
        None => {}
    }
    if !node.ready {
        return Some(Reason::NotReady);
    }
    (!rules.lets_in(name, &node.labels)).then_some(Reason::Selector)
}

/// Whether all volumes of the pod can be reached from a node.
fn reaches(request: &Request, name: &str, node: &NodeFacts) -> bool {
    request.reachable.iter().all(|selector| matches(selector, name, &node.labels))
}

/// The order in which nodes that can take the pod are preferred: the smallest comes first.
fn rank<'a>(
    request: &Request,
    name: &'a str,
    node: &NodeFacts,
    used: &Amounts,
    peers: u32,
) -> (u32, Reverse<i128>, i128, &'a str) {
    (peers, Reverse(request.amounts.free_share(&node.allocatable, used)), used.pods, name)
}
