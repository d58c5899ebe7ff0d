"""Bricks on a node: loop devices, file systems and mounts, with the machine's own tools."""

import os
import pathlib
import subprocess

MAKE = {"xfs": ["mkfs.xfs", "-q", "-f"], "ext4": ["mkfs.ext4", "-q", "-F"]}


def run(*command):
    """Runs a tool; an error carries its complaint."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(str(part) for part in command)}: {done.stderr.strip()}")
    return done.stdout.strip()


def is_mounted(path):
    """Whether something is mounted there."""
    real = os.path.realpath(path)
    return any(line.split(" ")[4] == real for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines())


def places(path):
    """At how many places the file system of a mount is mounted."""
    number = os.stat(path).st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    return sum(line.split(" ")[2] == device for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines())


def device_of(brick):
    """The loop device of a brick; None if it has none."""
    for backing in pathlib.Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if backing.read_text().strip() == str(brick):
                return f"/dev/{backing.parts[3]}"
        except OSError:
            # Detached while we looked.
            continue
    return None


def attach(brick):
    """Gives a brick a loop device, if it has none."""
    return device_of(brick) or run("losetup", "--find", "--show", brick)


def detach(brick):
    """Takes a brick's loop device away."""
    device = device_of(brick)
    if device:
        run("losetup", "--detach", device)


def file_system(device):
    """The file system on a device; empty if there is none."""
    done = subprocess.run(
        ["blkid", "-p", "-o", "value", "-s", "TYPE", device], capture_output=True, text=True, timeout=60, check=False
    )
    # 2: nothing was found. Anything else that is not success must not lead to a new file system over data.
    if done.returncode not in (0, 2):
        raise OSError(f"blkid {device}: {done.stderr.strip()}")
    return done.stdout.strip()


def mount(device, kind, path, flags):
    """Mounts a device, with a new file system if it has none."""
    found = file_system(device)
    if not found:
        run(*MAKE[kind], device)
        found = kind
    options = ["-o", ",".join(flags)] if flags else []
    run("mount", "-t", found, *options, device, path)


def grow(brick, path):
    """Makes the device and the mounted file system as large as the brick."""
    device = device_of(brick)
    if device is None:
        raise OSError(f"{brick} has no device here")
    run("losetup", "--set-capacity", device)
    if file_system(device) == "xfs":
        run("xfs_growfs", path)
    else:
        run("resize2fs", device)


def bind(source, target, readonly):
    """Shows a folder at another place."""
    run("mount", "--bind", source, target)
    if readonly:
        run("mount", "-o", "remount,bind,ro", target)


def unmount(path):
    """Ends a mount, if there is one."""
    if is_mounted(path):
        run("umount", path)
