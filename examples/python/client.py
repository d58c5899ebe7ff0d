#!/usr/bin/env python3
"""Creates a StatefulSet over gRPC, watches its ordered creation and scales it. Needs no generated code."""

import argparse
import sys
import time

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

SERVICE = "berth.api.v1.ApiService"
DEADLINE = 10  # seconds, for a call
PATIENCE = 120  # seconds, for pods to come or go


class Api:
    """The API service, as its own reflection describes it."""

    def __init__(self, server):
        self.channel = grpc.insecure_channel(server)
        self.pool = DescriptorPool(ProtoReflectionDescriptorDatabase(self.channel))
        self.service = self.pool.FindServiceByName(SERVICE)

    def message(self, name):
        """The class of a message of berth.api.v1."""
        return GetMessageClass(self.pool.FindMessageTypeByName(f"berth.api.v1.{name}"))

    def call(self, method, timeout=DEADLINE, **fields):
        """Calls a method with the fields of its request; a stream if the method has one."""
        descriptor = self.service.methods_by_name[method]
        request = GetMessageClass(descriptor.input_type)
        response = GetMessageClass(descriptor.output_type)
        kind = self.channel.unary_stream if descriptor.server_streaming else self.channel.unary_unary
        stub = kind(f"/{SERVICE}/{method}", request.SerializeToString, response.FromString)
        return stub(request(**fields), timeout=timeout)


def a_set(api, name, replicas):
    """A StatefulSet with one claim for each ordinal."""
    obj = api.message("Object")()
    sts = obj.stateful_set
    sts.metadata.name = name
    sts.metadata.namespace = "default"
    sts.spec.replicas = replicas
    sts.spec.service_name = name  # names no Service: Berth makes the headless Service itself
    sts.spec.selector.match_labels["app"] = name
    sts.spec.template.metadata.labels["app"] = name
    container = sts.spec.template.spec.containers.add(name="nginx", image="registry.k8s.io/nginx-slim:0.24")
    container.ports.add(container_port=80, name="web")
    container.readiness_probe.tcp_socket.port.string_value = "web"
    container.readiness_probe.period_seconds = 1
    container.volume_mounts.add(name="www", mount_path="/usr/share/nginx/html")
    sts.spec.template.spec.termination_grace_period_seconds = 5
    claim = sts.spec.volume_claim_templates.add()
    claim.metadata.name = "www"
    claim.spec.access_modes.append("ReadWriteOnce")
    claim.spec.resources.requests["storage"].value = "64Mi"
    return obj


def is_ready(pod):
    return any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions)


def follow(api, selector, since, done):
    """Watches pods until `done` says so; prints and returns what happened, in order."""
    story, ready = [], set()
    began = time.monotonic()
    watch = api.call("Watch", timeout=PATIENCE, kind="Pod", namespace="default", label_selector=selector,
                     resource_version=since)
    for event in watch:
        pod = event.object.pod
        name = pod.metadata.name
        if event.type == 1:
            story.append(f"{name} created on {pod.spec.node_name}")
        elif event.type == 3:
            story.append(f"{name} gone")
            ready.discard(name)
        elif event.type == 2 and is_ready(pod) and name not in ready:
            story.append(f"{name} ready")
            ready.add(name)
        else:
            continue
        print(f"  {time.monotonic() - began:6.2f} s  {story[-1]}", flush=True)
        if done(story):
            watch.cancel()
            return story
    raise TimeoutError(f"not done after {PATIENCE} s: {story}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="127.0.0.1:7440", help="the API service (default: %(default)s)")
    parser.add_argument("--name", default="snake", help="name of the set (default: %(default)s)")
    args = parser.parse_args()
    api, name = Api(args.server), args.name

    since = api.call("List", kind="Pod", namespace="default").resource_version
    print(f"creating statefulset/{name} with 3 replicas")
    api.call("Create", object=a_set(api, name, 3))
    story = follow(api, f"app={name}", since, lambda story: f"{name}-2 ready" in story)
    order = [line.split(" on ")[0] for line in story]
    want = [f"{name}-{k} {what}" for k in range(3) for what in ("created", "ready")]
    assert order == want, f"the pods came as {order}, not as {want}"

    since = api.call("List", kind="Pod", namespace="default").resource_version
    print("scaling to 1")
    api.call("UpdateScale", namespace="default", name=name, replicas=1)
    story = follow(api, f"app={name}", since, lambda story: f"{name}-1 gone" in story)
    gone = [line for line in story if line.endswith("gone")]
    assert gone == [f"{name}-2 gone", f"{name}-1 gone"], f"the pods went as {gone}"
    claims = api.call("List", kind="PersistentVolumeClaim", namespace="default").items
    names = {c.persistent_volume_claim.metadata.name for c in claims}
    assert {f"www-{name}-{k}" for k in range(3)} <= names, f"claims are missing: {names}"

    since = api.call("List", kind="Pod", namespace="default").resource_version
    print(f"deleting statefulset/{name}")
    api.call("Delete", kind="StatefulSet", namespace="default", name=name)
    follow(api, f"app={name}", since, lambda story: f"{name}-0 gone" in story)
    print("done: created in order, scaled down from the top, claims kept, deleted")


if __name__ == "__main__":
    try:
        main()
    except grpc.RpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")
