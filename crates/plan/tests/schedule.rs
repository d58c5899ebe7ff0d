//! Random clusters against the rules, read a second time: the ledger, kept change by change, lets a pod onto exactly the
//! nodes that a naive look at the whole cluster lets it onto; nothing is over-committed (I19); preemption takes only
//! less important pods, and room enough.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests say what they expect")]

use std::{collections::BTreeMap, time::Duration};

use pb::{Object, ObjectExt, objects::*};
use plan::schedule::{Ledger, Request, Verdict};
use proptest::prelude::*;
use serde_json::{Value, json};

const NODES: usize = 4;

fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object as users write it")
}

fn node(index: usize, cpu: u32, zone: Option<u32>, mark: u32) -> Node {
    let mut labels = BTreeMap::from([("mark".to_owned(), mark.to_string())]);
    labels.extend(zone.map(|zone| ("zone".to_owned(), format!("z{zone}"))));
    let taints = match mark {
        1 => json!([{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]),
        2 => json!([{"key": "old", "effect": "PreferNoSchedule"}]),
        _ => json!([]),
    };
    read(json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": format!("n{index}"), "labels": labels, "resourceVersion": "1"},
        "spec": {"taints": taints, "unschedulable": mark == 3},
        "status": {
            "allocatable": {"cpu": cpu.to_string(), "pods": "6"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }))
}

/// What a random pod says.
#[derive(Clone, Debug)]
struct Wishes {
    app: u32,
    cpu: u32,
    priority: i32,
    tolerates: bool,
    marks_above: Option<u32>,
    port: Option<u32>,
    near: Option<(u32, bool)>,
    far: Option<(u32, bool)>,
    spread: Option<(u32, bool)>,
    namespace: bool,
}

fn wishes() -> impl Strategy<Value = Wishes> {
    let about = || prop::option::weighted(0.25, (0..3_u32, any::<bool>()));
    let first = (0..3_u32, 1..4_u32, 0..3_i32, any::<bool>(), prop::option::weighted(0.15, 0..3_u32));
    let rest = (prop::option::weighted(0.2, 0..2_u32), about(), about(), about(), prop::bool::weighted(0.2));
    (first, rest).prop_map(|((app, cpu, priority, tolerates, marks_above), (port, near, far, spread, namespace))| {
        Wishes { app, cpu, priority, tolerates, marks_above, port, near, far, spread, namespace }
    })
}

fn key(by_zone: bool) -> &'static str {
    if by_zone { "zone" } else { "kubernetes.io/hostname" }
}

fn pod(index: usize, wishes: &Wishes) -> Pod {
    let term = |(app, by_zone): (u32, bool)| json!({"labelSelector": {"matchLabels": {"app": format!("a{app}")}}, "topologyKey": key(by_zone)});
    let required = |about: Option<(u32, bool)>| json!({"requiredDuringSchedulingIgnoredDuringExecution": about.map(term).into_iter().collect::<Vec<_>>()});
    let mut affinity = json!({"podAffinity": required(wishes.near), "podAntiAffinity": required(wishes.far)});
    if let Some(mark) = wishes.marks_above {
        affinity["nodeAffinity"] = json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "mark", "operator": "Gt", "values": [mark.to_string()]}]}
        ]}});
    }
    let tolerations = if wishes.tolerates { json!([{"operator": "Exists"}]) } else { json!([]) };
    let spread = wishes.spread.map(|(skew, by_zone)| {
        json!({"maxSkew": skew + 1, "topologyKey": key(by_zone), "whenUnsatisfiable": "DoNotSchedule",
               "labelSelector": {"matchLabels": {"app": format!("a{}", wishes.app)}}})
    });
    let ports: Vec<Value> = wishes
        .port
        .iter()
        .map(|port| json!({"containerPort": 80, "hostPort": 8000 + port, "protocol": "TCP"}))
        .collect();
    read(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("p{index}"), "namespace": if wishes.namespace { "other" } else { "default" },
            "uid": format!("u{index}"), "labels": {"app": format!("a{}", wishes.app)},
        },
        "spec": {
            "containers": [{"name": "c", "ports": ports, "resources": {"requests": {"cpu": wishes.cpu.to_string()}}}],
            "priority": wishes.priority, "tolerations": tolerations, "affinity": affinity,
            "topologySpreadConstraints": spread.into_iter().collect::<Vec<_>>(),
        },
    }))
}

fn at(mut pod: Pod, node: &str, revision: i64) -> Pod {
    pod.spec.as_mut().unwrap().node_name = node.to_owned();
    pod.meta_mut().resource_version = revision.to_string();
    pod
}

/// The rules once more, over everything that there is.
mod naive {
    use super::*;

    type Placed = [(Pod, Wishes)];

    fn value(node: &Node, by_zone: bool) -> Option<String> {
        if by_zone { node.meta().labels.get("zone").cloned() } else { Some(node.name().to_owned()) }
    }

    fn cpu(node: &Node) -> u32 {
        node.status.as_ref().unwrap().allocatable["cpu"].value.parse().unwrap()
    }

    pub fn on<'a>(placed: &'a Placed, node: &Node) -> Vec<&'a (Pod, Wishes)> {
        placed.iter().filter(|(pod, _)| pod.spec.as_ref().unwrap().node_name == node.name()).collect()
    }

    fn near<'a>(nodes: &[Node], placed: &'a Placed, node: &Node, by_zone: bool) -> Vec<&'a (Pod, Wishes)> {
        let Some(here) = value(node, by_zone) else { return Vec::new() };
        let same = nodes.iter().filter(|other| value(other, by_zone).as_ref() == Some(&here));
        same.flat_map(|other| on(placed, other)).collect()
    }

    pub fn fits(nodes: &[Node], placed: &Placed, node: &Node, new: &Wishes) -> bool {
        let mark: u32 = node.meta().labels["mark"].parse().unwrap();
        let here = on(placed, node);
        let alike = |known: &Wishes, app: u32, other: &Wishes| known.app == app && known.namespace == other.namespace;
        let used: u32 = here.iter().map(|(_, wishes)| wishes.cpu).sum();
        let near_enough = new.near.is_none_or(|(app, by_zone)| {
            let with_label = nodes.iter().filter(|node| value(node, by_zone).is_some());
            let anywhere = with_label.flat_map(|node| on(placed, node)).any(|(_, known)| alike(known, app, new));
            let there = near(nodes, placed, node, by_zone).iter().any(|(_, known)| alike(known, app, new));
            value(node, by_zone).is_some() && (there || (!anywhere && new.app == app))
        });
        let far_enough = new.far.is_none_or(|(app, by_zone)| {
            !near(nodes, placed, node, by_zone).iter().any(|(_, known)| alike(known, app, new))
        });
        let welcome = placed.iter().all(|(pod, known)| {
            let Some((_, by_zone)) = known.far.filter(|(app, _)| alike(new, *app, known)) else { return true };
            let home = nodes.iter().find(|node| pod.spec.as_ref().unwrap().node_name == node.name()).unwrap();
            value(home, by_zone).is_none() || value(home, by_zone) != value(node, by_zone)
        });
        let lets_in = |node: &Node| {
            let mark: u32 = node.meta().labels["mark"].parse().unwrap();
            new.marks_above.is_none_or(|above| mark > above)
        };
        let even = new.spread.is_none_or(|(skew, by_zone)| {
            let Some(here) = value(node, by_zone) else { return false };
            let mut counts: BTreeMap<String, usize> = BTreeMap::new();
            for node in nodes.iter().filter(|node| lets_in(node)) {
                if let Some(place) = value(node, by_zone) {
                    let alike = on(placed, node).iter().filter(|(_, known)| alike(known, new.app, new)).count();
                    *counts.entry(place).or_default() += alike;
                }
            }
            let Some(fewest) = counts.values().min() else { return true };
            counts.get(&here).copied().unwrap_or(0) <= fewest + skew as usize
        });
        (mark != 1 && mark != 3 || new.tolerates)
            && lets_in(node)
            && here.len() < 6
            && used + new.cpu <= cpu(node)
            && new.port.is_none_or(|port| here.iter().all(|(_, known)| known.port != Some(port)))
            && near_enough
            && far_enough
            && welcome
            && even
    }
}

/// On which nodes the ledger would place the pod: asked for each alone.
fn feasible(ledger: &Ledger, nodes: &[Node], pod: &Pod) -> Vec<String> {
    let fits = |node: &&Node| {
        let mut alone = pod.clone();
        alone.spec.as_mut().unwrap().node_name = node.name().to_owned();
        ledger.clone().place(&Request::of(&alone, vec![]), Duration::ZERO).is_ok()
    };
    nodes.iter().filter(fits).map(|node| node.name().to_owned()).collect()
}

fn nodes() -> impl Strategy<Value = Vec<Node>> {
    let one = (2..9_u32, prop::option::weighted(0.85, 0..2_u32), 0..5_u32);
    prop::collection::vec(one, NODES).prop_map(|all| {
        all.into_iter().enumerate().map(|(index, (cpu, zone, mark))| node(index, cpu, zone, mark)).collect()
    })
}

proptest! {
    #[test]
    fn the_ledger_lets_pods_onto_the_nodes_that_the_rules_let_them_onto(
        nodes in nodes(),
        pods in prop::collection::vec((wishes(), 0..4_u32, any::<bool>()), 1..14),
    ) {
        let mut ledger = Ledger::default();
        nodes.iter().for_each(|node| { ledger.set_node(node); });
        let mut placed: Vec<(Pod, Wishes)> = Vec::new();
        for (index, (wishes, what, seen)) in pods.into_iter().enumerate() {
            let new = pod(index, &wishes);
            let expected: Vec<String> = nodes.iter()
                .filter(|node| naive::fits(&nodes, &placed, node, &wishes))
                .map(|node| node.name().to_owned())
                .collect();
            prop_assert_eq!(feasible(&ledger, &nodes, &new), expected.clone(), "{:?} among {:?}", wishes, placed);
            let answer = ledger.clone().place(&Request::of(&new, vec![]), Duration::ZERO);
            prop_assert_eq!(&answer, &ledger.place(&Request::of(&new, vec![]), Duration::ZERO), "no chance in it");
            if let Ok(answer) = answer {
                prop_assert!(expected.contains(&answer.node));
                let revision = i64::try_from(index).unwrap() + 10;
                let bound = at(new, &answer.node, revision);
                if seen {
                    ledger.set_pod(&bound);
                }
                placed.push((bound, wishes));
            }
            // The end of another, and a list of all, change nothing else.
            if what == 0 && placed.len() > 2 {
                let (gone, _) = placed.remove(0);
                ledger.set_pod(&gone);
                ledger.remove_pod(&plan::schedule::PodName::of(&gone), 1000);
            }
            if what == 1 {
                ledger.reset_pods(placed.iter().map(|(pod, _)| pod), 999);
            }
        }
    }

    #[test]
    fn only_less_important_pods_go_and_their_going_makes_room(
        nodes in nodes(),
        pods in prop::collection::vec(wishes(), 4..20),
        last in wishes(),
    ) {
        let mut ledger = Ledger::default();
        nodes.iter().for_each(|node| { ledger.set_node(node); });
        let mut placed: Vec<(Pod, Wishes)> = Vec::new();
        for (index, wishes) in pods.into_iter().enumerate() {
            let new = pod(index, &wishes);
            if let Ok(answer) = ledger.place(&Request::of(&new, vec![]), Duration::ZERO) {
                let bound = at(new, &answer.node, 10);
                ledger.set_pod(&bound);
                placed.push((bound, wishes));
            }
        }
        let new = pod(99, &last);
        let request = Request::of(&new, vec![]);
        if ledger.clone().place(&request, Duration::ZERO).is_ok() {
            return Ok(());
        }
        match ledger.preempt(&request, &[]) {
            Verdict::Take(chosen) => {
                let names: Vec<&str> = chosen.victims.iter().map(|victim| victim.name.name.as_str()).collect();
                let (victims, left): (Vec<_>, Vec<_>) = placed.into_iter().partition(|(pod, _)| names.contains(&pod.name()));
                prop_assert!(!victims.is_empty());
                for (pod, wishes) in &victims {
                    prop_assert!(wishes.priority < last.priority);
                    prop_assert_eq!(&pod.spec.as_ref().unwrap().node_name, &chosen.node);
                }
                let node = nodes.iter().find(|node| node.name() == chosen.node).unwrap();
                prop_assert!(naive::fits(&nodes, &left, node, &last));
                for spared in &victims {
                    let mut with_one = left.clone();
                    with_one.push(spared.clone());
                    prop_assert!(!naive::fits(&nodes, &with_one, node, &last) || last.near.is_some() || last.spread.is_some(),
                        "nobody goes for nothing: {:?}", spared);
                }
            }
            Verdict::Wait => prop_assert!(false, "nobody is on the way out"),
            Verdict::Nothing => {
                for node in &nodes {
                    let fits_now = naive::fits(&nodes, &placed, node, &last);
                    prop_assert!(!fits_now);
                    let stays = |(pod, wishes): &&(Pod, Wishes)| {
                        wishes.priority >= last.priority || pod.spec.as_ref().unwrap().node_name != node.name()
                    };
                    let left: Vec<_> = placed.iter().filter(stays).cloned().collect();
                    // Pods that are missing nearby do not come by others going.
                    prop_assert!(last.near.is_some() || !naive::fits(&nodes, &left, node, &last), "{:?} would do", node.name());
                }
            }
        }
    }
}

/// One question among 1000 nodes and 10000 pods. Run with `--release --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn how_long_one_question_takes() {
    let many = |index: usize| {
        let mut node = node(index, 64, Some(u32::try_from(index % 3).unwrap()), 0);
        node.status.as_mut().unwrap().allocatable.insert("pods".into(), "110".into());
        node
    };
    let nodes: Vec<Node> = (0..1000).map(many).collect();
    let plain = Wishes {
        app: 0,
        cpu: 1,
        priority: 0,
        tolerates: false,
        marks_above: None,
        port: None,
        near: None,
        far: None,
        spread: None,
        namespace: false,
    };
    let mut ledger = Ledger::default();
    nodes.iter().for_each(|node| {
        ledger.set_node(node);
    });
    for index in 0..10_000 {
        let wishes = Wishes { app: u32::try_from(index % 5).unwrap(), ..plain.clone() };
        let mut pod = pod(index, &wishes);
        pod.spec.as_mut().unwrap().containers[0]
            .resources
            .as_mut()
            .unwrap()
            .requests
            .insert("cpu".into(), "100m".into());
        ledger.set_pod(&at(pod, &format!("n{}", index % 1000), 5));
    }
    let far = Wishes { app: 7, far: Some((7, false)), ..plain.clone() };
    let spread = Wishes { app: 1, spread: Some((5, true)), ..plain.clone() };
    let huge = Wishes { cpu: 64, priority: 9, ..plain.clone() };
    for (what, wishes) in [("plain", &plain), ("anti-affinity", &far), ("spread", &spread)] {
        let request = Request::of(&pod(99_999, wishes), vec![]);
        let begun = std::time::Instant::now();
        for _ in 0..20 {
            ledger.place(&request, Duration::ZERO).unwrap();
        }
        println!("{what}: {:?} a question", begun.elapsed() / 20);
    }
    let request = Request::of(&pod(99_998, &huge), vec![]);
    let begun = std::time::Instant::now();
    let verdict = ledger.preempt(&request, &[]);
    println!("preemption: {:?}", begun.elapsed());
    assert!(matches!(verdict, Verdict::Take(_)));
}
