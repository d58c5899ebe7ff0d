//! Arguments that are missing, that name nothing, or that are meant to hurt.

use pb::csi::v1::{volume_content_source::*, *};
use tonic::Code::{self, Aborted, FailedPrecondition, InvalidArgument, NotFound, Ok as Fine, OutOfRange};

use super::{
    CAPACITY, CLONE, CREATE, Case, EXPAND, GET, LIST, LIST_SNAPSHOTS, NODE_EXPAND, Need, PUBLISH, SNAPSHOT, STAGE,
    STATS, World,
    world::{Call, nowhere},
};

const MISSING: &str = "a required field that is missing is INVALID_ARGUMENT";
const UNKNOWN: &str = "what does not exist is NOT_FOUND";
const GONE: &str = "deleting what does not exist is OK";
const BAD: &[Code] = &[InvalidArgument];
/// A text that cannot be an id names nothing.
const NONE: &[Code] = &[Fine, InvalidArgument, NotFound];

/// A path out of the driver's own.
const ESCAPE: &str = "../../../../tmp/escape";

fn huge() -> String {
    "a".repeat(1 << 20)
}

fn volume(id: &str) -> Volume {
    Volume { volume_id: id.to_owned(), ..Volume::default() }
}

fn without_id() -> Volume {
    Volume::default()
}

fn source(r#type: Type) -> Option<VolumeContentSource> {
    Some(VolumeContentSource { r#type: Some(r#type) })
}

fn sized(w: &World, required_bytes: i64, limit_bytes: i64) -> Call {
    let capacity_range = Some(CapacityRange { required_bytes, limit_bytes });
    Call::Create(CreateVolumeRequest { capacity_range, ..w.create_request(&w.name()) })
}

fn snapshot(name: String, source_volume_id: &str) -> Call {
    let source_volume_id = source_volume_id.to_owned();
    Call::Snapshot(CreateSnapshotRequest { name, source_volume_id, ..Default::default() })
}

fn delete_snapshot(id: &str) -> Call {
    Call::DeleteSnapshot(DeleteSnapshotRequest { snapshot_id: id.to_owned(), ..Default::default() })
}

fn validate(w: &World, id: &str) -> ValidateVolumeCapabilitiesRequest {
    let volume_capabilities = vec![w.capability()];
    ValidateVolumeCapabilitiesRequest { volume_id: id.to_owned(), volume_capabilities, ..Default::default() }
}

fn get(id: &str) -> Call {
    Call::Get(ControllerGetVolumeRequest { volume_id: id.to_owned() })
}

fn stats(id: &str, path: &str) -> Call {
    let (volume_id, volume_path) = (id.to_owned(), path.to_owned());
    Call::Stats(NodeGetVolumeStatsRequest { volume_id, volume_path, ..Default::default() })
}

fn grow(id: &str, path: &str) -> Call {
    let (volume_id, volume_path) = (id.to_owned(), path.to_owned());
    Call::NodeExpand(NodeExpandVolumeRequest { volume_id, volume_path, ..Default::default() })
}

fn list_snapshots(token: &str) -> Call {
    Call::ListSnapshots(ListSnapshotsRequest { starting_token: token.to_owned(), ..Default::default() })
}

pub const CASES: &[Case] = &[
    Case::row("CreateVolume without name", MISSING, &[CREATE], |w| Call::Create(w.create_request("")), BAD),
    Case::row(
        "CreateVolume without capabilities",
        MISSING,
        &[CREATE],
        |w| Call::Create(CreateVolumeRequest { volume_capabilities: vec![], ..w.create_request(&w.name()) }),
        BAD,
    ),
    Case::row(
        "CreateVolume with a capability that says neither mount nor block",
        MISSING,
        &[CREATE, Need::Own],
        |w| {
            let capability = VolumeCapability { access_type: None, ..w.capability() };
            Call::Create(CreateVolumeRequest { volume_capabilities: vec![capability], ..w.create_request(&w.name()) })
        },
        BAD,
    ),
    Case::row(
        "CreateVolume with a limit below what is required",
        "an unsupported capacity_range is OUT_OF_RANGE",
        &[CREATE],
        |w| sized(w, 2 << 30, 1 << 30),
        &[OutOfRange, InvalidArgument],
    ),
    Case::row(
        "CreateVolume of a negative size",
        "capacities must not be negative",
        &[CREATE],
        |w| sized(w, -1, 0),
        &[OutOfRange, InvalidArgument],
    ),
    Case::row(
        "CreateVolume with a limit below the least size",
        "an unsupported capacity_range is OUT_OF_RANGE",
        &[CREATE, Need::Image],
        |w| sized(w, 0, 4096),
        &[OutOfRange],
    ),
    Case::row(
        "CreateVolume larger than the disk",
        "no room where it is wanted is RESOURCE_EXHAUSTED",
        &[CREATE, Need::Image],
        |w| sized(w, 1 << 60, 0),
        &[Code::ResourceExhausted, OutOfRange],
    ),
    Case::row(
        "CreateVolume with an unknown parameter",
        "invalid parameters are INVALID_ARGUMENT",
        &[CREATE, Need::Own],
        |w| {
            let parameters = [("colour".to_owned(), "red".to_owned())].into();
            Call::Create(CreateVolumeRequest { parameters, ..w.create_request(&w.name()) })
        },
        BAD,
    ),
    Case::row(
        "CreateVolume from an unknown snapshot",
        UNKNOWN,
        &[CREATE, SNAPSHOT],
        |w| {
            let from = Type::Snapshot(SnapshotSource { snapshot_id: "there-is-no-such-snapshot".into() });
            Call::Create(CreateVolumeRequest { volume_content_source: source(from), ..w.create_request(&w.name()) })
        },
        &[NotFound],
    ),
    Case::row(
        "CreateVolume from an unknown volume",
        UNKNOWN,
        &[CREATE, CLONE],
        |w| {
            let from = Type::Volume(VolumeSource { volume_id: nowhere().volume_id });
            Call::Create(CreateVolumeRequest { volume_content_source: source(from), ..w.create_request(&w.name()) })
        },
        &[NotFound],
    ),
    Case::row(
        "CreateVolume with a name that is a path",
        "a name must not reach outside",
        &[CREATE, Need::Own],
        |w| Call::Create(w.create_request(ESCAPE)),
        BAD,
    ),
    Case::row(
        "CreateVolume with a name of 1 MB",
        "strings have a bound",
        &[CREATE, Need::Own],
        |w| Call::Create(w.create_request(&huge())),
        BAD,
    ),
    Case::row("DeleteVolume without id", MISSING, &[CREATE], |w| Call::Delete(w.delete_request(&without_id())), BAD),
    Case::row("DeleteVolume of nothing", GONE, &[CREATE], |w| Call::Delete(w.delete_request(&nowhere())), &[Fine]),
    Case::row(
        "DeleteVolume of an id that is a path",
        "an id must not reach outside",
        &[CREATE],
        |w| Call::Delete(w.delete_request(&volume(ESCAPE))),
        NONE,
    ),
    Case::row(
        "DeleteVolume of an id of 1 MB",
        "strings have a bound",
        &[CREATE],
        |w| Call::Delete(w.delete_request(&volume(&huge()))),
        NONE,
    ),
    Case::row("ValidateVolumeCapabilities without id", MISSING, &[CREATE], |w| Call::Validate(validate(w, "")), BAD),
    Case::row(
        "ValidateVolumeCapabilities without capabilities",
        MISSING,
        &[CREATE],
        |w| Call::Validate(ValidateVolumeCapabilitiesRequest { volume_capabilities: vec![], ..validate(w, "x") }),
        &[InvalidArgument, NotFound],
    ),
    Case::row(
        "ValidateVolumeCapabilities of nothing",
        UNKNOWN,
        &[CREATE],
        |w| Call::Validate(validate(w, &nowhere().volume_id)),
        &[NotFound],
    ),
    Case::row(
        "ListVolumes from a token that is none",
        "an invalid starting_token is ABORTED",
        &[LIST],
        |_| Call::List(ListVolumesRequest { starting_token: "no-token".into(), ..Default::default() }),
        &[Aborted],
    ),
    Case::row(
        "ListVolumes of a negative number",
        "max_entries must not be negative",
        &[LIST],
        |_| Call::List(ListVolumesRequest { max_entries: -1, ..Default::default() }),
        BAD,
    ),
    Case::row(
        "GetCapacity of anything",
        "all of its fields are optional",
        &[CAPACITY],
        |_| Call::Capacity(GetCapacityRequest::default()),
        &[Fine],
    ),
    Case::row("CreateSnapshot without name", MISSING, &[SNAPSHOT], |_| snapshot(String::new(), "x"), BAD),
    Case::row("CreateSnapshot without source", MISSING, &[SNAPSHOT], |w| snapshot(w.name(), ""), BAD),
    Case::row(
        "CreateSnapshot of nothing",
        UNKNOWN,
        &[SNAPSHOT],
        |w| snapshot(w.name(), &nowhere().volume_id),
        &[NotFound],
    ),
    Case::row(
        "CreateSnapshot with a name that is a path",
        "a name must not reach outside",
        &[SNAPSHOT, Need::Own],
        |_| snapshot(ESCAPE.into(), "x"),
        BAD,
    ),
    Case::row("DeleteSnapshot without id", MISSING, &[SNAPSHOT], |_| delete_snapshot(""), BAD),
    Case::row("DeleteSnapshot of nothing", GONE, &[SNAPSHOT], |_| delete_snapshot("there-is-no-such"), &[Fine]),
    Case::row(
        "DeleteSnapshot of an id that is a path",
        "an id must not reach outside",
        &[SNAPSHOT],
        |_| delete_snapshot(ESCAPE),
        NONE,
    ),
    Case::row(
        "ListSnapshots from a token that is none",
        "an invalid starting_token is ABORTED",
        &[LIST_SNAPSHOTS],
        |_| list_snapshots("no-token"),
        &[Aborted],
    ),
    Case::row(
        "ControllerExpandVolume without id",
        MISSING,
        &[EXPAND],
        |w| Call::Expand(w.expand_request(&without_id(), 1 << 30)),
        BAD,
    ),
    Case::row(
        "ControllerExpandVolume without a size",
        MISSING,
        &[EXPAND],
        |_| Call::Expand(ControllerExpandVolumeRequest { volume_id: nowhere().volume_id, ..Default::default() }),
        &[InvalidArgument, OutOfRange, NotFound],
    ),
    Case::row(
        "ControllerExpandVolume of nothing",
        UNKNOWN,
        &[EXPAND],
        |w| Call::Expand(w.expand_request(&nowhere(), 1 << 30)),
        &[NotFound],
    ),
    Case::row("ControllerGetVolume without id", MISSING, &[GET], |_| get(""), BAD),
    Case::row("ControllerGetVolume of nothing", UNKNOWN, &[GET], |_| get(&nowhere().volume_id), &[NotFound]),
    Case::row(
        "ControllerPublishVolume without volume",
        MISSING,
        &[PUBLISH],
        |w| Call::Publish(w.publish_request(&without_id())),
        BAD,
    ),
    Case::row(
        "ControllerPublishVolume without node",
        MISSING,
        &[PUBLISH],
        |w| Call::Publish(ControllerPublishVolumeRequest { node_id: String::new(), ..w.publish_request(&nowhere()) }),
        BAD,
    ),
    Case::row(
        "ControllerPublishVolume without capability",
        MISSING,
        &[PUBLISH],
        |w| Call::Publish(ControllerPublishVolumeRequest { volume_capability: None, ..w.publish_request(&nowhere()) }),
        BAD,
    ),
    Case::row(
        "ControllerPublishVolume of nothing",
        UNKNOWN,
        &[PUBLISH],
        |w| Call::Publish(w.publish_request(&nowhere())),
        &[NotFound],
    ),
    Case::row(
        "ControllerUnpublishVolume without volume",
        MISSING,
        &[PUBLISH],
        |w| Call::Unpublish(w.unpublish_request(&without_id())),
        BAD,
    ),
    Case::row(
        "NodeStageVolume without volume",
        MISSING,
        &[STAGE],
        |w| {
            let staging_target_path = w.staging(&nowhere());
            Call::Stage(NodeStageVolumeRequest { staging_target_path, ..w.stage_request(&without_id()) })
        },
        BAD,
    ),
    Case::row(
        "NodeStageVolume without path",
        MISSING,
        &[STAGE],
        |w| Call::Stage(NodeStageVolumeRequest { staging_target_path: String::new(), ..w.stage_request(&nowhere()) }),
        BAD,
    ),
    Case::row(
        "NodeStageVolume without capability",
        MISSING,
        &[STAGE],
        |w| Call::Stage(NodeStageVolumeRequest { volume_capability: None, ..w.stage_request(&nowhere()) }),
        BAD,
    ),
    Case::row(
        "NodeStageVolume of nothing",
        UNKNOWN,
        &[STAGE, CREATE],
        |w| Call::Stage(w.stage_request(&nowhere())),
        &[NotFound],
    ),
    Case::row(
        "NodeStageVolume at a path with ..",
        "a path must not reach outside",
        &[STAGE, Need::Own],
        |w| {
            Call::Stage(NodeStageVolumeRequest {
                staging_target_path: "/tmp/../x".into(),
                ..w.stage_request(&nowhere())
            })
        },
        BAD,
    ),
    Case::row(
        "NodeUnstageVolume without volume",
        MISSING,
        &[STAGE],
        |w| Call::Unstage(NodeUnstageVolumeRequest { volume_id: String::new(), ..w.unstage_request(&nowhere()) }),
        BAD,
    ),
    Case::row(
        "NodeUnstageVolume without path",
        MISSING,
        &[STAGE],
        |_| Call::Unstage(NodeUnstageVolumeRequest { volume_id: nowhere().volume_id, ..Default::default() }),
        BAD,
    ),
    Case::row(
        "NodePublishVolume without volume",
        MISSING,
        &[],
        |w| {
            Call::NodePublish(NodePublishVolumeRequest {
                volume_id: String::new(),
                ..w.node_publish_request(&nowhere(), "a")
            })
        },
        BAD,
    ),
    Case::row(
        "NodePublishVolume without target",
        MISSING,
        &[],
        |w| {
            Call::NodePublish(NodePublishVolumeRequest {
                target_path: String::new(),
                ..w.node_publish_request(&nowhere(), "a")
            })
        },
        BAD,
    ),
    Case::row(
        "NodePublishVolume without capability",
        MISSING,
        &[],
        |w| {
            Call::NodePublish(NodePublishVolumeRequest {
                volume_capability: None,
                ..w.node_publish_request(&nowhere(), "a")
            })
        },
        BAD,
    ),
    Case::row(
        "NodePublishVolume without staging path",
        "a staging_target_path that is not set is FAILED_PRECONDITION",
        &[STAGE],
        |w| {
            let staging_target_path = String::new();
            Call::NodePublish(NodePublishVolumeRequest {
                staging_target_path,
                ..w.node_publish_request(&nowhere(), "a")
            })
        },
        &[FailedPrecondition, InvalidArgument],
    ),
    Case::row(
        "NodePublishVolume of nothing",
        UNKNOWN,
        &[CREATE],
        |w| Call::NodePublish(w.node_publish_request(&nowhere(), "a")),
        &[NotFound],
    ),
    Case::row(
        "NodeUnpublishVolume without volume",
        MISSING,
        &[],
        |w| Call::NodeUnpublish(w.node_unpublish_request(&without_id(), "a")),
        BAD,
    ),
    Case::row(
        "NodeUnpublishVolume without target",
        MISSING,
        &[],
        |_| Call::NodeUnpublish(NodeUnpublishVolumeRequest { volume_id: nowhere().volume_id, ..Default::default() }),
        BAD,
    ),
    Case::row("NodeGetVolumeStats without volume", MISSING, &[STATS], |_| stats("", "/tmp"), BAD),
    Case::row("NodeGetVolumeStats without path", MISSING, &[STATS], |_| stats("x", ""), BAD),
    Case::row("NodeGetVolumeStats of nothing", UNKNOWN, &[STATS], |w| stats(&w.name(), "/tmp"), &[NotFound]),
    Case::row("NodeExpandVolume without volume", MISSING, &[NODE_EXPAND], |_| grow("", "/tmp"), BAD),
    Case::row("NodeExpandVolume without path", MISSING, &[NODE_EXPAND], |_| grow("x", ""), BAD),
    Case::row("NodeExpandVolume of nothing", UNKNOWN, &[NODE_EXPAND], |w| grow(&w.name(), "/tmp"), &[NotFound]),
];
