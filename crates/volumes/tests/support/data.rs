//! What the driver and the agent do with data: they enlarge, take snapshots and copy.

use std::collections::BTreeMap;

use futures::{StreamExt, stream, stream::BoxStream};
use pb::{agent::v1::*, csi::v1::*};
use tonic::Status;

use super::driver::State;

/// What there is beside volumes.
#[derive(Default)]
pub struct Data {
    /// By id: name, the volume that it is of, and what that held.
    pub snapshots: BTreeMap<String, (String, String, Option<String>)>,
    /// How often a snapshot is answered for as not ready.
    pub unready: usize,
    /// Bytes of file systems, by node and id of the volume; there while it is staged.
    pub staged: BTreeMap<(String, String), i64>,
    /// Whether file systems refuse to grow while they are mounted.
    pub stubborn: bool,
    /// How often a copy breaks off in the middle.
    pub breaks: usize,
    /// Volumes larger than this are refused; 0: none.
    pub most: i64,
}

/// The driver's id of a volume.
pub fn handle(volume: Option<&pb::objects::PersistentVolume>) -> String {
    let csi = volume.and_then(|volume| volume.spec.as_ref()?.csi.as_ref());
    csi.map(|csi| csi.volume_handle.clone()).unwrap_or_default()
}

/// Enlarges a volume.
pub fn enlarge(
    state: &mut State,
    home: &str,
    request: &ControllerExpandVolumeRequest,
) -> Result<ControllerExpandVolumeResponse, Status> {
    let wanted = request.capacity_range.as_ref().map_or(0, |range| range.required_bytes);
    if state.data.most > 0 && wanted > state.data.most {
        return Err(Status::out_of_range("larger than any disk"));
    }
    let key = (home.to_owned(), request.volume_id.clone());
    let disk = state.disks.get_mut(&key).ok_or_else(|| Status::not_found("no such disk"))?;
    disk.bytes = disk.bytes.max(wanted);
    Ok(ControllerExpandVolumeResponse { capacity_bytes: disk.bytes, node_expansion_required: true })
}

/// Enlarges the file system of a volume.
pub fn enlarge_here(
    state: &mut State,
    node: &str,
    request: ExpandVolumeRequest,
) -> Result<ExpandVolumeResponse, Status> {
    let key = (node.to_owned(), handle(request.volume.as_ref()));
    if !state.data.staged.contains_key(&key) {
        return Ok(ExpandVolumeResponse { staged: false, capacity_bytes: 0 });
    }
    if state.data.stubborn {
        return Err(Status::failed_precondition("not while it is mounted; start the pod again"));
    }
    state.data.staged.insert(key, request.required_bytes);
    Ok(ExpandVolumeResponse { staged: true, capacity_bytes: request.required_bytes })
}

/// Takes a snapshot.
pub fn cut(state: &mut State, home: &str, request: &CreateSnapshotRequest) -> Result<CreateSnapshotResponse, Status> {
    let made = state.data.snapshots.iter().find(|(_, (name, ..))| *name == request.name).map(|(id, _)| id.clone());
    let id = match made {
        Some(id) => id,
        None => {
            let key = (home.to_owned(), request.source_volume_id.clone());
            let disk = state.disks.get(&key).ok_or_else(|| Status::not_found("no such disk"))?;
            let id = format!("snap-of-{}", request.name);
            let snapshot = (request.name.clone(), request.source_volume_id.clone(), disk.content.clone());
            state.data.snapshots.insert(id.clone(), snapshot);
            id
        }
    };
    let ready = state.data.unready == 0;
    state.data.unready = state.data.unready.saturating_sub(1);
    let snapshot = Snapshot {
        size_bytes: 1 << 30,
        snapshot_id: id,
        source_volume_id: request.source_volume_id.clone(),
        creation_time: Some(Timestamp { seconds: 1, nanos: 0 }),
        ready_to_use: ready,
        group_snapshot_id: String::new(),
    };
    Ok(CreateSnapshotResponse { snapshot: Some(snapshot) })
}

/// Copies a volume from one node to another.
pub fn import(
    state: &mut State,
    node: &str,
    request: ImportVolumeRequest,
) -> BoxStream<'static, Result<ImportVolumeResponse, Status>> {
    let (from, to) = (handle(request.source.as_ref()), (node.to_owned(), handle(request.target.as_ref())));
    let part = ImportVolumeResponse { done_bytes: 40, total_bytes: 100, verified: false };
    let source = state.disks.iter().find(|((at, id), _)| *id == from && at != node).map(|(_, disk)| disk.clone());
    if state.in_use.iter().any(|(_, id)| *id == from) {
        state.broken.push(format!("{from} was copied while in use"));
    }
    let last = if state.data.breaks > 0 {
        state.data.breaks -= 1;
        Err(Status::unavailable("the other node went away"))
    } else {
        match (source, state.disks.get_mut(&to)) {
            (Some(source), Some(target)) => {
                target.content = source.content;
                Ok(ImportVolumeResponse { done_bytes: 100, total_bytes: 100, verified: true })
            }
            _ => Err(Status::not_found("no such disk")),
        }
    };
    stream::iter([Ok(part), last]).boxed()
}
