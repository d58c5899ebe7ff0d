"""The storage that the driver drives: an array of bricks, in one folder that all nodes reach.

A brick is a sparse file; what is known of it is a record beside it. Every change is one file that takes the place of
another, so that the driver may be killed at any moment and any number of drivers may work on one array.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import uuid


class Refused(Exception):
    """The array does not do that. Holds the name of a gRPC status code and the reason."""

    def __init__(self, code, reason):
        super().__init__(reason)
        self.code = code


@dataclasses.dataclass
class Brick:
    """A brick as it is recorded."""

    id: str
    name: str
    capacity: int
    parameters: dict
    # Whether its file was made. From then on a missing file is lost data.
    made: bool = False
    # The node that it is exported to, and the key that the node must show; None if to no node.
    node: str | None = None
    key: str | None = None


class Array:
    """An array in a folder."""

    def __init__(self, folder, size, per_node):
        self.size = size
        self.per_node = per_node
        self._records = pathlib.Path(folder, "records")
        self._bricks = pathlib.Path(folder, "bricks")
        for each in (self._records, self._bricks):
            each.mkdir(parents=True, exist_ok=True)
        self._lock = pathlib.Path(folder, "lock")

    def path(self, brick_id):
        """The file of a brick."""
        return self._bricks / f"{brick_id}.img"

    def all(self):
        """All bricks."""
        return [self._read(path) for path in sorted(self._records.glob("*.json"))]

    def get(self, brick_id):
        """One brick."""
        path = self._records / f"{brick_id}.json"
        # An id comes from outside: it must not lead out of the folder.
        if "/" in brick_id or not path.exists():
            raise Refused("NOT_FOUND", f"no volume {brick_id!r}")
        return self._read(path)

    @contextlib.contextmanager
    def alone(self):
        """One change of the array at a time, whoever makes it."""
        with open(self._lock, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def create(self, name, required, limit, parameters):
        """Makes a brick, or gives the one that was made under this name."""
        with self.alone():
            for brick in self.all():
                if brick.name != name:
                    continue
                fits = brick.capacity >= required and (not limit or brick.capacity <= limit)
                if not fits or brick.parameters != parameters:
                    raise Refused("ALREADY_EXISTS", f"{name!r} is there with {brick.capacity} bytes and other parameters")
                return self._made(brick)
            self._check_room(required)
            brick = Brick(id=uuid.uuid4().hex, name=name, capacity=required, parameters=parameters)
            # The record comes first: it is how the next try finds what this one left.
            self._write(brick)
            return self._made(brick)

    def delete(self, brick_id):
        """Ends a brick; does nothing if it is not there."""
        with self.alone():
            try:
                brick = self.get(brick_id)
            except Refused:
                return
            if brick.node is not None:
                raise Refused("FAILED_PRECONDITION", f"volume {brick_id} is published to {brick.node}")
            self.path(brick_id).unlink(missing_ok=True)
            (self._records / f"{brick_id}.json").unlink()

    def export(self, brick_id, node):
        """Lets one node have a brick, and gives the key that the node must show."""
        with self.alone():
            brick = self.get(brick_id)
            if brick.node == node:
                return brick.key
            if brick.node is not None:
                raise Refused("FAILED_PRECONDITION", f"volume {brick_id} is published to {brick.node}")
            if sum(other.node == node for other in self.all()) >= self.per_node:
                raise Refused("RESOURCE_EXHAUSTED", f"{node} has {self.per_node} volumes already")
            brick.node, brick.key = node, uuid.uuid4().hex
            self._write(brick)
            return brick.key

    def withdraw(self, brick_id, node):
        """Takes a brick away from a node, or from all."""
        with self.alone():
            try:
                brick = self.get(brick_id)
            except Refused:
                return
            if brick.node is not None and node in ("", brick.node):
                brick.node, brick.key = None, None
                self._write(brick)

    def grow(self, brick_id, required, limit):
        """Makes a brick larger."""
        with self.alone():
            brick = self.get(brick_id)
            if limit and brick.capacity > limit:
                raise Refused("OUT_OF_RANGE", f"volume {brick_id} has {brick.capacity} bytes, more than {limit}")
            if required > brick.capacity:
                self._check_room(required - brick.capacity)
                # The file first: a file that is too large does no harm.
                os.truncate(self.path(brick_id), required)
                brick.capacity = required
                self._write(brick)
            return brick.capacity

    def _made(self, brick):
        if not brick.made:
            with open(self.path(brick.id), "wb") as file:
                file.truncate(brick.capacity)
                os.fsync(file.fileno())
            brick.made = True
            self._write(brick)
        return brick

    def _check_room(self, more):
        used = sum(brick.capacity for brick in self.all())
        if used + more > self.size:
            raise Refused("OUT_OF_RANGE", f"{more} bytes asked for, {self.size - used} left")

    @staticmethod
    def _read(path):
        return Brick(**json.loads(path.read_text()))

    def _write(self, brick):
        path = self._records / f"{brick.id}.json"
        new = path.with_suffix(".new")
        with open(new, "w") as file:
            json.dump(dataclasses.asdict(brick), file)
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
