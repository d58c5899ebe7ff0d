//! The sandbox of a pod: what its containers share.

use std::collections::HashMap;

use k8s_cri::v1 as cri;
use pb::objects::Pod;

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

#[cfg(test)]
mod tests {
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
}
