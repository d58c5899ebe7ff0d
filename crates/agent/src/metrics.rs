//! The agent's own metrics.

use prometheus_client::metrics::{
    counter::Counter,
    gauge::Gauge,
    histogram::{Histogram, exponential_buckets},
};

/// Counts of one agent.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Pods that have a worker.
    pub pods: Gauge,
    /// Containers started.
    pub started_containers: Counter,
    /// Steps that failed and were put off.
    pub failed_steps: Counter,
    /// Seconds from asking for a sandbox to having it.
    pub sandbox_seconds: Histogram,
}

impl Metrics {
    /// Registers them.
    pub fn register() -> Self {
        let metrics = Self {
            pods: Gauge::default(),
            started_containers: Counter::default(),
            failed_steps: Counter::default(),
            sandbox_seconds: Histogram::new(exponential_buckets(0.02, 2.0, 12)),
        };
        runtime::metrics::register(|registry| {
            registry.register("agent_pods", "Pods that have a worker", metrics.pods.clone());
            registry.register("agent_started_containers", "Containers started", metrics.started_containers.clone());
            registry.register("agent_failed_steps", "Steps that failed and were put off", metrics.failed_steps.clone());
            registry.register("agent_sandbox_seconds", "Time to make a sandbox", metrics.sandbox_seconds.clone());
        });
        metrics
    }
}
