//! Which node a pod goes to.
//!
//! Filters first (ready, neither cordoned nor tainted, labels, room, reachability of the pod's volumes, claims that
//! others use, how many volumes a node can have), then a rank: fewest pods of
//! the same set, then the largest share left free, then fewest pods, then the name. There is no chance in it: the same
//! snapshot gives the same node.
//!
//! [`Ledger`] is the snapshot: what every node has, what is taken, and what was promised and is not yet seen. It is
//! kept up to date change by change, so that one question costs as many steps as there are nodes, however many pods run.
//!
//! Must never: put more on a node than it has (I19), counting promises; put a pod where one of its volumes cannot be
//! reached (I5); give a claim that one pod or node may have to two. Must never be guessed: a quantity that cannot be read counts as more than any node has.

mod amounts;
mod ledger;
mod selector;
mod volumes;

use std::{cmp::Reverse, collections::BTreeMap, fmt};

use pb::{
    Object, ObjectExt,
    objects::{Node, NodeSelector, Pod, Taint},
};

pub use amounts::Amounts;
pub use ledger::{Ledger, Placed, RESERVATION_TTL};
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
    /// Labels that the node must have.
    pub node_selector: BTreeMap<String, String>,
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
            node_selector: pod.spec.as_ref().map(|spec| spec.node_selector.clone()).unwrap_or_default(),
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
    /// Whether a taint keeps new pods away.
    pub tainted: bool,
    /// Whether new pods are kept away (cordon), or the node is on its way out.
    pub unschedulable: bool,
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
            tainted: node.spec.iter().flat_map(|spec| &spec.taints).any(keeps_away),
            unschedulable: node.is_terminating() || node.spec.as_ref().is_some_and(|spec| spec.unschedulable),
            allocatable: status.map(|s| Amounts::of_node(&s.allocatable)).unwrap_or_default(),
            volume_limits: volumes::limits_of(node),
            revision: node.mod_revision(),
        }
    }
}

impl NodeFacts {
    /// Whether both say the same of a node, at whatever revision.
    fn same_but_revision(&self, other: &Self) -> bool {
        let flags = |of: &Self| (of.ready, of.tainted, of.unschedulable);
        flags(self) == flags(other)
            && (&self.labels, &self.allocatable, &self.volume_limits)
                == (&other.labels, &other.allocatable, &other.volume_limits)
    }
}

/// Whether a taint keeps new pods away. Pods cannot tolerate one yet.
fn keeps_away(taint: &Taint) -> bool {
    matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
}

/// Why no node was found, in Kubernetes' words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Unschedulable {
    /// How many nodes there are.
    pub nodes: usize,
    /// How many nodes each reason rules out. A node that lacks several resources counts under each.
    pub reasons: BTreeMap<Reason, usize>,
}

impl fmt::Display for Unschedulable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("0/0 nodes are available: no node has registered; start an agent or look at its log.");
        }
        let mut texts: Vec<String> = self.reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        texts.sort();
        write!(f, "0/{} nodes are available: {}.", self.nodes, texts.join(", "))
    }
}

/// Why a node is ruled out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Cordoned, or going away.
    Cordoned,
    /// A taint keeps pods away.
    Tainted,
    /// Its agent does not report, or reports that it cannot run pods.
    NotReady,
    /// A label of nodeSelector is missing or differs.
    Selector,
    /// Too little of a resource is left.
    Insufficient(String),
    /// It runs as many pods as it may.
    TooManyPods,
    /// A volume of the pod cannot be reached from it.
    Volume,
    /// It has as many volumes of a driver as it can.
    TooManyVolumes,
    /// A claim that one pod, or the pods of one node, may have at a time is in use.
    ClaimInUse {
        /// The claim.
        claim: String,
        /// Who has it.
        pod: String,
        /// Its node, if pods there could use the claim too.
        elsewhere: Option<String>,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cordoned => f.write_str("node(s) were unschedulable"),
            Self::Tainted => f.write_str("node(s) had untolerated taint(s)"),
            Self::NotReady => f.write_str("node(s) were not ready"),
            Self::Selector => f.write_str("node(s) didn't match Pod's node affinity/selector"),
            Self::Insufficient(resource) => write!(f, "Insufficient {resource}"),
            Self::TooManyPods => f.write_str("Too many pods"),
            Self::Volume => f.write_str("node(s) had volume node affinity conflict"),
            Self::TooManyVolumes => f.write_str("node(s) exceed max volume count"),
            Self::ClaimInUse { claim, pod, elsewhere: None } => {
                write!(f, "node(s) cannot have claim {claim} while pod {pod} uses it (ReadWriteOncePod)")
            }
            Self::ClaimInUse { claim, pod, elsewhere: Some(node) } => {
                write!(f, "node(s) cannot have claim {claim} while pod {pod} uses it on {node} (ReadWriteOnce)")
            }
        }
    }
}

/// Why this node cannot take the pod; empty if it can. `used` is what is taken of it without the pod itself.
fn rule_out(request: &Request, name: &str, node: &NodeFacts, used: &Amounts) -> Vec<Reason> {
    if node.unschedulable {
        return vec![Reason::Cordoned];
    }
    if node.tainted {
        return vec![Reason::Tainted];
    }
    if !node.ready {
        return vec![Reason::NotReady];
    }
    let label = |key: &str| selector::label(name, &node.labels, key);
    if !request.node_selector.iter().all(|(key, value)| label(key) == Some(value.as_str())) {
        return vec![Reason::Selector];
    }
    let short = request.amounts.missing(&node.allocatable, used);
    if !short.is_empty() {
        return short;
    }
    if !request.reachable.iter().all(|selector| matches(selector, name, &node.labels)) {
        return vec![Reason::Volume];
    }
    Vec::new()
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
