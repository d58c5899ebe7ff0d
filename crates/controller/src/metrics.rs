//! What the controller counts.

use std::sync::OnceLock;

use model::bound::Bound;
use pb::objects::StatefulSet;
use plan::statefulset::Status;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::observed::SetKey;

/// The policies that a set may have.
const POLICIES: [&str; 2] = ["OrderedReady", "Parallel"];

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
    /// How far each set is.
    pub sets: Sets,
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
            sets: Sets::default(),
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
            metrics.sets.register(registry);
            registry.register("events_dropped", "Events dropped", metrics.events_dropped.clone());
        });
        metrics
    })
}

/// Names a set in a metric.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SetLabels {
    namespace: String,
    name: String,
    pod_management_policy: String,
}

impl SetLabels {
    fn of(key: &SetKey, policy: &str) -> Self {
        let SetKey { namespace, name } = key.clone();
        Self { namespace, name, pod_management_policy: policy.to_owned() }
    }
}

/// What is shown of each set (MU-6). A set that is gone, or another leader's, is not shown.
#[derive(Clone, Default)]
pub struct Sets {
    max_unavailable: Family<SetLabels, Gauge>,
    unavailable_replicas: Family<SetLabels, Gauge>,
}

impl Sets {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "statefulset_max_unavailable",
            "Pods of a set that an update may make unavailable",
            self.max_unavailable.clone(),
        );
        registry.register(
            "statefulset_unavailable_replicas",
            "Pods of a set that are missing or not available",
            self.unavailable_replicas.clone(),
        );
    }

    /// Shows a set as it was just planned.
    pub fn show(&self, set: &StatefulSet, status: &Status) {
        let spec = set.spec.clone().unwrap_or_default();
        let replicas = spec.replicas.unwrap_or(1);
        let key = SetKey::of(set);
        // A set of this name that was deleted and made again may have had another.
        POLICIES.iter().filter(|policy| **policy != spec.pod_management_policy).for_each(|policy| {
            self.forget_one(&SetLabels::of(&key, policy));
        });
        let rolling = spec.update_strategy.and_then(|strategy| strategy.rolling_update);
        let bound = rolling.and_then(|rolling| rolling.max_unavailable).and_then(|bound| Bound::read(&bound).ok());
        let bound = bound.map_or(1, |bound| bound.rounded_down(replicas.unsigned_abs()).max(1));
        let labels = SetLabels::of(&key, &spec.pod_management_policy);
        self.max_unavailable.get_or_create(&labels).set(i64::from(bound));
        let unavailable = i64::from(replicas) - i64::from(status.available);
        self.unavailable_replicas.get_or_create(&labels).set(unavailable.max(0));
    }

    /// Shows a set no longer.
    pub fn forget(&self, key: &SetKey) {
        POLICIES.iter().for_each(|policy| self.forget_one(&SetLabels::of(key, policy)));
    }

    /// Shows no set any more.
    pub fn clear(&self) {
        self.max_unavailable.clear();
        self.unavailable_replicas.clear();
    }

    fn forget_one(&self, labels: &SetLabels) {
        self.max_unavailable.remove(labels);
        self.unavailable_replicas.remove(labels);
    }
}

#[cfg(test)]
mod tests {
    use pb::objects::*;
    use prometheus_client::encoding::text::encode;

    use super::*;

    fn text(sets: &Sets) -> String {
        let mut registry = Registry::default();
        sets.register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_set_is_shown_until_it_is_gone() {
        let percent = IntOrString { kind: Some(int_or_string::Kind::StringValue("50%".into())) };
        let rolling = RollingUpdateStatefulSetStrategy { max_unavailable: Some(percent), ..Default::default() };
        let mut set = StatefulSet {
            metadata: Some(ObjectMeta { name: "web".into(), namespace: "db".into(), ..Default::default() }),
            spec: Some(StatefulSetSpec {
                replicas: Some(5),
                pod_management_policy: "Parallel".into(),
                update_strategy: Some(StatefulSetUpdateStrategy {
                    rolling_update: Some(rolling),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let sets = Sets::default();
        sets.show(&set, &Status { available: 2, ..Status::default() });
        let labels = "{namespace=\"db\",name=\"web\",pod_management_policy=\"Parallel\"}";
        assert_eq!(
            text(&sets),
            format!("statefulset_max_unavailable{labels} 2\nstatefulset_unavailable_replicas{labels} 3")
        );
        set.spec.get_or_insert_default().pod_management_policy = "OrderedReady".into();
        sets.show(&set, &Status::default());
        assert!(!text(&sets).contains("Parallel"), "it is another set now");
        sets.forget(&SetKey::of(&set));
        assert_eq!(text(&sets), "");
    }
}
