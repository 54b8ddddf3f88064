"""Runs our code on golden cases of the official code, and says how far it is from them."""

from typing import NamedTuple

import tensorflow as tf
from absl import logging

from kmax_tf import errors
from kmax_tf.model.layers.norms import BatchNorm
from kmax_tf.parity import augment, cases, loss, model, optimizer, postprocess

PARTS = {
    "model": model.compare,
    "loss": loss.compare,
    "postprocess": postprocess.compare,
    "augment": augment.compare,
    "optimizer": optimizer.compare,
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
    """What a program does first: quiet, and sums in one order whatever the number of cores."""
    logging.set_verbosity(logging.WARNING)
    tf.get_logger().setLevel("ERROR")  # deprecations of operations that are meant
    tf.config.threading.set_intra_op_parallelism_threads(1)
    BatchNorm.fused = False  # the official formula, to the rounding


def check(folder: str, part: str | None = None, case: str | None = None) -> list[Result]:
    """Compares every case in a folder of golden numbers, or one part of it, or one case of that.

    A case that cannot be run, and an array of a case that nothing was compared with, has failed.

    Raises:
      InputError: there is no such part, or the folder has no case of it.
    """
    if part is not None and part not in PARTS:
        raise errors.InputError(f"part {part!r} is none of {', '.join(PARTS)}")
    if not tf.io.gfile.isdir(folder):
        raise errors.InputError(f"{folder}: is no folder; give a folder of golden numbers")
    found = [
        (p, name)
        for p in (PARTS if part is None else [part])
        for name in cases.case_names(folder, p)
        if case in (None, name)
    ]
    if not found:
        wanted = "/".join(filter(None, (part, case))) or "golden"
        raise errors.InputError(f"{folder}: holds no {wanted} case (PART/NAME.json)")
    return [_run(folder, p, name) for p, name in found]


def _run(folder, part, name):
    comparison = cases.Comparison()
    try:
        case = cases.Case(folder, part, name)
        PARTS[part](case, comparison)
        for array in case.unread():
            comparison.fail(f"{array}: not compared")
        worst, ratio = comparison.worst()
    except errors.InputError as error:
        worst, ratio = str(error), float("inf")
    except Exception as error:  # the other cases are still to be run
        logging.exception("%s/%s", part, name)
        worst, ratio = errors.first_line(f"{type(error).__name__}: {error}"), float("inf")
    return Result(part, name, len(comparison.ratios), worst, ratio, ratio <= 1)


def table(results: list[Result]) -> str:
    """The results as text, a line a case."""
    rows = [("case", "tensors", "deviation / tolerance", "", "worst")]
    rows += [
        (
            f"{r.part}/{r.case}",
            str(r.tensors),
            f"{r.deviation_over_tolerance:.3g}",
            "pass" if r.passed else "FAIL",
            r.worst,
        )
        for r in results
    ]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join(lines)


def as_json(results: list[Result]) -> dict:
    """The results as what json.dumps takes; an infinite deviation is null."""
    cases = [result._asdict() for result in results]
    for entry in cases:
        if entry["deviation_over_tolerance"] == float("inf"):
            entry["deviation_over_tolerance"] = None
    return {"cases": cases, "passed": all(result.passed for result in results)}
