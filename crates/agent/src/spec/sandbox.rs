//! The sandbox of a pod: what its containers share.

use std::collections::HashMap;

use k8s_cri::v1 as cri;
use model::qos;
use pb::objects::{ContainerPort, Pod, PodSpec};

use super::{NodeSettings, hosts::LongName, reference, resolver::Resolver, security};
use crate::cri::annotation;

impl NodeSettings {
    /// The sandbox of a pod on a node with this resolver.
    pub fn sandbox(&self, pod: &Pod, attempt: u32, node: &Resolver) -> Result<cri::PodSandboxConfig, LongName> {
        let reference = reference(pod);
        let spec = pod.spec.clone().unwrap_or_default();
        let grace = plan::node::grace(pod).as_secs().to_string();
        Ok(cri::PodSandboxConfig {
            hostname: self.hostname(pod)?,
            log_directory: self.log_dir(&reference).display().to_string(),
            dns_config: Some(self.dns(pod, node)),
            port_mappings: ports(&spec),
            labels: self.labels(&reference),
            annotations: HashMap::from([(annotation::GRACE.to_owned(), grace)]),
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup(&reference.uid),
                security_context: Some(security::of_sandbox(&spec)),
                sysctls: security::sysctls(&spec),
                ..Default::default()
            }),
            metadata: Some(cri::PodSandboxMetadata {
                name: reference.name,
                uid: reference.uid,
                namespace: reference.namespace,
                attempt,
            }),
            ..Default::default()
        })
    }
}

/// Ports of the node that lead into the pod.
fn ports(spec: &PodSpec) -> Vec<cri::PortMapping> {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().filter(|init| qos::is_sidecar(init)));
    let ports = containers.flat_map(|container| &container.ports).filter(|port| port.host_port > 0);
    let mapping = |port: &ContainerPort| cri::PortMapping {
        protocol: match port.protocol.as_str() {
            "UDP" => cri::Protocol::Udp,
            "SCTP" => cri::Protocol::Sctp,
            _ => cri::Protocol::Tcp,
        }
        .into(),
        container_port: port.container_port,
        host_port: port.host_port,
        host_ip: port.host_ip.clone(),
    };
    ports.map(mapping).collect()
}

#[cfg(test)]
mod tests {
    use pb::objects::Container;

    use super::{
        super::tests::{pod, settings},
        *,
    };

    #[test]
    fn a_pod_has_a_cgroup_of_its_own_and_its_grace_stands_with_it() {
        let sandbox = settings().sandbox(&pod("web-0"), 3, &Resolver::default()).unwrap();
        assert_eq!(sandbox.linux.unwrap().cgroup_parent, "/berth-lab/node-1/podu");
        assert_eq!(sandbox.annotations[annotation::GRACE], "30");
        assert_eq!((sandbox.hostname.as_str(), sandbox.metadata.unwrap().attempt), ("web-0", 3));
    }

    #[test]
    fn ports_of_the_node_lead_to_what_listens() {
        let port = |container_port, host_port, protocol: &str| ContainerPort {
            container_port,
            host_port,
            protocol: protocol.into(),
            ..Default::default()
        };
        let with = |ports: Vec<ContainerPort>, policy: &str| Container {
            ports,
            restart_policy: policy.into(),
            ..Default::default()
        };
        let spec = PodSpec {
            init_containers: vec![with(vec![port(1, 1001, "TCP")], ""), with(vec![port(2, 1002, "UDP")], "Always")],
            containers: vec![with(vec![port(3, 1003, "TCP"), port(4, 0, "TCP")], "")],
            ..Default::default()
        };
        let mapped: Vec<_> =
            ports(&spec).into_iter().map(|one| (one.host_port, one.container_port, one.protocol)).collect();
        assert_eq!(mapped, [(1003, 3, cri::Protocol::Tcp.into()), (1002, 2, cri::Protocol::Udp.into())]);
    }
}
