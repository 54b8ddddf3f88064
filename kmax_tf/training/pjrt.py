"""The devices that JAX drives, and a program that runs on all of them, through PJRT.

Only the device "pjrt" imports this module: it needs JAX.
"""

import collections
import contextlib
import functools
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.errors import JaxRuntimeError
from jax.experimental import multihost_utils
from jax.extend.backend import get_backend
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxlib import _jax

from kmax_tf.errors import InputError, first_line
from kmax_tf.training import replica_program
from kmax_tf.training.memory import DoesNotFit
from kmax_tf.training.replica_strategy import ReplicaStrategy

USED = (
    "JAX is already in use in this process; restart it (in a notebook, the kernel), and train"
    " before any other use of JAX"
)


class Devices(NamedTuple):
    """The devices of all processes, in the order of replicas, and those of this process."""

    everywhere: list[jax.Device]
    here: list[jax.Device]

    def __str__(self) -> str:
        return f"{len(self.everywhere)} x {self.everywhere[0].device_kind}"


class PjrtStrategy(ReplicaStrategy):
    """One replica on each device that JAX finds, on all hosts."""

    def __init__(self, devices: Devices):
        super().__init__(len(devices.everywhere), jax.process_index(), jax.process_count())
        self.devices = devices

    def sum_of_processes(self, value: Any) -> Any:
        value = np.asarray(value)
        return multihost_utils.process_allgather(value).reshape(-1, *value.shape).sum(0)


def strategy(device: str) -> PjrtStrategy:
    """Makes the strategy of all devices, after all hosts have met.

    The environment variable TF_CONFIG lists the hosts, as for TensorFlow. On a Cloud TPU slice and
    in a cluster that JAX knows, they find each other without it.

    Args:
        device: "pjrt" (all devices that JAX finds) or "pjrt:cpu:N" (N virtual devices of the CPU).

    Raises:
        InputError: `device` has another form, or the hosts or devices cannot be reached.
    """
    match = re.fullmatch(r"pjrt(?::cpu:([1-9]\d*))?", device)
    if not match:
        raise InputError(f"device {device!r} is none of pjrt, pjrt:cpu:N")
    jax.config.update("jax_enable_x64", True)  # the step counter is an int64
    try:
        if match[1]:
            jax.config.update("jax_platforms", "cpu")
            jax.config.update("jax_num_cpu_devices", int(match[1]))
        _meet()
        everywhere = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        used = re.search("before (any JAX|backends)", str(error))
        reason = USED if used else f"{first_line(error):.200}"
        raise InputError(f"device {device!r} cannot be used: {reason}") from error
    counts = collections.Counter(device.process_index for device in everywhere)
    if len(set(counts.values())) > 1:
        raise InputError(
            f"device {device!r}: the hosts have {sorted(counts.values())} devices;"
            " give each the same number"
        )
    return PjrtStrategy(Devices(everywhere, jax.local_devices()))


@functools.cache
def _meet():
    """Joins the processes of all hosts, once: JAX refuses a second time, alone or not."""
    if text := os.environ.get("TF_CONFIG"):
        addresses, index = _hosts(json.loads(text))
        # Without a look for a cluster, which would give a task of Slurm or MPI one device.
        alone = dict(cluster_detection_method="deactivate")
        jax.distributed.initialize(addresses[0], len(addresses), index, **alone)
        return
    with contextlib.suppress(ValueError):  # this host is alone
        jax.distributed.initialize()


def _hosts(config):
    """Returns the addresses of TF_CONFIG's hosts, the chief first, and the place of this one."""
    cluster, task = config["cluster"], config["task"]
    kinds = ("chief", "worker")
    hosts = {(kind, i): host for kind in kinds for i, host in enumerate(cluster.get(kind, ()))}
    here = task.get("type", "worker"), task["index"]
    if here not in hosts:
        raise InputError(f"TF_CONFIG: task {here} is no chief and no worker of the cluster")
    return [*hosts.values()], [*hosts].index(here)


class Executable:
    """A compiled program of one replica, loaded on all devices."""

    def __init__(self, loaded: Any, devices: Devices):
        self._loaded, self._devices = loaded, devices
        # Each replica has an array of its own, but JAX knows no such array. So it is told that all
        # are the same.
        mesh = Mesh(np.array(devices.everywhere), ("replica",))
        self._sharding = NamedSharding(mesh, PartitionSpec())

    def send(self, values: Sequence[np.ndarray]) -> jax.Array:
        """Copies `values`, one of equal shape for each device here, to the devices."""
        return self._array(jax.device_put(list(values), self._devices.here))

    def __call__(self, arguments: Sequence[jax.Array]) -> tuple[list[jax.Array], Any]:
        """Starts the program, and returns its outputs and a token before it has ended.

        An argument that an output replaces is used up.
        """
        results = self._loaded.execute_sharded(arguments, with_tokens=True)
        token = results.consume_token()
        outputs = results.disassemble_into_single_device_arrays()
        return [self._array(shards) for shards in outputs], token

    def serialize(self) -> bytes:
        return get_backend().serialize_executable(self._loaded)

    def _array(self, shards):
        shape = shards[0].shape
        return jax.make_array_from_single_device_arrays(shape, self._sharding, shards)


@contextlib.contextmanager
def named_errors() -> Iterator[None]:
    """Turns JAX's error about memory into `DoesNotFit`; a step may fail when its end is awaited."""
    try:
        yield
    except JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(error) from error


@named_errors()
def compile_module(module: Any, devices: Devices) -> Executable:
    """Compiles a StableHLO module of one replica; `DoesNotFit` if it needs too much memory."""
    return Executable(get_backend().compile_and_load(module, *_placement(devices)), devices)


def load(content: bytes, devices: Devices) -> Executable:
    """Loads what `Executable.serialize` gave for the same devices."""
    loaded = get_backend().deserialize_executable(content, *_placement(devices))
    return Executable(loaded, devices)


def _placement(devices):
    """Returns all devices and the compiler's options, as JAX's functions take them."""
    options = replica_program.compile_options([d.id for d in devices.everywhere])
    return _jax.DeviceList(tuple(devices.everywhere)), options
