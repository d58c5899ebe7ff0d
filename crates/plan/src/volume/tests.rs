use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use jiff::Timestamp;
use pb::{
    Object,
    csi::v1 as csi,
    objects::{ObjectMeta, PersistentVolumeClaimSpec, VolumeResourceRequirements},
};

use super::*;

static DRIVERS: LazyLock<BTreeSet<String>> = LazyLock::new(|| BTreeSet::from(["local".to_owned()]));

/// A claim amid classes and free volumes.
fn prepared<'a>(
    claim: &'a PersistentVolumeClaim,
    volume: Known<'a, PersistentVolume>,
    classes: &'a [StorageClass],
    free: &'a [PersistentVolume],
) -> ClaimState<'a> {
    let around = Around {
        classes: classes.iter().collect(),
        free: free.iter().collect(),
        drivers: &DRIVERS,
        source: Source::None,
        users: Vec::new(),
        at_once: false,
    };
    prepare(claim, volume, &around)
}

fn claim() -> PersistentVolumeClaim {
    PersistentVolumeClaim {
        metadata: Some(ObjectMeta {
            name: "www-web-0".into(),
            namespace: "default".into(),
            uid: "7".into(),
            ..ObjectMeta::default()
        }),
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: vec!["ReadWriteOnce".into()],
            resources: Some(VolumeResourceRequirements {
                requests: BTreeMap::from([(STORAGE.to_owned(), "1Gi".into())]),
                ..VolumeResourceRequirements::default()
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }
}

fn class(name: &str, created: i64, default: bool) -> StorageClass {
    let mut class = StorageClass { provisioner: "local".into(), ..StorageClass::default() };
    let meta = class.meta_mut();
    meta.name = name.into();
    meta.creation_timestamp = Some(Timestamp::from_second(created).unwrap().into());
    if default {
        meta.annotations.insert(DEFAULT_CLASS.into(), "true".into());
    }
    class
}

fn made() -> csi::Volume {
    let segments = BTreeMap::from([("topology.local.berth.dev/node".to_owned(), "n1".to_owned())]);
    csi::Volume {
        volume_id: "pvc-7".into(),
        accessible_topology: vec![csi::Topology { segments }],
        ..csi::Volume::default()
    }
}

fn pair() -> (PersistentVolumeClaim, PersistentVolume) {
    let made = Made { volume: &made(), node: "n1", uid: "u", now: Timestamp::UNIX_EPOCH };
    bind(&claim(), &class("fast", 1, false), made)
}

fn reason(state: &ClaimState<'_>) -> &'static str {
    match state {
        ClaimState::Bound(_) => "Bound",
        ClaimState::Unbound(_) => "Unbound",
        ClaimState::Problem(problem) => problem.reason,
    }
}

#[test]
fn a_bound_pair_finds_each_other_again() {
    let (claim, volume) = pair();
    assert_eq!(bound_to(&claim), Some("pvc-7"));
    assert_eq!(prepared(&claim, Known::Is(&volume), &[], &[]), ClaimState::Bound(&volume));
    let affinity = reachable(&volume).unwrap();
    assert!(crate::schedule::matches(affinity, "n1", &BTreeMap::new()));
    assert!(!crate::schedule::matches(affinity, "n2", &BTreeMap::new()));
    assert_eq!(volume.spec.as_ref().unwrap().capacity[STORAGE].value, "1Gi");
    assert_eq!(claim.spec.unwrap().storage_class_name.as_deref(), Some("fast"));
}

#[test]
fn the_size_is_what_the_driver_made_in_the_users_words_if_they_fit() {
    let sized = |bytes| {
        let volume = csi::Volume { capacity_bytes: bytes, ..made() };
        let made = Made { volume: &volume, node: "n1", uid: "u", now: Timestamp::UNIX_EPOCH };
        let (claim, volume) = bind(&claim(), &class("fast", 1, false), made);
        assert_eq!(claim.status.unwrap().capacity, volume.spec.as_ref().unwrap().capacity);
        volume.spec.unwrap().capacity[STORAGE].value.clone()
    };
    assert_eq!([0, 1 << 30, 2 << 30].map(sized), ["1Gi", "1Gi", "2147483648"]);
}

#[test]
fn the_volume_of_another_uid_is_never_taken() {
    let (mut claim, volume) = pair();
    claim.meta_mut().uid = "8".into();
    assert_eq!(reason(&prepared(&claim, Known::Is(&volume), &[], &[])), "VolumeMisbound");
}

#[test]
fn lost_is_not_unbound_and_unreadable_is_not_lost() {
    let (claim, _) = pair();
    let classes = [class("fast", 1, true)];
    assert_eq!(reason(&prepared(&claim, Known::Absent, &classes, &[])), "VolumeLost");
    assert_eq!(reason(&prepared(&claim, Known::Unreadable("bad bytes"), &classes, &[])), "VolumeUnreadable");
}

#[test]
fn the_newest_default_class_is_taken_then_the_first_by_name() {
    let chosen = |classes: &[StorageClass]| match prepared(&claim(), Known::Absent, classes, &[]) {
        ClaimState::Unbound(choice) => choice.class_name.to_owned(),
        other => reason(&other).to_owned(),
    };
    assert_eq!(chosen(&[class("old", 1, true), class("new", 2, true), class("none", 3, false)]), "new");
    assert_eq!(chosen(&[class("b", 1, true), class("a", 1, true)]), "a");
    assert_eq!(chosen(&[class("none", 3, false)]), "NoDefaultClass");
}

#[test]
fn every_problem_has_its_reason() {
    let classes = [class("fast", 1, true)];
    let with = |change: fn(&mut PersistentVolumeClaim)| {
        let mut claim = claim();
        change(&mut claim);
        reason(&prepared(&claim, Known::Absent, &classes, &[]))
    };
    assert_eq!(with(|c| c.spec.as_mut().unwrap().storage_class_name = Some("slow".into())), "ClassNotFound");
    assert_eq!(with(|c| c.spec.as_mut().unwrap().storage_class_name = Some(String::new())), "NoClass");
    assert_eq!(with(|c| c.spec.as_mut().unwrap().volume_mode = Some("Block".into())), "UnsupportedVolumeMode");
    assert_eq!(
        with(|c| {
            let operation = ClaimOperation { r#type: "Move".into(), phase: "Copying".into(), ..Default::default() };
            c.status.get_or_insert_default().operation = Some(operation);
        }),
        "ClaimHeld"
    );
    assert_eq!(with(|c| c.meta_mut().deletion_timestamp = Some(Timestamp::UNIX_EPOCH.into())), "ClaimTerminating");
    assert_eq!(with(|c| c.spec.as_mut().unwrap().storage_class_name = Some("fast".into())), "Unbound");
    let mut foreign = class("fast", 1, true);
    foreign.provisioner = "other".into();
    assert_eq!(reason(&prepared(&claim(), Known::Absent, &[foreign], &[])), "UnknownProvisioner");
}
