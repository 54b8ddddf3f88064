"""Reports whether an experiment fits into a TPU slice, and how long it takes."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence

from kmax_tf.errors import first_line
from kmax_tf.experiment import Experiment
from kmax_tf.tools import hlo_traffic, tpu_chips, tpu_compile
from kmax_tf.training import replica_program
from kmax_tf.training.batch_size import per_replica_batch_size
from kmax_tf.training.replica_strategy import ReplicaStrategy
from kmax_tf.training.trainer import make_trainer

COLUMNS = (
    "experiment",
    "slice",
    "replicas x images",
    "fits",
    "memory, GB",
    "roofline, s",
    "estimate, s",
    "images/s, at most",
    "hours, at least",
)
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def report(experiment: Experiment, accelerator: str) -> dict:
    """Compiles the whole training step of an experiment for an accelerator.

    Returns:
        A dictionary of
        - "accelerator", "replicas", "images_per_replica"
        - "fits"
        - "remedy": what may make it fit; empty if it fits
        - "memory_bytes" of one replica: "arguments", "outputs", "temporaries", "needed" (an output
          that takes an argument's place counts once) and "available"
        - "flops", "bytes_accessed" of one replica
        - "bytes_by_part": of `hlo_traffic.by_part`; {} if JAX cannot read the program
        - "arithmetic_seconds", "traffic_seconds": of these two at the device's full speed
        - "roofline_seconds": the longer of the two
        - "estimated_seconds": the compiler's estimate of a step, or None
        - "images_per_second", "hours" of the schedule: by the longer of estimate and roofline
        If the compiler refuses the step, "message" stands for all that follows "remedy".

    Raises:
        InputError: The accelerator is unknown, a TPU does not support the step, or the batch cannot
            be divided among the replicas.
    """
    wanted = tpu_chips.parse(accelerator)
    images = per_replica_batch_size(experiment, wanted.replicas)
    trainer = make_trainer(experiment, ReplicaStrategy(wanted.replicas))
    hlo = replica_program.lower(*replica_program.training_step(trainer))
    head = {
        "accelerator": wanted.name,
        "replicas": wanted.replicas,
        "images_per_replica": images * experiment.accumulation,
    }
    try:
        compiled = tpu_compile.compile_for_tpu(hlo, wanted.name, wanted.replicas)
    except tpu_compile.OutOfMemory as error:
        remedy = _remedy(trainer, wanted)
        return {**head, "fits": False, "remedy": remedy, "message": str(error)}
    fits = compiled.needed <= wanted.memory
    memory = {
        "arguments": compiled.arguments,
        "outputs": compiled.outputs,
        "temporaries": compiled.temporaries,
        "needed": compiled.needed,
        "available": wanted.memory,
    }
    parts = hlo_traffic.by_part(compiled.program)
    flops, traffic = _of_all_micro_batches(experiment.accumulation, compiled, parts)
    # The compiler estimates a v3 sensibly; for newer chips it also returns negative numbers.
    estimates = wanted.generation == "v3" and experiment.accumulation == 1
    return {
        **head,
        "fits": fits,
        "remedy": "" if fits else _remedy(trainer, wanted),
        "memory_bytes": memory,
        "flops": flops,
        "bytes_accessed": traffic,
        "bytes_by_part": parts,
        **_times(experiment, wanted, flops, traffic, compiled.estimated_seconds * estimates),
    }


def _of_all_micro_batches(accumulation, compiled, parts):
    """Returns FLOPs and bytes of a step; the compiler counts the loop over micro-batches once."""
    # `by_part` counts what a chip fetches ahead more than once.
    outside = min(sum(map(sum, parts.values())), compiled.bytes_accessed)
    inside = compiled.bytes_accessed - outside
    return accumulation * compiled.flops, outside + accumulation * inside


def _times(experiment, wanted, flops, traffic, estimate):
    """Returns the times and speeds of a report; the estimate is 0 if there is none."""
    arithmetic = flops / wanted.flops_per_second
    traffic /= wanted.bytes_per_second
    seconds = max(arithmetic, traffic, estimate)
    return {
        "arithmetic_seconds": arithmetic,
        "traffic_seconds": traffic,
        "roofline_seconds": max(arithmetic, traffic),
        "estimated_seconds": estimate if estimate > 0 else None,
        "images_per_second": experiment.batch_size / seconds,
        "hours": experiment.steps * seconds / 3600,
    }


def _remedy(trainer, wanted):
    """Returns the settings that need less memory a replica."""
    experiment, remedies = trainer.experiment, []
    if experiment.precision != "mixed_bfloat16":
        remedies.append("""bfloat16 (--gin="experiment.Experiment.precision = 'mixed_bfloat16'")""")
    if not trainer.model.recompute:
        remedies.append("""recomputation (--gin="kmax.KMaX.recompute = ['pixel_encoder']")""")
    if per_replica_batch_size(experiment, wanted.replicas) % 2 == 0:
        accumulation = 2 * experiment.accumulation
        remedies.append(
            f'micro-batches (--gin="experiment.Experiment.accumulation = {accumulation}")'
        )
        remedies.append(f"more chips (--topology={wanted.generation}-{2 * wanted.cores})")
    return ", ".join(remedies) or "a chip with more memory"


def text(report: dict) -> str:
    """Returns the report as text."""
    place = (
        f"{report['accelerator']}, {report['replicas']} replicas x"
        f" {report['images_per_replica']} images"
    )
    if "message" in report:
        return f"does not fit: {place}: {report['message']}\nmay make it fit: {report['remedy']}"
    lines = [f"{'fits' if report['fits'] else 'does not fit'}: {place}; of one replica:"]
    lines += [f"  {name:<22}{n / 1e9:>8.2f} GB" for name, n in report["memory_bytes"].items()]
    estimate = report["estimated_seconds"]
    estimate = f"{estimate:.4f} s" if estimate else "none that can be trusted"
    lines += [
        f"  {'arithmetic':<22}{report['flops'] / 1e12:>8.2f} TFLOP,"
        f" {report['arithmetic_seconds']:.4f} s at full speed",
        f"  {'memory traffic':<22}{report['bytes_accessed'] / 1e9:>8.2f} GB,"
        f" {report['traffic_seconds']:.4f} s at full speed",
        f"step: at least {report['roofline_seconds']:.4f} s by the roofline; the compiler's"
        f" estimate: {estimate}",
        f"so at most {report['images_per_second']:.0f} images/s, and at least"
        f" {report['hours']:.1f} hours for the whole schedule",
    ]
    if report["remedy"]:
        lines.append(f"may make it fit: {report['remedy']}")
    return "\n".join(lines)


def table_row(script: str, path: str, accelerator: str, flags: Sequence[str]) -> str:
    """Returns one row of the table under `HEAD`, with the error of an experiment that fails.

    The compiler runs in its own process, which frees its memory for the next row.

    Args:
        script: Path of scripts/tpu_compile.py.
        path: Gin file of the experiment.
        accelerator: Name of the slice.
        flags: Further flags of the script.
    """
    command = [sys.executable, script, f"--gin_file={path}", f"--topology={accelerator}", "--json"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True)
    name = path.rsplit("/", 1)[-1].removesuffix(".gin")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        reason = "killed, as for lack of memory" if done.returncode < 0 else lines[-1]
        reason = reason.replace("|", "/")
        return _row([name, accelerator, "", reason])
    return _row([name, *cells(json.loads(done.stdout.splitlines()[-1]))])


def _row(values):
    return f"| {' | '.join([*values, *[''] * (len(COLUMNS) - len(values))])} |"


def cells(report: dict) -> list[str]:
    """Returns the cells of a report in the table, without the experiment's name."""
    place = [report["accelerator"], f"{report['replicas']} x {report['images_per_replica']}"]
    if "message" in report:
        used = re.search(r"Used (\S+) of (\S+)", report["message"])
        reason = f"{used[1]} of {used[2]}" if used else first_line(report["message"])
        return [*place, "no", reason.replace("|", "/")]
    memory, estimate = report["memory_bytes"], report["estimated_seconds"]
    return [
        *place,
        "yes" if report["fits"] else "no",
        f"{memory['needed'] / 1e9:.2f} of {memory['available'] / 1e9:.1f}",
        f"{report['roofline_seconds']:.4f}",
        f"{estimate:.4f}" if estimate else "",
        f"{report['images_per_second']:.0f}",
        f"{report['hours']:.1f}",
    ]
