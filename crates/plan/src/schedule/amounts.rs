//! Amounts of resources: what pods need, what nodes have.

use std::collections::BTreeMap;

use pb::objects::{Container, Pod, Quantity};

use super::Reason;

/// What stands for an amount that cannot be read: more than any node has. Sums of these still fit.
const UNREADABLE: i128 = i64::MAX as i128;

/// Amounts of resources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Thousandths of a processor.
    pub milli_cpu: i128,
    /// Bytes.
    pub memory: i128,
    /// Pods.
    pub pods: i128,
    /// Anything else, in its own unit. Never holds a zero.
    pub others: BTreeMap<String, i128>,
}

impl Amounts {
    /// What a pod takes of its node: what its containers and sidecars request together, or more if an init container
    /// requests more beside the sidecars that were started before it. A limit without a request counts as the request.
    pub fn of_pod(pod: &Pod) -> Self {
        let (mut sidecars, mut most) = (Self::default(), Self::default());
        let spec = pod.spec.as_ref();
        for container in spec.iter().flat_map(|spec| &spec.init_containers) {
            let own = Self::of_container(container);
            if model::qos::is_sidecar(container) {
                sidecars.add(&own);
                most.raise_to(&sidecars);
            } else {
                let mut meanwhile = sidecars.clone();
                meanwhile.add(&own);
                most.raise_to(&meanwhile);
            }
        }
        let mut total = sidecars;
        for container in spec.iter().flat_map(|spec| &spec.containers) {
            total.add(&Self::of_container(container));
        }
        total.raise_to(&most);
        total.pods = 1;
        total
    }

    /// What a node has for pods. A node that does not say how many pods it may run has no bound on them.
    pub fn of_node(allocatable: &BTreeMap<String, Quantity>) -> Self {
        let mut amounts = Self { pods: UNREADABLE, ..Self::default() };
        for (resource, quantity) in allocatable {
            amounts.put(resource, read(resource, quantity).unwrap_or(0));
        }
        amounts
    }

    fn of_container(container: &Container) -> Self {
        let mut amounts = Self::default();
        if let Some(resources) = &container.resources {
            for (resource, quantity) in resources.limits.iter().chain(&resources.requests) {
                amounts.put(resource, read(resource, quantity).unwrap_or(UNREADABLE));
            }
        }
        amounts
    }

    fn put(&mut self, resource: &str, amount: i128) {
        match resource {
            "cpu" => self.milli_cpu = amount,
            "memory" => self.memory = amount,
            "pods" => self.pods = amount,
            _ if amount == 0 => {
                self.others.remove(resource);
            }
            _ => {
                self.others.insert(resource.to_owned(), amount);
            }
        }
    }

    /// Adds amounts.
    pub fn add(&mut self, more: &Self) {
        self.combine(more, |a, b| a + b);
    }

    /// Takes amounts away that were added before.
    pub fn subtract(&mut self, less: &Self) {
        self.combine(less, |a, b| a - b);
    }

    fn raise_to(&mut self, other: &Self) {
        self.combine(other, i128::max);
    }

    fn combine(&mut self, other: &Self, with: impl Fn(i128, i128) -> i128) {
        self.milli_cpu = with(self.milli_cpu, other.milli_cpu);
        self.memory = with(self.memory, other.memory);
        self.pods = with(self.pods, other.pods);
        for (resource, amount) in &other.others {
            let own = self.others.get(resource).copied().unwrap_or(0);
            self.put(resource, with(own, *amount));
        }
    }

    /// What keeps these amounts from fitting onto a node that has `allocatable` and of which `used` is taken. What is
    /// not asked for is never missing.
    pub(super) fn missing(&self, allocatable: &Self, used: &Self) -> Vec<Reason> {
        let short = |wanted: i128, has: i128, taken: i128| wanted > 0 && wanted > has - taken;
        let mut reasons = Vec::new();
        if short(self.pods, allocatable.pods, used.pods) {
            reasons.push(Reason::TooManyPods);
        }
        if short(self.milli_cpu, allocatable.milli_cpu, used.milli_cpu) {
            reasons.push(Reason::Insufficient("cpu".to_owned()));
        }
        if short(self.memory, allocatable.memory, used.memory) {
            reasons.push(Reason::Insufficient("memory".to_owned()));
        }
        let of = |amounts: &Self, resource: &str| amounts.others.get(resource).copied().unwrap_or(0);
        for (resource, wanted) in &self.others {
            if short(*wanted, of(allocatable, resource), of(used, resource)) {
                reasons.push(Reason::Insufficient(resource.clone()));
            }
        }
        reasons
    }

    /// Parts in 10,000 of processor and memory that stay free with these amounts added, on the mean.
    pub(super) fn free_share(&self, allocatable: &Self, used: &Self) -> i128 {
        let share = |has: i128, taken: i128| if has > 0 { (has - taken) * 10_000 / has } else { 0 };
        let cpu = share(allocatable.milli_cpu, used.milli_cpu + self.milli_cpu);
        let memory = share(allocatable.memory, used.memory + self.memory);
        i128::midpoint(cpu, memory)
    }
}

/// An amount in the unit that its resource is reckoned in, rounded up.
fn read(resource: &str, quantity: &Quantity) -> Option<i128> {
    let amount: model::quantity::Quantity = quantity.value.parse().ok()?;
    Some(i128::from(if resource == "cpu" { amount.as_millis() } else { amount.as_units() }))
}
