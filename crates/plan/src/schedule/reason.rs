//! Why a pod fits onto no node, in Kubernetes' words.

use std::{collections::BTreeMap, fmt};

/// Why no node was found.
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
    /// The pod names another node.
    OtherNode,
    /// A taint keeps the pod away.
    Tainted {
        /// Its key.
        key: String,
        /// Its value.
        value: String,
    },
    /// Its agent does not report, or reports that it cannot run pods.
    NotReady,
    /// A label that the pod's selector or affinity asks for is missing or differs.
    Selector,
    /// Another pod has a port of the node that the pod asks for.
    Ports,
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
    /// It lacks a label by which the pod is spread.
    SpreadLabel,
    /// The pod would lie too unevenly with others.
    Spread,
    /// Pods are missing that the pod has to be near to.
    Near,
    /// Pods are there that the pod has to be far from.
    Far,
    /// Pods are there that have to be far from the pod.
    Repelled,
}

impl Reason {
    /// Whether it may pass when pods of the node go.
    pub(super) fn curable(&self) -> bool {
        match self {
            Self::Cordoned
            | Self::OtherNode
            | Self::Tainted { .. }
            | Self::NotReady
            | Self::Selector
            | Self::Volume
            | Self::SpreadLabel
            | Self::Near => false,
            Self::Ports
            | Self::Insufficient(_)
            | Self::TooManyPods
            | Self::TooManyVolumes
            | Self::ClaimInUse { .. }
            | Self::Spread
            | Self::Far
            | Self::Repelled => true,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cordoned => f.write_str("node(s) were unschedulable"),
            Self::OtherNode => f.write_str("node(s) didn't match the requested node name"),
            Self::Tainted { key, value } => write!(f, "node(s) had untolerated taint {{{key}: {value}}}"),
            Self::NotReady => f.write_str("node(s) were not ready"),
            Self::Selector => f.write_str("node(s) didn't match Pod's node affinity/selector"),
            Self::Ports => f.write_str("node(s) didn't have free ports for the requested pod ports"),
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
            Self::SpreadLabel => {
                f.write_str("node(s) didn't match pod topology spread constraints (missing required label)")
            }
            Self::Spread => f.write_str("node(s) didn't match pod topology spread constraints"),
            Self::Near => f.write_str("node(s) didn't match pod affinity rules"),
            Self::Far => f.write_str("node(s) didn't match pod anti-affinity rules"),
            Self::Repelled => f.write_str("node(s) didn't satisfy existing pods anti-affinity rules"),
        }
    }
}
