use std::collections::BTreeMap;

use pb::objects::{
    CsiPersistentVolumeSource, ObjectMeta, ObjectReference, PersistentVolumeClaimSpec, PersistentVolumeSpec, Quantity,
    VolumeResourceRequirements,
};
use proptest::prelude::*;

use super::*;

const MIB: i64 = 1 << 20;

fn storage(mib: i64) -> BTreeMap<String, Quantity> {
    BTreeMap::from([(STORAGE.to_owned(), Quantity { value: format!("{mib}Mi") })])
}

fn claim(wanted: i64, capacity: i64) -> PersistentVolumeClaim {
    PersistentVolumeClaim {
        metadata: Some(ObjectMeta { name: "www-web-0".into(), uid: "7".into(), ..ObjectMeta::default() }),
        spec: Some(PersistentVolumeClaimSpec {
            volume_name: "pvc-7".into(),
            storage_class_name: Some("fast".into()),
            resources: Some(VolumeResourceRequirements { requests: storage(wanted), ..Default::default() }),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: Some(PersistentVolumeClaimStatus { capacity: storage(capacity), ..Default::default() }),
        ..PersistentVolumeClaim::default()
    }
}

fn volume(size: i64) -> PersistentVolume {
    PersistentVolume {
        metadata: Some(ObjectMeta { name: "pvc-7".into(), ..ObjectMeta::default() }),
        spec: Some(PersistentVolumeSpec {
            capacity: storage(size),
            csi: Some(CsiPersistentVolumeSource { driver: "local".into(), ..Default::default() }),
            claim_ref: Some(ObjectReference { uid: "7".into(), ..ObjectReference::default() }),
            ..PersistentVolumeSpec::default()
        }),
        ..PersistentVolume::default()
    }
}

fn class(allows: bool) -> StorageClass {
    StorageClass { allow_volume_expansion: Some(allows), ..StorageClass::default() }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn step(claim: &PersistentVolumeClaim, volume: &PersistentVolume, class: &StorageClass, used: bool) -> Step {
    next(&View { claim, volume: Known::Is(volume), class: Known::Is(class), used, now: at(1) })
}

fn written(step: Step) -> PersistentVolumeClaim {
    let Step::Write(claim) = step else { panic!("{step:?}") };
    *claim
}

fn condition<'a>(claim: &'a PersistentVolumeClaim, kind: &str) -> Option<&'a str> {
    let conditions = &claim.status.as_ref()?.conditions;
    conditions.iter().find(|condition| condition.r#type == kind).map(|condition| condition.reason.as_str())
}

#[test]
fn a_claim_grows_by_intent_then_driver_then_node() {
    let (claim, volume, class) = (claim(20, 10), volume(10), class(true));
    let claim = written(step(&claim, &volume, &class, true));
    assert_eq!(condition(&claim, RESIZING), Some("Expanding"));
    assert_eq!(step(&claim, &volume, &class, true), Step::GrowVolume { bytes: 20 * MIB });

    let grown = Grown { bytes: 21 * MIB, on_node: true };
    let (claim, volume) = volume_grew(&claim, &volume, grown, at(2));
    assert_eq!(volume_bytes(&volume), 21 * MIB);
    assert_eq!(State::of(&claim).capacity, 10 * MIB, "the pod cannot use it yet");
    assert_eq!(condition(&claim, FILE_SYSTEM_PENDING), Some("WaitingForNode"));
    assert_eq!(step(&claim, &volume, &class, false), Step::Nothing, "it grows when it is staged next");
    assert_eq!(step(&claim, &volume, &class, true), Step::GrowFileSystem { bytes: 21 * MIB });

    let refused = file_system_did_not_grow(&claim, "not permitted while mounted", at(3));
    assert_eq!(condition(&refused, FILE_SYSTEM_PENDING), Some("NodeRefused"));
    assert_eq!(step(&refused, &volume, &class, true), Step::GrowFileSystem { bytes: 21 * MIB });

    let claim = file_system_grew(&refused, &volume);
    assert_eq!(State::of(&claim).capacity, 21 * MIB);
    let status = claim.status.as_ref().unwrap();
    assert!(status.conditions.is_empty() && status.allocated_resources.is_empty(), "{status:?}");
    assert_eq!(step(&claim, &volume, &class, true), Step::Nothing);
}

#[test]
fn sizes_stay_as_they_were_written() {
    let (claim, volume) = (claim(2048, 1024), volume(1024));
    let mut claim = written(step(&claim, &volume, &class(true), false));
    claim.spec.as_mut().unwrap().resources.as_mut().unwrap().requests =
        BTreeMap::from([(STORAGE.to_owned(), Quantity { value: "2Gi".into() })]);
    let (claim, volume) = volume_grew(&claim, &volume, Grown { bytes: 2048 * MIB, on_node: false }, at(1));
    assert_eq!(volume.spec.unwrap().capacity[STORAGE].value, "2Gi");
    assert_eq!(claim.status.unwrap().capacity[STORAGE].value, "2Gi");
}

#[test]
fn a_class_that_forbids_it_is_said_once_and_heard_when_it_changes() {
    let (claim, volume) = (claim(20, 10), volume(10));
    let told = written(step(&claim, &volume, &class(false), false));
    assert_eq!(condition(&told, RESIZE_ERROR), Some("ClassForbidsExpansion"));
    assert_eq!(step(&told, &volume, &class(false), false), Step::Nothing);
    let going = written(step(&told, &volume, &class(true), false));
    assert_eq!(condition(&going, RESIZE_ERROR), None);
    assert_eq!(step(&going, &volume, &class(false), false), Step::GrowVolume { bytes: 20 * MIB }, "begun is begun");
}

#[test]
fn what_a_driver_refused_for_good_waits_for_another_size() {
    let (claim, volume, class) = (claim(20, 10), volume(10), class(true));
    let claim = written(step(&claim, &volume, &class, false));
    let mut claim = volume_did_not_grow(&claim, &Failure::Final("too large".into()), at(2));
    assert_eq!(condition(&claim, RESIZE_ERROR), Some("Infeasible"));
    assert_eq!(condition(&claim, RESIZING), None);
    assert_eq!(step(&claim, &volume, &class, true), Step::Nothing);

    let set = |claim: &mut PersistentVolumeClaim, mib| {
        claim.spec.as_mut().unwrap().resources.as_mut().unwrap().requests = storage(mib);
    };
    set(&mut claim, 15);
    let smaller = written(step(&claim, &volume, &class, true));
    assert_eq!(step(&smaller, &volume, &class, true), Step::GrowVolume { bytes: 15 * MIB });
    set(&mut claim, 10);
    let old = written(step(&claim, &volume, &class, true));
    assert_eq!(condition(&old, RESIZE_ERROR), None, "the old size is no error");
    assert!(!concerns(&old));
}

#[test]
fn nothing_is_done_to_claims_that_are_held_or_go_or_do_not_own_the_volume() {
    let (volume, class) = (volume(10), class(true));
    let mut held = claim(20, 10);
    held.status.as_mut().unwrap().operation =
        Some(pb::objects::ClaimOperation { phase: "Copying".into(), ..Default::default() });
    let mut going = claim(20, 10);
    going.metadata.as_mut().unwrap().deletion_timestamp = Some(at(1).into());
    let mut other = claim(20, 10);
    other.metadata.as_mut().unwrap().uid = "8".into();
    for claim in [held, going, other] {
        assert_eq!(step(&claim, &volume, &class, true), Step::Nothing);
    }
}

/// A driver, a node and a store, with a leader that may die between any two steps.
#[derive(Debug)]
struct World {
    claim: PersistentVolumeClaim,
    volume: PersistentVolume,
    class: StorageClass,
    used: bool,
    /// Bytes that the driver's volume has, and the file system on it.
    disk: i64,
    file_system: i64,
    /// MiB beyond which the driver refuses.
    most: i64,
    clock: i64,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Ask(i64),
    Use(bool),
    Allow(bool),
    Look(Fault),
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    None,
    /// The call is not done, and nobody knows.
    NotDone,
    /// The call is done, and nobody knows.
    Done,
    /// The call is done; the leader dies, or its write conflicts, before the answer is written.
    Unwritten,
    /// The node says no.
    Refused,
}

impl World {
    fn new() -> Self {
        let (disk, file_system) = (10 * MIB, 10 * MIB);
        let (claim, volume, class) = (claim(10, 10), volume(10), class(true));
        Self { claim, volume, class, used: false, disk, file_system, most: 60, clock: 0 }
    }

    fn capacity(&self) -> i64 {
        State::of(&self.claim).capacity
    }

    fn happen(&mut self, event: Event) {
        self.clock += 1;
        let before = (self.capacity(), volume_bytes(&self.volume));
        match event {
            // The API's rule: never below what the claim has.
            Event::Ask(mib) if mib * MIB >= self.capacity() => {
                let spec = self.claim.spec.as_mut().unwrap();
                spec.resources.as_mut().unwrap().requests = storage(mib);
            }
            Event::Ask(_) => {}
            // Staging makes the file system as large as the volume.
            Event::Use(used) => {
                self.used = used;
                if used {
                    self.file_system = self.disk;
                }
            }
            Event::Allow(allows) => self.class = class(allows),
            Event::Look(fault) => {
                self.look(fault);
            }
        }
        let after = (self.capacity(), volume_bytes(&self.volume));
        assert!(after.0 >= before.0 && after.1 >= before.1, "a capacity fell: {before:?} to {after:?}");
        assert!(after.1 <= self.disk, "the volume's object promises more than there is");
        assert!(after.0 <= self.file_system, "the claim promises more than a pod finds");
    }

    /// Whether there was anything to do.
    fn look(&mut self, fault: Fault) -> bool {
        let now = at(self.clock);
        match step(&self.claim, &self.volume, &self.class, self.used) {
            Step::Nothing => return false,
            Step::Write(after) => {
                assert_ne!(*after, self.claim, "a write that says nothing new");
                if !matches!(fault, Fault::Unwritten) {
                    self.claim = *after;
                }
            }
            Step::GrowVolume { bytes } => {
                let feasible = bytes <= self.most * MIB;
                if feasible && !matches!(fault, Fault::NotDone) {
                    self.disk = self.disk.max(bytes);
                }
                match fault {
                    Fault::Unwritten => {}
                    Fault::Done | Fault::NotDone | Fault::Refused => {
                        self.claim = volume_did_not_grow(&self.claim, &Failure::NotNow("late".into()), now);
                    }
                    Fault::None if feasible => {
                        let grown = Grown { bytes: self.disk, on_node: true };
                        (self.claim, self.volume) = volume_grew(&self.claim, &self.volume, grown, now);
                    }
                    Fault::None => {
                        self.claim = volume_did_not_grow(&self.claim, &Failure::Final("too large".into()), now);
                    }
                }
            }
            Step::GrowFileSystem { bytes } => {
                assert!(self.used && bytes <= self.disk);
                if !matches!(fault, Fault::NotDone | Fault::Refused) {
                    self.file_system = self.file_system.max(bytes);
                }
                match fault {
                    Fault::None => self.claim = file_system_grew(&self.claim, &self.volume),
                    Fault::Refused => self.claim = file_system_did_not_grow(&self.claim, "no", now),
                    Fault::Done | Fault::NotDone | Fault::Unwritten => {}
                }
            }
        }
        true
    }
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let fault = prop_oneof![
        4 => Just(Fault::None), 1 => Just(Fault::NotDone), 1 => Just(Fault::Done), 1 => Just(Fault::Unwritten),
        1 => Just(Fault::Refused),
    ];
    let event = prop_oneof![
        2 => (5..80_i64).prop_map(Event::Ask),
        1 => any::<bool>().prop_map(Event::Use),
        1 => any::<bool>().prop_map(Event::Allow),
        6 => fault.prop_map(Event::Look),
    ];
    prop::collection::vec(event, 0..60)
}

proptest! {
    /// Whatever fails in between: no capacity falls, nothing is promised that is not there, and when faults stop the claim
    /// has what it asked for, or says why not.
    #[test]
    fn growth_survives_faults_and_ends(events in events()) {
        let mut world = World::new();
        for event in events {
            world.happen(event);
        }
        world.happen(Event::Use(true));
        let mut steps = 0;
        while world.look(Fault::None) {
            steps += 1;
            prop_assert!(steps < 20, "it never ends: {world:?}");
        }
        let wanted = State::of(&world.claim).wanted;
        let error = condition(&world.claim, RESIZE_ERROR);
        match error {
            None => prop_assert!(world.capacity() >= wanted, "{world:?}"),
            Some("Infeasible") => prop_assert!(wanted > world.most * MIB),
            Some("ClassForbidsExpansion") => prop_assert_eq!(world.class.allow_volume_expansion, Some(false)),
            Some(other) => prop_assert!(false, "{other}"),
        }
    }
}
