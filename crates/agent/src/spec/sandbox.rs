//! The sandbox of a pod: what its containers share.

use std::collections::HashMap;

use k8s_cri::v1 as cri;
use pb::objects::Pod;

use super::{NodeSettings, hosts::hostname, reference, security};
use crate::cri::annotation;

impl NodeSettings {
    /// The sandbox of a pod.
    pub fn sandbox(&self, pod: &Pod, attempt: u32) -> cri::PodSandboxConfig {
        let reference = reference(pod);
        let spec = pod.spec.clone().unwrap_or_default();
        let grace = plan::node::grace(pod).as_secs().to_string();
        cri::PodSandboxConfig {
            hostname: hostname(pod),
            log_directory: self.log_dir(&reference).display().to_string(),
            dns_config: Some(self.dns(&reference.namespace)),
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
        }
    }
}
