"""A CSI driver, written from the specification alone: volumes are bricks of an array, which are attached to one node.

    python bricks --endpoint unix:///PATH --registry FOLDER --node NAME --array FOLDER [--controller]

Its folder of generated code (csi_pb2.py and its like, made from the two contracts) must be on PYTHONPATH.
"""

import argparse
import concurrent.futures
import pathlib
import signal
import threading

import csi_pb2_grpc as csi_grpc
import grpc
import registration_pb2 as registration
import registration_pb2_grpc as registration_grpc

import services
from array_of_bricks import Array


class Registration(registration_grpc.RegistrationServicer):
    """Makes the driver known to the node's agent."""

    def __init__(self, endpoint):
        self.endpoint = endpoint

    def GetInfo(self, request, context):
        return registration.PluginInfo(
            type="CSIPlugin", name=services.NAME, endpoint=self.endpoint, supported_versions=["1.0.0"]
        )

    def NotifyRegistrationStatus(self, request, context):
        print(f"registered: {request.plugin_registered} {request.error}", flush=True)
        return registration.RegistrationStatusResponse()


def serve(socket, *services_to_add):
    """A server on a socket. What an earlier process left there is in the way of a new one."""
    pathlib.Path(socket).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(socket).unlink(missing_ok=True)
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=8))
    for add, service in services_to_add:
        add(service, server)
    server.add_insecure_port(f"unix://{socket}")
    server.start()
    return server


def main():
    """Serves until it is asked to end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--registry", required=True)
    parser.add_argument("--node", required=True)
    parser.add_argument("--array", required=True)
    parser.add_argument("--array-bytes", type=int, default=1 << 40)
    parser.add_argument("--max-volumes", type=int, default=16)
    parser.add_argument("--controller", action="store_true")
    args = parser.parse_args()

    end = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: end.set())
    array = Array(args.array, args.array_bytes, args.max_volumes)
    socket = args.endpoint.removeprefix("unix://")
    own = [
        (csi_grpc.add_IdentityServicer_to_server, services.Identity(args.controller)),
        # The name of the node in the array is another than in the cluster.
        (csi_grpc.add_NodeServicer_to_server, services.Node(array, f"host/{args.node}")),
    ]
    if args.controller:
        own.append((csi_grpc.add_ControllerServicer_to_server, services.Controller(array)))
    driver = serve(socket, *own)
    # Only when it can be asked: the agent asks at once.
    known = serve(
        str(pathlib.Path(args.registry, f"{services.NAME}-reg.sock")),
        (registration_grpc.add_RegistrationServicer_to_server, Registration(socket)),
    )
    end.wait()
    known.stop(grace=1).wait()
    driver.stop(grace=5).wait()


if __name__ == "__main__":
    main()
