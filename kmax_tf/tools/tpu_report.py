"""What the TPU compiler says of an experiment, as people ask it: does it fit, and how long."""

import json
import subprocess
import sys
from collections.abc import Sequence

from kmax_tf.errors import first_line
from kmax_tf.experiment import Experiment
from kmax_tf.tools import tpu_compile
from kmax_tf.tools.tpu_compile import TOPOLOGIES

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
    """Compiles the whole step; returns a dictionary.

    "fits"; "hbm_bytes" of a core: "arguments", "outputs", "temporaries", "needed" (outputs that
    take an argument's place counted once), "available"; "flops"; "bytes_accessed";
    "estimated_seconds", the compiler's, None where it has none; "roofline_seconds", the longer of
    the arithmetic and the traffic at the core's full speed; "images_per_second" and "hours" of the
    schedule by the longer of both. If it does not fit there is but "fits" and "message".
    """
    topology = TOPOLOGIES[accelerator]
    step, specs = tpu_compile.training_step(experiment, topology.cores)
    try:
        compiled = tpu_compile.compile_for_tpu(
            tpu_compile.lower(step, specs), accelerator, topology.cores
        )
    except tpu_compile.OutOfMemory as error:
        return {"fits": False, "message": str(error)}
    traffic = compiled.bytes_accessed / topology.bytes_per_second
    arithmetic = compiled.flops / topology.flops_per_second
    # Seen below 0 for whole steps: it has no estimate for some part of them.
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
    """The report as lines to read."""
    if "hbm_bytes" not in compiled:
        return f"does not fit: {compiled['message']}"
    memory = compiled["hbm_bytes"]
    lines = [f"{'fits' if compiled['fits'] else 'does not fit'}, of one core:"]
    lines += [f"  {name:<22}{value / 1e9:>8.2f} GB" for name, value in memory.items()]
    lines += [
        f"  {'arithmetic':<22}{compiled['flops'] / 1e12:>8.2f} TFLOP",
        f"  {'memory traffic':<22}{compiled['bytes_accessed'] / 1e9:>8.1f} GB",
        f"a step takes {_seconds(compiled)} by the compiler's estimate,"
        f" {compiled['roofline_seconds']:.3f} s at the core's full speed:",
        f"  {compiled['images_per_second']:.0f} images/s, {compiled['hours']:.1f} hours"
        " for the whole schedule",
    ]
    return "\n".join(lines)


def _seconds(compiled):
    """The compiler's estimate as text."""
    estimate = compiled["estimated_seconds"]
    return f"{estimate:.3f} s" if estimate else "unknown"


def table_row(script: str, path: str, bindings: Sequence[str], accelerator: str) -> str:
    """One row of the table under `HEAD`; the compiler runs in a process of its own.

    Its memory is free again for the next. What is wrong with an experiment stands in its row.
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
