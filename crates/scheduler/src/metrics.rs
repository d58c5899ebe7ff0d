//! What the scheduler counts.

use std::sync::OnceLock;

use prometheus_client::metrics::{
    counter::Counter,
    gauge::Gauge,
    histogram::{Histogram, exponential_buckets},
};

/// The scheduler's metrics.
pub(crate) struct Metrics {
    /// Seconds that the choice of a node took.
    pub(crate) choice: Histogram,
    /// Choices that found no node.
    pub(crate) unschedulable: Counter,
    /// Reservations that stand.
    pub(crate) reservations: Gauge,
    /// Pods without a node.
    pub(crate) unbound: Gauge,
    /// Pods bound after their creation.
    pub(crate) bound: Counter,
    /// Bindings that were refused because something had changed.
    pub(crate) conflicts: Counter,
    /// Pods that were asked to go for more important ones.
    pub(crate) preempted: Counter,
}

/// The process's one set of them, registered with the first use.
pub(crate) fn get() -> &'static Metrics {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    METRICS.get_or_init(|| {
        let metrics = Metrics {
            choice: Histogram::new(exponential_buckets(0.000_001, 4.0, 10)),
            unschedulable: Counter::default(),
            reservations: Gauge::default(),
            unbound: Gauge::default(),
            bound: Counter::default(),
            conflicts: Counter::default(),
            preempted: Counter::default(),
        };
        runtime::metrics::register(|registry| {
            let registry = registry.sub_registry_with_prefix("scheduler");
            registry.register("choice_seconds", "Time to choose a node", metrics.choice.clone());
            registry.register("unschedulable", "Choices that found no node", metrics.unschedulable.clone());
            registry.register("reservations", "Room promised to pods not seen yet", metrics.reservations.clone());
            registry.register("unbound_pods", "Pods without a node", metrics.unbound.clone());
            registry.register("bound_pods", "Pods bound after their creation", metrics.bound.clone());
            registry.register("conflicts", "Bindings refused because something changed", metrics.conflicts.clone());
            registry.register("preempted_pods", "Pods asked to go for more important ones", metrics.preempted.clone());
        });
        metrics
    })
}
