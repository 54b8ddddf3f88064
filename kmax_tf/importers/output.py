"""Where an imported model goes: one checkpoint, or a run folder that the other programs read."""

import os
import re

import tensorflow as tf
import tf_keras

from kmax_tf import config
from kmax_tf.errors import InputError
from kmax_tf.files import make_folder, write_atomic
from kmax_tf.run_folder import layout
from kmax_tf.run_folder.checkpoint import FOLDER


def check(out: str) -> None:
    """Raises InputError if `out` holds a checkpoint already."""
    folder, name, number = _parts(out)
    state = tf.train.get_checkpoint_state(folder)
    is_run = not _is_prefix(out)
    if tf.io.gfile.exists(f"{os.path.join(folder, name)}-{number}.index") or (state and is_run):
        raise InputError(f"{out}: holds a checkpoint already; choose another --out")


def write(model: tf_keras.Model, out: str) -> str:
    """Writes a model as a checkpoint and returns its prefix.

    `out` is that prefix if it ends in -NUMBER. Else it is a run folder, which gets
    checkpoints/ckpt-0 and, as config.gin, the experiment that was loaded last.
    """
    folder, name, number = _parts(out)
    make_folder(folder)
    manager = tf.train.CheckpointManager(
        tf.train.Checkpoint(model=model), folder, max_to_keep=None, checkpoint_name=name
    )
    path = manager.save(checkpoint_number=number)
    if not _is_prefix(out):
        write_atomic(layout.config(out), config.resolved())
    return path


def _is_prefix(out):
    return re.fullmatch(r"(.+)-(\d+)", os.path.basename(out))


def _parts(out):
    prefix = _is_prefix(out)
    if prefix:
        return os.path.dirname(out) or ".", prefix[1], int(prefix[2])
    return os.path.join(out, FOLDER), "ckpt", 0
