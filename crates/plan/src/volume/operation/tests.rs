//! The steps in a small world: nodes with disks, a store, and a leader that may die, and whose calls may come to any end,
//! between any two steps. The disks are deleted by [`crate::volume::reclaim`] alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use pb::objects::{
    CsiPersistentVolumeSource, NodeCsiDriver, NodeSpec, NodeStatus, ObjectMeta, ObjectReference,
    PersistentVolumeClaimSpec, PersistentVolumeClaimStatus, PersistentVolumeSpec, PersistentVolumeStatus, PodSpec,
    Quantity, Taint, VolumeSnapshotStatus,
};
use proptest::prelude::*;

use super::*;
use crate::{
    schedule::NODE_TOPOLOGY_KEY,
    volume::{
        KEEP, STORAGE,
        reclaim::{Around, Reclaim, reclaim},
        selector_of,
        topology::affinity,
    },
};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn place(node: &str) -> csi::Topology {
    csi::Topology { segments: [(NODE_TOPOLOGY_KEY.to_owned(), node.to_owned())].into() }
}

fn node(name: &str, off: bool) -> Arc<Node> {
    let taint = Taint { key: "node.kubernetes.io/out-of-service".into(), ..Taint::default() };
    let driver = NodeCsiDriver {
        name: "local".into(),
        topology_keys: vec![NODE_TOPOLOGY_KEY.into()],
        controller: true,
        ..NodeCsiDriver::default()
    };
    Arc::new(Node {
        metadata: Some(ObjectMeta { name: name.into(), ..ObjectMeta::default() }),
        spec: Some(NodeSpec { taints: off.then_some(taint).into_iter().collect(), ..NodeSpec::default() }),
        status: Some(NodeStatus { csi_drivers: vec![driver], ..NodeStatus::default() }),
        ..Node::default()
    })
}

fn capacity() -> BTreeMap<String, Quantity> {
    BTreeMap::from([(STORAGE.to_owned(), Quantity { value: "1Gi".into() })])
}

fn claim() -> PersistentVolumeClaim {
    PersistentVolumeClaim {
        metadata: Some(ObjectMeta {
            name: "www-web-0".into(),
            namespace: "default".into(),
            uid: "7".into(),
            resource_version: "1".into(),
            ..ObjectMeta::default()
        }),
        spec: Some(PersistentVolumeClaimSpec { volume_name: "pvc-7".into(), ..PersistentVolumeClaimSpec::default() }),
        status: Some(PersistentVolumeClaimStatus { capacity: capacity(), ..PersistentVolumeClaimStatus::default() }),
        ..PersistentVolumeClaim::default()
    }
}

fn volume_on(node: &str, policy: &str) -> PersistentVolume {
    PersistentVolume {
        metadata: Some(ObjectMeta { name: "pvc-7".into(), resource_version: "1".into(), ..ObjectMeta::default() }),
        spec: Some(PersistentVolumeSpec {
            capacity: capacity(),
            csi: Some(CsiPersistentVolumeSource {
                driver: "local".into(),
                volume_handle: "pvc-7".into(),
                ..CsiPersistentVolumeSource::default()
            }),
            claim_ref: Some(ObjectReference {
                name: "www-web-0".into(),
                namespace: "default".into(),
                uid: "7".into(),
                ..ObjectReference::default()
            }),
            persistent_volume_reclaim_policy: policy.into(),
            node_affinity: affinity(&[place(node)]),
            ..PersistentVolumeSpec::default()
        }),
        status: Some(PersistentVolumeStatus { phase: "Bound".into(), ..PersistentVolumeStatus::default() }),
        ..PersistentVolume::default()
    }
}

fn snapshot_on(node: &str) -> VolumeSnapshot {
    VolumeSnapshot {
        metadata: Some(ObjectMeta { name: "s1".into(), ..ObjectMeta::default() }),
        status: Some(VolumeSnapshotStatus {
            ready_to_use: true,
            driver: "local".into(),
            snapshot_handle: "snap".into(),
            reachable: selector_of(&[place(node)]),
            ..VolumeSnapshotStatus::default()
        }),
        ..VolumeSnapshot::default()
    }
}

fn asked(id: usize, target: Option<&str>) -> ClaimOperation {
    ClaimOperation {
        id: format!("op{id}"),
        r#type: if target.is_some() { MOVE } else { RESTORE }.into(),
        target_node: target.unwrap_or_default().into(),
        snapshot: if target.is_some() { String::new() } else { "s1".into() },
        phase: WAITING.into(),
        ..ClaimOperation::default()
    }
}

/// Where a volume is in the driver.
fn spot(volume: &PersistentVolume) -> (String, String) {
    let spec = volume.spec.clone().unwrap();
    let places = places_in(reachable(volume).unwrap());
    (places[0].segments[NODE_TOPOLOGY_KEY].clone(), spec.csi.unwrap().volume_handle)
}

#[derive(Debug)]
struct World {
    claim: PersistentVolumeClaim,
    volumes: BTreeMap<String, PersistentVolume>,
    snapshot: Option<VolumeSnapshot>,
    nodes: Nodes,
    pod: Option<Pod>,
    /// What is on disks: by node and id.
    disks: BTreeMap<(String, String), &'static str>,
    /// Disks that were made by a call whose answer was never seen.
    unseen: BTreeSet<(String, String)>,
    /// What the claim's data must be.
    truth: &'static str,
    operations: usize,
    clock: i64,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Move(usize),
    Restore,
    Pod(bool),
    Off(usize, bool),
    DeleteSnapshot,
    Look(Fault),
    Reclaim(Fault),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// The call is not done (a copy breaks off), and nobody knows.
    NotDone,
    /// The call is done, and nobody knows; or the leader dies before it writes.
    Unseen,
    /// The call is refused.
    Refused,
}

const NODES: [&str; 3] = ["n1", "n2", "n3"];

impl World {
    fn new(policy: &str) -> Self {
        let volume = volume_on("n1", policy);
        Self {
            claim: claim(),
            disks: [(spot(&volume), "records")].into(),
            volumes: [("pvc-7".to_owned(), volume)].into(),
            snapshot: Some(snapshot_on("n1")),
            nodes: NODES.map(|name| (name.to_owned(), node(name, false))).into(),
            pod: None,
            unseen: BTreeSet::new(),
            truth: "records",
            operations: 0,
            clock: 0,
        }
    }

    fn happen(&mut self, event: Event) {
        self.clock += 1;
        match event {
            Event::Move(target) => self.begin(Some(NODES[target])),
            Event::Restore => self.begin(None),
            // No pod gets a claim that is held.
            Event::Pod(true) if held(&self.claim).is_none() => {
                let spec = PodSpec { node_name: spot(&self.volumes["pvc-7"]).0, ..PodSpec::default() };
                self.pod = Some(Pod { spec: Some(spec), ..Pod::default() });
            }
            Event::Pod(true) => {}
            Event::Pod(false) => self.pod = None,
            Event::Off(which, off) => {
                self.nodes.insert(NODES[which].to_owned(), node(NODES[which], off));
            }
            Event::DeleteSnapshot => self.snapshot = None,
            Event::Look(fault) => {
                self.look(fault);
            }
            Event::Reclaim(fault) => {
                self.reclaim(fault);
            }
        }
        self.check();
    }

    fn begin(&mut self, target: Option<&str>) {
        // The API refuses a second one.
        if held(&self.claim).is_none() {
            self.operations += 1;
            self.claim.status.as_mut().unwrap().operation = Some(asked(self.operations, target));
        }
    }

    fn phase(&self) -> &str {
        self.claim.status.as_ref().unwrap().operation.as_ref().map_or("", |operation| operation.phase.as_str())
    }

    /// The data is whole in the one place that the claim's volume names, and no object shares that place.
    fn check(&self) {
        let own = spot(&self.volumes["pvc-7"]);
        assert_eq!(self.disks.get(&own), Some(&self.truth), "the claim's data is not what it was: {self:#?}");
        let spots: BTreeSet<_> = self.volumes.values().map(spot).collect();
        assert_eq!(spots.len(), self.volumes.len(), "two objects name one place");
        let kept =
            self.volumes.values().filter(|volume| volume.metadata.as_ref().unwrap().annotations.contains_key(KEEP));
        for volume in kept {
            assert!(self.disks.contains_key(&spot(volume)), "what was to be kept is gone");
        }
    }

    /// Whether there was anything to do.
    fn look(&mut self, fault: Fault) -> bool {
        let copy = held(&self.claim).and_then(|op| self.volumes.get(&copy_name(&self.claim, op)));
        let pods: Vec<&Pod> = self.pod.iter().collect();
        let volume = self.volumes["pvc-7"].clone();
        let step = next(&View {
            claim: &self.claim,
            volume: Known::Is(&volume),
            copy: copy.map_or(Known::Absent, Known::Is),
            class: Known::Absent,
            snapshot: self.snapshot.as_ref().map_or(Known::Absent, Known::Is),
            nodes: &self.nodes,
            pods: &pods,
            attached: &[],
            inspected: Some(&Inspected::Idle),
            now: at(self.clock),
        });
        match step {
            Step::Nothing | Step::Wait | Step::Inspect(_) => return false,
            Step::Write(change) => self.write(*change, fault),
            Step::Create { place, request, .. } => {
                let node = match place {
                    Where::Node(node) => node,
                    Where::Reachable(selector) => places_in(&selector)[0].segments[NODE_TOPOLOGY_KEY].clone(),
                    Where::Anywhere => panic!("the driver has places"),
                };
                let disk = (node.clone(), request.name.clone());
                let reachable = !lost::is_off(&self.nodes[&node]);
                if fault == Fault::Refused {
                    self.write(failed(&self.claim, None, "no", at(self.clock)), Fault::None);
                } else if fault != Fault::NotDone && reachable {
                    assert!(self.pod.is_none(), "data was read while a pod may write");
                    let content = if request.volume_content_source.is_some() { "snapshot" } else { "" };
                    self.disks.entry(disk.clone()).or_insert(content);
                    self.unseen.insert(disk);
                    let made = csi::Volume {
                        volume_id: request.name.clone(),
                        accessible_topology: vec![super::tests::place(&node)],
                        ..csi::Volume::default()
                    };
                    self.write(created(&self.claim, &volume, &made, "u", at(self.clock)), fault);
                }
            }
            Step::Copy { from, to } => self.copy(&volume, &from, &to, fault),
        }
        true
    }

    fn copy(&mut self, volume: &PersistentVolume, from: &str, to: &str, fault: Fault) {
        assert_eq!(from, spot(volume).0);
        let copy = self.volumes[&copy_name(&self.claim, held(&self.claim).unwrap())].clone();
        assert_eq!(to, spot(&copy).0);
        assert!(self.pod.is_none(), "data was read while a pod may write");
        match fault {
            Fault::Refused => self.write(failed(&self.claim, Some(&copy), "no", at(self.clock)), Fault::None),
            Fault::NotDone => {
                self.disks.insert(spot(&copy), "a part");
            }
            Fault::None | Fault::Unseen => {
                self.disks.insert(spot(&copy), self.truth);
                self.write(verified(&self.claim), fault);
            }
        }
    }

    fn write(&mut self, change: Change, fault: Fault) {
        if fault != Fault::None && fault != Fault::Refused {
            return;
        }
        for old in &change.delete {
            assert_eq!(self.volumes.remove(old.name()).as_ref(), Some(old), "a guard");
        }
        for mut volume in change.put {
            let stored = self.volumes.get(volume.name());
            assert_eq!(stored.is_some(), volume.mod_revision() > 0, "a guard");
            volume.metadata.as_mut().unwrap().resource_version = "1".into();
            self.unseen.remove(&spot(&volume));
            self.volumes.insert(volume.name().to_owned(), volume);
        }
        let restored = change.claim.status.as_ref().unwrap().operation.as_ref().unwrap();
        if restored.phase == DONE && self.phase() != DONE && restored.r#type == RESTORE {
            self.truth = "snapshot";
        }
        self.claim = change.claim;
    }

    /// Whether there was anything to do.
    fn reclaim(&mut self, fault: Fault) -> bool {
        let volumes: Vec<_> = self.volumes.values().cloned().collect();
        for volume in volumes {
            let around = Around {
                claim: Known::Is(&self.claim),
                attached: false,
                shared: false,
                grace: Duration::ZERO,
                now: at(self.clock),
            };
            let after = stray(&volume, Known::Is(&self.claim), at(self.clock));
            if let Some(after) = after {
                self.volumes.insert(after.name().to_owned(), after);
                return true;
            }
            match reclaim(&volume, &around) {
                Reclaim::Keep | Reclaim::Later(_) => continue,
                Reclaim::Write(after) => {
                    self.volumes.insert(after.name().to_owned(), *after);
                }
                Reclaim::Delete => {
                    if fault != Fault::NotDone {
                        self.disks.remove(&spot(&volume));
                    }
                    if fault == Fault::None {
                        self.volumes.remove(volume.name());
                    }
                }
                Reclaim::Forget => panic!("nothing here is forgotten: {volume:?}"),
            }
            return true;
        }
        false
    }
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let fault = || {
        prop_oneof![
            5 => Just(Fault::None), 1 => Just(Fault::NotDone), 1 => Just(Fault::Unseen), 1 => Just(Fault::Refused)
        ]
    };
    let event = prop_oneof![
        3 => (0..3_usize).prop_map(Event::Move),
        2 => Just(Event::Restore),
        2 => any::<bool>().prop_map(Event::Pod),
        1 => (0..3_usize, any::<bool>()).prop_map(|(node, off)| Event::Off(node, off)),
        1 => prop_oneof![9 => Just(Event::Pod(false)), 1 => Just(Event::DeleteSnapshot)],
        16 => fault().prop_map(Event::Look),
        6 => fault().prop_map(Event::Reclaim),
    ];
    prop::collection::vec(event, 0..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever fails: the data of the claim is whole in the one place that its volume names, at every moment. When faults
    /// stop the operation ends, and on the disks is what the objects name, but for what calls made that nobody saw the end
    /// of (those are adopted as orphans).
    #[test]
    fn data_is_in_one_place_and_operations_end(events in events(), keep in any::<bool>()) {
        let mut world = World::new(if keep { "Retain" } else { "Delete" });
        for event in events {
            world.happen(event);
        }
        world.happen(Event::Pod(false));
        for which in 0..NODES.len() {
            world.happen(Event::Off(which, false));
        }
        let mut steps = 0;
        while world.look(Fault::None) | world.reclaim(Fault::None) {
            world.check();
            steps += 1;
            prop_assert!(steps < 60, "it never ends: {world:#?}");
        }
        prop_assert!(matches!(world.phase(), "" | DONE | FAILED), "{world:#?}");
        let named: BTreeSet<_> = world.volumes.values().map(spot).collect();
        let there: BTreeSet<_> = world.disks.keys().cloned().collect();
        prop_assert!(named.is_subset(&there), "an object names nothing: {world:#?}");
        let more: BTreeSet<_> = there.difference(&named).cloned().collect();
        prop_assert!(more.is_subset(&world.unseen), "a leak: {more:?} in {world:#?}");
    }
}

fn run(world: &mut World) -> ClaimOperation {
    while world.look(Fault::None) {
        world.check();
    }
    world.claim.status.clone().unwrap().operation.unwrap()
}

#[test]
fn a_move_changes_the_place_and_nothing_else() {
    let mut world = World::new("Delete");
    world.begin(Some("n2"));
    let ended = run(&mut world);
    assert_eq!(ended.phase, DONE, "{}", ended.message);
    let (now, before) = (&world.volumes["pvc-7"], &world.volumes["pvc-7-before-op1"]);
    assert_eq!(spot(now), ("n2".to_owned(), "pvc-7-op1".to_owned()));
    let place_apart = |volume: &PersistentVolume| {
        let mut spec = volume.spec.clone().unwrap();
        (spec.csi, spec.node_affinity) = (None, None);
        spec
    };
    assert_eq!(place_apart(now), place_apart(&volume_on("n1", "Delete")));
    assert_eq!(spot(before), ("n1".to_owned(), "pvc-7".to_owned()));
    assert_eq!(before.status.as_ref().unwrap().phase, "Released");
    assert!(world.reclaim(Fault::None));
    assert_eq!(world.disks.len(), 1, "the old data goes the way of every volume");
}

#[test]
fn a_restore_keeps_what_was_there() {
    let mut world = World::new("Delete");
    world.begin(None);
    let ended = run(&mut world);
    assert_eq!(ended.phase, DONE, "{}", ended.message);
    assert!(ended.message.contains("pvc-7-before-op1"), "{}", ended.message);
    while world.reclaim(Fault::None) {}
    assert_eq!(world.disks.len(), 2);
    assert_eq!(world.volumes["pvc-7-before-op1"].spec.as_ref().unwrap().persistent_volume_reclaim_policy, "Retain");
}

#[test]
fn what_cannot_be_done_ends_with_advice() {
    type Before = fn(&mut World);
    let cases: [(Before, Option<&str>, &str); 6] = [
        (|_| {}, Some("n9"), "choose another"),
        (|world| world.happen(Event::Off(1, true)), Some("n2"), "out of service"),
        (|_| {}, Some("n1"), "start the pod there"),
        (|world| world.happen(Event::Off(0, true)), Some("n2"), "the data cannot be read"),
        (|world| world.happen(Event::DeleteSnapshot), None, "does not exist"),
        (
            |world| {
                let status = world.snapshot.as_mut().unwrap().status.as_mut().unwrap();
                status.restore_size = Some(Quantity { value: "2Gi".into() });
            },
            None,
            "expand the claim first",
        ),
    ];
    for (before, target, words) in cases {
        let mut world = World::new("Delete");
        before(&mut world);
        world.begin(target);
        let ended = run(&mut world);
        assert!(ended.phase == FAILED && ended.message.contains(words), "{words}: {ended:?}");
        assert_eq!(world.disks.len(), 1);
    }
}

#[test]
fn nothing_begins_while_anyone_may_write() {
    let world = World::new("Delete");
    let mut claim = world.claim.clone();
    claim.status.as_mut().unwrap().operation = Some(asked(1, Some("n2")));
    let pod = Pod { spec: Some(PodSpec { node_name: "n1".into(), ..PodSpec::default() }), ..Pod::default() };
    let volume = &world.volumes["pvc-7"];
    let view = |pods: &[&Pod], attached: &[&str], inspected: Option<&Inspected>| {
        next(&View {
            claim: &claim,
            volume: Known::Is(volume),
            copy: Known::Absent,
            class: Known::Absent,
            snapshot: Known::Absent,
            nodes: &world.nodes,
            pods,
            attached,
            inspected,
            now: at(1),
        })
    };
    let message = |step: Step| {
        let Step::Write(change) = step else { panic!("{step:?}") };
        let operation = change.claim.status.unwrap().operation.unwrap();
        (operation.phase, operation.message)
    };
    let idle = Inspected::Idle;
    let (phase, words) = message(view(&[&pod], &[], Some(&idle)));
    assert!(phase == WAITING && words.contains("delete the pod"), "{words}");
    let (phase, words) = message(view(&[], &["n1"], Some(&idle)));
    assert!(phase == WAITING && words.contains("attached"), "{words}");
    let busy = Inspected::Busy("node n1 has it".into());
    assert_eq!(message(view(&[], &[], Some(&busy))), (WAITING.to_owned(), "node n1 has it".to_owned()));
    assert_eq!(view(&[], &[], None), Step::Inspect(vec!["n1".into()]));
    assert_eq!(message(view(&[], &[], Some(&idle))).0, COPYING);
}
