//! What the container runtime is asked to make for a pod.
//!
//! Pure: from the pod and its place to CRI's configuration. Nothing here reads the node; what must be known of it stands
//! in [`NodeSettings`].

mod container;
mod hosts;
mod resolver;
mod resources;
mod sandbox;
mod security;

use std::{collections::HashMap, net::Ipv4Addr, path::PathBuf};

use pb::{agent::v1::PodRef, objects::Pod};

use crate::{cri::label, facts::Amounts, fields::Place};

pub use container::{Run, log_path};
pub use resolver::Resolver;
pub use resources::of_pod as bounds;
pub use security::ImageUser;

/// What is the same for all pods of a node.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// The node's name.
    pub node_name: String,
    /// The node's address.
    pub node_ip: Ipv4Addr,
    /// The cgroup above all pods.
    pub cgroup_parent: String,
    /// Domain under which Services have names.
    pub cluster_domain: String,
    /// Name server of the pods.
    pub dns_ip: Ipv4Addr,
    /// The agent's folder.
    pub data_dir: PathBuf,
    /// What the node has.
    pub amounts: Amounts,
    /// Whether containers that say nothing of seccomp get the runtime's own profile.
    pub seccomp_default: bool,
}

/// Names a pod that the API sent.
pub fn reference(pod: &Pod) -> PodRef {
    let meta = pod.metadata.clone().unwrap_or_default();
    PodRef { namespace: meta.namespace, name: meta.name, uid: meta.uid }
}

impl NodeSettings {
    /// The folder of a pod's volumes and files.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.data_dir.join("pods").join(uid)
    }

    /// The folder of a pod's logs.
    pub fn log_dir(&self, pod: &PodRef) -> PathBuf {
        self.data_dir.join("logs").join(format!("{}_{}_{}", pod.namespace, pod.name, pod.uid))
    }

    /// The pod's own cgroup.
    pub fn cgroup(&self, uid: &str) -> String {
        format!("{}/pod{uid}", self.cgroup_parent.trim_end_matches('/'))
    }

    /// Where fields of a pod are read from.
    pub fn place<'a>(&'a self, host_ip: &'a str, pod_ip: &'a str) -> Place<'a> {
        Place { node_name: &self.node_name, host_ip, pod_ip, allocatable: &self.amounts.allocatable }
    }

    fn labels(&self, pod: &PodRef) -> HashMap<String, String> {
        let labels = [
            (label::UID, &pod.uid),
            (label::NAME, &pod.name),
            (label::NAMESPACE, &pod.namespace),
            (label::NODE, &self.node_name),
        ];
        labels.map(|(key, value)| (key.to_owned(), value.clone())).into()
    }
}

#[cfg(test)]
mod tests {
    use pb::objects::{ObjectMeta, PodSpec};

    use super::*;

    /// A node for tests.
    pub(super) fn settings() -> NodeSettings {
        NodeSettings {
            node_name: "node-1".into(),
            node_ip: Ipv4Addr::new(10, 0, 0, 1),
            cgroup_parent: "/berth-lab/node-1".into(),
            cluster_domain: "cluster.local".into(),
            dns_ip: Ipv4Addr::new(169, 254, 20, 10),
            data_dir: "/data".into(),
            amounts: Amounts::default(),
            seccomp_default: true,
        }
    }

    /// A pod of a set for tests.
    pub(super) fn pod(name: &str) -> Pod {
        Pod {
            metadata: Some(ObjectMeta {
                name: name.into(),
                namespace: "default".into(),
                uid: "u".into(),
                ..Default::default()
            }),
            spec: Some(PodSpec { subdomain: "nginx".into(), ..Default::default() }),
            ..Default::default()
        }
    }
}
