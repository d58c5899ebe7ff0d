use pb::objects::{
    NodeSelectorRequirement, NodeSelectorTerm, NodeSpec, ObjectMeta, PersistentVolumeSpec, PersistentVolumeStatus,
    Taint, VolumeNodeAffinity,
};
use proptest::prelude::*;

use super::*;

fn node(name: &str, off: bool) -> (String, Arc<Node>) {
    let taint = Taint { key: "node.kubernetes.io/out-of-service".into(), ..Taint::default() };
    let node = Node {
        metadata: Some(ObjectMeta { name: name.into(), ..ObjectMeta::default() }),
        spec: Some(NodeSpec { taints: off.then_some(taint).into_iter().collect(), ..NodeSpec::default() }),
        ..Node::default()
    };
    (name.to_owned(), Arc::new(node))
}

fn volume(nodes: &[&str]) -> PersistentVolume {
    let on = |name: &&str| NodeSelectorRequirement {
        key: NODE_TOPOLOGY_KEY.into(),
        operator: "In".into(),
        values: vec![(*name).into()],
    };
    let terms = nodes.iter().map(|name| NodeSelectorTerm { match_expressions: vec![on(name)] }).collect();
    let required = (!nodes.is_empty()).then_some(NodeSelector { node_selector_terms: terms });
    PersistentVolume {
        spec: Some(PersistentVolumeSpec {
            node_affinity: required.map(|required| VolumeNodeAffinity { required: Some(required) }),
            ..PersistentVolumeSpec::default()
        }),
        status: Some(PersistentVolumeStatus { phase: "Bound".into(), ..PersistentVolumeStatus::default() }),
        ..PersistentVolume::default()
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

#[test]
fn a_volume_is_lost_with_its_node_and_found_when_it_is_back() {
    let (claim, volume) = (PersistentVolumeClaim::default(), volume(&["n1"]));
    let there = Nodes::from([node("n1", false), node("n2", false)]);
    assert_eq!(verdict(&volume, Some(&claim), &there, at(1)), Verdict::default());

    let gone = Nodes::from([node("n2", false)]);
    let told = verdict(&volume, Some(&claim), &gone, at(2));
    let (lost_claim, lost_volume) = (told.claim.unwrap(), told.volume.unwrap());
    let condition = lost_claim.status.as_ref().unwrap().conditions.first().unwrap();
    assert_eq!((condition.r#type.as_str(), condition.status.as_str()), (VOLUME_LOST, "True"));
    assert!(condition.message.contains("node n1") && condition.message.contains("gone"), "{}", condition.message);
    assert_eq!(lost_volume.status.as_ref().unwrap().reason, NODE_LOST);
    assert_eq!(lost_volume.status.as_ref().unwrap().phase, "Bound");

    let off = Nodes::from([node("n1", true), node("n2", false)]);
    let later = verdict(&lost_volume, Some(&lost_claim), &off, at(3)).claim.unwrap();
    let condition = later.status.as_ref().unwrap().conditions.first().unwrap();
    assert!(condition.message.contains("out of service"), "{}", condition.message);
    assert_eq!(condition.last_transition_time.unwrap().timestamp(), at(2), "lost since it was lost");

    let back = verdict(&lost_volume, Some(&later), &there, at(4));
    assert!(back.claim.unwrap().status.unwrap().conditions.is_empty());
    assert_eq!(back.volume.unwrap().status.unwrap().reason, "");
}

#[test]
fn volumes_that_were_never_had_keep_their_reason() {
    let mut volume = volume(&["n1"]);
    volume.status.as_mut().unwrap().reason = "Adopted".into();
    assert_eq!(verdict(&volume, None, &Nodes::new(), at(1)), Verdict::default());
}

proptest! {
    /// Lost is exactly: no node that can reach it is there and on. Saying it twice says nothing new.
    #[test]
    fn lost_is_that_no_living_node_reaches_it(on in prop::collection::btree_map(0..4_u8, any::<bool>(), 0..4),
            of in prop::collection::btree_set(0..4_u8, 0..4)) {
        let nodes: Nodes = on.iter().map(|(n, on)| node(&format!("n{n}"), !on)).collect();
        let names: Vec<String> = of.iter().map(|n| format!("n{n}")).collect();
        let volume = volume(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let expected = !of.is_empty() && !of.iter().any(|n| on.get(n) == Some(&true));
        let claim = PersistentVolumeClaim::default();
        let told = verdict(&volume, Some(&claim), &nodes, at(1));
        prop_assert_eq!(told.claim.is_some(), expected);
        prop_assert_eq!(told.volume.is_some(), expected);
        let claim = told.claim.map_or(claim, |claim| *claim);
        let volume = told.volume.map_or(volume, |volume| *volume);
        prop_assert_eq!(verdict(&volume, Some(&claim), &nodes, at(2)), Verdict::default());
    }
}
