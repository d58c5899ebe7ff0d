//! Quality of service: what a pod's requests and limits say of how it is treated when the node runs short.
//!
//! The rules are Kubernetes'. Only processor and memory count.

use std::collections::BTreeMap;

use pb::objects::{Container, PodSpec};

use crate::quantity::Quantity;

/// The class whose containers the kernel ends last when memory runs out.
const GUARANTEED_SCORE: i64 = -997;

/// Priority class of pods without which a node does not work.
const NODE_CRITICAL: &str = "system-node-critical";

/// How a pod is treated when the node runs short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// It asked for nothing, and goes first.
    BestEffort,
    /// It asked for something.
    Burstable,
    /// Each container's limits are all that it asked for, for processor and memory: it goes last.
    Guaranteed,
}

impl Class {
    /// The name in a pod's status.
    pub const fn name(self) -> &'static str {
        match self {
            Class::BestEffort => "BestEffort",
            Class::Burstable => "Burstable",
            Class::Guaranteed => "Guaranteed",
        }
    }
}

/// Whether an init container runs on beside the others.
pub fn is_sidecar(init_container: &Container) -> bool {
    init_container.restart_policy == "Always"
}

/// What a container requests of a resource: what is limited and not requested is requested up to the limit.
pub fn request(container: &Container, resource: &str) -> Option<Quantity> {
    let resources = container.resources.as_ref()?;
    let asked = resources.requests.get(resource).or_else(|| resources.limits.get(resource))?;
    // What is stored was checked.
    Quantity::try_from(asked).ok()
}

/// A container's bound on a resource.
pub fn limit(container: &Container, resource: &str) -> Option<Quantity> {
    Quantity::try_from(container.resources.as_ref()?.limits.get(resource)?).ok()
}

/// The class of a pod.
pub fn class(spec: &PodSpec) -> Class {
    let some = |amount: Option<Quantity>| amount.filter(|amount| !amount.is_zero());
    let (mut any, mut all) = (false, true);
    for container in spec.init_containers.iter().chain(&spec.containers) {
        for resource in ["cpu", "memory"] {
            let (request, limit) = (some(request(container, resource)), some(limit(container, resource)));
            any |= request.is_some() || limit.is_some();
            all &= limit.is_some() && request == limit;
        }
    }
    match (any, all) {
        (false, _) => Class::BestEffort,
        (true, true) => Class::Guaranteed,
        (true, false) => Class::Burstable,
    }
}

/// The score by which the kernel chooses whom to end when memory runs out, from -997 (last) to 1000 (first): the less of
/// the node's memory a container asked for, the sooner. A sidecar goes no sooner than the containers that it serves.
///
/// `memory` is what the node has, in bytes.
pub fn oom_score(spec: &PodSpec, container: &Container, memory: i64) -> i64 {
    let class = class(spec);
    match class {
        _ if spec.priority_class_name == NODE_CRITICAL => return GUARANTEED_SCORE,
        Class::Guaranteed => return GUARANTEED_SCORE,
        Class::BestEffort => return 1000,
        Class::Burstable => {}
    }
    let score = |container: &Container| {
        let asked = request(container, "memory").map_or(0, Quantity::as_units);
        let share = if memory > 0 { i128::from(asked) * 1000 / i128::from(memory) } else { 0 };
        // Between the other two classes.
        i64::try_from((1000 - share).clamp(3, 999)).unwrap_or(999)
    };
    let own = score(container);
    let sidecar = is_sidecar(container) && spec.init_containers.iter().any(|init| init.name == container.name);
    let served = spec.containers.iter().map(score).min().filter(|_| sidecar);
    served.map_or(own, |served| own.min(served))
}

/// What a pod takes of a resource at most at one time, where `of` says what one container takes: all that run side by
/// side together, or one init container with the sidecars before it, whichever is more.
fn at_most(spec: &PodSpec, of: impl Fn(&Container) -> Quantity) -> Quantity {
    let (mut sidecars, mut starting) = (Quantity::ZERO, Quantity::ZERO);
    for init in &spec.init_containers {
        if is_sidecar(init) {
            sidecars = sidecars + of(init);
            starting = starting.max(sidecars);
        } else {
            starting = starting.max(sidecars + of(init));
        }
    }
    let running: Quantity = spec.containers.iter().map(of).sum();
    starting.max(running + sidecars)
}

/// What a pod requests of each resource that it names.
pub fn requests(spec: &PodSpec) -> BTreeMap<String, Quantity> {
    let all = spec.init_containers.iter().chain(&spec.containers).filter_map(|container| container.resources.as_ref());
    let named = all.flat_map(|resources| resources.requests.keys().chain(resources.limits.keys()));
    let amount = |name: &String| at_most(spec, |container| request(container, name).unwrap_or(Quantity::ZERO));
    named.map(|name| (name.clone(), amount(name))).collect()
}

/// The bound of a pod as a whole on a resource; None if one of its containers has none.
pub fn bound(spec: &PodSpec, resource: &str) -> Option<Quantity> {
    let mut all = spec.init_containers.iter().chain(&spec.containers);
    let bounded = |container| limit(container, resource).is_some_and(|limit| !limit.is_zero());
    all.all(bounded).then(|| at_most(spec, |container| limit(container, resource).unwrap_or(Quantity::ZERO)))
}

#[cfg(test)]
mod tests {
    use pb::objects::ResourceRequirements;

    use super::*;

    const MIB: i64 = 1 << 20;

    fn container(requests: &[(&str, &str)], limits: &[(&str, &str)]) -> Container {
        let map = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, amount)| ((*name).to_owned(), pb::objects::Quantity::from(*amount))).collect()
        };
        let resources = ResourceRequirements { requests: map(requests), limits: map(limits) };
        Container { resources: Some(resources), ..Default::default() }
    }

    fn pod(containers: Vec<Container>) -> PodSpec {
        PodSpec { containers, ..Default::default() }
    }

    fn memory(amount: &str) -> Container {
        container(&[("memory", amount)], &[])
    }

    fn sidecar(amount: &str) -> Container {
        Container { name: "side".into(), restart_policy: "Always".into(), ..memory(amount) }
    }

    #[test]
    fn a_class_follows_from_requests_and_limits() {
        let full = || container(&[], &[("cpu", "1"), ("memory", "1Gi")]);
        assert_eq!(class(&pod(vec![Container::default()])), Class::BestEffort);
        assert_eq!(class(&pod(vec![container(&[("cpu", "0")], &[])])), Class::BestEffort, "zero is nothing");
        assert_eq!(class(&pod(vec![container(&[("ephemeral-storage", "1Gi")], &[])])), Class::BestEffort);
        assert_eq!(class(&pod(vec![full()])), Class::Guaranteed, "a limit is a request");
        assert_eq!(class(&pod(vec![full(), Container::default()])), Class::Burstable);
        assert_eq!(class(&pod(vec![container(&[], &[("cpu", "1")])])), Class::Burstable, "memory is open");
        let less = container(&[("cpu", "500m"), ("memory", "1Gi")], &[("cpu", "1"), ("memory", "1Gi")]);
        assert_eq!(class(&pod(vec![less])), Class::Burstable);
        let same = container(&[("cpu", "1000m"), ("memory", "1024Mi")], &[("cpu", "1"), ("memory", "1Gi")]);
        assert_eq!(class(&pod(vec![same])), Class::Guaranteed, "however it is written");
        let mut with_init = pod(vec![full()]);
        with_init.init_containers = vec![Container::default()];
        assert_eq!(class(&with_init), Class::Burstable, "init containers count");
    }

    #[test]
    fn who_asked_for_less_of_the_memory_is_ended_sooner() {
        let score = |asked: &str| {
            let spec = pod(vec![memory(asked)]);
            oom_score(&spec, &spec.containers[0], 1000 * MIB)
        };
        assert_eq!((score("100Mi"), score("500Mi")), (900, 500));
        assert_eq!((score("1"), score("1000Mi"), score("5Ti")), (999, 3, 3), "between the other classes");
        let of = |spec: &PodSpec| oom_score(spec, &spec.containers[0], 1000 * MIB);
        assert_eq!(of(&pod(vec![Container::default()])), 1000);
        assert_eq!(of(&pod(vec![container(&[], &[("cpu", "1"), ("memory", "1Gi")])])), -997);
        let critical = PodSpec { priority_class_name: NODE_CRITICAL.into(), ..pod(vec![Container::default()]) };
        assert_eq!(of(&critical), -997);
    }

    #[test]
    fn a_sidecar_is_not_ended_before_what_it_serves() {
        let mut spec = pod(vec![memory("500Mi"), memory("200Mi")]);
        spec.init_containers = vec![sidecar("10Mi"), Container { name: "init".into(), ..memory("10Mi") }];
        assert_eq!(oom_score(&spec, &spec.init_containers[0], 1000 * MIB), 500);
        assert_eq!(oom_score(&spec, &spec.init_containers[1], 1000 * MIB), 990);
    }

    #[test]
    fn a_pod_takes_what_runs_at_one_time() {
        let asks = |inits: Vec<Container>| {
            let spec = PodSpec { init_containers: inits, ..pod(vec![memory("100Mi"), memory("100Mi")]) };
            requests(&spec)["memory"].as_units() / MIB
        };
        assert_eq!(asks(vec![]), 200);
        assert_eq!(asks(vec![memory("150Mi"), memory("300Mi")]), 300, "one init container after the other");
        assert_eq!(asks(vec![sidecar("50Mi"), memory("300Mi")]), 350, "beside the sidecars before it");
        assert_eq!(asks(vec![memory("300Mi"), sidecar("50Mi")]), 300, "not beside those after it");
        assert_eq!(asks(vec![sidecar("50Mi"), sidecar("50Mi")]), 300, "sidecars run on beside all");
    }

    #[test]
    fn a_pod_is_bounded_only_if_all_its_containers_are() {
        let bounded = |amount: &str| container(&[], &[("memory", amount)]);
        let all = pod(vec![bounded("1Mi"), bounded("2Mi")]);
        assert_eq!(bound(&all, "memory").map(Quantity::as_units), Some(3 * MIB));
        assert_eq!(bound(&all, "cpu"), None);
        assert_eq!(bound(&pod(vec![bounded("1Mi"), Container::default()]), "memory"), None);
    }
}
