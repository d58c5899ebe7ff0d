//! What containers and pods may use: Kubernetes' mapping of requests and limits to cgroups.
//!
//! Requests become CPU shares, limits become quota and memory bound. The OOM score says who goes first when memory runs
//! out.

use k8s_cri::v1 as cri;
use model::{
    qos::{self, Class},
    quantity::Quantity,
};
use pb::objects::{Container, PodSpec};

use crate::cgroup::{Bounds, CPU_PERIOD};

/// The least that the kernel takes as quota, in microseconds, and as shares.
const LEAST_QUOTA: i64 = 1000;
const LEAST_SHARES: i64 = 2;

/// The most that the kernel takes as shares.
const MOST_SHARES: i64 = 262_144;

/// A container's. `memory` is what the node has, in bytes.
pub(super) fn of_container(spec: &PodSpec, container: &Container, memory: i64) -> cri::LinuxContainerResources {
    cri::LinuxContainerResources {
        cpu_period: CPU_PERIOD,
        cpu_quota: qos::limit(container, "cpu").map_or(0, quota),
        cpu_shares: qos::request(container, "cpu").map_or(LEAST_SHARES, shares),
        memory_limit_in_bytes: qos::limit(container, "memory").map_or(0, Quantity::as_units),
        oom_score_adj: qos::oom_score(spec, container, memory),
        ..Default::default()
    }
}

/// A pod's as a whole: the sums, as far as all its containers have bounds.
pub fn of_pod(spec: &PodSpec) -> Bounds {
    let requests = qos::requests(spec);
    let asked = requests.get("cpu").filter(|_| qos::class(spec) != Class::BestEffort);
    Bounds {
        cpu_shares: asked.map_or(LEAST_SHARES, |cpu| shares(*cpu)),
        cpu_quota: qos::bound(spec, "cpu").map(quota),
        memory: qos::bound(spec, "memory").map(Quantity::as_units),
    }
}

fn quota(cpu: Quantity) -> i64 {
    match cpu.as_millis() {
        0 => 0,
        millis => (millis.saturating_mul(CPU_PERIOD) / 1000).max(LEAST_QUOTA),
    }
}

fn shares(cpu: Quantity) -> i64 {
    (cpu.as_millis().saturating_mul(1024) / 1000).clamp(LEAST_SHARES, MOST_SHARES)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use pb::objects::ResourceRequirements;

    use super::*;

    fn container(requests: &[(&str, &str)], limits: &[(&str, &str)]) -> Container {
        let map = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), pb::objects::Quantity::from(*v))).collect::<BTreeMap<_, _>>()
        };
        let resources = ResourceRequirements { limits: map(limits), requests: map(requests) };
        Container { resources: Some(resources), ..Default::default() }
    }

    #[test]
    fn resources_become_shares_quota_and_bounds() {
        let some = container(&[("cpu", "250m")], &[("cpu", "1500m"), ("memory", "64Mi")]);
        let spec = PodSpec { containers: vec![some, Container::default()], ..Default::default() };
        let got = of_container(&spec, &spec.containers[0], 640 << 20);
        assert_eq!((got.cpu_shares, got.cpu_quota, got.memory_limit_in_bytes), (256, 150_000, 64 << 20));
        assert_eq!(got.oom_score_adj, 900, "a limit of memory is a request");
        let nothing = of_container(&spec, &spec.containers[1], 640 << 20);
        assert_eq!((nothing.cpu_shares, nothing.cpu_quota, nothing.memory_limit_in_bytes), (2, 0, 0));
        assert_eq!(nothing.oom_score_adj, 999, "no container of a Burstable pod is BestEffort");
    }

    #[test]
    fn a_pod_is_bounded_by_the_sums_if_there_are_any() {
        let full = || container(&[], &[("cpu", "500m"), ("memory", "64Mi")]);
        let spec = PodSpec { containers: vec![full(), full()], ..Default::default() };
        let bounds = Bounds { cpu_shares: 1024, cpu_quota: Some(100_000), memory: Some(128 << 20) };
        assert_eq!(of_pod(&spec), bounds);
        let spec = PodSpec { containers: vec![full(), container(&[("cpu", "250m")], &[])], ..Default::default() };
        assert_eq!(of_pod(&spec), Bounds { cpu_shares: 768, cpu_quota: None, memory: None });
        let spec = PodSpec { containers: vec![Container::default()], ..Default::default() };
        assert_eq!(of_pod(&spec), Bounds { cpu_shares: 2, cpu_quota: None, memory: None });
    }
}
