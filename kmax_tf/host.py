"""What this process may use of its host: cores, memory, NVIDIA GPUs."""

import contextlib
import glob
import os
import pathlib
import re

# A container's limit, what it uses, and of that the files the system may drop; control groups 2, 1.
CONTAINERS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    (
        "/sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)

NVIDIA = ("/dev/nvidia[0-9]*", "/proc/driver/nvidia/gpus/*", "/usr/lib/wsl/lib/libcuda.so.1")


def cores() -> int:
    """Returns how many cores this process may use; only Linux may give it a part of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> int:
    """Returns the memory of this host or container, in bytes."""
    return min([_machine().total, *(limit for limit, _ in _containers())])


def free_memory() -> int:
    """Returns the memory that this process may still take, in bytes."""
    return min([_machine().available, *(limit - used for limit, used in _containers())])


def has_nvidia_gpu() -> bool:
    """Returns whether Linux, or Windows around it, has a driver for an NVIDIA GPU."""
    return any(map(glob.glob, NVIDIA))


def _machine():
    import psutil  # every command imports this file, and few need that package

    return psutil.virtual_memory()


def _containers():
    """Yields the limit and the used memory of the container around this process, in bytes."""
    for folder, *files, cache in CONTAINERS:
        with contextlib.suppress(OSError, ValueError):  # not there, or no limit: "max"
            limit, used = (int(pathlib.Path(folder, name).read_text()) for name in files)
            statistics = pathlib.Path(folder, "memory.stat").read_text()
            yield limit, used - int(re.search(rf"(?m)^{cache} (\d+)$", statistics)[1])
