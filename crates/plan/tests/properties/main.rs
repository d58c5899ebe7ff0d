//! What holds of every plan, whatever happens: random stories in which users, nodes and the controller take turns, also
//! in the middle of a plan. After each commit all invariants of `check` hold; when the story ends the set becomes
//! complete by itself and then writes nothing.

#![allow(clippy::expect_used, reason = "a test that cannot set itself up fails")]

mod additions;
mod cluster;
mod previews;
mod rollouts;
mod stories;
mod volumes;

use check::Actor;
use cluster::Cluster;
use pb::objects::{IntOrString, StatefulSet};
use proptest::prelude::*;
use serde_json::json;

/// Rounds within which a set of this size must settle: each ordinal needs a few, for replacement and for creation.
const ROUNDS: usize = 200;

#[derive(Clone, Debug)]
struct Shape {
    parallel: bool,
    on_delete: bool,
    recreate: bool,
    partition: Option<u32>,
    max_unavailable: Option<Bound>,
    window: Option<u32>,
    delete_with_set: bool,
    delete_when_scaled: bool,
    min_ready: u32,
}

#[derive(Clone, Copy, Debug)]
enum Bound {
    Count(u32),
    Percent(u32),
}

#[derive(Clone, Debug)]
enum Event {
    Scale(u32),
    Start(u32),
    Template(u32),
    Partition(u32),
    Pause(bool),
    /// These ordinals and no others are reserved.
    Reserve(Vec<u32>),
    /// This ordinal has an environment of its own.
    Override(u32, u32),
    DeletePod(u32),
    DeleteClaim(u32),
    Fail(u32),
    Unready(u32),
    Kubelet(u32),
    Kubelets,
    Collect,
    Pass(u32),
    Sync,
    /// The event happens in the middle of the plan, before the action of that number.
    Interrupted(usize, Box<Event>),
}

fn shape() -> impl Strategy<Value = Shape> {
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    let strategy = prop_oneof![6 => Just((false, false)), 2 => Just((true, false)), 2 => Just((false, true))];
    let bound = prop_oneof![(1..4u32).prop_map(Bound::Count), (1..101u32).prop_map(Bound::Percent)];
    let bounds = (prop::option::of(0..4u32), prop::option::of(bound), prop::option::weighted(0.3, 1..4u32));
    let min_ready = prop_oneof![Just(0u32), Just(10)];
    (flags, strategy, bounds, min_ready).prop_map(|(flags, (on_delete, recreate), bounds, min_ready)| {
        let (parallel, delete_with_set, delete_when_scaled) = flags;
        let (partition, max_unavailable, window) = bounds;
        Shape {
            parallel,
            on_delete,
            recreate,
            partition,
            max_unavailable,
            window,
            delete_with_set,
            delete_when_scaled,
            min_ready,
        }
    })
}

/// Weighted so that sets grow: what matters happens between pods that are there.
fn event() -> impl Strategy<Value = Event> {
    let ordinal = || 0..5u32;
    let user = prop_oneof![
        3 => (0..6u32).prop_map(Event::Scale),
        1 => (0..3u32).prop_map(Event::Start),
        2 => (0..3u32).prop_map(Event::Template),
        1 => (0..4u32).prop_map(Event::Partition),
        1 => any::<bool>().prop_map(Event::Pause),
        1 => prop::collection::vec(ordinal(), 0..3).prop_map(Event::Reserve),
        1 => (ordinal(), 0..2u32).prop_map(|(ordinal, value)| Event::Override(ordinal, value)),
        2 => ordinal().prop_map(Event::DeletePod),
        1 => ordinal().prop_map(Event::DeleteClaim),
    ];
    let harm = prop_oneof![
        1 => ordinal().prop_map(Event::Fail),
        2 => ordinal().prop_map(Event::Unready),
    ];
    let work = prop_oneof![
        1 => ordinal().prop_map(Event::Kubelet),
        6 => Just(Event::Kubelets),
        1 => Just(Event::Collect),
        1 => (1..20u32).prop_map(Event::Pass),
    ];
    let (user, harm) = (user.boxed(), harm.boxed());
    // A whole plan in between is a second controller's.
    let any = prop_oneof![3 => user.clone(), 3 => harm.clone(), 1 => Just(Event::Sync)];
    let interrupted = (0..3usize, any).prop_map(|(at, event)| Event::Interrupted(at, Box::new(event)));
    prop_oneof![2 => user, 1 => harm, 6 => work, 6 => Just(Event::Sync), 4 => interrupted]
}

fn set(shape: &Shape) -> StatefulSet {
    let keep = |delete: bool| if delete { "Delete" } else { "Retain" };
    let mut rolling = serde_json::Map::new();
    rolling.extend(shape.partition.map(|partition| ("partition".to_owned(), json!(partition))));
    rolling.extend(shape.max_unavailable.map(|bound| match bound {
        Bound::Count(count) => ("maxUnavailable".to_owned(), json!(count)),
        Bound::Percent(percent) => ("maxUnavailable".to_owned(), json!(format!("{percent}%"))),
    }));
    let strategy = match (shape.on_delete, shape.recreate, rolling.is_empty()) {
        (true, ..) => json!({"type": "OnDelete"}),
        (_, true, _) => json!({"type": "Recreate"}),
        (_, _, true) => json!({"type": "RollingUpdate"}),
        (_, _, false) => json!({"type": "RollingUpdate", "rollingUpdate": rolling}),
    };
    let set = json!({
        "apiVersion": "berth/v1", "kind": "StatefulSet", "metadata": {"name": "web", "namespace": "ns"},
        "spec": {
            "replicas": 3, "serviceName": "web", "selector": {"matchLabels": {"app": "web"}},
            "podManagementPolicy": if shape.parallel { "Parallel" } else { "OrderedReady" },
            "updateStrategy": strategy, "minReadySeconds": shape.min_ready, "revisionHistoryLimit": 1,
            "maxConcurrentStart": shape.window,
            "persistentVolumeClaimRetentionPolicy": {
                "whenDeleted": keep(shape.delete_with_set), "whenScaled": keep(shape.delete_when_scaled),
            },
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}],
        },
    });
    serde_json::from_value(set).expect("the manifest above is one")
}

fn happen(cluster: &mut Cluster, event: &Event) {
    let pod = |ordinal: &u32| format!("web-{ordinal}");
    let exists = |cluster: &Cluster, ordinal: &u32| cluster.pod_names().contains(&pod(ordinal));
    let spec = |cluster: &mut Cluster, change: &dyn Fn(&mut pb::objects::StatefulSetSpec)| {
        let change = |set: &mut StatefulSet| change(set.spec.get_or_insert_default());
        cluster.commit(Actor::User, |cluster| cluster.change_set(change));
    };
    match event {
        Event::Scale(to) => spec(cluster, &|spec| spec.replicas = i32::try_from(*to).ok()),
        Event::Start(at) => spec(cluster, &|spec| {
            spec.ordinals.get_or_insert_default().start = i32::try_from(*at).unwrap_or(0);
        }),
        Event::Template(image) => spec(cluster, &|spec| {
            let template = spec.template.get_or_insert_default().spec.get_or_insert_default();
            template.containers[0].image = format!("i:{image}");
        }),
        Event::Partition(at) => spec(cluster, &|spec| {
            let rolling = spec.update_strategy.get_or_insert_default().rolling_update.as_mut();
            rolling.into_iter().for_each(|rolling| rolling.partition = i32::try_from(*at).ok());
        }),
        Event::Pause(paused) => spec(cluster, &|spec| spec.paused = *paused),
        Event::Reserve(ordinals) => spec(cluster, &|spec| {
            let reserved = ordinals.iter().map(|ordinal| IntOrString::text(ordinal.to_string()));
            spec.ordinals.get_or_insert_default().reserved = reserved.collect();
        }),
        Event::Override(ordinal, value) => spec(cluster, &|spec| {
            let own = json!({
                "ordinals": [ordinal],
                "containers": [{"name": "c", "env": [{"name": "OWN", "value": value.to_string()}]}],
            });
            spec.overrides = vec![serde_json::from_value(own).expect("the override above is one")];
        }),
        Event::DeletePod(o) => cluster.commit(Actor::User, |cluster| cluster.terminate(&pod(o))),
        Event::DeleteClaim(o) => cluster.commit(Actor::User, |cluster| cluster.delete_claim(&format!("data-web-{o}"))),
        Event::Fail(o) if exists(cluster, o) => {
            cluster.commit(Actor::Other, |cluster| cluster.report(&pod(o), "Failed", false));
        }
        Event::Unready(o) if exists(cluster, o) => {
            cluster.commit(Actor::Other, |cluster| cluster.report(&pod(o), "Running", false));
        }
        Event::Fail(_) | Event::Unready(_) => {}
        Event::Kubelet(o) => cluster.commit(Actor::Other, |cluster| cluster.kubelet(&pod(o))),
        Event::Kubelets => {
            for name in cluster.pod_names() {
                cluster.commit(Actor::Other, |cluster| cluster.kubelet(&name));
            }
        }
        Event::Collect => cluster.collect_garbage(),
        Event::Pass(seconds) => cluster.pass(i64::from(*seconds)),
        Event::Sync => {
            cluster.sync(None);
        }
        Event::Interrupted(at, event) => {
            cluster.sync(Some((*at, &mut |cluster: &mut Cluster| happen(cluster, event))));
        }
    }
}

/// Nothing more happens from outside: nodes work, time passes, and the set has to become complete.
fn settle(cluster: &mut Cluster) {
    settle_with(cluster, |_| {});
}

/// The same, where others than nodes work too.
fn settle_with(cluster: &mut Cluster, mut work: impl FnMut(&mut Cluster)) {
    for _ in 0..ROUNDS {
        let plan = cluster.sync(None);
        work(cluster);
        happen(cluster, &Event::Kubelets);
        happen(cluster, &Event::Collect);
        cluster.pass(10);
        if plan.actions.is_empty() && check::settled(&cluster.world()).is_empty() {
            return;
        }
    }
    let plan = cluster.plan();
    let waits: Vec<_> = plan.waits.iter().map(ToString::to_string).collect();
    panic!("not settled: {:#?}\nactions {:#?}\nwaits {waits:#?}", check::settled(&cluster.world()), plan.actions);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_story_ends_well(shape in shape(), events in prop::collection::vec(event(), 0..60)) {
        let mut cluster = Cluster::new(set(&shape));
        for event in &events {
            happen(&mut cluster, event);
        }
        settle(&mut cluster);
        let plan = cluster.plan();
        prop_assert!(plan.actions.is_empty(), "a settled set writes nothing: {:?}", plan.actions);
        prop_assert!(!plan.is_obstructed());

        // What a pause holds back comes when it ends: everything from the partition on.
        happen(&mut cluster, &Event::Pause(false));
        settle(&mut cluster);
        let set = cluster.snapshot().set;
        let kept_back = match set.strategy {
            plan::statefulset::Strategy::Rolling { partition, .. } => partition.unwrap_or(0).min(set.ordinals.count),
            plan::statefulset::Strategy::OnDelete => set.ordinals.count,
            plan::statefulset::Strategy::Recreate => 0,
        };
        let updated = u32::try_from(cluster.plan().status.updated).unwrap_or(0);
        prop_assert!(updated + kept_back >= set.ordinals.count, "{updated} updated, {kept_back} kept back");
    }

    #[test]
    fn a_plan_is_the_same_whatever_the_order_of_the_snapshot(
        shape in shape(),
        events in prop::collection::vec(event(), 0..30),
    ) {
        let mut cluster = Cluster::new(set(&shape));
        for event in &events {
            happen(&mut cluster, event);
        }
        prop_assert_eq!(cluster.plan(), cluster.reversed_plan());
    }
}
