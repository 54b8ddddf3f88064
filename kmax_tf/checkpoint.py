"""Checkpoints: save, resume, and read the weights alone."""

import os
import re

import tensorflow as tf
from absl import logging

from kmax_tf.files import InputError

FOLDER = "checkpoints"
UNREADABLE = (tf.errors.OpError, IndexError)  # the latter from a truncated file


def manager(run_dir, *, keep, **state):
    """A CheckpointManager of the last `keep` training states in RUN_DIR/checkpoints.

    `state`: what is kept, by name: `model`, and for training what it needs to go on.
    """
    return tf.train.CheckpointManager(
        tf.train.Checkpoint(**state),
        os.path.join(run_dir, FOLDER),
        max_to_keep=keep,
    )


def resume(checkpoint_manager, run_dir):
    """Restores the newest checkpoint of a run that can be read; its path, None if there is none.

    Raises InputError if there are checkpoints and none of them can be read.
    """
    paths = completed(run_dir)[::-1]
    for path in paths:
        try:
            checkpoint_manager.checkpoint.restore(path).assert_existing_objects_matched()
            return path
        except UNREADABLE as error:
            logging.warning("%s cannot be read (%s); trying the one before", path, error)
        except (AssertionError, ValueError) as error:
            raise InputError(_foreign(path, error)) from error
    if paths:
        folder = os.path.dirname(paths[0])
        raise InputError(f"{folder}: no checkpoint can be read; delete the folder to start anew")
    return None


def restore_model(model, path):
    """Restores the weights alone, all of them: their average over steps where it is kept.

    A checkpoint keeps the average as an item `average` of the same structure as `model`.
    Raises InputError if the checkpoint is missing, damaged or of another model.
    """
    try:
        names = (name for name, _ in tf.train.list_variables(path))
        item = "average" if any(name.startswith("average/") for name in names) else "model"
        status = tf.train.Checkpoint(**{item: model}).restore(path)
        status.assert_existing_objects_matched().expect_partial()
    except UNREADABLE as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: cannot be read ({reason}); use another checkpoint") from error
    except (AssertionError, ValueError) as error:
        raise InputError(_foreign(path, error)) from error


def _foreign(path, error):
    reason = str(error).splitlines()[0]
    return f"{path}: is of another model ({reason}); use the gin file it was trained with"


def completed(run_dir):
    """Paths of the checkpoints of a run that are complete, oldest first."""
    folder = os.path.join(run_dir, FOLDER)
    state = tf.train.get_checkpoint_state(folder)
    return list(state.all_model_checkpoint_paths) if state else []


def newest(run_dir):
    """The path of the newest complete checkpoint of a run; InputError if it has none."""
    paths = completed(run_dir)
    if not paths:
        raise InputError(f"{run_dir}: holds no checkpoint yet; train first")
    return paths[-1]


def step_of(path):
    """The training step of a checkpoint, from its name; InputError if that does not end in one."""
    match = re.search(r"-(\d+)$", path)
    if not match:
        raise InputError(f"{path}: no checkpoint's name; give its prefix, such as .../ckpt-1000")
    return int(match[1])
