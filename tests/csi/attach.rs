//! Volumes that are attached to nodes before they are used there.

use anyhow::{Context, Result, ensure};
use futures::{FutureExt, future::BoxFuture};
use pb::csi::v1::{controller_service_capability::rpc::Type as Controller, volume_capability::access_mode::Mode, *};
use tonic::Code;

use super::{CREATE, Case, GET, Need, PUBLISH, STAGE, World, world::Call};

pub const CASES: &[Case] = &[
    Case::story("a volume is attached and detached twice", "both calls are idempotent", &[CREATE, PUBLISH], twice),
    Case::story(
        "an unknown node has no volumes",
        "a node that does not exist is NOT_FOUND",
        &[CREATE, PUBLISH],
        unknown_node,
    ),
    Case::story(
        "an attachment does not change its way",
        "other arguments are ALREADY_EXISTS",
        &[CREATE, PUBLISH, Need::Own],
        other_way,
    ),
    Case::story(
        "a volume of one node is not attached to a second",
        "published elsewhere is FAILED_PRECONDITION",
        &[CREATE, PUBLISH, Need::Own],
        second_node,
    ),
    Case::story(
        "a volume of many nodes is attached to all",
        "MULTI_NODE_MULTI_WRITER",
        &[CREATE, PUBLISH, Need::ManyNodes],
        many,
    ),
    Case::story(
        "nothing is staged before it is attached",
        "order of calls: FAILED_PRECONDITION",
        &[CREATE, PUBLISH, STAGE, Need::Own],
        order,
    ),
    Case::story(
        "an attached volume is not deleted",
        "DeleteVolume in use is FAILED_PRECONDITION",
        &[CREATE, PUBLISH, Need::Own],
        in_use,
    ),
    Case::story("detaching from all nodes", "an empty node_id means all", &[CREATE, PUBLISH, Need::Own], all_nodes),
    Case::story(
        "the nodes of a volume are told",
        "published_node_ids",
        &[CREATE, PUBLISH, GET, Need::Controller(Controller::ListVolumesPublishedNodes)],
        told,
    ),
];

fn twice(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let volume = w.create().await?;
        let first = w.attach(&volume).await?;
        ensure!(w.attach(&volume).await? == first, "another context");
        for _ in 0..2 {
            w.expect(Call::Unpublish(w.unpublish_request(&volume)), &[Code::Ok]).await?;
        }
        Ok(())
    }
    .boxed()
}

fn unknown_node(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let volume = w.create().await?;
        let node_id = "there-is-no-such-node".to_owned();
        let request = ControllerPublishVolumeRequest { node_id, ..w.publish_request(&volume) };
        w.expect(Call::Publish(request), &[Code::NotFound]).await
    }
    .boxed()
}

fn other_way(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let volume = w.create().await?;
        w.attach(&volume).await?;
        let request = ControllerPublishVolumeRequest { readonly: true, ..w.publish_request(&volume) };
        w.expect(Call::Publish(request), &[Code::AlreadyExists]).await
    }
    .boxed()
}

fn at_other_node(w: &World, volume: &Volume) -> ControllerPublishVolumeRequest {
    ControllerPublishVolumeRequest { node_id: w.profile.other_node.clone(), ..w.publish_request(volume) }
}

fn second_node(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let volume = w.create().await?;
        w.attach(&volume).await?;
        w.expect(Call::Publish(at_other_node(w, &volume)), &[Code::FailedPrecondition]).await?;
        w.expect(Call::Unpublish(w.unpublish_request(&volume)), &[Code::Ok]).await?;
        w.expect(Call::Publish(at_other_node(w, &volume)), &[Code::Ok]).await?;
        w.expect(Call::Stage(w.stage_request(&volume)), &[Code::FailedPrecondition]).await
    }
    .boxed()
}

fn many(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let volume = w.create().await?;
        let volume_capability = Some(w.capability_of(Mode::MultiNodeMultiWriter));
        for request in [w.publish_request(&volume), at_other_node(w, &volume)] {
            let request = ControllerPublishVolumeRequest { volume_capability: volume_capability.clone(), ..request };
            w.expect(Call::Publish(request), &[Code::Ok]).await?;
        }
        Ok(())
    }
    .boxed()
}

fn order(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let volume = w.create().await?;
        w.expect(Call::Stage(w.stage_request(&volume)), &[Code::FailedPrecondition]).await
    }
    .boxed()
}

fn in_use(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let volume = w.create().await?;
        w.attach(&volume).await?;
        w.expect(Call::Delete(w.delete_request(&volume)), &[Code::FailedPrecondition]).await
    }
    .boxed()
}

fn all_nodes(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let volume = w.create().await?;
        w.attach(&volume).await?;
        let request = ControllerUnpublishVolumeRequest { node_id: String::new(), ..w.unpublish_request(&volume) };
        w.expect(Call::Unpublish(request), &[Code::Ok]).await?;
        w.expect(Call::Publish(at_other_node(w, &volume)), &[Code::Ok]).await
    }
    .boxed()
}

fn told(w: &World) -> BoxFuture<'_, Result<()>> {
    async {
        let volume = w.create().await?;
        let nodes = async || -> Result<Vec<String>> {
            let request = ControllerGetVolumeRequest { volume_id: volume.volume_id.clone() };
            let status = w.controller().controller_get_volume(request).await?.into_inner().status;
            Ok(status.context("no status")?.published_node_ids)
        };
        ensure!(nodes().await?.is_empty());
        w.attach(&volume).await?;
        ensure!(nodes().await? == std::slice::from_ref(&w.info.node_id));
        Ok(())
    }
    .boxed()
}
