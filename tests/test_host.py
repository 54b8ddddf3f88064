"""The cores and the memory that a process may use, in a container too."""

import os
import types

import psutil
import pytest

from kmax_tf import host

GB = 10**9


def test_where_the_system_gives_no_cores_to_a_process_all_count(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert host.cores() == 6


@pytest.fixture
def machine(monkeypatch):
    """A machine of 64 GB, of which 40 are free."""
    found = types.SimpleNamespace(total=64 * GB, available=40 * GB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: found)


@pytest.mark.parametrize("version", [0, 1], ids=["version 2", "version 1"])
@pytest.mark.parametrize(
    "limit, expected",
    [
        (8 * GB, (8 * GB, 6 * GB)),  # 3 GB in use, 1 of them files that the system may drop
        (60 * GB, (60 * GB, 40 * GB)),  # other programs of the machine hold the rest
        (2**63 - 4096, (64 * GB, 40 * GB)),  # none, in version 1
        ("max", (64 * GB, 40 * GB)),  # none, in version 2
    ],
)
def test_the_limit_of_a_container_counts(version, limit, expected, machine, tmp_path, monkeypatch):
    _, limit_file, used_file, cache = host.CONTAINERS[version]
    (tmp_path / limit_file).write_text(f"{limit}\n")
    (tmp_path / used_file).write_text(f"{3 * GB}\n")
    (tmp_path / "memory.stat").write_text(f"inactive_anon 7\n{cache} {GB}\nactive_file 9\n")
    monkeypatch.setattr(host, "CONTAINERS", [(tmp_path, limit_file, used_file, cache)])
    assert (host.memory(), host.free_memory()) == expected


@pytest.mark.parametrize("name", ["nvidia0", "nvidia1", "nvidiactl"])
def test_a_driver_tells_of_a_gpu(name, tmp_path, monkeypatch):
    monkeypatch.setattr(host, "NVIDIA", [f"{tmp_path}/nvidia[0-9]*"])
    assert not host.has_nvidia_gpu()
    (tmp_path / name).touch()
    assert host.has_nvidia_gpu() == (name != "nvidiactl")


def test_outside_a_container_the_machine_counts(machine, tmp_path, monkeypatch):
    monkeypatch.setattr(host, "CONTAINERS", [(tmp_path / "none", "limit", "used", "cache")])
    assert (host.memory(), host.free_memory()) == (64 * GB, 40 * GB)
