"""Compiles the core of the training step with the real TPU compiler, on a machine without TPU.

The program is one core's forward pass, losses and gradients; it needs the extra `tpu_compile`.
"""

import os
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from kmax_tf.data.targets import Targets
from kmax_tf.files import InputError
from kmax_tf.model.layers import random_seed
from kmax_tf.train import training_losses

TOPOLOGIES = {"v3-8": "v3:2x2x1", "v3-32": "v3:4x4"}  # accelerator type -> libtpu's name


class Compiled(NamedTuple):
    """What the compiler says of one core's program."""

    arguments: int  # bytes
    outputs: int  # bytes
    temporaries: int  # bytes
    flops: float
    bytes_accessed: float
    estimated_seconds: float


def step_function(experiment, batch_size):
    """Forward, all losses and gradients, compiled by XLA, and the TensorSpecs of its arguments.

    `batch_size`: images a core. The function takes image and `Targets`, one after the other, and
    returns the loss and the gradient of every trainable variable.
    """
    model = experiment.build_model()
    options = experiment.training_input
    height, width = ((side - 1) // model.output_stride + 1 for side in options.size)

    def step(image, *targets):
        with tf.GradientTape() as tape, random_seed(tf.constant([0, 0])):
            losses = training_losses(model, experiment.criterion, image, Targets(*targets))
            loss = tf.reduce_mean(losses.total)
        gradients = tape.gradient(loss, model.trainable_variables)
        return [loss, *map(tf.convert_to_tensor, gradients)]

    grid = [batch_size, height, width]
    specs = [
        tf.TensorSpec([batch_size, *options.size, 3], tf.float32),
        tf.TensorSpec(grid, tf.int32),
        tf.TensorSpec([batch_size, options.max_segments], tf.int32),
        tf.TensorSpec(grid, tf.int32),
        tf.TensorSpec(grid, tf.float32),
    ]
    return tf.function(step, jit_compile=True), specs


def compile_for_tpu(function, specs, accelerator):
    """Compiles a tf.function with jit_compile=True for one core of `accelerator`; -> `Compiled`.

    Raises InputError for an unknown accelerator or without jax and libtpu.
    """
    if accelerator not in TOPOLOGIES:
        raise InputError(f"accelerator {accelerator!r} is none of {', '.join(TOPOLOGIES)}")
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "JAX_PLATFORMS": "cpu",
        "TPU_ACCELERATOR_TYPE": accelerator,
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    try:
        from jax.experimental import topologies
        from jaxlib import _jax
    except ImportError as error:
        raise InputError(f"{error}: pip install -e .[tpu_compile]") from error
    hlo = function.experimental_get_compiler_ir(*specs)(stage="hlo_serialized")
    name = TOPOLOGIES[accelerator]
    devices = topologies.get_topology_desc(topology_name=name, platform="tpu").devices[:1]
    options = _jax.CompileOptions()
    options.num_replicas = options.num_partitions = 1
    options.device_assignment = _jax.DeviceAssignment.create(np.zeros([1, 1], np.int64))
    program = devices[0].client.compile(_module(hlo), _jax.DeviceList(tuple(devices)), options)
    memory, cost = program.get_compiled_memory_stats(), program.cost_analysis()
    return Compiled(
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes,
        memory.temp_size_in_bytes,
        cost["flops"],
        cost["bytes accessed"],
        cost["optimal_seconds"],
    )


def _module(hlo):
    """An HLO proto as a StableHLO module that the TPU compiler takes."""
    from jax.extend import mlir
    from jax.interpreters.mlir import make_ir_context
    from jaxlib.mlir import ir

    module = ir.Module.parse(mlir.hlo_to_stablehlo(hlo), make_ir_context())
    copies = []

    def collect(operation):
        if operation.name == "mhlo.copy":  # left over, and unknown to the TPU compiler
            copies.append(operation)
        return ir.WalkResult.ADVANCE

    module.operation.walk(collect)
    for operation in copies:
        operation.results[0].replace_all_uses_with(operation.operands[0])
        operation.erase()
    return module
