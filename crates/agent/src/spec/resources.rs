//! What a container may use: Kubernetes' mapping of requests and limits to cgroups.

use std::collections::BTreeMap;

use k8s_cri::v1 as cri;
use model::quantity::Quantity;
use pb::objects::ResourceRequirements;

/// Scheduling period of the CPU quota in microseconds.
const CPU_PERIOD: i64 = 100_000;

/// Kubernetes' mapping: requests become CPU shares, limits become quota and memory bound. The OOM score says who goes
/// first when memory runs out: who asked for nothing.
pub(super) fn of_container(wanted: Option<&ResourceRequirements>) -> cri::LinuxContainerResources {
    let read = |map: Option<&BTreeMap<String, pb::objects::Quantity>>, name: &str| {
        map.and_then(|map| map.get(name)).and_then(|text| Quantity::try_from(text).ok())
    };
    let limits = wanted.map(|wanted| &wanted.limits);
    let requests = wanted.map(|wanted| &wanted.requests);
    let cpu_limit = read(limits, "cpu");
    let memory_limit = read(limits, "memory");
    let cpu_request = read(requests, "cpu").or(cpu_limit);
    let asks = wanted.is_some_and(|wanted| !wanted.limits.is_empty() || !wanted.requests.is_empty());
    cri::LinuxContainerResources {
        cpu_period: CPU_PERIOD,
        cpu_quota: cpu_limit.map_or(0, |cpu| (cpu.as_millis() * CPU_PERIOD / 1000).max(1000)),
        cpu_shares: cpu_request.map_or(2, |cpu| (cpu.as_millis() * 1024 / 1000).clamp(2, 262_144)),
        memory_limit_in_bytes: memory_limit.map_or(0, Quantity::as_units),
        oom_score_adj: if asks { 500 } else { 1000 },
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_become_shares_quota_and_bounds() {
        let quantity = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), pb::objects::Quantity::from(*v))).collect::<BTreeMap<_, _>>()
        };
        let wanted = ResourceRequirements {
            limits: quantity(&[("cpu", "1500m"), ("memory", "64Mi")]),
            requests: quantity(&[("cpu", "250m")]),
        };
        let got = of_container(Some(&wanted));
        assert_eq!((got.cpu_shares, got.cpu_quota, got.memory_limit_in_bytes), (256, 150_000, 64 << 20));
        let nothing = of_container(None);
        assert_eq!((nothing.cpu_shares, nothing.cpu_quota, nothing.memory_limit_in_bytes), (2, 0, 0));
    }
}
