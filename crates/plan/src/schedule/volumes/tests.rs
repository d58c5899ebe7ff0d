use std::time::Duration;

use pb::objects::{
    Condition, CsiPersistentVolumeSource, NodeStatus, ObjectMeta, PersistentVolumeClaimSpec,
    PersistentVolumeClaimVolumeSource, PersistentVolumeSpec, PodSpec, Quantity, Volume,
};
use proptest::prelude::*;

use super::*;
use crate::schedule::{Ledger, Unschedulable};

const NOW: Duration = Duration::ZERO;

/// A node with room for everything but volumes.
fn node(name: &str, limits: &[(&str, usize)]) -> Node {
    let limit =
        |(driver, limit): &(&str, usize)| (format!("{LIMIT_PREFIX}{driver}"), Quantity { value: limit.to_string() });
    let ready = Condition { r#type: "Ready".into(), status: "True".into(), ..Condition::default() };
    let allocatable = limits.iter().map(limit).collect();
    Node {
        metadata: Some(ObjectMeta { name: name.into(), resource_version: "1".into(), ..ObjectMeta::default() }),
        status: Some(NodeStatus { allocatable, conditions: vec![ready], ..NodeStatus::default() }),
        ..Node::default()
    }
}

fn pod(name: &str, claims: &[&str]) -> Pod {
    let volume = |claim: &&str| Volume {
        name: (*claim).into(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: (*claim).into(),
            ..PersistentVolumeClaimVolumeSource::default()
        }),
        ..Volume::default()
    };
    Pod {
        metadata: Some(ObjectMeta {
            name: name.into(),
            namespace: "default".into(),
            uid: format!("{name}-a"),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec { volumes: claims.iter().map(volume).collect(), ..PodSpec::default() }),
        ..Pod::default()
    }
}

fn bound(mut pod: Pod, node: &str, revision: i64) -> Pod {
    pod.spec.as_mut().unwrap().node_name = node.into();
    pod.metadata.as_mut().unwrap().resource_version = revision.to_string();
    pod
}

fn claim(name: &str, mode: &str) -> PersistentVolumeClaim {
    PersistentVolumeClaim {
        metadata: Some(ObjectMeta {
            name: name.into(),
            namespace: "default".into(),
            resource_version: "2".into(),
            ..ObjectMeta::default()
        }),
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: vec![mode.into()],
            volume_name: format!("pv-{name}"),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }
}

fn volume(claim: &str, driver: &str) -> PersistentVolume {
    let csi = (!driver.is_empty())
        .then(|| CsiPersistentVolumeSource { driver: driver.into(), ..CsiPersistentVolumeSource::default() });
    PersistentVolume {
        metadata: Some(ObjectMeta {
            name: format!("pv-{claim}"),
            resource_version: "2".into(),
            ..ObjectMeta::default()
        }),
        spec: Some(PersistentVolumeSpec { csi, ..PersistentVolumeSpec::default() }),
        ..PersistentVolume::default()
    }
}

/// A ledger that knows these nodes and claims (name, access mode, driver).
fn ledger(nodes: &[Node], claims: &[(&str, &str, &str)]) -> Ledger {
    let mut ledger = Ledger::default();
    ledger.reset_nodes(nodes, 1);
    for (name, mode, driver) in claims {
        ledger.set_claim(&claim(name, mode));
        ledger.set_volume(&volume(name, driver));
    }
    ledger
}

fn place(ledger: &mut Ledger, pod: &Pod, drivers: &[&str]) -> Result<String, Unschedulable> {
    let drivers: Vec<String> = drivers.iter().map(|driver| (*driver).to_owned()).collect();
    ledger.place(&Request::of(pod, vec![]).with_drivers(pod, &drivers), NOW).map(|placed| placed.node)
}

#[test]
fn a_node_gets_as_many_volumes_of_a_driver_as_it_can_have_and_no_more() {
    let mut ledger = ledger(&[node("a", &[("disk", 2)]), node("b", &[("disk", 1)])], &[]);
    let on = |ledger: &mut Ledger, k: u32| place(ledger, &pod(&format!("p{k}"), &[&format!("c{k}")]), &["disk"]);
    let mut nodes: Vec<String> = (0..3).map(|k| on(&mut ledger, k).unwrap()).collect();
    nodes.sort();
    assert_eq!(nodes, ["a", "a", "b"]);
    let why = on(&mut ledger, 3).unwrap_err();
    assert_eq!(why.to_string(), "0/2 nodes are available: 2 node(s) exceed max volume count.");
    place(&mut ledger, &pod("other", &["x", "y", "z"]), &["folder", "folder", "folder"])
        .expect("another driver's volumes have no bound there");
}

#[test]
fn the_reasons_of_all_nodes_are_counted_each() {
    let mut ledger = ledger(&[node("a", &[("disk", 0)]), node("b", &[]), node("c", &[])], &[]);
    ledger.set_claim(&claim("data", "ReadWriteOnce"));
    ledger.set_pod(&bound(pod("user", &["data"]), "c", 5));
    let wanted = pod("web-0", &["data"]);
    let on_a = |mut request: Request| {
        let expression = pb::objects::NodeSelectorRequirement {
            key: "kubernetes.io/hostname".into(),
            operator: "In".into(),
            values: vec!["a".into()],
        };
        let term = pb::objects::NodeSelectorTerm { match_expressions: vec![expression] };
        request.reachable = vec![pb::objects::NodeSelector { node_selector_terms: vec![term] }];
        request
    };
    let request = Request::of(&wanted, vec![]).with_drivers(&wanted, &["disk".into()]);
    let why = ledger.place(&on_a(request.clone()), NOW).unwrap_err();
    assert_eq!(
        why.to_string(),
        "0/3 nodes are available: 1 node(s) cannot have claim data while pod user uses it on c (ReadWriteOnce), \
         2 node(s) had volume node affinity conflict."
    );
    assert_eq!(ledger.place(&request, NOW).unwrap().node, "c", "where its user is");
}

#[test]
fn a_claim_of_one_pod_is_given_to_no_second_pod_on_any_node() {
    let mut ledger = ledger(
        &[node("a", &[]), node("b", &[])],
        &[("one", "ReadWriteOncePod", "disk"), ("all", "ReadWriteMany", "disk")],
    );
    ledger.set_pod(&bound(pod("first", &["one", "all"]), "a", 5));
    let why = place(&mut ledger, &pod("second", &["one"]), &["disk"]).unwrap_err();
    assert_eq!(
        why.to_string(),
        "0/2 nodes are available: 2 node(s) cannot have claim one while pod first uses it (ReadWriteOncePod)."
    );
    place(&mut ledger, &pod("third", &["all"]), &["disk"]).expect("all may have it");
    place(&mut ledger, &pod("first", &["one", "all"]), &["disk", "disk"]).expect("the successor of the pod itself");
    assert!(ledger.remove_pod(&PodName::of(&pod("first", &[])), 6));
    ledger.release(&PodName::of(&pod("first", &[])));
    place(&mut ledger, &pod("second", &["one"]), &["disk"]).expect("it is free now");
}

#[test]
fn a_volume_that_two_pods_share_counts_once() {
    let mut ledger = ledger(&[node("a", &[("disk", 1)])], &[("all", "ReadWriteMany", "disk")]);
    for k in 0..3 {
        place(&mut ledger, &pod(&format!("p{k}"), &["all"]), &["disk"]).unwrap();
    }
    place(&mut ledger, &pod("other", &["more"]), &["disk"]).unwrap_err();
}

#[test]
fn a_pod_that_is_seen_before_its_claim_counts_all_the_same() {
    let mut ledger = ledger(&[node("a", &[("disk", 1), ("fast", 1)])], &[]);
    let (first, second) = (pod("p0", &["c0"]), pod("p1", &["c1"]));
    // Bound by somebody of whom nothing was heard before: its claim may be any driver's.
    ledger.set_pod(&bound(first.clone(), "a", 5));
    place(&mut ledger, &second, &["disk"]).unwrap_err();
    place(&mut ledger, &second, &["fast"]).unwrap_err();
    ledger.set_claim(&claim("c0", "ReadWriteOnce"));
    assert!(ledger.set_volume(&volume("c0", "disk")), "there may be room now");
    place(&mut ledger, &second, &["disk"]).unwrap_err();
    place(&mut ledger, &second, &["fast"]).unwrap();
    // What was told with the question holds on when the pod is seen.
    ledger.set_pod(&bound(second, "a", 6));
    place(&mut ledger, &pod("p2", &["c2"]), &["fast"]).unwrap_err();
    assert!(ledger.remove_pod(&PodName::of(&first), 7));
    place(&mut ledger, &pod("p2", &["c2"]), &["disk"]).unwrap();
}

#[test]
fn a_volume_of_no_driver_counts_for_none() {
    let mut ledger = ledger(&[node("a", &[("disk", 1)])], &[("static", "ReadWriteOnce", "")]);
    ledger.set_pod(&bound(pod("p0", &["static"]), "a", 5));
    place(&mut ledger, &pod("p1", &["c1"]), &["disk"]).unwrap();
}

/// What may happen. Pods `p0`..`p5` use claims `c0`..`c7`; of those the even are of driver `disk`, the odd of `fast`.
#[derive(Clone, Debug)]
enum Step {
    /// Asks for a place, and is told the drivers or not; where there is one, the pod is seen at once, later, or never.
    Place {
        pod: usize,
        claims: Vec<usize>,
        told: bool,
        seen: bool,
    },
    See(usize),
    Gone(usize),
    /// The claim and its volume come to be seen.
    Claim(usize),
    Volume(usize),
    /// The claim is gone.
    ClaimGone(usize),
    Later(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let claims = prop::collection::btree_set(0..8_usize, 0..4).prop_map(|set| set.into_iter().collect());
    prop_oneof![
        8 => (0..6_usize, claims, any::<bool>(), any::<bool>())
            .prop_map(|(pod, claims, told, seen)| Step::Place { pod, claims, told, seen }),
        3 => (0..6_usize).prop_map(Step::See),
        3 => (0..6_usize).prop_map(Step::Gone),
        3 => (0..8_usize).prop_map(Step::Claim),
        3 => (0..8_usize).prop_map(Step::Volume),
        1 => (0..8_usize).prop_map(Step::ClaimGone),
        1 => (0..15_u64).prop_map(Step::Later),
    ]
}

fn driver(claim: usize) -> &'static str {
    if claim.is_multiple_of(2) { "disk" } else { "fast" }
}

/// Modes by claim: two of one pod, two of all, the rest of one node.
fn mode(claim: usize) -> &'static str {
    match claim {
        0 | 1 => "ReadWriteOncePod",
        2 | 3 => "ReadWriteMany",
        _ => "ReadWriteOnce",
    }
}

/// A pod that stands in the store or may come there: its claims, its node, whether it was seen, when its promise ends.
#[derive(Clone, Debug)]
struct Real {
    pod: Pod,
    claims: Vec<usize>,
    node: String,
    seen: bool,
    until: Duration,
}

proptest! {
    /// Whatever is seen in whatever order: no node ever has more volumes of a driver than it can, no claim of one pod
    /// has two, no claim of one node is on two; and when all is gone, all is given back.
    #[test]
    fn nothing_is_given_twice(steps in prop::collection::vec(step(), 1..80)) {
        let limits = [("disk", 2_usize), ("fast", 1)];
        let mut ledger = Ledger::default();
        ledger.reset_nodes(&[node("a", &limits), node("b", &limits)], 1);
        let mut real: BTreeMap<usize, Real> = BTreeMap::new();
        let (mut now, mut revision) = (NOW, 10);
        for step in steps {
            revision += 1;
            match step {
                Step::Place { pod: k, claims, told, seen } => {
                    if real.get(&k).is_some_and(|real| real.seen) {
                        continue;
                    }
                    let names: Vec<String> = claims.iter().map(|c| format!("c{c}")).collect();
                    let names: Vec<&str> = names.iter().map(String::as_str).collect();
                    let wanted = pod(&format!("p{k}"), &names);
                    let drivers: Vec<String> =
                        if told { claims.iter().map(|c| driver(*c).to_owned()).collect() } else { vec![] };
                    let request = Request::of(&wanted, vec![]).with_drivers(&wanted, &drivers);
                    real.remove(&k);
                    let Ok(placed) = ledger.place(&request, now) else { continue };
                    let stored = bound(wanted, &placed.node, revision);
                    if seen {
                        ledger.set_pod(&stored);
                    }
                    let until = now + crate::schedule::RESERVATION_TTL;
                    real.insert(k, Real { pod: stored, claims, node: placed.node, seen, until });
                }
                Step::See(k) => {
                    if let Some(real) = real.get_mut(&k) {
                        ledger.set_pod(&real.pod);
                        real.seen = true;
                    }
                }
                Step::Gone(k) => {
                    if let Some(real) = real.remove(&k) {
                        ledger.release(&PodName::of(&real.pod));
                        ledger.remove_pod(&PodName::of(&real.pod), revision);
                    }
                }
                Step::Claim(c) => {
                    ledger.set_claim(&claim(&format!("c{c}"), mode(c)));
                }
                Step::Volume(c) => {
                    ledger.set_volume(&volume(&format!("c{c}"), driver(c)));
                }
                Step::ClaimGone(c) => {
                    ledger.remove_claim(&ClaimName { namespace: "default".into(), name: format!("c{c}") }, revision);
                }
                Step::Later(seconds) => {
                    now += Duration::from_secs(seconds);
                    // Whoever asks for nothing has let time pass: promises that nobody used are void.
                    real.retain(|_, real| real.seen || real.until > now);
                }
            }
            for name in ["a", "b"] {
                for (of, limit) in limits {
                    let used: BTreeSet<usize> = real
                        .values()
                        .filter(|real| real.node == name)
                        .flat_map(|real| real.claims.iter().copied())
                        .filter(|claim| driver(*claim) == of)
                        .collect();
                    prop_assert!(used.len() <= limit, "{name} has {used:?} of {of}");
                }
            }
            for c in 0..8 {
                let users: Vec<&Real> = real.values().filter(|real| real.claims.contains(&c)).collect();
                let nodes: BTreeSet<&str> = users.iter().map(|real| real.node.as_str()).collect();
                prop_assert!(mode(c) != "ReadWriteOncePod" || users.len() <= 1, "c{c}: {users:?}");
                prop_assert!(mode(c) != "ReadWriteOnce" || nodes.len() <= 1, "c{c}: {users:?}");
            }
        }
        for real in real.into_values() {
            ledger.release(&PodName::of(&real.pod));
            ledger.remove_pod(&PodName::of(&real.pod), revision + 1);
        }
        now += crate::schedule::RESERVATION_TTL;
        for c in 0..8 {
            ledger.set_claim(&claim(&format!("c{c}"), mode(c)));
            ledger.set_volume(&volume(&format!("c{c}"), driver(c)));
        }
        let all = pod("last", &["c0", "c2", "c1"]);
        let drivers = ["disk", "disk", "fast"].map(str::to_owned);
        let request = Request::of(&all, vec![]).with_drivers(&all, &drivers);
        prop_assert!(ledger.place(&request, now).is_ok(), "something was not given back");
    }
}
