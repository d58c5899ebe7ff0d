//! Volumes: made, listed, grown, deleted.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use futures::{FutureExt, future::BoxFuture};
use pb::csi::v1::{volume_capability::access_mode::Mode, *};
use tonic::Code;

use super::{
    CAPACITY, CREATE, Case, EXPAND, GET, LIST, Need, World,
    world::{Call, nowhere},
};

/// Bytes, none of them written, against which what others do on the disk meanwhile is little.
const PROMISE: i64 = 8 << 30;

pub const CASES: &[Case] = &[
    Case::story("a volume has what was asked for", "size, id and topology of the answer", &[CREATE], made),
    Case::story("CreateVolume twice is one volume", "CreateVolume is idempotent by name", &[CREATE], twice),
    Case::story(
        "CreateVolume at once is one volume",
        "calls in flight for one name: one result, or ABORTED",
        &[CREATE],
        at_once,
    ),
    Case::story("a name is taken by a size", "an incompatible volume of the name is ALREADY_EXISTS", &[CREATE], taken),
    Case::story(
        "a name is taken by parameters",
        "an incompatible volume of the name is ALREADY_EXISTS",
        &[CREATE, Need::Own],
        taken_by_type,
    ),
    Case::story("a limit is kept", "the size is between required_bytes and limit_bytes", &[CREATE], limit),
    Case::story("DeleteVolume twice is one deletion", "DeleteVolume is idempotent", &[CREATE], delete_twice),
    Case::story("ValidateVolumeCapabilities confirms what is so", "confirmed repeats the request", &[CREATE], confirms),
    Case::story(
        "ValidateVolumeCapabilities denies what is not so",
        "confirmed is only set if all is supported",
        &[CREATE, Need::Own],
        denies,
    ),
    Case::story(
        "ListVolumes gives every volume once, page by page",
        "next_token leads to the rest",
        &[CREATE, LIST],
        pages,
    ),
    Case::story("GetCapacity counts", "capacities must not be negative", &[CAPACITY], capacity),
    Case::story("ControllerGetVolume knows a volume", "the volume as it was made", &[CREATE, GET], get),
    Case::story("a volume grows and does not shrink", "ControllerExpandVolume is idempotent", &[CREATE, EXPAND], grows),
];

fn made(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let volume = w.create().await?;
        ensure!((1..=256).contains(&volume.volume_id.len()), "volume_id {:?}", volume.volume_id);
        ensure!(
            volume.capacity_bytes == 0 || volume.capacity_bytes >= w.profile.size,
            "{} bytes",
            volume.capacity_bytes
        );
        ensure!(w.create().await?.volume_id != volume.volume_id, "two volumes with one id");
        if let Some(place) = w.info.accessible_topology.as_ref().filter(|_| !volume.accessible_topology.is_empty()) {
            ensure!(volume.accessible_topology.contains(place), "{:?}", volume.accessible_topology);
        }
        Ok(())
    }
    .boxed()
}

fn twice(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let request = w.create_request(&w.name());
        let first = w.create_of(request.clone()).await?;
        let second = w.create_of(request).await?;
        ensure!(first == second, "{first:?} became {second:?}");
        Ok(())
    }
    .boxed()
}

fn at_once(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let request = w.create_request(&w.name());
        let answers = futures::future::join_all((0..8).map(|_| w.create_of(request.clone()))).await;
        let last = w.create_of(request).await?;
        for answer in answers {
            match answer {
                Ok(volume) => ensure!(volume == last, "{volume:?} beside {last:?}"),
                Err(status) => ensure!(status.code() == Code::Aborted, "{status}"),
            }
        }
        Ok(())
    }
    .boxed()
}

fn taken(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let request = w.create_request(&w.name());
        w.create_of(request.clone()).await?;
        let bytes = 2 * w.profile.size;
        let capacity_range = Some(CapacityRange { required_bytes: bytes, limit_bytes: bytes });
        w.expect(Call::Create(CreateVolumeRequest { capacity_range, ..request }), &[Code::AlreadyExists]).await
    }
    .boxed()
}

fn taken_by_type(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let request = w.create_request(&w.name());
        w.create_of(request.clone()).await?;
        let mut parameters: BTreeMap<String, String> = [("type".to_owned(), "directory".to_owned())].into();
        if !w.profile.image {
            parameters.insert("type".to_owned(), "image".to_owned());
        }
        w.expect(Call::Create(CreateVolumeRequest { parameters, ..request }), &[Code::AlreadyExists]).await
    }
    .boxed()
}

fn limit(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let bytes = w.profile.size;
        let capacity_range = Some(CapacityRange { required_bytes: bytes, limit_bytes: bytes });
        let request = CreateVolumeRequest { capacity_range, ..w.create_request(&w.name()) };
        let volume = w.create_of(request).await?;
        ensure!([0, bytes].contains(&volume.capacity_bytes), "{} bytes", volume.capacity_bytes);
        Ok(())
    }
    .boxed()
}

fn delete_twice(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let volume = w.create().await?;
        for _ in 0..2 {
            w.expect(Call::Delete(w.delete_request(&volume)), &[Code::Ok]).await?;
        }
        if w.has(LIST) {
            ensure!(!list(w, 0).await?.contains(&volume.volume_id), "a deleted volume is listed");
        }
        Ok(())
    }
    .boxed()
}

fn validate(w: &World, volume: &Volume) -> ValidateVolumeCapabilitiesRequest {
    ValidateVolumeCapabilitiesRequest {
        volume_id: volume.volume_id.clone(),
        volume_context: volume.volume_context.clone(),
        volume_capabilities: vec![w.capability()],
        parameters: w.profile.parameters.clone(),
        ..Default::default()
    }
}

fn confirms(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let request = validate(w, &w.create().await?);
        let answer = w.controller().validate_volume_capabilities(request.clone()).await?.into_inner();
        let confirmed = answer.confirmed.with_context(|| format!("not confirmed: {}", answer.message))?;
        ensure!(confirmed.volume_capabilities == request.volume_capabilities, "{confirmed:?}");
        Ok(())
    }
    .boxed()
}

fn denies(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let volume = w.create().await?;
        let block = volume_capability::AccessType::Block(volume_capability::BlockVolume {});
        let block = VolumeCapability { access_type: Some(block), ..w.capability() };
        let mut bad = vec![block, w.capability_of(Mode::Unknown)];
        if !w.profile.many_nodes {
            bad.push(w.capability_of(Mode::MultiNodeMultiWriter));
        }
        for capability in bad {
            let volume_capabilities = vec![w.capability(), capability];
            let request = ValidateVolumeCapabilitiesRequest { volume_capabilities, ..validate(w, &volume) };
            let answer = w.controller().validate_volume_capabilities(request).await?.into_inner();
            ensure!(answer.confirmed.is_none() && !answer.message.is_empty(), "{answer:?}");
        }
        Ok(())
    }
    .boxed()
}

/// The ids of all volumes, read in pages of this size.
async fn list(w: &World, max_entries: i32) -> Result<Vec<String>> {
    let (mut ids, mut starting_token) = (Vec::new(), String::new());
    loop {
        let request = ListVolumesRequest { max_entries, starting_token };
        let page = w.controller().list_volumes(request).await?.into_inner();
        ensure!(max_entries == 0 || page.entries.len() <= max_entries as usize, "a page of {}", page.entries.len());
        ids.extend(page.entries.into_iter().filter_map(|entry| entry.volume).map(|volume| volume.volume_id));
        starting_token = page.next_token;
        if starting_token.is_empty() {
            return Ok(ids);
        }
    }
}

fn pages(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let mut made = Vec::new();
        for _ in 0..3 {
            made.push(w.create().await?.volume_id);
        }
        for size in [1, 2, 0] {
            let mut ids = list(w, size).await?;
            ensure!(made.iter().all(|id| ids.contains(id)), "pages of {size}: {made:?} are not all in {ids:?}");
            ids.sort();
            let all = ids.len();
            ids.dedup();
            ensure!(ids.len() == all, "pages of {size}: a volume is listed twice");
        }
        Ok(())
    }
    .boxed()
}

fn capacity(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let request = GetCapacityRequest {
            volume_capabilities: vec![w.capability()],
            parameters: w.profile.parameters.clone(),
            accessible_topology: w.info.accessible_topology.clone(),
        };
        let here = w.controller().get_capacity(request.clone()).await?.into_inner();
        ensure!(here.available_capacity >= 0, "{here:?}");
        if let Some(mut elsewhere) = request.accessible_topology.clone().filter(|_| w.profile.own) {
            elsewhere.segments.values_mut().for_each(|node| node.push_str("-other"));
            let request = GetCapacityRequest { accessible_topology: Some(elsewhere), ..request.clone() };
            let there = w.controller().get_capacity(request).await?.into_inner();
            ensure!(there.available_capacity == 0, "room on a node that is not this one: {there:?}");
        }
        if w.profile.image && w.has(CREATE) && here.available_capacity > 2 * PROMISE {
            let capacity_range = Some(CapacityRange { required_bytes: PROMISE, limit_bytes: 0 });
            w.create_of(CreateVolumeRequest { capacity_range, ..w.create_request(&w.name()) }).await?;
            let after = w.controller().get_capacity(request).await?.into_inner();
            let promised = here.available_capacity - after.available_capacity;
            ensure!(promised > PROMISE / 2, "a promised volume still counts as room: {promised}");
        }
        Ok(())
    }
    .boxed()
}

fn get(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let volume = w.create().await?;
        let request = ControllerGetVolumeRequest { volume_id: volume.volume_id.clone() };
        let answer = w.controller().controller_get_volume(request).await?.into_inner();
        ensure!(answer.volume.as_ref().is_some_and(|one| one.volume_id == volume.volume_id), "{answer:?}");
        ensure!(answer.status.is_some(), "no status");
        Ok(())
    }
    .boxed()
}

fn grows(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let volume = w.create().await?;
        let bytes = 2 * w.profile.size;
        for _ in 0..2 {
            let grown = w.controller().controller_expand_volume(w.expand_request(&volume, bytes)).await?.into_inner();
            ensure!(grown.capacity_bytes >= bytes, "{grown:?}");
        }
        let small = w.expand_request(&volume, w.profile.size);
        let same = w.controller().controller_expand_volume(small.clone()).await;
        ensure!(same.is_ok_and(|same| same.into_inner().capacity_bytes >= bytes) || !w.profile.own, "it shrank");
        if w.profile.own {
            let range = CapacityRange { required_bytes: w.profile.size, limit_bytes: w.profile.size };
            let request = ControllerExpandVolumeRequest { capacity_range: Some(range), ..small };
            w.expect(Call::Expand(request), &[Code::OutOfRange]).await?;
            // What is listed has grown, and the name with the old size is still the volume's.
            w.expect(Call::Delete(w.delete_request(&nowhere())), &[Code::Ok]).await?;
        }
        Ok(())
    }
    .boxed()
}
