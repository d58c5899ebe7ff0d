//! Volumes of `type: image` really have the size that was asked for, and really grow.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pb::{
    ObjectExt,
    objects::{ContainerStatus, PersistentVolumeClaim, Pod},
};
use tests::{
    LabGuard,
    canary::{
        line::{Filled, Line},
        set::{CanarySet, Storage, capacity},
        writer::{Writer, address},
    },
    client::Client,
    inventory,
};
use tokio::time::Instant;

const PATIENCE: Duration = Duration::from_secs(90);
const MEBI: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn images_have_the_size_that_was_asked_for() -> Result<()> {
    let lab = LabGuard::up()?;
    let client = Client::new(&lab.lab.server())?;
    lab.reach_pods(&client).await?;
    let told = stories(&lab, &client).await;
    if told.is_err() {
        println!("{}", lab.complaints());
    }
    told?;
    drop(lab);
    tests::nothing_is_left()
}

async fn stories(lab: &LabGuard, client: &Client) -> Result<()> {
    xfs_grows_under_a_running_container(lab, client).await.context("xfs")?;
    ext4_grows_at_the_next_start_at_the_latest(lab, client).await.context("ext4")
}

const fn image(name: &'static str, parameters: &'static [(&'static str, &'static str)], size: i64) -> Storage {
    Storage { name, driver: "local", parameters, size, growth: 80, bound_to_node: true }
}

async fn xfs_grows_under_a_running_container(lab: &LabGuard, client: &Client) -> Result<()> {
    let mut set = CanarySet::new(client, image("image-xfs", &[("type", "image"), ("fsType", "xfs")], 320), 1);
    let before = begin(&set).await?;
    let mut line = Line::connect(&set.pod(0), address(client, &set.pod(0)).await?).await?;
    let first = fill_up(&mut line, 320).await?;

    grow(&mut set).await?;
    let after = container(client, &set.pod(0)).await?;
    ensure!(
        (&before.container_id, before.restart_count) == (&after.container_id, after.restart_count),
        "the container was restarted: {before:?} became {after:?}"
    );
    // Over the same connection: the very same process has more room.
    let more = line.fill(60 * MEBI).await?;
    ensure!(more == Filled::All(60 * MEBI), "60 MiB more do not fit after it grew by 80: {more:?}");
    let second = fill_up(&mut line, 400).await?;
    println!(
        "xfs: full after {} MiB; {} MiB more in the same container after it grew by 80",
        first / MEBI,
        60 + second / MEBI
    );
    line.clear().await?;
    end(lab, client, &set).await
}

async fn ext4_grows_at_the_next_start_at_the_latest(lab: &LabGuard, client: &Client) -> Result<()> {
    let mut set = CanarySet::new(client, image("image-ext4", &[("type", "image"), ("fsType", "ext4")], 64), 1);
    begin(&set).await?;
    let writer = Writer::start(client, &set.pod(0));
    writer.writes_again(Instant::now() + PATIENCE).await?;
    let mut line = Line::connect(&set.pod(0), address(client, &set.pod(0)).await?).await?;
    fill_up(&mut line, 64).await?;
    line.clear().await?;

    let size = set.grow(set.storage.growth).await?;
    let claim = set
        .until::<PersistentVolumeClaim>(&set.claim(0), Instant::now() + PATIENCE, |claim| {
            Ok(claim.and_then(capacity) >= Some(size) || claim.is_some_and(is_pending))
        })
        .await?;
    let online = claim.as_ref().and_then(capacity) >= Some(size);
    if !online {
        // The kernel wants more rights for it than drivers have here; the set says what helps.
        let pod = client.get::<Pod>(&set.pod(0)).await?.context("the pod")?;
        set.delete_pod(pod.name()).await?;
        set.replaced(pod.name(), pod.uid(), Instant::now() + PATIENCE).await?;
        set.until(&set.claim(0), Instant::now() + PATIENCE, |claim| Ok(claim.and_then(capacity) >= Some(size))).await?;
        set.whole(Instant::now() + PATIENCE).await?;
    }
    writer.writes_again(Instant::now() + PATIENCE).await?;
    writer.check().await?;
    let mut line = Line::connect(&set.pod(0), address(client, &set.pod(0)).await?).await?;
    let filled = line.fill(100 * MEBI).await?;
    ensure!(filled == Filled::All(100 * MEBI), "100 MiB do not fit into 144: {filled:?}");
    println!(
        "ext4: grew {}; 100 MiB fit where 64 MiB were",
        if online { "online" } else { "when the pod started again" }
    );
    drop(writer);
    end(lab, client, &set).await
}

async fn begin(set: &CanarySet) -> Result<ContainerStatus> {
    set.apply_all().await?;
    let pods = set.whole(Instant::now() + PATIENCE).await?;
    status(pods.first().context("no pod")?)
}

async fn end(lab: &LabGuard, client: &Client, set: &CanarySet) -> Result<()> {
    set.remove(Instant::now() + PATIENCE).await?;
    inventory::settled(lab, client, Instant::now() + PATIENCE).await
}

/// Lets the claim template grow, and waits until the claim has it.
async fn grow(set: &mut CanarySet) -> Result<()> {
    let size = set.grow(set.storage.growth).await?;
    set.until(&set.claim(0), Instant::now() + PATIENCE, |claim| Ok(claim.and_then(capacity) >= Some(size))).await?;
    Ok(())
}

/// Writes until there is no more room, which must come before the size of the volume in MiB.
async fn fill_up(line: &mut Line, size: u64) -> Result<u64> {
    match line.fill(size * MEBI).await? {
        Filled::Full(written) => Ok(written),
        Filled::All(_) => {
            anyhow::bail!("a volume of {size} MiB took {size} MiB of data beside its own: no size is enforced")
        }
    }
}

fn is_pending(claim: &PersistentVolumeClaim) -> bool {
    let conditions = claim.status.iter().flat_map(|status| &status.conditions);
    conditions.into_iter().any(|one| one.r#type == "FileSystemResizePending" && one.status == "True")
}

async fn container(client: &Client, pod: &str) -> Result<ContainerStatus> {
    status(&client.get::<Pod>(pod).await?.context("the pod")?)
}

fn status(pod: &Pod) -> Result<ContainerStatus> {
    let status = pod.status.as_ref().and_then(|status| status.container_statuses.first());
    status.cloned().context("the pod tells nothing of its container")
}
