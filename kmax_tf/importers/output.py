"""Writes an imported model: as one checkpoint, or as a run folder that other programs read."""

import re

import tensorflow as tf
import tf_keras

from kmax_tf import config
from kmax_tf.data.datasets import Dataset
from kmax_tf.errors import InputError
from kmax_tf.files import read_bytes, write_atomic
from kmax_tf.importers.names import NameMap
from kmax_tf.run_folder import checkpoint, layout


def check(out: str, name_map: NameMap) -> None:
    """Raises InputError if `out` holds a checkpoint or run, or is no place for this kind's.

    Call it after the experiment is loaded.
    """
    if name_map.part and _prefix(out) != out:
        prefix = f"{out.rstrip('/')}-0"
        raise InputError(f"{out}: an encoder is not a run; give a checkpoint: --out={prefix}")
    if tf.io.gfile.exists(f"{_prefix(out)}.index") or checkpoint.completed(out):
        raise InputError(f"{out}: already holds a checkpoint; choose another --out")
    if _prefix(out) != out and _is_another_run(out):
        raise InputError(f"{out}: is already a run; choose another --out")


def _is_another_run(folder):
    """Tells whether a run is there, and not the same import, interrupted."""
    path = layout.config(folder)
    if not tf.io.gfile.exists(path):
        return False
    return read_bytes(path).decode(errors="replace") != config.resolved()


def write(model: tf_keras.Model, dataset: Dataset | None, out: str) -> str:
    """Writes a model with the classes of `dataset` as a checkpoint, and returns its prefix.

    Without a dataset only the encoder is written: random heads would be taken for trained ones.
    If `out` ends in -NUMBER it is that prefix. Otherwise it is a run folder, which gets
    checkpoints/ckpt-0 and the experiment loaded last as config.gin.
    """
    path = _prefix(out)
    part = {"model": model} if dataset else {"pixel_encoder": model.pixel_encoder}
    saver = tf.train.Checkpoint(**part, classes=checkpoint.Description(model, dataset))
    if path != out:  # first: an interruption leaves no checkpoint that nothing can read
        write_atomic(layout.config(out), config.resolved())
    checkpoint.write(saver, path)
    return path


def _prefix(out):
    named = re.search(r"[^/]-\d+$", out)
    return out if named else checkpoint.path_of(layout.checkpoints(out), 0)
