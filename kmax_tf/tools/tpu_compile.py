"""Compiles the training step for a TPU slice with the real TPU compiler, on a machine without TPU.

The program is the part of one core: augmentation on the device, forward pass, matching, losses,
gradients, their sum over all cores, optimizer. It needs the extra `tpu_compile`.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops
from tensorflow.python.distribute import one_device_strategy

from kmax_tf.data import training_input
from kmax_tf.data.records import example
from kmax_tf.errors import InputError
from kmax_tf.experiment import Experiment
from kmax_tf.training import batch_size
from kmax_tf.training.train import make_trainer


class Topology(NamedTuple):
    """A slice, and the memory and speed of one core (cloud.google.com/tpu/docs/v3)."""

    name: str  # in libtpu
    cores: int
    memory: float = 16 * 2**30  # bytes
    bytes_per_second: float = 450e9
    flops_per_second: float = 61.5e12  # of bfloat16 products


TOPOLOGIES = {"v3-8": Topology("v3:2x2x1", 8), "v3-32": Topology("v3:4x4", 32)}
PYTHON_OPS = ("PyFunc", "PyFuncStateless", "EagerPyFunc")
DYNAMIC_OPS = ("Where", "Unique", "UniqueV2", "NonMaxSuppressionV3")
DOUBLES = (tf.float64, tf.complex128)


class Compiled(NamedTuple):
    """The compiler's figures for the program of one core."""

    arguments: int  # bytes
    outputs: int  # bytes, including those that take an argument's place
    temporaries: int  # bytes
    needed: int  # bytes, at the fullest moment
    flops: float
    bytes_accessed: float
    estimated_seconds: float


class OutOfMemory(InputError):
    """The program does not fit into a core's memory."""


def topology(accelerator: str) -> Topology:
    """Returns the slice of a name such as "v3-32"; raises InputError if it is unknown."""
    if accelerator not in TOPOLOGIES:
        raise InputError(f"topology {accelerator!r} is none of {', '.join(TOPOLOGIES)}")
    return TOPOLOGIES[accelerator]


def training_step(experiment: Experiment, cores: int) -> tuple[Callable, list[tf.TensorSpec]]:
    """Returns the step that each of `cores` runs, and the TensorSpecs of its arguments.

    The step is a tf.function with jit_compile=True. It takes one core's part of a batch and updates
    weights, moments and metrics.

    Raises:
        InputError: The batch cannot be divided among the cores.
    """
    images = batch_size.per_replica_batch_size(experiment, cores) * experiment.accumulation
    trainer = make_trainer(experiment, _Slice(cores))
    options = experiment.training_input

    @tf.function
    def one(record):
        return training_input.training_example(
            [record, record],
            example.parse,
            experiment.dataset,
            options,
            stride=trainer.model.output_stride,
            seed=tf.constant([0, 0]),
        )

    outputs = one.get_concrete_function(tf.TensorSpec([], tf.string)).structured_outputs
    specs = [tf.TensorSpec([images, *t.shape], t.dtype) for t in tf.nest.flatten(outputs)]

    @tf.function(jit_compile=True)
    def step(*parts):
        trainer.train_step(iter([tf.nest.pack_sequence_as(outputs, parts)]))

    return step, specs


class _Slice(tf.distribute.Strategy):
    """Traces the program of one replica in a slice, with the collective operations of XLA."""

    def __init__(self, cores):
        super().__init__(_SliceExtended(self, cores))


class _SliceExtended(one_device_strategy.OneDeviceExtended):
    def __init__(self, strategy, cores):
        super().__init__(strategy, "/cpu:0")
        self.cores = cores

    @property
    def _num_replicas_in_sync(self):
        return self.cores

    def _use_merge_call(self):
        return False  # replicas meet in `_replica_ctx_all_reduce`

    def _replica_ctx_all_reduce(self, reduce_op, value, options=None):
        if self.cores == 1:
            return value
        mean = reduce_op == tf.distribute.ReduceOp.MEAN
        group = tf.constant(np.arange(self.cores)[None], tf.int32)

        def reduce(x):
            x = gen_xla_ops.xla_all_reduce(x, group, reduce_op="Add", mode="CrossReplica")
            return x / self.cores if mean else x

        return tf.nest.map_structure(reduce, value)


def lower(step: Any, specs: Sequence[tf.TensorSpec]) -> bytes:
    """Returns the step as a serialized HLO module.

    Raises:
        InputError: A TPU does not support an operation: Python code, double precision, or a shape
            that depends on values. The message names the line of the source.
    """
    operations = _operations(step.get_concrete_function(*specs).graph)
    for operation in operations:
        reason = _refusal(operation)
        if reason:
            raise InputError(f"{_line(operation)}: {operation.type} {reason}")
    try:
        return step.experimental_get_compiler_ir(*specs)(stage="hlo_serialized")
    except (tf.errors.OpError, ValueError) as error:
        named = re.search(r"\{\{node ([^}]+)\}\}", str(error))
        lines = [_line(o) for o in operations if named and o.name == named[1]]
        raise InputError(f"{lines[0] if lines else 'the step'}: {error}") from error


def _operations(graph):
    """Returns all operations of the functions in a graph, then of the graph itself."""
    functions = (graph._get_function(name) for name in graph._functions)
    inner = [f.graph for f in functions if getattr(f, "graph", None)]
    return [o for g in inner for o in _operations(g)] + graph.get_operations()


def _refusal(operation):
    """Returns why a TPU does not support an operation, or None."""
    if operation.type in PYTHON_OPS:
        return "calls Python, which a TPU cannot run; use TensorFlow operations"
    if operation.type in DYNAMIC_OPS:
        return "makes a shape that depends on values; use a mask of static shape"
    if any(output.dtype in DOUBLES for output in operation.outputs):
        return "computes in double precision, which a TPU lacks; cast to float32"
    return None


def _line(operation):
    """Returns FILE:LINE of the innermost line of ours that made an operation."""
    ours = [frame for frame in operation.traceback if "site-packages" not in frame.filename]
    return f"{ours[-1].filename}:{ours[-1].lineno}" if ours else operation.name


def compile_for_tpu(hlo: bytes, accelerator: str, replicas: int) -> Compiled:
    """Compiles a serialized HLO module for `replicas` cores of an accelerator.

    Raises:
        InputError: The accelerator is unknown, or jax and libtpu are not installed.
        OutOfMemory: The program does not fit into a core's memory.
    """
    name = topology(accelerator).name
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "JAX_PLATFORMS": "cpu",
        "TPU_ACCELERATOR_TYPE": accelerator,
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    try:
        from jax.errors import JaxRuntimeError
        from jax.experimental import topologies
        from jaxlib import _jax
    except ImportError as error:
        raise InputError(f"{error}: pip install -e .[tpu_compile]") from error
    description: Any = topologies.get_topology_desc(topology_name=name, platform="tpu")
    devices = description.devices[:replicas]
    options = _jax.CompileOptions()
    options.num_replicas, options.num_partitions = replicas, 1
    options.device_assignment = _jax.DeviceAssignment.create(np.arange(replicas)[:, None])
    try:
        program = devices[0].client.compile(
            stablehlo(hlo), _jax.DeviceList(tuple(devices)), options
        )
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
    )


def stablehlo(hlo: bytes) -> Any:
    """Converts an HLO proto to a StableHLO module for the TPU compiler."""
    from jax.extend import mlir
    from jax.interpreters.mlir import make_ir_context
    from jaxlib.mlir import ir

    module = ir.Module.parse(mlir.hlo_to_stablehlo(hlo), make_ir_context())
    for operation in _named(module, "mhlo.copy"):  # unknown to the TPU compiler
        operation.results[0].replace_all_uses_with(operation.operands[0])
        operation.erase()
    return module


def _named(module, name):
    """Returns all operations of a name in a module."""
    from jaxlib.mlir import ir

    found = []

    def collect(operation):
        if operation.name == name:
            found.append(operation)
        return ir.WalkResult.ADVANCE

    module.operation.walk(collect)
    return found


def portable(experiment: Experiment, cores: int) -> bytes:
    """Returns one core's step, without sums over cores, for scripts/time_stablehlo.py."""
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import stablehlo as dialect

    share = dataclasses.replace(experiment, batch_size=experiment.batch_size // cores)
    module = stablehlo(lower(*training_step(share, 1)))
    for operation in _named(module, "mhlo.erf"):  # absent from StableHLO; XLA has it as this call
        with module.context, operation.location, ir.InsertionPoint(operation):
            call = ir.Operation.create(
                "stablehlo.custom_call",
                results=[operation.results[0].type],
                operands=[operation.operands[0]],
                attributes={
                    "call_target_name": ir.StringAttr.get("mhlo.erf"),
                    "mhlo.attributes": ir.DictAttr.get({}),
                    "mhlo.version": ir.Attribute.parse("1 : i64"),
                },
            )
        operation.results[0].replace_all_uses_with(call.results[0])
        operation.erase()
    return dialect.serialize_portable_artifact(module, dialect.get_minimum_version())
