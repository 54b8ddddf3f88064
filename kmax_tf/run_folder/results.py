"""What training and evaluator have left in a run folder."""

import os

import tensorflow as tf

from kmax_tf.files import read_bytes, read_json
from kmax_tf.run_folder import layout


def run_name(run_dir: str) -> str:
    """The last part of a run folder's path."""
    return os.path.basename(str(run_dir).rstrip("/"))


def read_evaluations(run_dir: str) -> list[dict]:
    """The metrics of all evaluated steps, ascending."""
    return [read_json(path) for path in layout.all_metrics(run_dir)]


def read_lost_segments(run_dir: str) -> list[str]:
    """The lines about segments that training or the evaluation loses; none if it was not counted.

    They are those of `segment_counts.describe`.
    """
    path = layout.segments(run_dir)
    return read_bytes(path).decode().splitlines() if tf.io.gfile.exists(path) else []
