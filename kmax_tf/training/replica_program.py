"""The training step of one replica as a StableHLO program, for the compilers that JAX drives.

The program is the part of one device: augmentation on the device, forward pass, matching, losses,
gradients, their sum over all devices, optimizer. It holds no weight: they are its arguments.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from kmax_tf.data import training_input
from kmax_tf.data.records import example
from kmax_tf.errors import InputError
from kmax_tf.training import batch_size
from kmax_tf.training.trainer import Trainer

PYTHON_OPS = ("PyFunc", "PyFuncStateless", "EagerPyFunc")
DYNAMIC_OPS = ("Where", "Unique", "UniqueV2", "NonMaxSuppressionV3")
DOUBLES = (tf.float64, tf.complex128)


def training_step(trainer: Trainer) -> tuple[Any, list[tf.TensorSpec]]:
    """Returns the step that each replica runs, and the TensorSpecs of its arguments.

    The step is a tf.function with jit_compile=True. It takes one replica's part of a batch and
    updates weights, moments and metrics.

    Args:
        trainer: a `Trainer` in a `ReplicaStrategy`.

    Raises:
        InputError: The batch cannot be divided among the replicas.
    """
    experiment, replicas = trainer.experiment, trainer.strategy.num_replicas_in_sync
    images = batch_size.per_replica_batch_size(experiment, replicas) * experiment.accumulation

    @tf.function
    @tf.autograph.experimental.do_not_convert
    def one(record):
        return training_input.training_example(
            [record, record],
            example.parse,
            experiment.dataset,
            experiment.training_input,
            stride=trainer.model.output_stride,
            seed=tf.constant([0, 0]),
        )

    outputs = one.get_concrete_function(tf.TensorSpec([], tf.string)).structured_outputs
    specs = [tf.TensorSpec([images, *t.shape], t.dtype) for t in tf.nest.flatten(outputs)]

    @tf.function(jit_compile=True)
    @tf.autograph.experimental.do_not_convert
    def step(*parts):
        trainer.train_step(iter([tf.nest.pack_sequence_as(outputs, parts)]))

    return step, specs


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


def replaced_arguments(module: Any) -> dict[int, int]:
    """Returns, for each argument of the step that an output replaces, that output's number."""
    aliases = module.operation.attributes["mhlo.input_output_alias"]
    return {
        int(entry["alias"]["parameter_number"]): list(entry["output_index"])[0] for entry in aliases
    }


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


def compile_options(ids: Sequence[int]) -> Any:
    """Returns the compiler's options: replica number k runs on the device of ids[k]."""
    from jaxlib import _jax

    options = _jax.CompileOptions()
    options.num_replicas, options.num_partitions = len(ids), 1
    options.device_assignment = _jax.DeviceAssignment.create(np.array(ids)[:, None])
    return options


def portable(module: Any) -> Any:
    """Replaces, in place, what StableHLO does not have; returns the module."""
    from jaxlib.mlir import ir

    for operation in _named(module, "mhlo.erf"):  # XLA has it as this call
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
    return module


class Program(NamedTuple):
    """A training step that needs no TensorFlow.

    Its arguments are a batch, then `variables` of the trainer by their numbers in `step_variables`.
    """

    module: Any  # StableHLO
    variables: list[int]
    # For each of `variables`, the number of the output that replaces it; None if it is only read.
    outputs: list[int | None]


def step_program(trainer: Trainer) -> Program:
    """Traces the step of a trainer in a `ReplicaStrategy`.

    Raises InputError if the step reads what the model does not track, or as `lower` does.
    """
    step, specs = training_step(trainer)
    variables = _captured(trainer, step.get_concrete_function(*specs))
    module = stablehlo(lower(step, specs))
    replaced = replaced_arguments(module)
    outputs = [replaced.get(len(specs) + i) for i in range(len(variables))]
    return Program(portable(module), variables, outputs)


def _captured(trainer, function):
    """Returns the numbers of the variables that the step's concrete function reads from outside."""
    numbers = {id(v.handle): number for number, v in enumerate(trainer.step_variables)}
    names = {id(v.handle): f"the variable {v.name}" for v in function.graph.variables}
    for tensor in function.captured_inputs:
        if id(tensor) not in numbers:
            what = names.get(id(tensor), f"a constant, {tensor.dtype.name} {tensor.shape}")
            raise InputError(
                f"the step reads {what}, which the model does not track; make it in `call`, or"
                " make it an attribute of a layer: tf.Variable(..., trainable=False)"
            )
    return [numbers[id(tensor)] for tensor in function.captured_inputs]


def serialize(module: Any) -> bytes:
    """Returns a portable module as bytes that other versions of JAX read."""
    from jaxlib.mlir.dialects import stablehlo as dialect

    return dialect.serialize_portable_artifact(module, dialect.get_minimum_version())
