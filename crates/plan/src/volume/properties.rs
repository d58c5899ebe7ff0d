//! What holds for all volumes, whatever the snapshot.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use pb::{
    Object,
    csi::v1 as csi,
    objects::{ObjectMeta, PersistentVolumeSpec, PersistentVolumeStatus, VolumeAttachment},
};
use proptest::prelude::*;

use super::{
    attach::{self, Step, User, attach, attached, attachment, node_of, retracted},
    orphans::{self, Listing},
    reclaim::{Around as ReclaimAround, Reclaim, reclaim},
    *,
};

const NODES: [&str; 3] = ["n1", "n2", "n3"];

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn volume(modes: &[&str]) -> PersistentVolume {
    PersistentVolume {
        metadata: Some(ObjectMeta { name: "pvc-1".into(), ..ObjectMeta::default() }),
        spec: Some(PersistentVolumeSpec {
            access_modes: modes.iter().map(|mode| (*mode).to_owned()).collect(),
            ..PersistentVolumeSpec::default()
        }),
        ..PersistentVolume::default()
    }
}

/// What happens around a volume that is attached.
#[derive(Clone, Debug)]
enum Act {
    /// A pod gets this node.
    Bind(usize, usize),
    /// A pod's object goes.
    Remove(usize),
    /// The leader does its n-th step.
    Step(usize),
    /// A node stages the volume, if it may.
    Stage(usize),
    /// A node lets go, if no pod object there uses it.
    Unstage(usize),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (0..4_usize, 0..3_usize).prop_map(|(pod, node)| Act::Bind(pod, node)),
        (0..4_usize).prop_map(Act::Remove),
        (0..4_usize).prop_map(Act::Step),
        (0..4_usize).prop_map(Act::Step),
        (0..3_usize).prop_map(Act::Stage),
        (0..3_usize).prop_map(Act::Unstage),
    ]
}

#[derive(Default)]
struct World {
    pods: BTreeMap<usize, &'static str>,
    attachments: BTreeMap<&'static str, VolumeAttachment>,
    /// What the driver has done.
    at_driver: Vec<&'static str>,
    staged: Vec<&'static str>,
}

impl World {
    fn play(&mut self, act: &Act, volume: &PersistentVolume) -> Result<(), TestCaseError> {
        match *act {
            Act::Bind(pod, node) => {
                self.pods.entry(pod).or_insert(NODES[node]);
            }
            Act::Remove(pod) => {
                self.pods.remove(&pod);
            }
            Act::Stage(node) => {
                let node = NODES[node];
                let used = self.pods.values().any(|at| *at == node);
                let may = self.attachments.get(node).is_some_and(|a| attach::is_attached(a) && !a.is_terminating());
                if used && may && !self.staged.contains(&node) {
                    self.staged.push(node);
                }
            }
            Act::Unstage(node) => {
                let node = NODES[node];
                if !self.pods.values().any(|at| *at == node) {
                    self.staged.retain(|staged| *staged != node);
                }
            }
            Act::Step(n) => self.step(n, volume)?,
        }
        Ok(())
    }

    fn step(&mut self, n: usize, volume: &PersistentVolume) -> Result<(), TestCaseError> {
        let users = self.pods.values().map(|node| User { pod: "p", node, starts: true }).collect();
        let there: Vec<VolumeAttachment> = self.attachments.values().cloned().collect();
        let around = attach::Around { required: true, users, attachments: there.iter().collect() };
        let steps = attach(volume, &around);
        let Some(step) = steps.get(n) else { return Ok(()) };
        let known = |node: &str| NODES.into_iter().find(|known| *known == node).unwrap();
        match step {
            Step::Want(node) => {
                self.attachments.insert(known(node), attachment("pvc-1", "d", node, "u", at(0)));
            }
            Step::Publish(a) => {
                let node = known(node_of(a));
                if !self.at_driver.contains(&node) {
                    self.at_driver.push(node);
                }
                self.attachments.insert(node, attached(a, BTreeMap::new()));
            }
            Step::Retract(a) => {
                let node = known(node_of(a));
                prop_assert!(!self.pods.values().any(|at| *at == node), "retracted under a pod");
                self.attachments.insert(node, retracted(a, at(1)));
            }
            Step::Unpublish(a) => {
                let node = known(node_of(a));
                // The node is asked first.
                if !self.staged.contains(&node) {
                    self.at_driver.retain(|at| *at != node);
                    self.attachments.remove(node);
                }
            }
            Step::Wait(_) => {}
        }
        Ok(())
    }
}

fn claim_with(uid: &str, bound: Option<&str>) -> PersistentVolumeClaim {
    let mut claim = PersistentVolumeClaim::default();
    let meta = claim.meta_mut();
    (meta.name, meta.namespace, meta.uid) = ("www".into(), "default".into(), uid.into());
    claim.spec.get_or_insert_default().volume_name = bound.unwrap_or_default().to_owned();
    claim
}

/// Volumes in every phase, of every owner, policy and reason.
fn any_volume() -> impl Strategy<Value = PersistentVolume> {
    let phases = prop::sample::select(vec!["", "Pending", "Available", "Bound", "Released", "Failed"]);
    let reasons = prop::sample::select(vec!["", "NodeLost", "ClaimDeleted", "NotTaken"]);
    let policies = prop::sample::select(vec!["Delete", "Retain"]);
    let owners = prop::option::of(prop::sample::select(vec!["", "7", "8"]));
    let handle = prop::sample::select(vec!["", "pvc-1"]);
    (phases, reasons, policies, owners, handle, any::<bool>(), any::<bool>()).prop_map(
        |(phase, reason, policy, owner, handle, keep, ends)| {
            let mut volume = volume(&["ReadWriteOnce"]);
            let spec = volume.spec.get_or_insert_default();
            spec.persistent_volume_reclaim_policy = policy.into();
            spec.csi.get_or_insert_default().volume_handle = handle.into();
            spec.claim_ref = owner.map(|uid| ObjectReference {
                namespace: "default".into(),
                name: "www".into(),
                uid: uid.into(),
                ..ObjectReference::default()
            });
            volume.status = Some(PersistentVolumeStatus {
                phase: phase.into(),
                reason: reason.into(),
                last_phase_transition_time: Some(at(100).into()),
                ..PersistentVolumeStatus::default()
            });
            if keep {
                volume.meta_mut().annotations.insert(KEEP.into(), "yes".into());
            }
            if ends {
                volume.meta_mut().deletion_timestamp = Some(at(100).into());
            }
            volume
        },
    )
}

proptest! {
    #[test]
    fn a_volume_for_one_node_is_never_on_two_and_never_leaves_one_that_uses_it(acts in prop::collection::vec(act(), 0..80)) {
        let volume = volume(&["ReadWriteOnce"]);
        let mut world = World::default();
        for act in &acts {
            world.play(act, &volume)?;
            prop_assert!(world.attachments.len() <= 1, "two attachments");
            prop_assert!(world.at_driver.len() <= 1, "on two nodes at the driver");
            prop_assert!(world.staged.len() <= 1, "staged on two nodes");
            prop_assert!(world.staged.iter().all(|node| world.at_driver.contains(node)), "detached under a mount");
            prop_assert!(world.at_driver.iter().all(|node| world.attachments.contains_key(node)), "attached unnoticed");
        }
        // Left alone, the volume gets to a pod that wants it, or is nowhere.
        for _ in 0..12 {
            for node in 0..3 {
                world.play(&Act::Unstage(node), &volume)?;
            }
            for step in (0..4).rev() {
                world.play(&Act::Step(step), &volume)?;
            }
        }
        prop_assert_eq!(world.at_driver.is_empty(), world.pods.is_empty());
    }

    #[test]
    fn nothing_is_deleted_unless_its_claim_is_known_to_be_gone(
        volume in any_volume(),
        what in 0..4_usize,
        attached: bool,
        shared: bool,
    ) {
        let mine = claim_with("7", Some("pvc-1"));
        let unbound = claim_with("7", None);
        let claim = match what {
            0 => Known::Absent,
            1 => Known::Unreadable("bad bytes"),
            2 => Known::Is(&mine),
            _ => Known::Is(&unbound),
        };
        let around = ReclaimAround { claim, attached, shared, grace: Duration::from_secs(10), now: at(200) };
        let verdict = reclaim(&volume, &around);
        let owner = volume.spec.as_ref().unwrap().claim_ref.clone().unwrap_or_default();
        let status = volume.status.clone().unwrap();
        if verdict == Reclaim::Delete {
            prop_assert!(!attached && !shared && what != 1);
            prop_assert!(matches!(status.phase.as_str(), "Released" | "Failed"), "{}", status.phase);
            prop_assert_eq!(&volume.spec.as_ref().unwrap().persistent_volume_reclaim_policy, "Delete");
            prop_assert!(status.reason != "NodeLost" && !volume.meta().annotations.contains_key(KEEP));
            prop_assert!(what == 0 || owner.uid != "7" || status.reason == "NotTaken", "its claim lives");
        }
        if let Reclaim::Write(next) = &verdict {
            prop_assert_eq!(&next.spec, &volume.spec, "the data can still be found");
            let released = next.status.as_ref().unwrap().phase == "Released";
            let lives = what >= 2 && owner.uid == "7" && !(status.phase == "Pending" || owner.uid.is_empty());
            prop_assert!(!(released && (lives || what == 1)), "released although its claim lives or is not known");
            prop_assert_eq!(status.reason == "NodeLost", next.status.as_ref().unwrap().reason == "NodeLost");
        }
        if verdict == Reclaim::Forget && status.phase == "Bound" {
            prop_assert!(owner.uid.is_empty());
        }
    }

    #[test]
    fn a_claim_gets_the_smallest_volume_that_fits_and_never_anothers(
        sizes in prop::collection::vec((1..9_i64, 0..4_usize), 0..8),
        wanted in 1..9_i64,
    ) {
        let mut claim = claim_with("7", None);
        let spec = claim.spec.get_or_insert_default();
        spec.access_modes = vec!["ReadWriteOnce".into()];
        let requests = [(STORAGE.to_owned(), Quantity { value: format!("{wanted}Gi") })];
        spec.resources.get_or_insert_default().requests = requests.into();
        let volumes: Vec<PersistentVolume> = sizes.iter().enumerate().map(|(index, (size, kind))| {
            let mut volume = volume(&["ReadWriteOnce"]);
            volume.meta_mut().name = format!("v{index}");
            let spec = volume.spec.get_or_insert_default();
            spec.capacity = [(STORAGE.to_owned(), Quantity { value: format!("{size}Gi") })].into();
            let of = |name: &str, uid: &str| ObjectReference {
                namespace: "default".into(), name: name.into(), uid: uid.into(), ..ObjectReference::default()
            };
            spec.claim_ref = match kind {
                1 => Some(of("other", "")),
                2 => Some(of("www", "8")),
                _ => None,
            };
            let phase = if *kind == 3 { "Released" } else { "Available" };
            volume.status = Some(PersistentVolumeStatus { phase: phase.into(), ..PersistentVolumeStatus::default() });
            volume
        }).collect();
        let found = smallest(matching::candidates(&claim, "", &volumes)).map(volume_size);
        let best = sizes.iter().filter(|(size, kind)| *kind == 0 && *size >= wanted).map(|(size, _)| size << 30).min();
        prop_assert_eq!(found, best);
    }

    #[test]
    fn only_volumes_of_berth_that_no_object_here_names_are_unknown(
        there in prop::collection::btree_set((0..3_usize, 0..6_usize), 0..12),
        objects in prop::collection::vec((0..6_usize, prop::option::of(0..3_usize)), 0..8),
        node in 0..3_usize,
    ) {
        let ids = ["pvc-1", "pvc-2", "pvc-1-r-x", "data", "pvc-", "pvc-../x"];
        let listed: Vec<csi::Volume> = there.iter().filter(|(at, _)| *at == node)
            .map(|(_, id)| csi::Volume { volume_id: ids[*id].into(), ..csi::Volume::default() }).collect();
        let objects: Vec<std::sync::Arc<PersistentVolume>> = objects.iter().enumerate().map(|(index, (id, at))| {
            let mut volume = volume(&[]);
            volume.meta_mut().name = format!("o{index}");
            let spec = volume.spec.get_or_insert_default();
            let csi = spec.csi.get_or_insert_default();
            (csi.driver, csi.volume_handle) = ("d".into(), ids[*id].into());
            let place = at.map(|at| csi::Topology { segments: [("zone".to_owned(), NODES[at].to_owned())].into() });
            spec.node_affinity = topology::affinity(&place.into_iter().collect::<Vec<_>>());
            std::sync::Arc::new(volume)
        }).collect();
        let labels = BTreeMap::from([("zone".to_owned(), NODES[node].to_owned())]);
        let listing = Listing { driver: "d", node: Some((NODES[node], &labels)), volumes: &listed };
        for unknown in orphans::unknown(&listing, &objects) {
            prop_assert!(["pvc-1", "pvc-2", "pvc-1-r-x"].contains(&unknown.volume_id.as_str()));
            for object in &objects {
                let same = object.spec.as_ref().unwrap().csi.as_ref().unwrap().volume_handle == unknown.volume_id;
                prop_assert!(!same || !reaches(reachable(object), NODES[node], &labels), "an object names it");
            }
            let adopted = orphans::adopted(&listing, unknown, false, None, "u", at(0));
            prop_assert_eq!(&adopted.meta().name, &unknown.volume_id, "a late writer's guard fails");
            let around = ReclaimAround {
                claim: Known::Absent, attached: false, shared: false, grace: Duration::ZERO, now: at(0),
            };
            prop_assert_eq!(reclaim(&adopted, &around), Reclaim::Keep, "somebody may have written to it");
            let mut unused = unknown.clone();
            unused.volume_context.insert(orphans::UNUSED.to_owned(), "true".to_owned());
            let adopted = orphans::adopted(&listing, &unused, false, None, "u", at(0));
            prop_assert_eq!(reclaim(&adopted, &around), Reclaim::Delete);
        }
    }
}
