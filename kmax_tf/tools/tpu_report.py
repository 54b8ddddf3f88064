"""Reports whether an experiment fits into a TPU slice, and how long it takes."""

import json
import subprocess
import sys
from collections.abc import Sequence

from kmax_tf.errors import first_line
from kmax_tf.experiment import Experiment
from kmax_tf.tools import tpu_compile

COLUMNS = (
    "experiment",
    "images a core",
    "fits",
    "HBM, GB",
    "TFLOP",
    "GB accessed",
    "estimate",
    "images/s",
    "hours",
)
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def report(experiment: Experiment, accelerator: str) -> dict:
    """Compiles the whole training step of an experiment for an accelerator.

    Returns:
        A dictionary of
        - "fits"
        - "hbm_bytes" of one core: "arguments", "outputs", "temporaries", "needed" (an output that
          takes an argument's place counts once) and "available"
        - "flops", "bytes_accessed"
        - "estimated_seconds": the compiler's estimate of a step, or None
        - "roofline_seconds": the longer of arithmetic and memory traffic at the core's full speed
        - "images_per_second", "hours" of the schedule: by the longer of the two times
        - "images_a_core"
        If the step does not fit, the dictionary may hold only "fits" and "message".

    Raises:
        InputError: The accelerator is unknown, or a TPU does not support the step.
    """
    topology = tpu_compile.topology(accelerator)
    step, specs = tpu_compile.training_step(experiment, topology.cores)
    try:
        compiled = tpu_compile.compile_for_tpu(
            tpu_compile.lower(step, specs), accelerator, topology.cores
        )
    except tpu_compile.OutOfMemory as error:
        return {"fits": False, "message": str(error)}
    traffic = compiled.bytes_accessed / topology.bytes_per_second
    arithmetic = compiled.flops / topology.flops_per_second
    # The compiler returns negative numbers for steps that it cannot estimate.
    estimate = compiled.estimated_seconds if compiled.estimated_seconds > 0 else None
    seconds = max(estimate or 0, traffic, arithmetic)
    return {
        "fits": compiled.needed <= topology.memory,
        "hbm_bytes": {
            "arguments": compiled.arguments,
            "outputs": compiled.outputs,
            "temporaries": compiled.temporaries,
            "needed": compiled.needed,
            "available": int(topology.memory),
        },
        "flops": compiled.flops,
        "bytes_accessed": compiled.bytes_accessed,
        "estimated_seconds": estimate,
        "roofline_seconds": max(traffic, arithmetic),
        "images_per_second": experiment.batch_size / seconds,
        "hours": experiment.steps * seconds / 3600,
        "images_a_core": experiment.batch_size // topology.cores,
    }


def text(compiled: dict) -> str:
    """Returns the report as text."""
    if "hbm_bytes" not in compiled:
        return f"does not fit: {compiled['message']}"
    memory = compiled["hbm_bytes"]
    lines = [f"{'fits' if compiled['fits'] else 'does not fit'}, of one core:"]
    lines += [f"  {name:<22}{value / 1e9:>8.2f} GB" for name, value in memory.items()]
    lines += [
        f"  {'arithmetic':<22}{compiled['flops'] / 1e12:>8.2f} TFLOP",
        f"  {'memory traffic':<22}{compiled['bytes_accessed'] / 1e9:>8.1f} GB",
        f"step time: {_seconds(compiled)} by the compiler's estimate,"
        f" {compiled['roofline_seconds']:.3f} s at the core's full speed:",
        f"  {compiled['images_per_second']:.0f} images/s, {compiled['hours']:.1f} hours"
        " for the whole schedule",
    ]
    return "\n".join(lines)


def _seconds(compiled):
    """Returns the compiler's estimate as text."""
    estimate = compiled["estimated_seconds"]
    return f"{estimate:.3f} s" if estimate else "unknown"


def table_row(script: str, path: str, bindings: Sequence[str], accelerator: str) -> str:
    """Returns one row of the table under `HEAD`, with the error of an experiment that fails.

    The compiler runs in its own process, which frees its memory for the next row.
    """
    command = [sys.executable, script, f"--gin_file={path}", f"--topology={accelerator}", "--json"]
    command += [f"--gin={binding}" for binding in bindings]
    done = subprocess.run(command, capture_output=True, text=True)
    name = path.rsplit("/", 1)[-1].removesuffix(".gin")
    if done.returncode:
        compiled: dict = {"fits": False, "message": done.stderr.strip().splitlines()[-1]}
    else:
        compiled = json.loads(done.stdout.splitlines()[-1])
    if "hbm_bytes" not in compiled:
        reason = first_line(compiled["message"]).replace("|", "/")
        return f"| {name} | | no: {reason} {'| ' * (len(COLUMNS) - 3)}|"
    cells = [
        name,
        str(compiled["images_a_core"]),
        "yes" if compiled["fits"] else "no",
        f"{compiled['hbm_bytes']['needed'] / 1e9:.1f}",
        f"{compiled['flops'] / 1e12:.2f}",
        f"{compiled['bytes_accessed'] / 1e9:.0f}",
        _seconds(compiled),
        f"{compiled['images_per_second']:.0f}",
        f"{compiled['hours']:.1f}",
    ]
    return f"| {' | '.join(cells)} |"
