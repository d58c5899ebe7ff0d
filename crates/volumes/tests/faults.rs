//! Drivers that fail in every way that is foreseen: nothing is lost, nothing is left over.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests say what they expect")]

mod support;

use std::time::Duration;

use pb::objects::{PersistentVolume, PersistentVolumeClaim};
use store::{Txn, objects::put};
use support::{Cluster, DriverKind, Fault, bound, in_time, pvc};
use tonic::Code;

#[tokio::test]
async fn a_volume_is_made_on_its_node_and_its_data_goes_with_its_claim() {
    let cluster = Cluster::start(DriverKind::Local).await;
    cluster.bound(&pvc(1), "n2").await;
    let disk = cluster.driver.state.lock().disks.clone();
    assert_eq!(disk.len(), 1);
    let ((node, id), disk) = disk.first_key_value().unwrap();
    assert_eq!((node.as_str(), id.as_str()), ("n2", "pvc-uid-1"));
    assert_eq!(disk.parameters.keys().collect::<Vec<_>>(), ["type"], "Kubernetes' own words are not the driver's");
    let volume: PersistentVolume = cluster.read("", "pvc-uid-1").await.unwrap();
    assert_eq!(volume.metadata.as_ref().unwrap().finalizers, ["kubernetes.io/pv-protection"]);
    let spec = volume.spec.clone().unwrap();
    assert_eq!(
        (spec.csi.unwrap().fs_type.as_str(), spec.mount_options.as_slice()),
        ("xfs", &["noatime".to_owned()][..])
    );
    let stored: PersistentVolumeClaim = cluster.read("default", "www-web-1").await.unwrap();
    assert_eq!(bound(&cluster.prepare(&stored).await), Some("pvc-uid-1"));

    // A node that has it still keeps it.
    cluster.driver.state.lock().in_use.insert(("n2".into(), "pvc-uid-1".into()));
    cluster.remove(&stored).await;
    cluster.until_phase("pvc-uid-1", "Released").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(cluster.driver.calls("DeleteVolume"), 0);
    cluster.driver.state.lock().in_use.clear();
    cluster.until("the data is gone", async || cluster.driver.disks().is_empty()).await;
    cluster.converges().await;
    cluster.end().await;
}

#[tokio::test]
async fn a_call_whose_outcome_is_not_known_is_made_again_until_it_is() {
    let cluster = Cluster::start(DriverKind::Local).await;
    let faults = [
        Fault::DoneAndSilent,
        Fault::DoneButError(Code::Internal),
        Fault::Error(Code::Aborted),
        Fault::Silent,
        Fault::Nonsense,
    ];
    for (number, fault) in faults.into_iter().enumerate() {
        cluster.driver.will("CreateVolume", [fault.clone(), fault]);
        cluster.bound(&pvc(number), "n1").await;
    }
    cluster.converges().await;
    assert_eq!(cluster.driver.disks().len(), 5);
    let unsure = [Fault::DoneAndSilent, Fault::DoneButError(Code::Unknown), Fault::Silent, Fault::Error(Code::Aborted)];
    cluster.driver.will("DeleteVolume", unsure);
    for number in 0..5 {
        let claim: PersistentVolumeClaim = cluster.read("default", &format!("www-web-{number}")).await.unwrap();
        cluster.remove(&claim).await;
    }
    cluster.until("all are gone", async || cluster.driver.disks().is_empty()).await;
    cluster.converges().await;
    cluster.end().await;
}

#[tokio::test]
async fn requests_for_one_claim_share_one_call_and_outlive_each_other() {
    let cluster = Cluster::start(DriverKind::Local).await;
    cluster.provisioned(&pvc(0), "n1").await;
    cluster.driver.will("CreateVolume", [Fault::Silent]);
    let claim = pvc(1);
    let ask = || cluster.provision(&claim, "n1");
    let gone = tokio::time::timeout(Duration::from_millis(50), ask()).await;
    assert!(gone.is_err(), "its caller went away");
    let (a, b, c) = tokio::join!(ask(), ask(), ask());
    let handle =
        |pair: pb::volumes::v1::ProvisionedClaim| pair.volume.unwrap().spec.unwrap().csi.unwrap().volume_handle;
    assert_eq!([a, b, c].map(|answer| handle(answer.unwrap())), ["pvc-uid-1", "pvc-uid-1", "pvc-uid-1"]);
    assert_eq!(cluster.driver.calls("CreateVolume pvc-uid-1"), 2, "the first, and the one that repeated it");
    assert!(cluster.driver.state.lock().broken.is_empty());
    cluster.end().await;
}

#[tokio::test]
async fn a_volume_that_nobody_took_is_adopted_and_deleted_and_a_late_writer_fails() {
    let mut cluster = Cluster::start(DriverKind::Local).await;
    let late = cluster.provisioned(&pvc(1), "n1").await;
    // The manager dies between the call and its answer, elsewhere.
    cluster.driver.will("CreateVolume", [Fault::DoneAndSilent, Fault::Silent]);
    let unheard = pvc(2);
    let asked = tokio::time::timeout(Duration::from_millis(100), cluster.provision(&unheard, "n3")).await;
    assert!(asked.is_err());
    cluster.restart().await;
    assert_eq!(cluster.driver.disks().len(), 2);
    // What a person keeps beside Berth's volumes is theirs.
    let theirs = support_disk();
    cluster.driver.state.lock().disks.insert(("n2".into(), "precious".into()), theirs);
    cluster.until("both are gone", async || cluster.driver.disks() == [("n2".to_owned(), "precious".to_owned())]).await;
    cluster.until("so are their objects", async || cluster.all::<PersistentVolume>().await.is_empty()).await;
    // Between adoption and end its guard fails; afterwards the driver makes the volume anew for who asks anew.
    let pair = cluster.provisioned(&pvc(1), "n1").await;
    cluster.driver.state.lock().disks.remove(&("n2".into(), "precious".into()));
    assert!(cluster.bind(pair).await.is_some());
    assert!(cluster.bind(late).await.is_none());
    cluster.converges().await;
    cluster.end().await;
}

/// The store was lost, or a person deleted the object of a volume that is to be retained: the data is all that is left.
#[tokio::test]
async fn a_volume_that_was_used_is_adopted_and_kept() {
    let cluster = Cluster::start(DriverKind::Local).await;
    let data = support::Disk { name: "pvc-uid-7".into(), ..support_disk() };
    {
        let mut state = cluster.driver.state.lock();
        state.disks.insert(("n1".into(), "pvc-uid-7".into()), data);
        state.used.insert("pvc-uid-7".into());
    }
    cluster.until("it has an object", async || !cluster.all::<PersistentVolume>().await.is_empty()).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let adopted = cluster.all::<PersistentVolume>().await;
    let policy = adopted[0].spec.as_ref().map(|spec| spec.persistent_volume_reclaim_policy.as_str());
    assert_eq!((adopted.len(), policy), (1, Some("Retain")));
    assert_eq!(cluster.driver.calls("DeleteVolume"), 0);
    cluster.end().await;
}

fn support_disk() -> support::Disk {
    support::Disk { name: "precious".into(), bytes: 1, content: None, parameters: Default::default() }
}

#[tokio::test]
async fn a_bound_volume_is_never_adopted() {
    let cluster = Cluster::start(DriverKind::Local).await;
    for number in 0..4 {
        cluster.bound(&pvc(number), "n1").await;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(cluster.driver.calls("DeleteVolume"), 0);
    assert_eq!(cluster.all::<PersistentVolume>().await.len(), 4);
    cluster.converges().await;
    cluster.end().await;
}

#[tokio::test]
async fn a_driver_that_does_not_list_is_asked_after_the_intent_is_written() {
    let mut cluster = Cluster::start(DriverKind::Foreign).await;
    cluster.bound(&pvc(1), "n1").await;
    let volume: PersistentVolume = cluster.read("", "pvc-uid-1").await.unwrap();
    assert_eq!(volume.spec.unwrap().csi.unwrap().volume_handle, "vol/1");
    // Made, and never taken: its id was never heard.
    cluster.driver.will("CreateVolume", [Fault::DoneAndSilent, Fault::Silent, Fault::Silent]);
    let lost = pvc(2);
    assert!(tokio::time::timeout(Duration::from_millis(200), cluster.provision(&lost, "n2")).await.is_err());
    let intent: PersistentVolume = cluster.read("", "pvc-uid-2").await.unwrap();
    assert_eq!(intent.status.unwrap().phase, "Pending");
    cluster.restart().await;
    cluster.until("it is deleted", async || cluster.driver.disks().len() == 1).await;
    cluster.converges().await;
    assert_eq!(cluster.driver.disks(), [("n1".to_owned(), "vol/1".to_owned())]);
    cluster.end().await;
}

#[tokio::test]
async fn a_volume_on_the_wrong_node_draws_its_pod_there() {
    let cluster = Cluster::start(DriverKind::Local).await;
    cluster.provisioned(&pvc(0), "n1").await;
    cluster.driver.will("CreateVolume", [Fault::Elsewhere("n3")]);
    let status = cluster.provision(&pvc(1), "n1").await.unwrap_err();
    assert!(status.message().contains("n3"), "{status}");
    let Some(pb::volumes::v1::prepared_claim::State::Unbound(unbound)) = cluster.prepare(&pvc(1)).await.state else {
        panic!("no longer unbound")
    };
    let place = &unbound.reachable.unwrap().node_selector_terms[0].match_expressions[0];
    assert_eq!(place.values, ["n3"]);
    cluster.bound(&pvc(1), "n3").await;
    cluster.until("no volume is left over", async || cluster.driver.disks().len() == 1).await;
    cluster.converges().await;
    cluster.end().await;
}

#[tokio::test]
async fn what_a_driver_refuses_is_a_problem_that_says_why() {
    let cluster = Cluster::start(DriverKind::Local).await;
    let mut shared = pvc(1);
    shared.spec.as_mut().unwrap().access_modes = vec!["ReadWriteMany".into()];
    cluster.provisioned(&pvc(0), "n1").await;
    let status = cluster.provision(&shared, "n1").await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    let Some(pb::volumes::v1::prepared_claim::State::Problem(problem)) = cluster.prepare(&shared).await.state else {
        panic!("no problem")
    };
    assert_eq!(problem.reason, "ProvisioningFailed");
    assert!(problem.message.contains("one node at a time"), "{}", problem.message);

    // What is refused at the end shows as a phase, and is tried again after a while.
    cluster.bound(&pvc(2), "n1").await;
    cluster.driver.will("DeleteVolume", [Fault::Error(Code::PermissionDenied)]);
    let stored: PersistentVolumeClaim = cluster.read("default", "www-web-2").await.unwrap();
    cluster.remove(&stored).await;
    cluster.until_phase("pvc-uid-2", "Failed").await;
    let failed: PersistentVolume = cluster.read("", "pvc-uid-2").await.unwrap();
    assert!(failed.status.unwrap().message.contains("as told"));
    cluster.until("it is gone", async || cluster.read::<PersistentVolume>("", "pvc-uid-2").await.is_none()).await;
    cluster.end().await;
}

#[tokio::test]
async fn many_claims_come_and_go_amid_faults_and_restarts_without_a_leak() {
    let mut cluster = Cluster::start(DriverKind::Local).await;
    for round in 0_usize..4 {
        let every = [
            Fault::DoneAndSilent,
            Fault::Error(Code::Unavailable),
            Fault::DoneButError(Code::Internal),
            Fault::Silent,
            Fault::DoneButError(Code::DeadlineExceeded),
        ];
        cluster.driver.will("CreateVolume", every.clone());
        cluster.driver.will("DeleteVolume", every);
        for number in 0..6 {
            let (claim, node) = (pvc(round * 10 + number), ["n1", "n2", "n3"][number % 3]);
            if number % 3 == round % 3 {
                // Its caller gives up at once.
                drop(tokio::time::timeout(Duration::from_millis(20), cluster.provision(&claim, node)).await);
            } else {
                cluster.bound(&claim, node).await;
            }
        }
        cluster.restart().await;
        for claim in cluster.all::<PersistentVolumeClaim>().await.iter().step_by(2) {
            cluster.remove(claim).await;
        }
    }
    let claims = cluster.all::<PersistentVolumeClaim>().await.len();
    assert!(claims > 0);
    in_time("as many volumes as claims", async {
        while cluster.driver.disks().len() != claims || cluster.all::<PersistentVolume>().await.len() != claims {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    cluster.converges().await;
    for claim in cluster.all::<PersistentVolumeClaim>().await {
        assert!(bound(&cluster.prepare(&claim).await).is_some());
    }
    cluster.end().await;
}

#[tokio::test]
async fn nothing_is_deleted_that_a_person_wants_kept_or_whose_node_is_lost() {
    let cluster = Cluster::start(DriverKind::Local).await;
    for number in 0..3 {
        cluster.bound(&pvc(number), "n1").await;
    }
    cluster
        .change("", "pvc-uid-0", |v: &mut PersistentVolume| {
            v.metadata.as_mut().unwrap().annotations.insert("volume.berth.dev/keep".into(), "true".into());
        })
        .await;
    cluster
        .change("", "pvc-uid-1", |v: &mut PersistentVolume| {
            v.spec.as_mut().unwrap().persistent_volume_reclaim_policy = "Retain".into();
        })
        .await;
    for number in 0..2 {
        let claim: PersistentVolumeClaim = cluster.read("default", &format!("www-web-{number}")).await.unwrap();
        cluster.remove(&claim).await;
        cluster.until_phase(&format!("pvc-uid-{number}"), "Released").await;
    }
    // Its claim is deleted and made again: another claim gets another volume.
    let (claim, successor) = (pvc(2), support::claim("www-web-2", "uid-9"));
    cluster.remove(&claim).await;
    cluster.commit(Txn { guards: vec![], ops: vec![put(&successor)] }).await.unwrap();
    cluster
        .until("the old volume is gone", async || !cluster.driver.disks().iter().any(|(_, id)| id == "pvc-uid-2"))
        .await;
    assert_eq!(cluster.driver.disks().len(), 2);
    cluster.end().await;
}
