//! Snapshots, and volumes made from them and from volumes.

use std::fs;

use anyhow::{Result, ensure};
use futures::{FutureExt, future::BoxFuture};
use pb::csi::v1::*;
use tonic::Code;

use super::{
    CLONE, CREATE, Case, LIST_SNAPSHOTS, Need, SNAPSHOT, World,
    world::{Call, of_snapshot, of_volume},
};

pub const CASES: &[Case] = &[
    Case::story(
        "CreateSnapshot twice is one snapshot",
        "CreateSnapshot is idempotent by name",
        &[CREATE, SNAPSHOT],
        twice,
    ),
    Case::story(
        "CreateSnapshot at once is one snapshot",
        "calls in flight for one name: one result, or ABORTED",
        &[CREATE, SNAPSHOT],
        at_once,
    ),
    Case::story(
        "a snapshot's name is taken",
        "another source under the name is ALREADY_EXISTS",
        &[CREATE, SNAPSHOT],
        taken,
    ),
    Case::story("a snapshot is deleted twice", "DeleteSnapshot is idempotent", &[CREATE, SNAPSHOT], delete_twice),
    Case::story("a snapshot holds the data of its moment", "what a volume begins with", &[CREATE, SNAPSHOT], moment),
    Case::story(
        "a snapshot outlives its volume",
        "the driver keeps what a snapshot needs",
        &[CREATE, SNAPSHOT, Need::Own],
        outlives,
    ),
    Case::story(
        "a volume is not less than its snapshot",
        "a size below the source's is OUT_OF_RANGE",
        &[CREATE, SNAPSHOT, Need::Own],
        not_less,
    ),
    Case::story(
        "a volume's source is part of what it is",
        "another source under the name is ALREADY_EXISTS",
        &[CREATE, SNAPSHOT, Need::Own],
        source,
    ),
    Case::story(
        "ListSnapshots finds by id and by volume",
        "filters; nothing found is an empty list",
        &[CREATE, SNAPSHOT, LIST_SNAPSHOTS],
        finds,
    ),
    Case::story(
        "ListSnapshots gives every snapshot once, page by page",
        "next_token leads to the rest",
        &[CREATE, SNAPSHOT, LIST_SNAPSHOTS],
        pages,
    ),
    Case::story("a clone begins with the volume's data and goes its own way", "CLONE_VOLUME", &[CREATE, CLONE], clone),
];

fn request(name: &str, of: &Volume) -> CreateSnapshotRequest {
    CreateSnapshotRequest { name: name.to_owned(), source_volume_id: of.volume_id.clone(), ..Default::default() }
}

fn twice(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let (volume, name) = (w.create().await?, w.name());
        let first = w.snapshot(&name, &volume).await?;
        let second = w.snapshot(&name, &volume).await?;
        ensure!(first == second, "{first:?} became {second:?}");
        ensure!(first.source_volume_id == volume.volume_id && first.creation_time.is_some(), "{first:?}");
        ensure!(first.size_bytes == 0 || first.size_bytes >= w.profile.size, "{first:?}");
        Ok(())
    }
    .boxed()
}

fn at_once(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let (volume, name) = (w.create().await?, w.name());
        let answers = futures::future::join_all((0..4).map(|_| w.snapshot(&name, &volume))).await;
        let last = w.snapshot(&name, &volume).await?;
        for answer in answers {
            match answer {
                Ok(snapshot) => ensure!(snapshot.snapshot_id == last.snapshot_id, "{snapshot:?} beside {last:?}"),
                Err(status) => ensure!(status.code() == Code::Aborted, "{status}"),
            }
        }
        Ok(())
    }
    .boxed()
}

fn taken(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let (volume, other, name) = (w.create().await?, w.create().await?, w.name());
        w.snapshot(&name, &volume).await?;
        w.expect(Call::Snapshot(request(&name, &other)), &[Code::AlreadyExists]).await
    }
    .boxed()
}

fn delete_twice(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let volume = w.create().await?;
        let snapshot_id = w.snapshot(&w.name(), &volume).await?.snapshot_id;
        for _ in 0..2 {
            let request = DeleteSnapshotRequest { snapshot_id: snapshot_id.clone(), ..Default::default() };
            w.expect(Call::DeleteSnapshot(request), &[Code::Ok]).await?;
        }
        Ok(())
    }
    .boxed()
}

fn moment(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let volume = w.create().await?;
        let pod = w.up(&volume, "a").await?;
        fs::write(pod.join("record"), "before")?;
        // A volume in use is cut as it is on disk.
        fs::File::open(pod.join("record"))?.sync_all()?;
        let snapshot = w.snapshot(&w.name(), &volume).await?;
        fs::write(pod.join("record"), "after")?;
        let made = w.create_from(of_snapshot(&snapshot)).await?;
        ensure!(made.content_source.is_some(), "the answer does not repeat the source");
        let copy = w.up(&made, "b").await?;
        ensure!(fs::read_to_string(copy.join("record"))? == "before");
        ensure!(fs::read_to_string(pod.join("record"))? == "after");
        Ok(())
    }
    .boxed()
}

fn outlives(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let volume = w.create().await?;
        let pod = w.up(&volume, "a").await?;
        fs::write(pod.join("record"), "kept")?;
        let snapshot = w.snapshot(&w.name(), &volume).await?;
        w.down(&volume).await?;
        w.expect(Call::Delete(w.delete_request(&volume)), &[Code::Ok]).await?;
        let copy = w.up(&w.create_from(of_snapshot(&snapshot)).await?, "b").await?;
        ensure!(fs::read_to_string(copy.join("record"))? == "kept");
        Ok(())
    }
    .boxed()
}

fn not_less(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let volume = w.create().await?;
        let snapshot = w.snapshot(&w.name(), &volume).await?;
        let size = snapshot.size_bytes / 2;
        let request = CreateVolumeRequest {
            capacity_range: Some(CapacityRange { required_bytes: size, limit_bytes: size }),
            volume_content_source: Some(VolumeContentSource { r#type: Some(of_snapshot(&snapshot)) }),
            ..w.create_request(&w.name())
        };
        w.expect(Call::Create(request), &[Code::OutOfRange]).await
    }
    .boxed()
}

fn source(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let volume = w.create().await?;
        let snapshot = w.snapshot(&w.name(), &volume).await?;
        let volume_content_source = Some(VolumeContentSource { r#type: Some(of_snapshot(&snapshot)) });
        let request = CreateVolumeRequest { volume_content_source, ..w.create_request(&w.name()) };
        let first = w.create_of(request.clone()).await?;
        ensure!(w.create_of(request.clone()).await? == first, "the same request, another volume");
        let request = CreateVolumeRequest { volume_content_source: None, ..request };
        w.expect(Call::Create(request), &[Code::AlreadyExists]).await
    }
    .boxed()
}

async fn list(w: &World, request: ListSnapshotsRequest) -> Result<Vec<String>> {
    let (mut ids, mut request) = (Vec::new(), request);
    loop {
        let page = w.controller().list_snapshots(request.clone()).await?.into_inner();
        ids.extend(page.entries.into_iter().filter_map(|entry| entry.snapshot).map(|one| one.snapshot_id));
        request.starting_token = page.next_token;
        if request.starting_token.is_empty() {
            return Ok(ids);
        }
    }
}

fn finds(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let (volume, other) = (w.create().await?, w.create().await?);
        let one = w.snapshot(&w.name(), &volume).await?.snapshot_id;
        w.snapshot(&w.name(), &other).await?;
        let by_id = |id: &str| ListSnapshotsRequest { snapshot_id: id.to_owned(), ..Default::default() };
        let by_volume = |id: &str| ListSnapshotsRequest { source_volume_id: id.to_owned(), ..Default::default() };
        ensure!(list(w, by_id(&one)).await? == std::slice::from_ref(&one));
        ensure!(list(w, by_volume(&volume.volume_id)).await? == [one]);
        ensure!(list(w, by_id("there-is-no-such")).await?.is_empty());
        ensure!(list(w, by_volume("there-is-no-such")).await?.is_empty());
        Ok(())
    }
    .boxed()
}

fn pages(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let volume = w.create().await?;
        let mut made = Vec::new();
        for _ in 0..3 {
            made.push(w.snapshot(&w.name(), &volume).await?.snapshot_id);
        }
        let request =
            ListSnapshotsRequest { max_entries: 2, source_volume_id: volume.volume_id.clone(), ..Default::default() };
        let mut ids = list(w, request).await?;
        ids.sort();
        made.sort();
        ensure!(ids == made, "{ids:?} instead of {made:?}");
        Ok(())
    }
    .boxed()
}

fn clone(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let volume = w.create().await?;
        let pod = w.up(&volume, "a").await?;
        fs::write(pod.join("record"), "first")?;
        fs::File::open(pod.join("record"))?.sync_all()?;
        let made = w.create_from(of_volume(&volume)).await?;
        let copy = w.up(&made, "b").await?;
        ensure!(fs::read_to_string(copy.join("record"))? == "first");
        fs::write(copy.join("record"), "second")?;
        ensure!(fs::read_to_string(pod.join("record"))? == "first");
        Ok(())
    }
    .boxed()
}
