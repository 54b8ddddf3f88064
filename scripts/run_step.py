"""Trains a step of scripts/pack_step.py on the first device of JAX.

It prints the loss and the time of a step. It needs JAX and no other package of this project.
"""

import argparse
import json
import statistics
import time

import jax
import numpy as np
from jax.extend.backend import get_backend
from jax.interpreters.mlir import make_ir_context
from jaxlib import _jax
from jaxlib.mlir.dialects import stablehlo

EVERY = 10  # steps of a line
jax.config.update("jax_enable_x64", True)  # the step counter is an int64


def main(path, steps):
    pack = np.load(path)
    head = json.loads(str(pack["head"]))
    device = jax.devices()[0]

    def send(*names):
        return [jax.device_put(pack[name], device) for name in names]

    start = time.perf_counter()
    module = stablehlo.deserialize_portable_artifact(make_ir_context(), pack["program"].tobytes())
    program = get_backend().compile_and_load(
        module, _jax.DeviceList((device,)), _jax.CompileOptions()
    )
    print(f"{device.device_kind}: compiled in {time.perf_counter() - start:.1f} s", flush=True)
    state = send(*(f"state_{k}" for k in range(len(head["outputs"]))))
    parts = sum(name.startswith("batch_0_") for name in pack.files)
    batches = [send(*(f"batch_{i}_{j}" for j in range(parts))) for i in range(head["batches"])]
    before, times = 0.0, []
    for first in range(0, steps, EVERY):
        last = min(first + EVERY, steps)
        start = time.perf_counter()
        for step in range(first, last):
            # The program overwrites its arguments with its outputs, but not the batch.
            results = program.execute_sharded([*batches[step % len(batches)], *state])
            outputs = results.disassemble_into_single_device_arrays()
            pairs = zip(head["outputs"], state, strict=True)
            state = [old if number is None else outputs[number][0] for number, old in pairs]
        jax.block_until_ready(state)
        times.append((time.perf_counter() - start) / (last - first))
        # The state has means since the start.
        total = last * sum(np.sum(state[s] / state[n]) for s, n in head["losses"])
        print(f"step {last}: loss {(total - before) / (last - first):.4f}", flush=True)
        before = total
    rest = times[1:] or times
    print(
        f"{1000 * statistics.median(rest):.1f} ms a step, at least {1000 * min(rest):.1f}; of"
        f" {len(rest)} times {EVERY} steps"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("file", help="archive of scripts/pack_step.py")
    parser.add_argument("--steps", type=int, default=100, help="steps to train; default: 100")
    options = parser.parse_args()
    if options.steps < 1:
        parser.error(f"argument --steps: {options.steps} is less than 1")
    main(options.file, options.steps)
