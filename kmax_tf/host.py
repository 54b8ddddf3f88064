"""What this process may use of its host: cores and memory."""

import contextlib
import os
import pathlib
import re

import psutil

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


def cores() -> int:
    """Returns how many cores this process may use; only Linux may give it a part of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> int:
    """Returns the memory of this host or container, in bytes."""
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _containers())])


def free_memory() -> int:
    """Returns the memory that this process may still take, in bytes."""
    return min(
        [psutil.virtual_memory().available, *(limit - used for limit, used in _containers())]
    )


def _containers():
    """Yields the limit and the used memory of the container around this process, in bytes."""
    for folder, *files, cache in CONTAINERS:
        with contextlib.suppress(OSError, ValueError):  # not there, or no limit: "max"
            limit, used = (int(pathlib.Path(folder, name).read_text()) for name in files)
            statistics = pathlib.Path(folder, "memory.stat").read_text()
            yield limit, used - int(re.search(rf"(?m)^{cache} (\d+)$", statistics)[1])
