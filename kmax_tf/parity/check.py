"""Runs our code on golden cases of the official code, and says how far it is from them."""

import math
from typing import NamedTuple

import tensorflow as tf
from absl import logging

from kmax_tf.errors import InputError, first_line
from kmax_tf.model.layers.norms import BatchNorm
from kmax_tf.parity import augment, cases, encoders, loss, model, optimizer, port, postprocess

PARTS = {
    "model": model.compare,
    "loss": loss.compare,
    "postprocess": postprocess.compare,
    "augment": augment.compare,
    "optimizer": optimizer.compare,
    "port": port.compare,
    "encoders": encoders.compare,
}


class Result(NamedTuple):
    """The outcome of one case."""

    part: str
    case: str
    tensors: int  # compared, or that could not be
    worst: str  # name of the tensor farthest off, or why the case did not run
    deviation_over_tolerance: float  # of that tensor; infinite where nothing could be compared
    passed: bool


def prepare() -> None:
    """Makes sums independent of the number of cores; a program calls it first."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    BatchNorm.fused = False  # the official formula, to the rounding


def check(folder: str, part: str | None = None, case: str | None = None) -> list[Result]:
    """Compares every case in a folder of golden numbers, or one part of it, or one case of that.

    A case that cannot be run has failed, and so has one with an array that nothing was compared
    with.

    Raises:
        InputError: There is no such part, or the folder has no case of it.
    """
    if part is not None and part not in PARTS:
        raise InputError(f"part {part!r} is none of {', '.join(PARTS)}")
    if not tf.io.gfile.isdir(folder):
        raise InputError(f"{folder}: is no folder; give a folder of golden numbers")
    found = [
        (p, name)
        for p in (PARTS if part is None else [part])
        for name in cases.case_names(folder, p)
        if case in (None, name)
    ]
    if not found:
        wanted = "/".join(filter(None, (part, case))) or "golden"
        raise InputError(f"{folder}: holds no {wanted} case (PART/NAME.json)")
    return [_run(folder, p, name) for p, name in found]


def _run(folder, part, name):
    comparison = cases.Comparison()
    try:
        case = cases.Case(folder, part, name)
        PARTS[part](case, comparison)
        for array in sorted(case.unread):
            comparison.fail(f"{array}: not compared")
        worst, ratio = comparison.worst()
    except InputError as error:
        worst, ratio = str(error), math.inf
    except Exception as error:  # the other cases are still to be run
        logging.exception("%s/%s", part, name)
        worst, ratio = first_line(f"{type(error).__name__}: {error}"), math.inf
    return Result(part, name, len(comparison.ratios), worst, ratio, ratio <= 1)


def table(results: list[Result]) -> str:
    """Returns the results as text, a line for each case."""
    rows = [("case", "tensors", "deviation / tolerance", "", "worst")]
    for r in results:
        ratio, verdict = f"{r.deviation_over_tolerance:.3g}", "pass" if r.passed else "FAIL"
        rows.append((f"{r.part}/{r.case}", str(r.tensors), ratio, verdict, r.worst))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def as_json(results: list[Result]) -> dict:
    """Returns the results as json.dumps takes them; an infinite deviation is None."""
    entries = [result._asdict() for result in results]
    for entry in entries:
        if entry["deviation_over_tolerance"] == math.inf:
            entry["deviation_over_tolerance"] = None
    return {"cases": entries, "passed": all(result.passed for result in results)}
