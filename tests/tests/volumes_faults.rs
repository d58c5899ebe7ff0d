//! Drivers that go wrong in every way: the system converges without help, and nothing stays behind.
//!
//! For each fault there is a driver of its own, on all nodes, whose first call of every kind for each volume ends with
//! that fault. Its set lives a whole life: volumes are made, attached, staged, published, grown, snapshot, and all of it
//! again backwards. All drivers are at work at the same time; `FAULT=crash` has one of them alone.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use pb::ObjectExt;
use pb::objects::{PersistentVolume, Pod, VolumeAttachment};
use tests::{
    LabGuard,
    canary::{
        set::{CanarySet, Storage, capacity},
        writer::Writer,
    },
    client::Client,
    inventory,
    scripted::{run::Drivers, script::Fault},
};
use tokio::time::Instant;

/// A call that is never answered costs one timeout, and a life has a dozen of calls.
const PATIENCE: Duration = Duration::from_secs(180);
/// The services' patience with a driver, in seconds.
const TIMEOUT: &str = "3";
const REPLICAS: usize = 2;

/// What every life asks a driver for.
const CALLS: [&str; 11] = [
    "ControllerExpandVolume",
    "ControllerPublishVolume",
    "ControllerUnpublishVolume",
    "CreateSnapshot",
    "CreateVolume",
    "DeleteSnapshot",
    "DeleteVolume",
    "NodePublishVolume",
    "NodeStageVolume",
    "NodeUnpublishVolume",
    "NodeUnstageVolume",
];

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_drivers_leave_nothing_behind() -> Result<()> {
    let lab = LabGuard::up_with(&[("BERTH_CSI_TIMEOUT", TIMEOUT), ("BERTH_ORPHAN_GRACE", "5")])?;
    let client = Client::new(&lab.lab.server())?;
    lab.reach_pods(&client).await?;
    let only = std::env::var("FAULT").ok();
    let faults = Fault::ALL.into_iter().filter(|fault| only.as_ref().is_none_or(|only| only == fault.name()));
    let lives = faults.map(|fault| {
        let (lab, client) = (&lab, &client);
        async move { live(lab, client, fault).await.with_context(|| format!("with a driver whose fault is {fault}")) }
    });
    let failed: Vec<String> =
        join_all(lives).await.into_iter().filter_map(|told| told.err().map(|error| format!("{error:#}"))).collect();
    if !failed.is_empty() {
        println!("{}", lab.complaints());
    }
    ensure!(failed.is_empty(), "{} lives failed:\n{}", failed.len(), failed.join("\n"));
    inventory::settled(&lab, &client, Instant::now() + PATIENCE).await?;
    drop(lab);
    tests::nothing_is_left()
}

/// One life of a set whose driver goes wrong.
async fn live(lab: &LabGuard, client: &Client, fault: Fault) -> Result<()> {
    let start = Instant::now();
    let soon = || Instant::now() + PATIENCE;
    // The names live as long as the test.
    let name: &'static str = Box::leak(format!("x-{fault}").into_boxed_str());
    let drivers = Drivers::start(lab, name, Path::new(env!("CARGO_BIN_EXE_scripted_driver")))?;
    match fault {
        Fault::WrongNode => {
            drivers.script.write(&[("NodeGetInfo", fault, 1), ("ControllerPublishVolume", fault, 1)])?
        }
        _ => drivers.script.write(&[("*", fault, 1)])?,
    }
    let storage = Storage { name, driver: name, parameters: &[], size: 64, growth: 8, bound_to_node: false };
    let mut set = CanarySet::new(client, storage, REPLICAS);
    set.apply_all().await?;
    set.whole(soon()).await.context("bring-up")?;
    let writers: Vec<Writer> = (0..REPLICAS).map(|ordinal| Writer::start(client, &set.pod(ordinal))).collect();
    for writer in &writers {
        writer.writes_again(soon()).await?;
    }

    let size = set.grow(set.storage.growth).await?;
    for ordinal in 0..REPLICAS {
        set.until(&set.claim(ordinal), soon(), |claim| Ok(claim.and_then(capacity) >= Some(size)))
            .await
            .context("expand")?;
    }
    let group = format!("{name}-g");
    set.snapshot(&group).await?;
    set.snapshot_ready(&group, soon()).await.context("snapshot")?;
    let pod = client.get::<Pod>(&set.pod(0)).await?.context("the pod")?;
    set.delete_pod(pod.name()).await?;
    set.replaced(pod.name(), pod.uid(), soon()).await.context("replace a pod")?;
    set.whole(soon()).await.context("replace a pod")?;
    for writer in &writers {
        writer.writes_again(soon()).await?;
        writer.check().await?;
    }
    drop(writers);
    set.forget_snapshot(&group, soon()).await.context("delete the snapshots")?;
    set.remove(soon()).await.context("remove the set")?;
    nothing_stays(client, &drivers, name).await?;

    let struck = drivers.script.struck()?;
    if fault != Fault::WrongNode {
        let missing: Vec<_> = CALLS.iter().filter(|call| !struck.iter().any(|one| one == *call)).collect();
        ensure!(missing.is_empty(), "the fault never struck {missing:?}");
    }
    println!(
        "{fault}: struck {} kinds of calls, converged, nothing is left after {:.0?}",
        struck.len(),
        start.elapsed()
    );
    Ok(())
}

/// Waits until store and driver know of no volume any more.
async fn nothing_stays(client: &Client, drivers: &Drivers, driver: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut left = Vec::new();
        for kind in ["volumes", "snapshots", "attached"] {
            left.extend(drivers.state.ids(kind)?.into_iter().map(|id| format!("{kind}/{id} of the driver")));
        }
        let of_driver = |volume: &PersistentVolume| {
            volume.spec.as_ref().and_then(|spec| spec.csi.as_ref()).is_some_and(|csi| csi.driver == driver)
        };
        let (volumes, _) = client.list::<PersistentVolume>("").await?;
        left.extend(volumes.iter().filter(|one| of_driver(one)).map(|one| format!("volume {}", one.name())));
        let (attachments, _) = client.list::<VolumeAttachment>("").await?;
        let attached = attachments.iter().filter(|one| one.spec.as_ref().is_some_and(|spec| spec.attacher == driver));
        left.extend(attached.map(|one| format!("attachment {}", one.name())));
        let folder = drivers.state.folder().display().to_string();
        let table = std::fs::read_to_string("/proc/self/mountinfo")?;
        left.extend(
            table.lines().filter(|line| line.contains(&format!("{folder}/"))).map(|line| format!("mount {line}")),
        );
        if left.is_empty() {
            break;
        }
        ensure!(Instant::now() < deadline, "these stay: {}", left.join(", "));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let broken = drivers.state.all_broken()?;
    ensure!(broken.is_empty(), "rules of the interface were broken:\n  {}", broken.join("\n  "));
    Ok(())
}
