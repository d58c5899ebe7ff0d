"""The services of the Container Storage Interface over an array of bricks."""

import functools
import os
import threading

import csi_pb2 as csi
import csi_pb2_grpc as csi_grpc
import grpc

import disk
from array_of_bricks import Refused

NAME = "bricks.csi.example.com"
SMALLEST = 300 << 20
# Bytes of a name or an id, as the specification bounds them, and of a path, as the kernel does.
LONGEST, LONGEST_PATH = 128, 4096

MODES = csi.VolumeCapability.AccessMode
# A brick is on one node at a time.
SUPPORTED = {
    MODES.SINGLE_NODE_WRITER,
    MODES.SINGLE_NODE_READER_ONLY,
    MODES.SINGLE_NODE_SINGLE_WRITER,
    MODES.SINGLE_NODE_MULTI_WRITER,
}


def answers(call):
    """Turns what the array and the machine's tools refuse into statuses."""

    @functools.wraps(call)
    def wrapped(self, request, context):
        try:
            return call(self, request, context)
        except Refused as refused:
            code, reason = grpc.StatusCode[refused.code], str(refused)
        except (OSError, ValueError) as error:
            code, reason = grpc.StatusCode.INTERNAL, str(error)
        print(f"{call.__name__}: {code.name}: {reason}", flush=True)
        context.abort(code, reason)

    return wrapped


def need(request, *fields):
    """Every one of the fields must be set, and not be too long."""
    for field in fields:
        value = getattr(request, field)
        if not value:
            raise Refused("INVALID_ARGUMENT", f"{field} is missing")
        if isinstance(value, str) and len(value.encode()) > (LONGEST_PATH if field.endswith("_path") else LONGEST):
            raise Refused("INVALID_ARGUMENT", f"{field} is too long")


def check_capability(request, field="volume_capability"):
    """The capability must be there and be one that a brick can have."""
    if not request.HasField(field):
        raise Refused("INVALID_ARGUMENT", f"{field} is missing")
    problem = problem_with(getattr(request, field))
    if problem:
        raise Refused("INVALID_ARGUMENT", problem)


def problem_with(capability):
    """Why a brick cannot be had that way; None if it can."""
    if capability.WhichOneof("access_type") != "mount":
        return "a brick is mounted, not handed out as a block device"
    if capability.access_mode.mode not in SUPPORTED:
        return f"access mode {MODES.Mode.Name(capability.access_mode.mode)}: a brick is on one node at a time"
    if capability.mount.fs_type not in ("", *disk.MAKE):
        return f"file system {capability.mount.fs_type!r}: there are {', '.join(disk.MAKE)}"
    return None


class Identity(csi_grpc.IdentityServicer):
    """What the driver is."""

    def __init__(self, controller):
        self.controller = controller

    def GetPluginInfo(self, request, context):
        return csi.GetPluginInfoResponse(name=NAME, vendor_version="1.0")

    def GetPluginCapabilities(self, request, context):
        capability = csi.PluginCapability
        answer = csi.GetPluginCapabilitiesResponse()
        if self.controller:
            answer.capabilities.append(capability(service=capability.Service(type=capability.Service.CONTROLLER_SERVICE)))
            online = capability.VolumeExpansion(type=capability.VolumeExpansion.ONLINE)
            answer.capabilities.append(capability(volume_expansion=online))
        return answer

    def Probe(self, request, context):
        return csi.ProbeResponse(ready=csi.BoolValue(value=True))


class Controller(csi_grpc.ControllerServicer):
    """Bricks as such. Nothing is remembered here: all of it is the array's."""

    def __init__(self, array):
        self.array = array

    def ControllerGetCapabilities(self, request, context):
        rpc = csi.ControllerServiceCapability.RPC
        kinds = [rpc.CREATE_DELETE_VOLUME, rpc.PUBLISH_UNPUBLISH_VOLUME, rpc.EXPAND_VOLUME, rpc.SINGLE_NODE_MULTI_WRITER]
        capabilities = [csi.ControllerServiceCapability(rpc=rpc(type=kind)) for kind in kinds]
        return csi.ControllerGetCapabilitiesResponse(capabilities=capabilities)

    @answers
    def CreateVolume(self, request, context):
        need(request, "name", "volume_capabilities")
        for capability in request.volume_capabilities:
            problem = problem_with(capability)
            if problem:
                raise Refused("INVALID_ARGUMENT", problem)
        if request.HasField("volume_content_source"):
            raise Refused("INVALID_ARGUMENT", "bricks begin empty")
        unknown = set(request.parameters) - {"wall"}
        if unknown:
            raise Refused("INVALID_ARGUMENT", f"parameters {sorted(unknown)}: there is only 'wall'")
        wanted = request.capacity_range
        if wanted.required_bytes < 0 or wanted.limit_bytes < 0:
            raise Refused("OUT_OF_RANGE", "capacity_range is negative")
        if wanted.limit_bytes and wanted.limit_bytes < max(wanted.required_bytes, SMALLEST):
            raise Refused("OUT_OF_RANGE", f"the smallest brick has {SMALLEST} bytes")
        size = max(wanted.required_bytes, SMALLEST)
        brick = self.array.create(request.name, size, wanted.limit_bytes, dict(request.parameters))
        context_of = {"wall": brick.parameters.get("wall", "north")}
        volume = csi.Volume(volume_id=brick.id, capacity_bytes=brick.capacity, volume_context=context_of)
        return csi.CreateVolumeResponse(volume=volume)

    @answers
    def DeleteVolume(self, request, context):
        need(request, "volume_id")
        self.array.delete(request.volume_id)
        return csi.DeleteVolumeResponse()

    @answers
    def ControllerPublishVolume(self, request, context):
        need(request, "volume_id", "node_id")
        check_capability(request)
        if not request.node_id.startswith("host/"):
            raise Refused("NOT_FOUND", f"no node {request.node_id!r}")
        if request.readonly:
            raise Refused("INVALID_ARGUMENT", "bricks are published for reading and writing")
        key = self.array.export(request.volume_id, request.node_id)
        return csi.ControllerPublishVolumeResponse(publish_context={"key": key})

    @answers
    def ControllerUnpublishVolume(self, request, context):
        need(request, "volume_id")
        self.array.withdraw(request.volume_id, request.node_id)
        return csi.ControllerUnpublishVolumeResponse()

    @answers
    def ValidateVolumeCapabilities(self, request, context):
        need(request, "volume_id", "volume_capabilities")
        self.array.get(request.volume_id)
        problems = [problem for problem in map(problem_with, request.volume_capabilities) if problem]
        if problems:
            return csi.ValidateVolumeCapabilitiesResponse(message=problems[0])
        confirmed = csi.ValidateVolumeCapabilitiesResponse.Confirmed(volume_capabilities=request.volume_capabilities)
        return csi.ValidateVolumeCapabilitiesResponse(confirmed=confirmed)

    @answers
    def ControllerExpandVolume(self, request, context):
        need(request, "volume_id")
        if not request.HasField("capacity_range"):
            raise Refused("INVALID_ARGUMENT", "capacity_range is missing")
        wanted = request.capacity_range
        size = self.array.grow(request.volume_id, wanted.required_bytes, wanted.limit_bytes)
        return csi.ControllerExpandVolumeResponse(capacity_bytes=size, node_expansion_required=True)


class Node(csi_grpc.NodeServicer):
    """Bricks on this node. What is mounted is read from the kernel each time."""

    def __init__(self, array, node_id):
        self.array = array
        self.node_id = node_id
        # Tools that look for a free device would meet each other.
        self.one_at_a_time = threading.Lock()

    def NodeGetInfo(self, request, context):
        return csi.NodeGetInfoResponse(node_id=self.node_id, max_volumes_per_node=self.array.per_node)

    def NodeGetCapabilities(self, request, context):
        rpc = csi.NodeServiceCapability.RPC
        kinds = [rpc.STAGE_UNSTAGE_VOLUME, rpc.EXPAND_VOLUME, rpc.GET_VOLUME_STATS, rpc.SINGLE_NODE_MULTI_WRITER]
        return csi.NodeGetCapabilitiesResponse(
            capabilities=[csi.NodeServiceCapability(rpc=rpc(type=kind)) for kind in kinds]
        )

    @answers
    def NodeStageVolume(self, request, context):
        need(request, "volume_id", "staging_target_path")
        check_capability(request)
        brick = self.array.get(request.volume_id)
        if brick.node != self.node_id or request.publish_context.get("key") != brick.key:
            raise Refused("FAILED_PRECONDITION", f"volume {brick.id} is not published to {self.node_id} with this key")
        if request.volume_context.get("wall") != brick.parameters.get("wall", "north"):
            raise Refused("INVALID_ARGUMENT", "volume_context is not the one that CreateVolume gave")
        mount = request.volume_capability.mount
        with self.one_at_a_time:
            if not disk.is_mounted(request.staging_target_path):
                device = disk.attach(self.array.path(brick.id))
                disk.mount(device, mount.fs_type or "xfs", request.staging_target_path, mount.mount_flags)
        return csi.NodeStageVolumeResponse()

    @answers
    def NodeUnstageVolume(self, request, context):
        need(request, "volume_id", "staging_target_path")
        with self.one_at_a_time:
            disk.unmount(request.staging_target_path)
            disk.detach(self.array.path(request.volume_id))
        return csi.NodeUnstageVolumeResponse()

    @answers
    def NodePublishVolume(self, request, context):
        need(request, "volume_id", "staging_target_path", "target_path")
        check_capability(request)
        self.array.get(request.volume_id)
        alone = request.volume_capability.access_mode.mode == MODES.SINGLE_NODE_SINGLE_WRITER
        with self.one_at_a_time:
            if not disk.is_mounted(request.staging_target_path):
                raise Refused("FAILED_PRECONDITION", f"volume {request.volume_id} is not staged")
            if not disk.is_mounted(request.target_path):
                if alone and disk.places(request.staging_target_path) > 1:
                    raise Refused("FAILED_PRECONDITION", f"volume {request.volume_id} is for one pod, and has one")
                os.makedirs(request.target_path, exist_ok=True)
                disk.bind(request.staging_target_path, request.target_path, request.readonly)
        return csi.NodePublishVolumeResponse()

    @answers
    def NodeUnpublishVolume(self, request, context):
        need(request, "volume_id", "target_path")
        with self.one_at_a_time:
            disk.unmount(request.target_path)
            if os.path.isdir(request.target_path):
                os.rmdir(request.target_path)
        return csi.NodeUnpublishVolumeResponse()

    @answers
    def NodeExpandVolume(self, request, context):
        need(request, "volume_id", "volume_path")
        brick = self.array.get(request.volume_id)
        if not disk.is_mounted(request.volume_path):
            raise Refused("NOT_FOUND", f"nothing is mounted at {request.volume_path}")
        with self.one_at_a_time:
            disk.grow(self.array.path(brick.id), request.volume_path)
        return csi.NodeExpandVolumeResponse(capacity_bytes=brick.capacity)

    @answers
    def NodeGetVolumeStats(self, request, context):
        need(request, "volume_id", "volume_path")
        self.array.get(request.volume_id)
        if not disk.is_mounted(request.volume_path):
            raise Refused("NOT_FOUND", f"nothing is mounted at {request.volume_path}")
        stat = os.statvfs(request.volume_path)
        usage = csi.VolumeUsage(
            unit=csi.VolumeUsage.BYTES,
            total=stat.f_blocks * stat.f_frsize,
            used=(stat.f_blocks - stat.f_bfree) * stat.f_frsize,
            available=stat.f_bavail * stat.f_frsize,
        )
        return csi.NodeGetVolumeStatsResponse(usage=[usage])
