//! Volumes on a node: staged, published, measured, grown.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

use anyhow::{Context, Result, ensure};
use futures::{FutureExt, future::BoxFuture};
use pb::csi::v1::{
    node_service_capability::rpc::Type as Node, volume_capability::access_mode::Mode, volume_usage::Unit, *,
};
use tonic::Code;

use super::{CREATE, Case, EXPAND, NODE_EXPAND, Need, STAGE, STATS, World, world::Call};

pub const CASES: &[Case] = &[
    Case::story("every call of a volume's life may be repeated", "all node calls are idempotent", &[CREATE], life),
    Case::story("data outlives its pods", "unpublish and unstage keep the data", &[CREATE], outlives),
    Case::story(
        "two pods of a node see one volume",
        "a staged volume is published several times",
        &[CREATE, STAGE],
        two_pods,
    ),
    Case::story("what is published read-only refuses writes", "readonly", &[CREATE], read_only),
    Case::story(
        "a published volume does not change its way",
        "other arguments at one target are ALREADY_EXISTS",
        &[CREATE, Need::Own],
        other_way,
    ),
    Case::story(
        "a volume for one pod is not given to a second",
        "SINGLE_NODE_SINGLE_WRITER published elsewhere is FAILED_PRECONDITION",
        &[CREATE, STAGE, Need::Node(Node::SingleNodeMultiWriter)],
        one_pod,
    ),
    Case::story(
        "every user may write to a new volume",
        "Berth's: the pod decides as whom it runs",
        &[CREATE, Need::Own],
        for_all,
    ),
    Case::story(
        "nothing is published before it is staged",
        "order of calls: FAILED_PRECONDITION",
        &[CREATE, STAGE],
        order,
    ),
    Case::story(
        "a volume in use is not deleted",
        "DeleteVolume in use is FAILED_PRECONDITION",
        &[CREATE, Need::Own],
        in_use,
    ),
    Case::story(
        "unpublish takes its target away and no files",
        "the target path is removed; files are not ours",
        &[CREATE],
        target,
    ),
    Case::story("usage counts bytes and inodes", "NodeGetVolumeStats", &[CREATE, STATS], usage),
    Case::story(
        "usage at a path of something else",
        "a volume that is not there is NOT_FOUND",
        &[CREATE, STATS],
        elsewhere,
    ),
    Case::story(
        "a volume that is in use grows",
        "NodeExpandVolume after ControllerExpandVolume",
        &[CREATE, EXPAND, NODE_EXPAND],
        grows,
    ),
    Case::story(
        "the size of a volume is enforced",
        "a volume has its capacity and not more",
        &[CREATE, Need::Image],
        enforced,
    ),
];

fn life(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let volume = w.create().await?;
        for _ in 0..2 {
            let pod = w.up(&volume, "a").await?;
            fs::write(pod.join("record"), "acknowledged")?;
        }
        for _ in 0..2 {
            w.expect(Call::NodeUnpublish(w.node_unpublish_request(&volume, "a")), &[Code::Ok]).await?;
        }
        if w.has(STAGE) {
            for _ in 0..2 {
                w.expect(Call::Unstage(w.unstage_request(&volume)), &[Code::Ok]).await?;
            }
        }
        if w.has(super::PUBLISH) {
            for _ in 0..2 {
                w.expect(Call::Unpublish(w.unpublish_request(&volume)), &[Code::Ok]).await?;
            }
        }
        Ok(())
    }
    .boxed()
}

fn outlives(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let volume = w.create().await?;
        fs::write(w.up(&volume, "a").await?.join("record"), "acknowledged")?;
        w.down(&volume).await?;
        ensure!(fs::read_to_string(w.up(&volume, "b").await?.join("record"))? == "acknowledged");
        Ok(())
    }
    .boxed()
}

fn two_pods(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let volume = w.create().await?;
        let (one, two) = (w.up(&volume, "a").await?, w.up(&volume, "b").await?);
        fs::write(one.join("record"), "seen")?;
        ensure!(fs::read_to_string(two.join("record"))? == "seen");
        w.expect(Call::NodeUnpublish(w.node_unpublish_request(&volume, "a")), &[Code::Ok]).await?;
        ensure!(fs::read_to_string(two.join("record"))? == "seen", "the other pod lost it");
        Ok(())
    }
    .boxed()
}

fn one_pod(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let volume_capability = Some(w.capability_of(Mode::SingleNodeSingleWriter));
        let volume = w.create().await?;
        w.stage(&volume).await?;
        let publish_context = w.attach(&volume).await?;
        let to = |pod: &str| NodePublishVolumeRequest {
            publish_context: publish_context.clone(),
            volume_capability: volume_capability.clone(),
            ..w.node_publish_request(&volume, pod)
        };
        for _ in 0..2 {
            w.expect(Call::NodePublish(to("a")), &[Code::Ok]).await?;
        }
        w.expect(Call::NodePublish(to("b")), &[Code::FailedPrecondition]).await?;
        w.expect(Call::NodeUnpublish(w.node_unpublish_request(&volume, "a")), &[Code::Ok]).await?;
        w.expect(Call::NodePublish(to("b")), &[Code::Ok]).await
    }
    .boxed()
}

fn for_all(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let volume = w.create().await?;
        let mode = fs::metadata(w.up(&volume, "a").await?)?.mode() & 0o7777;
        ensure!(mode == 0o777, "its directory has mode {mode:o}");
        Ok(())
    }
    .boxed()
}

fn read_only(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let volume = w.create().await?;
        w.stage(&volume).await?;
        let publish_context = w.attach(&volume).await?;
        let request =
            NodePublishVolumeRequest { readonly: true, publish_context, ..w.node_publish_request(&volume, "a") };
        let target = request.target_path.clone();
        w.expect(Call::NodePublish(request), &[Code::Ok]).await?;
        let error = fs::write(Path::new(&target).join("record"), "x").err().context("a write was taken")?;
        ensure!(error.kind() == io::ErrorKind::ReadOnlyFilesystem, "{error}");
        Ok(())
    }
    .boxed()
}

fn other_way(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let volume = w.create().await?;
        w.up(&volume, "a").await?;
        let request = NodePublishVolumeRequest { readonly: true, ..w.node_publish_request(&volume, "a") };
        w.expect(Call::NodePublish(request), &[Code::AlreadyExists]).await
    }
    .boxed()
}

fn order(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let volume = w.create().await?;
        let publish_context = w.attach(&volume).await?;
        let request = NodePublishVolumeRequest { publish_context, ..w.node_publish_request(&volume, "a") };
        let codes = &[Code::FailedPrecondition, Code::InvalidArgument, Code::NotFound, Code::Internal];
        w.expect(Call::NodePublish(request), if w.profile.own { &codes[..1] } else { codes }).await
    }
    .boxed()
}

fn in_use(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let volume = w.create().await?;
        let pod = w.up(&volume, "a").await?;
        fs::write(pod.join("record"), "acknowledged")?;
        w.expect(Call::Delete(w.delete_request(&volume)), &[Code::FailedPrecondition]).await?;
        ensure!(fs::read_to_string(pod.join("record"))? == "acknowledged");
        Ok(())
    }
    .boxed()
}

fn target(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let volume = w.create().await?;
        let pod = w.up(&volume, "a").await?;
        let request = w.node_unpublish_request(&volume, "a");
        w.expect(Call::NodeUnpublish(request.clone()), &[Code::Ok]).await?;
        ensure!(!pod.exists(), "the target path stays");
        if w.profile.own {
            fs::create_dir(&pod)?;
            fs::write(pod.join("file"), "not the driver's")?;
            ensure!(w.call(Call::NodeUnpublish(request)).await.is_err(), "files in the way were taken for the volume");
            ensure!(pod.join("file").exists(), "a file that was not the volume's is gone");
            fs::remove_dir_all(&pod)?;
        }
        Ok(())
    }
    .boxed()
}

async fn used(w: &World, volume: &Volume, at: &Path) -> Result<Vec<VolumeUsage>> {
    let request = NodeGetVolumeStatsRequest {
        volume_id: volume.volume_id.clone(),
        volume_path: at.display().to_string(),
        staging_target_path: w.staging(volume),
    };
    Ok(w.node().node_get_volume_stats(request).await?.into_inner().usage)
}

fn usage(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let volume = w.create().await?;
        let pod = w.up(&volume, "a").await?;
        let of = |usage: &[VolumeUsage], unit: Unit| usage.iter().find(|one| one.unit() == unit).copied();
        let before = used(w, &volume, &pod).await?;
        let bytes = of(&before, Unit::Bytes).context("no bytes")?;
        ensure!(bytes.total >= bytes.used && bytes.available <= bytes.total && bytes.used >= 0, "{bytes:?}");
        if w.profile.own {
            fs::write(pod.join("record"), vec![1; 8 << 20])?;
            fs::File::open(pod.join("record"))?.sync_all()?;
            let after = used(w, &volume, &pod).await?;
            let more = of(&after, Unit::Bytes).context("no bytes")?.used - bytes.used;
            ensure!((8 << 20..32 << 20).contains(&more), "8 MiB were written, and {more} bytes more are used");
            let inodes = |usage| of(usage, Unit::Inodes).map(|one| one.used).context("no inodes");
            ensure!(inodes(&after)? == inodes(&before)? + 1, "one file is not one inode");
        }
        Ok(())
    }
    .boxed()
}

fn elsewhere(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let volume = w.create().await?;
        let request = NodeGetVolumeStatsRequest {
            volume_id: volume.volume_id.clone(),
            volume_path: w.folder.join("nothing-is-here").display().to_string(),
            ..Default::default()
        };
        w.expect(Call::Stats(request), &[Code::NotFound]).await
    }
    .boxed()
}

fn fs_size(at: &Path) -> Result<i64> {
    let output = std::process::Command::new("stat").args(["-f", "-c", "%b %S"]).arg(at).output()?;
    let text = String::from_utf8(output.stdout)?;
    let mut numbers = text.split_whitespace().map(str::parse::<i64>);
    let (blocks, size) = (numbers.next().context("no blocks")??, numbers.next().context("no size")??);
    Ok(blocks * size)
}

fn grows(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let volume = w.create().await?;
        let pod = w.up(&volume, "a").await?;
        let before = fs_size(&pod)?;
        let bytes = 2 * w.profile.size;
        let grown = w.controller().controller_expand_volume(w.expand_request(&volume, bytes)).await?.into_inner();
        if !grown.node_expansion_required {
            return Ok(());
        }
        let request = NodeExpandVolumeRequest {
            volume_id: volume.volume_id.clone(),
            volume_path: pod.display().to_string(),
            capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            staging_target_path: w.staging(&volume),
            volume_capability: Some(w.capability()),
            ..NodeExpandVolumeRequest::default()
        };
        for _ in 0..2 {
            match w.node().node_expand_volume(request.clone()).await {
                Ok(answer) => {
                    let answer = answer.into_inner();
                    ensure!(answer.capacity_bytes == 0 || answer.capacity_bytes >= bytes, "{answer:?}");
                }
                // This kernel does not let this file system grow while it is mounted: it says so, and grows at the
                // next start.
                Err(status) if status.code() == Code::FailedPrecondition => {
                    ensure!(!w.profile.own || status.message().contains("started again"), "{status}");
                    w.down(&volume).await?;
                    w.up(&volume, "a").await?;
                }
                Err(status) => return Err(status.into()),
            }
        }
        if w.profile.image {
            let after = fs_size(&pod)?;
            ensure!(after - before > w.profile.size * 3 / 4, "the file system had {before} bytes and has {after}");
        }
        Ok(())
    }
    .boxed()
}

fn enforced(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let volume = w.create().await?;
        let pod = w.up(&volume, "a").await?;
        let more = usize::try_from(w.profile.size)? + (1 << 20);
        let error = fs::write(pod.join("record"), vec![1; more]).err().context("more than its size was taken")?;
        ensure!(error.kind() == io::ErrorKind::StorageFull, "{error}");
        Ok(())
    }
    .boxed()
}
