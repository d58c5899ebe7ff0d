use pb::objects::{
    Condition, Container, NodeSelectorRequirement, NodeSelectorTerm, NodeSpec, NodeStatus, ObjectMeta, OwnerReference,
    PodSpec, PodStatus, Quantity, ResourceRequirements,
};
use proptest::prelude::*;

use super::*;
use crate::schedule::NODE_TOPOLOGY_KEY;

const NOW: Duration = Duration::ZERO;

fn quantities(entries: &[(&str, String)]) -> BTreeMap<String, Quantity> {
    entries.iter().map(|(name, value)| ((*name).to_owned(), Quantity { value: value.clone() })).collect()
}

fn node(name: &str, milli_cpu: u32, mebibytes: u32) -> Node {
    let allocatable =
        quantities(&[("cpu", format!("{milli_cpu}m")), ("memory", format!("{mebibytes}Mi")), ("pods", "10".into())]);
    let ready = Condition { r#type: "Ready".into(), status: "True".into(), ..Condition::default() };
    Node {
        metadata: Some(ObjectMeta { name: name.into(), resource_version: "1".into(), ..ObjectMeta::default() }),
        spec: Some(NodeSpec::default()),
        status: Some(NodeStatus { allocatable, conditions: vec![ready], ..NodeStatus::default() }),
        ..Node::default()
    }
}

fn pod(set: &str, ordinal: u32, milli_cpu: u32, mebibytes: u32) -> Pod {
    let requests = quantities(&[("cpu", format!("{milli_cpu}m")), ("memory", format!("{mebibytes}Mi"))]);
    let owner = OwnerReference { uid: format!("uid-{set}"), controller: Some(true), ..OwnerReference::default() };
    let container = Container {
        resources: Some(ResourceRequirements { requests, ..ResourceRequirements::default() }),
        ..Container::default()
    };
    Pod {
        metadata: Some(ObjectMeta {
            name: format!("{set}-{ordinal}"),
            namespace: "default".into(),
            uid: format!("{set}-{ordinal}-a"),
            owner_references: vec![owner],
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec { containers: vec![container], ..PodSpec::default() }),
        ..Pod::default()
    }
}

fn bound(mut pod: Pod, node: &str, revision: i64) -> Pod {
    pod.spec.as_mut().unwrap().node_name = node.into();
    pod.metadata.as_mut().unwrap().resource_version = revision.to_string();
    pod
}

fn ledger(nodes: &[Node]) -> Ledger {
    let mut ledger = Ledger::default();
    ledger.reset_nodes(nodes, 1);
    ledger
}

fn only(node: &str) -> NodeSelector {
    let expression =
        NodeSelectorRequirement { key: NODE_TOPOLOGY_KEY.into(), operator: "In".into(), values: vec![node.into()] };
    NodeSelector { node_selector_terms: vec![NodeSelectorTerm { match_expressions: vec![expression] }] }
}

use pb::objects::{NodeSelector, Taint};

#[test]
fn says_how_many_nodes_fail_for_each_reason() {
    let mut cordoned = node("a", 1000, 1024);
    cordoned.spec.as_mut().unwrap().unschedulable = true;
    let mut silent = node("b", 1000, 1024);
    silent.status.as_mut().unwrap().conditions[0].status = "Unknown".into();
    let mut off = node("f", 8000, 8192);
    off.spec.as_mut().unwrap().taints =
        vec![Taint { key: "gpu".into(), value: "yes".into(), effect: "NoExecute".into(), ..Taint::default() }];
    let mut ledger = ledger(&[cordoned, silent, node("c", 1000, 512), node("d", 100, 512), node("e", 8000, 8192), off]);
    let why = ledger.place(&Request::of(&pod("web", 0, 500, 1024), vec![only("a")]), NOW).unwrap_err();
    assert_eq!(
        why.to_string(),
        "0/6 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {gpu: yes}, \
         1 node(s) had volume node affinity conflict, 1 node(s) were not ready, 1 node(s) were unschedulable, 2 Insufficient memory."
    );
    assert_eq!(ledger.counts(), (6, 0));
}

#[test]
fn without_nodes_it_says_what_to_do() {
    let why = Ledger::default().place(&Request::of(&pod("web", 0, 1, 1), vec![]), NOW).unwrap_err();
    assert!(why.to_string().contains("start an agent"), "{why}");
}

#[test]
fn a_volume_pins_its_pod_also_against_the_spread() {
    let mut ledger = ledger(&[node("a", 1000, 1024), node("b", 1000, 1024)]);
    for ordinal in 0..3 {
        let placed = ledger.place(&Request::of(&pod("web", ordinal, 1, 1), vec![only("b")]), NOW).unwrap();
        assert_eq!(placed, Placed { node: "b".into(), node_revision: 1 });
    }
}

#[test]
fn sets_are_spread_one_by_one_and_others_go_where_room_is() {
    let mut ledger = ledger(&[node("a", 4000, 4096), node("b", 4000, 4096), node("c", 4000, 4096)]);
    ledger.set_pod(&bound(pod("db", 0, 3000, 3072), "a", 2));
    let mut place = |pod: &Pod| ledger.place(&Request::of(pod, vec![]), NOW).unwrap().node;
    assert_eq!(["b", "c", "a"], [0, 1, 2].map(|k| place(&pod("web", k, 10, 10))).each_ref().map(String::as_str));
}

#[test]
fn a_promise_ends_when_the_pod_is_seen_or_its_time_is_over() {
    let mut ledger = ledger(&[node("a", 1000, 1024)]);
    let (first, second) = (pod("web", 0, 600, 1), pod("web", 1, 600, 1));
    ledger.place(&Request::of(&first, vec![]), NOW).unwrap();
    ledger.place(&Request::of(&first, vec![]), NOW).expect("asking again gives the own promise back first");
    ledger.place(&Request::of(&second, vec![]), NOW).unwrap_err();
    ledger.set_pod(&bound(first.clone(), "a", 5));
    assert_eq!(ledger.counts(), (1, 0));
    ledger.place(&Request::of(&second, vec![]), RESERVATION_TTL).unwrap_err();
    assert!(ledger.remove_pod(&PodName::of(&first), 6), "room became free");
    ledger.place(&Request::of(&second, vec![]), NOW).unwrap();
    ledger.place(&Request::of(&first, vec![]), RESERVATION_TTL / 2).unwrap_err();
    ledger.place(&Request::of(&first, vec![]), RESERVATION_TTL).expect("the promise to web-1 is over");
}

#[test]
fn the_successor_of_a_pod_takes_its_room_before_the_end_is_seen() {
    let mut ledger = ledger(&[node("a", 1000, 1024)]);
    let old = bound(pod("web", 0, 600, 1), "a", 5);
    ledger.set_pod(&old);
    let mut new = pod("web", 0, 600, 1);
    new.metadata.as_mut().unwrap().uid = "web-0-b".into();
    ledger.place(&Request::of(&new, vec![]), NOW).unwrap();
    // A late change of the old pod does not end the new one's promise.
    ledger.set_pod(&bound(old.clone(), "a", 6));
    ledger.remove_pod(&PodName::of(&old), 7);
    ledger.place(&Request::of(&pod("web", 1, 600, 1), vec![]), NOW).unwrap_err();
}

#[test]
fn a_list_does_not_undo_what_is_known_from_later() {
    let nodes = [node("a", 1000, 1024)];
    let mut ledger = ledger(&nodes);
    ledger.set_pod(&bound(pod("web", 0, 600, 1), "a", 9));
    ledger.reset_pods([], 8);
    ledger.place(&Request::of(&pod("web", 1, 600, 1), vec![]), NOW).unwrap_err();
    assert!(!ledger.remove_pod(&PodName::of(&pod("web", 0, 0, 0)), 8), "the end of one that was there before");
    ledger.reset_pods([], 10);
    ledger.place(&Request::of(&pod("web", 1, 600, 1), vec![]), NOW).unwrap();
}

#[test]
fn an_older_state_changes_nothing_and_an_ended_pod_takes_nothing() {
    let mut ledger = ledger(&[node("a", 1000, 1024)]);
    let mut ended = bound(pod("web", 0, 600, 1), "a", 9);
    ledger.set_pod(&ended);
    assert!(!ledger.set_pod(&pod("web", 0, 600, 1)), "not bound yet, at revision 0");
    ledger.place(&Request::of(&pod("web", 1, 600, 1), vec![]), NOW).unwrap_err();
    ended.status = Some(PodStatus { phase: "Succeeded".into(), ..PodStatus::default() });
    assert!(ledger.set_pod(&bound(ended, "a", 10)), "room became free");
    ledger.place(&Request::of(&pod("web", 1, 600, 1), vec![]), NOW).unwrap();
}

/// What may happen to a ledger. Pods are `s0`..`s2` with ordinals 0..6, nodes `n0`..`n3`.
#[derive(Clone, Debug)]
enum Step {
    Node {
        index: usize,
        milli_cpu: u32,
        mebibytes: u32,
    },
    NodeGone(usize),
    /// Asks for a place; where there is one, the pod may be seen at once, later, or never.
    Place {
        set: usize,
        ordinal: u32,
        milli_cpu: u32,
        mebibytes: u32,
        seen: bool,
    },
    See {
        set: usize,
        ordinal: u32,
    },
    Gone {
        set: usize,
        ordinal: u32,
    },
    Later(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let name = (0..3_usize, 0..6_u32);
    prop_oneof![
        1 => (0..4_usize, 500..4000_u32, 256..4096_u32)
            .prop_map(|(index, milli_cpu, mebibytes)| Step::Node { index, milli_cpu, mebibytes }),
        1 => (0..4_usize).prop_map(Step::NodeGone),
        6 => (name.clone(), 0..900_u32, 0..900_u32, any::<bool>()).prop_map(
            |((set, ordinal), milli_cpu, mebibytes, seen)| Step::Place { set, ordinal, milli_cpu, mebibytes, seen }
        ),
        3 => name.clone().prop_map(|(set, ordinal)| Step::See { set, ordinal }),
        3 => name.prop_map(|(set, ordinal)| Step::Gone { set, ordinal }),
        1 => (0..15_u64).prop_map(Step::Later),
    ]
}

fn recount(ledger: &Ledger) -> BTreeMap<String, (Amounts, BTreeMap<Group, u32>)> {
    let mut totals: BTreeMap<String, (Amounts, BTreeMap<Group, u32>)> = BTreeMap::new();
    for account in ledger.pods.values().chain(ledger.reservations.values().map(|(_, account)| account)) {
        let (used, peers) = totals.entry(account.node.clone()).or_default();
        used.add(&account.amounts);
        if let Some(group) = &account.group {
            *peers.entry(group.clone()).or_default() += 1;
        }
    }
    totals
}

proptest! {
    /// Whatever happens: totals equal a recount, and a node that can take a pod is never over-committed by it.
    #[test]
    fn totals_are_exact_and_nothing_is_over_committed(steps in prop::collection::vec(step(), 1..60)) {
        let mut ledger = Ledger::default();
        let mut pods: BTreeMap<(usize, u32), (Pod, bool)> = BTreeMap::new();
        let (mut now, mut revision) = (NOW, 1);
        for step in steps {
            revision += 1;
            match step {
                Step::Node { index, milli_cpu, mebibytes } => {
                    ledger.set_node(&node(&format!("n{index}"), milli_cpu, mebibytes));
                }
                Step::NodeGone(index) => ledger.remove_node(&format!("n{index}"), revision),
                Step::Place { set, ordinal, milli_cpu, mebibytes, seen } => {
                    if pods.get(&(set, ordinal)).is_some_and(|(_, seen)| *seen) {
                        continue;
                    }
                    let wanted = pod(&format!("s{set}"), ordinal, milli_cpu, mebibytes);
                    let Ok(placed) = ledger.place(&Request::of(&wanted, vec![]), now) else {
                        pods.remove(&(set, ordinal));
                        continue;
                    };
                    let totals = &ledger.nodes[&placed.node];
                    let has = &totals.facts.as_ref().unwrap().allocatable;
                    prop_assert!(totals.used.milli_cpu <= has.milli_cpu || milli_cpu == 0);
                    prop_assert!(totals.used.memory <= has.memory || mebibytes == 0);
                    prop_assert!(totals.used.pods <= has.pods);
                    let placed = bound(wanted, &placed.node, revision);
                    if seen {
                        ledger.set_pod(&placed);
                    }
                    pods.insert((set, ordinal), (placed, seen));
                }
                Step::See { set, ordinal } => {
                    if let Some((pod, seen)) = pods.get_mut(&(set, ordinal)) {
                        ledger.set_pod(pod);
                        *seen = true;
                    }
                }
                Step::Gone { set, ordinal } => {
                    if let Some((pod, true)) = pods.remove(&(set, ordinal)) {
                        ledger.remove_pod(&PodName::of(&pod), revision);
                    }
                }
                Step::Later(seconds) => now += Duration::from_secs(seconds),
            }
            let counted = recount(&ledger);
            for (name, totals) in &ledger.nodes {
                let expected = counted.get(name).cloned().unwrap_or_default();
                prop_assert_eq!((&totals.used, &totals.peers), (&expected.0, &expected.1));
            }
            prop_assert!(counted.keys().all(|name| ledger.nodes.contains_key(name)));
            prop_assert_eq!(ledger.ends.len(), ledger.reservations.len());
        }
    }

    /// Equal nodes differ by one pod of a set at most, whatever else runs there evenly.
    #[test]
    fn a_set_is_spread_evenly_over_equal_nodes(nodes in 1..6_usize, replicas in 1..20_u32) {
        let all: Vec<Node> = (0..nodes).map(|i| node(&format!("n{i}"), 100_000, 100_000)).collect();
        let mut ledger = ledger(&all);
        let mut counts = BTreeMap::new();
        for ordinal in 0..replicas {
            let pod = pod("web", ordinal, 10, 10);
            if let Ok(placed) = ledger.place(&Request::of(&pod, vec![]), NOW) {
                *counts.entry(placed.node).or_insert(0_u32) += 1;
            }
        }
        let most = counts.values().max().copied().unwrap_or(0);
        let least = if counts.len() < nodes { 0 } else { counts.values().min().copied().unwrap_or(0) };
        prop_assert!(most - least <= 1, "{:?}", counts);
        prop_assert_eq!(counts.values().sum::<u32>(), replicas.min(10 * u32::try_from(nodes).unwrap()));
    }

    /// The way by which a state was reached does not matter.
    #[test]
    fn the_answer_depends_on_the_state_alone(
        order in Just((0..12_u32).collect::<Vec<_>>()).prop_shuffle(),
        spread in prop::collection::vec(0..3_usize, 12),
    ) {
        let nodes = [node("a", 9000, 9000), node("b", 9000, 9000), node("c", 9000, 9000)];
        let pods: Vec<Pod> = (0..12)
            .map(|k| bound(pod(&format!("s{}", k % 2), k, 100 * k, 50), ["a", "b", "c"][spread[k as usize]], 2))
            .collect();
        let (mut straight, mut shuffled) = (ledger(&nodes), Ledger::default());
        straight.reset_pods(&pods, 2);
        for k in order {
            shuffled.set_pod(&pods[k as usize]);
        }
        for node in nodes.iter().rev() {
            shuffled.set_node(node);
        }
        let request = Request::of(&pod("s0", 99, 100, 100), vec![]);
        prop_assert_eq!(straight.place(&request, NOW), shuffled.place(&request, NOW));
    }
}
