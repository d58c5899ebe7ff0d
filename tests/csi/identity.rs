//! What a driver says of itself.

use anyhow::{Result, ensure};
use futures::{FutureExt, future::BoxFuture};
use pb::csi::v1::{
    GetPluginInfoRequest, ProbeRequest, controller_service_capability::rpc::Type as Controller,
    plugin_capability::service::Type as Plugin, *,
};
use tonic::Code;

use super::{Case, LIST, Need, PUBLISH, SNAPSHOT, World, world::Call};

pub const CASES: &[Case] = &[
    Case::story("GetPluginInfo names the driver", "a domain name of at most 63 characters, and a version", &[], name),
    Case::story("Probe says ready", "a driver that works is ready or says nothing", &[], probe),
    Case::story(
        "NodeGetInfo names the node",
        "node_id is required; topology too if volumes are constrained",
        &[],
        node,
    ),
    Case::story("what is offered is served", "an offered call must not be UNIMPLEMENTED", &[], offered),
    Case::row(
        "ControllerPublishVolume where volumes are not attached",
        "a call that is not offered is UNIMPLEMENTED",
        &[Need::Without(Controller::PublishUnpublishVolume)],
        |w| Call::Publish(w.publish_request(&super::world::nowhere())),
        &[Code::Unimplemented],
    ),
    Case::row(
        "CreateSnapshot where there are no snapshots",
        "a call that is not offered is UNIMPLEMENTED",
        &[Need::Without(Controller::CreateDeleteSnapshot)],
        |_| Call::Snapshot(CreateSnapshotRequest::default()),
        &[Code::Unimplemented],
    ),
];

fn name(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let info = w.identity().get_plugin_info(GetPluginInfoRequest {}).await?.into_inner();
        let letters = info.name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'));
        ensure!(letters && (1..=63).contains(&info.name.len()), "{:?} is no name of a driver", info.name);
        ensure!(!info.vendor_version.is_empty(), "no version");
        Ok(())
    }
    .boxed()
}

fn probe(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let probe = w.identity().probe(ProbeRequest {}).await?.into_inner();
        ensure!(probe.ready.is_none_or(|ready| ready.value), "not ready");
        Ok(())
    }
    .boxed()
}

fn node(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        ensure!((1..=256).contains(&w.info.node_id.len()), "node_id {:?}", w.info.node_id);
        ensure!(w.info.max_volumes_per_node >= 0, "a negative number of volumes");
        let placed = w.info.accessible_topology.as_ref().is_some_and(|place| !place.segments.is_empty());
        let constrained = w.has(Need::Plugin(Plugin::VolumeAccessibilityConstraints));
        ensure!(placed || !constrained, "volumes are constrained, and the node is nowhere");
        Ok(())
    }
    .boxed()
}

fn offered(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let calls = [
            (super::CREATE, Call::Create(CreateVolumeRequest::default())),
            (PUBLISH, Call::Publish(ControllerPublishVolumeRequest::default())),
            (LIST, Call::List(ListVolumesRequest::default())),
            (super::CAPACITY, Call::Capacity(GetCapacityRequest::default())),
            (SNAPSHOT, Call::Snapshot(CreateSnapshotRequest::default())),
            (super::LIST_SNAPSHOTS, Call::ListSnapshots(ListSnapshotsRequest::default())),
            (super::EXPAND, Call::Expand(ControllerExpandVolumeRequest::default())),
            (super::GET, Call::Get(ControllerGetVolumeRequest::default())),
            (super::STAGE, Call::Stage(NodeStageVolumeRequest::default())),
            (super::STATS, Call::Stats(NodeGetVolumeStatsRequest::default())),
            (super::NODE_EXPAND, Call::NodeExpand(NodeExpandVolumeRequest::default())),
        ];
        for (need, call) in calls {
            if w.has(need)
                && let Err(status) = w.call(call).await
            {
                ensure!(status.code() != Code::Unimplemented, "{need:?}: {status}");
            }
        }
        Ok(())
    }
    .boxed()
}
