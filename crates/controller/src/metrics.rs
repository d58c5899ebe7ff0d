//! What the controller counts.

use std::sync::OnceLock;

use prometheus_client::metrics::{
    counter::Counter,
    gauge::Gauge,
    histogram::{Histogram, exponential_buckets},
};

/// The controller's metrics.
pub struct Metrics {
    /// Seconds that a plan took.
    pub plan: Histogram,
    /// Seconds from taking a set from the queue to having done what was due.
    pub step: Histogram,
    /// Transactions that were refused because something had changed.
    pub conflicts: Counter,
    /// Steps that failed.
    pub failures: Counter,
    /// Steps that waited for the caches to show their own last write and gave up.
    pub stale_skips: Counter,
    /// Sets that wait for a worker.
    pub queue: Gauge,
    /// Pods created.
    pub pods_created: Counter,
    /// Pods whose deletion was asked for.
    pub pods_deleted: Counter,
    /// Writes of a set's status.
    pub status_writes: Counter,
    /// Events that were dropped because too many waited or the store refused them.
    pub events_dropped: Counter,
}

/// The process's one set of them, registered with the first use.
pub fn get() -> &'static Metrics {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    METRICS.get_or_init(|| {
        let metrics = Metrics {
            plan: Histogram::new(exponential_buckets(0.000_01, 4.0, 10)),
            step: Histogram::new(exponential_buckets(0.000_1, 4.0, 10)),
            conflicts: Counter::default(),
            failures: Counter::default(),
            stale_skips: Counter::default(),
            queue: Gauge::default(),
            pods_created: Counter::default(),
            pods_deleted: Counter::default(),
            status_writes: Counter::default(),
            events_dropped: Counter::default(),
        };
        runtime::metrics::register(|registry| {
            let registry = registry.sub_registry_with_prefix("controller");
            registry.register("plan_seconds", "Time to plan one set", metrics.plan.clone());
            registry.register("step_seconds", "Time to plan one set and do what was due", metrics.step.clone());
            registry.register("conflicts", "Transactions refused because something changed", metrics.conflicts.clone());
            registry.register("failures", "Steps that failed", metrics.failures.clone());
            registry.register("stale_skips", "Steps put off because a cache lagged", metrics.stale_skips.clone());
            registry.register("queue", "Sets waiting for a worker", metrics.queue.clone());
            registry.register("pods_created", "Pods created", metrics.pods_created.clone());
            registry.register("pods_deleted", "Pods asked to go", metrics.pods_deleted.clone());
            registry.register("status_writes", "Writes of a set's status", metrics.status_writes.clone());
            registry.register("events_dropped", "Events dropped", metrics.events_dropped.clone());
        });
        metrics
    })
}
