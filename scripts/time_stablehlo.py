"""Times a training step of scripts/tpu_compile.py --stablehlo on the first device of JAX.

The input is random. The script needs JAX and no other package of this project.
"""

import argparse
import statistics
import time

import jax
import numpy as np
from jax.extend.backend import get_backend
from jax.interpreters.mlir import make_ir_context
from jaxlib import _jax
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

RUNS = 10
jax.config.update("jax_enable_x64", True)  # the step counter is an int64


def random_arrays(module, generator):
    """Returns an array for each argument of the module's main function."""
    arrays = []
    functions = {operation.name.value: operation for operation in module.body.operations}
    for argument in functions["main"].type.inputs:
        shape = ir.RankedTensorType(argument).shape
        kind = str(ir.RankedTensorType(argument).element_type)
        if kind.startswith(("f", "bf")):
            array = generator.random(shape).astype(jax.numpy.dtype(_name(kind)))
        else:
            array = generator.integers(0, 2, shape).astype(_name(kind))
        arrays.append(array)
    return arrays


def _name(kind):
    """Returns NumPy's name of an MLIR type."""
    if kind == "i1":
        return "bool"
    prefix = {"bf": "bfloat", "f": "float", "i": "int", "ui": "uint"}
    letters = kind.rstrip("0123456789")
    return prefix[letters] + kind.removeprefix(letters)


def main(path):
    with open(path, "rb") as file:
        module = stablehlo.deserialize_portable_artifact(make_ir_context(), file.read())
    device = jax.devices()[0]
    program = get_backend().compile_and_load(
        module, _jax.DeviceList((device,)), _jax.CompileOptions()
    )
    arrays = random_arrays(module, np.random.default_rng(0))
    times = []
    for _ in range(1 + RUNS):
        # A step overwrites its arguments with the new weights, so each run needs a copy.
        inputs = jax.block_until_ready([jax.device_put(array, device) for array in arrays])
        start = time.perf_counter()
        results = program.execute_sharded(inputs).disassemble_into_single_device_arrays()
        jax.block_until_ready(results)
        times.append(time.perf_counter() - start)
    median, least = statistics.median(times[1:]), min(times[1:])
    print(
        f"{device.device_kind}: {1000 * median:.1f} ms, at least {1000 * least:.1f}, of {RUNS} runs"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("file", help="file of the step")
    main(parser.parse_args().file)
