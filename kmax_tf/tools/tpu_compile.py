"""Compiles the program of one replica with the real TPU compiler, on a machine without TPU.

It needs the extra `tpu_compile`.
"""

import os
from typing import Any, NamedTuple

from kmax_tf.errors import InputError
from kmax_tf.tools import tpu_chips
from kmax_tf.training import replica_program


class Compiled(NamedTuple):
    """The compiler's figures for the program of one replica."""

    arguments: int  # bytes
    outputs: int  # bytes, including those that take an argument's place
    temporaries: int  # bytes
    needed: int  # bytes, at the fullest moment
    flops: float
    bytes_accessed: float
    estimated_seconds: float
    program: str  # optimized HLO as text, or ""


class OutOfMemory(InputError):
    """The program does not fit into the memory of a replica."""


def devices(wanted: tpu_chips.Slice) -> list[Any]:
    """Returns the devices of a slice as the TPU compiler knows them.

    Raises InputError if jax and libtpu are not installed.
    """
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "JAX_PLATFORMS": "cpu",
        "TPU_ACCELERATOR_TYPE": wanted.accelerator_type,
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    try:
        import libtpu  # noqa: F401
        from jax.experimental import topologies
    except ImportError as error:
        raise InputError(f"{error}: pip install 'kmax_tf[tpu_compile]'") from error
    joined = wanted.chip.cores > wanted.chip.devices
    description: Any = topologies.get_topology_desc(
        topology_name=wanted.topology,
        platform="tpu",
        chip_config_name="megacore" if joined else "default",
    )
    return description.devices


def compile_for_tpu(hlo: bytes, accelerator: str, replicas: int) -> Compiled:
    """Compiles a serialized HLO module.

    Args:
        hlo: Program of one replica, from `replica_program.lower`.
        accelerator: Name of the slice, such as "v5e-16".
        replicas: Number of devices of the slice that run the program together.

    Raises:
        InputError: The accelerator is unknown, or jax and libtpu are not installed.
        OutOfMemory: The program does not fit into the memory of a replica.
    """
    used = devices(tpu_chips.parse(accelerator))[:replicas]
    from jax.errors import JaxRuntimeError
    from jaxlib import _jax

    options = replica_program.compile_options(range(replicas))
    module = replica_program.stablehlo(hlo)
    try:
        program = used[0].client.compile(module, _jax.DeviceList(tuple(used)), options)
    except JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise OutOfMemory(str(error)) from error
        raise
    memory, cost = program.get_compiled_memory_stats(), program.cost_analysis()
    arguments, outputs = memory.argument_size_in_bytes, memory.output_size_in_bytes
    return Compiled(
        arguments,
        outputs,
        memory.temp_size_in_bytes,
        arguments + outputs - memory.alias_size_in_bytes + memory.temp_size_in_bytes,
        cost["flops"],
        cost["bytes accessed"],
        cost["optimal_seconds"],
        _text(program),
    )


def _text(program):
    """Returns the optimized HLO; "" if JAX does not understand it, as some of v6e."""
    from jax.errors import JaxRuntimeError

    try:
        return program.hlo_modules()[0].to_string()
    except JaxRuntimeError:
        return ""
