use pb::objects::{
    CsiPersistentVolumeSource, ObjectMeta, ObjectReference, PersistentVolumeClaimSpec, PersistentVolumeSpec,
    VolumeSnapshotSource, VolumeSnapshotSpec,
};
use proptest::prelude::*;

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn snapshot() -> VolumeSnapshot {
    VolumeSnapshot {
        metadata: Some(ObjectMeta { name: "before".into(), uid: "s".into(), ..ObjectMeta::default() }),
        spec: Some(VolumeSnapshotSpec {
            source: Some(VolumeSnapshotSource { persistent_volume_claim_name: "www-web-0".into() }),
        }),
        ..VolumeSnapshot::default()
    }
}

fn claim() -> PersistentVolumeClaim {
    PersistentVolumeClaim {
        metadata: Some(ObjectMeta { name: "www-web-0".into(), uid: "7".into(), ..ObjectMeta::default() }),
        spec: Some(PersistentVolumeClaimSpec { volume_name: "pvc-7".into(), ..Default::default() }),
        ..PersistentVolumeClaim::default()
    }
}

fn volume() -> PersistentVolume {
    PersistentVolume {
        spec: Some(PersistentVolumeSpec {
            csi: Some(CsiPersistentVolumeSource {
                driver: "local".into(),
                volume_handle: "h1".into(),
                ..Default::default()
            }),
            claim_ref: Some(ObjectReference { uid: "7".into(), ..ObjectReference::default() }),
            storage_class_name: "fast".into(),
            ..PersistentVolumeSpec::default()
        }),
        ..PersistentVolume::default()
    }
}

fn step(snapshot: &VolumeSnapshot, claim: Known<'_, PersistentVolumeClaim>, user: Option<&str>) -> Step {
    let volume = volume();
    next(&View { snapshot, claim, volume: Known::Is(&volume), user, now: at(1) })
}

fn written(step: Step) -> VolumeSnapshot {
    let Step::Write(snapshot) = step else { panic!("{step:?}") };
    *snapshot
}

fn error(snapshot: &VolumeSnapshot) -> String {
    snapshot.status.clone().unwrap_or_default().error.unwrap_or_default().message
}

fn end(mut snapshot: VolumeSnapshot) -> VolumeSnapshot {
    snapshot.metadata.as_mut().unwrap().deletion_timestamp = Some(at(5).into());
    snapshot
}

fn answer(ready: bool) -> csi::Snapshot {
    csi::Snapshot {
        snapshot_id: "snap-1".into(),
        size_bytes: 1 << 30,
        ready_to_use: ready,
        creation_time: Some(csi::Timestamp { seconds: 9, nanos: 1 }),
        ..csi::Snapshot::default()
    }
}

#[test]
fn a_snapshot_says_what_it_is_of_before_the_driver_is_asked() {
    let intent = written(step(&snapshot(), Known::Is(&claim()), None));
    assert_eq!(intent.meta().finalizers, [FINALIZER]);
    let Step::Create(asked) = step(&intent, Known::Is(&claim()), None) else { panic!() };
    assert_eq!((asked.name.as_str(), asked.volume_handle.as_str()), ("snapshot-s", "h1"));
    let Step::Create(again) = step(&intent, Known::Absent, None) else { panic!("the claim is not needed any more") };
    assert_eq!(again, asked);

    let cut = made(&intent, &answer(false));
    assert!(matches!(step(&cut, Known::Is(&claim()), None), Step::Create(_)), "asked until it is ready");
    let ready = made(&cut, &answer(true));
    let status = ready.status.clone().unwrap();
    assert!(status.ready_to_use);
    assert_eq!(status.restore_size.unwrap().value, "1Gi");
    assert_eq!(status.creation_time.unwrap().seconds, 9);
    assert_eq!(step(&ready, Known::Absent, None), Step::Nothing);
}

#[test]
fn what_a_snapshot_waits_for_is_said_once() {
    let mut unbound = claim();
    unbound.spec.as_mut().unwrap().volume_name.clear();
    let mut held = claim();
    held.status.get_or_insert_default().operation =
        Some(pb::objects::ClaimOperation { phase: "Copying".into(), r#type: "Move".into(), ..Default::default() });
    let cases = [
        (Known::Absent, "does not exist"),
        (Known::Is(&unbound), "no volume yet"),
        (Known::Is(&held), "held by a Move"),
        (Known::Unreadable("broken"), "cannot be read: broken"),
    ];
    for (claim, words) in cases {
        let told = written(step(&snapshot(), claim, None));
        assert!(error(&told).contains(words), "{}", error(&told));
        assert_eq!(step(&told, claim, None), Step::Nothing);
    }
}

#[test]
fn a_snapshot_that_was_asked_for_is_learnt_before_it_is_deleted() {
    let intent = end(written(step(&snapshot(), Known::Is(&claim()), None)));
    assert!(matches!(step(&intent, Known::Absent, None), Step::Create(_)), "it may have been made");
    let learnt = made(&intent, &answer(false));
    assert!(matches!(step(&learnt, Known::Absent, None), Step::Delete { handle, .. } if handle == "snap-1"));
    assert_eq!(gone(&learnt), End::Delete);

    let refused = refused(&intent, None, "no such volume", at(6));
    assert_eq!(step(&refused, Known::Absent, None), Step::End(End::Delete), "nothing was made");
    assert_eq!(step(&end(snapshot()), Known::Is(&claim()), None), Step::Nothing, "nothing was ever asked for");
}

#[test]
fn a_snapshot_stays_while_a_claim_is_made_of_it() {
    let ready = end(made(&written(step(&snapshot(), Known::Is(&claim()), None)), &answer(true)));
    let told = written(step(&ready, Known::Absent, Some("data-web-1")));
    assert!(error(&told).contains("data-web-1"));
    assert!(matches!(step(&told, Known::Absent, None), Step::Delete { .. }));
}

#[test]
fn a_refused_snapshot_begins_anew_only_where_the_claim_has_another_volume() {
    let intent = written(step(&snapshot(), Known::Is(&claim()), None));
    let same = refused(&intent, Some("h1"), "busy", at(2));
    assert!(matches!(step(&same, Known::Is(&claim()), None), Step::Create(_)));
    let other = refused(&intent, Some("h2"), "no such volume", at(2));
    assert!(matches!(step(&other, Known::Is(&claim()), None), Step::Write(_)));
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    None,
    NotDone,
    DoneUnknown,
    Unwritten,
    Refused,
}

fn faults() -> impl Strategy<Value = Vec<(Fault, bool)>> {
    let fault = prop_oneof![
        Just(Fault::None),
        Just(Fault::NotDone),
        Just(Fault::DoneUnknown),
        Just(Fault::Unwritten),
        Just(Fault::Refused)
    ];
    prop::collection::vec((fault, any::<bool>()), 0..20)
}

proptest! {
    /// However calls and writes fail, and whenever the snapshot is deleted: the object goes only when the driver holds
    /// nothing, and it does go.
    #[test]
    fn nothing_leaks_and_deletion_ends(faults in faults(), deleted_at in 0..20_usize) {
        let mut stored = Some(snapshot());
        let mut held = false;
        let total = faults.len().max(deleted_at) + 20;
        let mut faults = faults.into_iter();
        for n in 0..total {
            let Some(now) = stored.clone() else { break };
            if n == deleted_at {
                // The API deletes at once what has no finalizer.
                stored = (!now.meta().finalizers.is_empty()).then(|| end(now));
                continue;
            }
            let (fault, ready) = faults.next().unwrap_or((Fault::None, true));
            let after = match step(&now, Known::Is(&claim()), None) {
                Step::Nothing => continue,
                Step::Write(after) => Some(*after),
                Step::End(End::Delete) => None,
                Step::End(End::Write(after)) => Some(*after),
                Step::Create(_) => {
                    held |= !matches!(fault, Fault::NotDone | Fault::Refused);
                    match fault {
                        Fault::None => Some(made(&now, &answer(ready))),
                        // A driver refuses finally only what it does not have.
                        Fault::Refused if !held => Some(refused(&now, Some("h1"), "no", at(2))),
                        _ => Some(kept(&now, "late", at(2))),
                    }
                }
                Step::Delete { .. } => {
                    held &= matches!(fault, Fault::NotDone | Fault::Refused);
                    match fault {
                        Fault::None => match gone(&now) {
                            End::Delete => None,
                            End::Write(after) => Some(*after),
                        },
                        _ => Some(kept(&now, "late", at(2))),
                    }
                }
            };
            if !matches!(fault, Fault::Unwritten) {
                stored = after;
            }
            prop_assert!(stored.is_some() || !held, "the object went before the data");
        }
        prop_assert!(stored.is_none() && !held, "it never ends: {stored:?}");
    }
}
