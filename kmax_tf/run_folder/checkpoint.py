"""Checkpoints: save, resume, and read the weights alone.

A checkpoint is written under another name and then renamed, its index last: where ckpt-STEP.index
and all data files of that name are, a save was finished. tf.train.CheckpointManager goes by a list
beside the files instead: a training whose list is corrupt starts anew without a word, and what a
killed save left stays for good. That a file is whole, and of this very checkpoint, is seen when it
is read: the index holds a checksum of every tensor and of each of its own blocks.
"""

import os
import re
from collections.abc import Iterable

import tensorflow as tf
import tf_keras
from absl import logging

from kmax_tf.errors import InputError, first_line
from kmax_tf.files import make_folder

FOLDER = "checkpoints"
UNREADABLE = (tf.errors.OpError, IndexError)  # the latter from a truncated file
_WRITING = "writing-"


def save(saver: tf.train.Checkpoint, run_dir: str, step: int, keep: int) -> None:
    """Saves a tf.train.Checkpoint as RUN_DIR/checkpoints/ckpt-STEP; keeps it and `keep` - 1 before.

    Checkpoints of later steps go too: they could not be read, or `resume` would have chosen them.
    """
    folder = os.path.join(run_dir, FOLDER)
    write(saver, folder, step)
    prune(folder, [path for path in complete(folder) if step_of(path) <= step][-keep:])


def write(saver: tf.train.Checkpoint, folder: str, step: int) -> str:
    """Writes a tf.train.Checkpoint as FOLDER/ckpt-STEP, whole or not at all; returns that path."""
    make_folder(folder)
    path = path_of(folder, step)
    written = saver.write(os.path.join(folder, _WRITING + os.path.basename(path)))
    for file in sorted(tf.io.gfile.glob(f"{written}.*")):  # .data-... before .index
        tf.io.gfile.rename(file, path + file.removeprefix(written), overwrite=True)
    return path


def prune(folder: str, kept: Iterable[str]) -> None:
    """Removes the checkpoints of a folder that are not `kept`, and what killed saves left."""
    names = {os.path.basename(path) for path in kept}
    for name in sorted(tf.io.gfile.listdir(folder), reverse=True):  # .index before .data-...
        name, path = name.rstrip("/"), os.path.join(folder, name)
        if name.startswith(_WRITING) and tf.io.gfile.isdir(path):
            tf.io.gfile.rmtree(path)
        elif name.startswith((_WRITING, "ckpt-")) and name.split(".")[0] not in names:
            tf.io.gfile.remove(path)


def complete(folder: str) -> list[str]:
    """Paths of the checkpoints of a folder of which every file is there, in the order of steps."""
    names = tf.io.gfile.listdir(folder) if tf.io.gfile.isdir(folder) else []
    shards = {}  # name of a checkpoint -> of each data file, how many belong together
    for name in names:
        match = re.fullmatch(r"(ckpt-\d+)\.data-\d{5}-of-(\d{5})", name)
        if match:
            shards.setdefault(match[1], []).append(int(match[2]))
    whole = [
        os.path.join(folder, name)
        for name, counts in shards.items()
        if f"{name}.index" in names and any(counts.count(count) == count for count in counts)
    ]
    return sorted(whole, key=step_of)


def resume(saver: tf.train.Checkpoint, run_dir: str) -> str | None:
    """Restores the newest checkpoint of a run that can be read; its path, None if there is none.

    Raises InputError if there are checkpoints and none of them can be read.
    """
    paths = completed(run_dir)[::-1]
    for path in paths:
        try:
            saver.read(path).assert_existing_objects_matched()
            return path
        except UNREADABLE as error:
            reason = first_line(error)
            logging.warning("%s cannot be read (%s); trying the one before", path, reason)
        except (AssertionError, ValueError) as error:
            raise InputError(_foreign(path, error)) from error
    if paths:
        folder = os.path.dirname(paths[0])
        raise InputError(f"{folder}: no checkpoint can be read; delete the folder to start anew")
    return None


def restore_model(model: tf_keras.Model, path: str) -> None:
    """Restores the weights alone, all of them: their EMA where it is kept.

    A checkpoint keeps the EMA as an item `ema` of the same structure as `model`.
    Raises InputError if the checkpoint is missing, corrupt or of another model.
    """
    _read_first({"ema": model, "model": model}, path)


def restore_initial(model: tf_keras.Model, path: str) -> None:
    """The same of weights to start from, which may be those of a pixel encoder alone.

    Such a checkpoint has no item but `pixel_encoder`.
    """
    _read_first({"pixel_encoder": model.pixel_encoder, "ema": model, "model": model}, path)


def _read_first(items, path):
    """Restores the first of the items that the checkpoint holds, all of it."""
    try:
        names = {name.partition("/")[0] for name, _ in tf.train.list_variables(path)}
        item = next((item for item in items if item in names), "model")
        status = tf.train.Checkpoint(**{item: items[item]}).read(path)
        status.assert_existing_objects_matched().expect_partial()
    except UNREADABLE as error:
        reason = first_line(error)
        raise InputError(f"{path}: cannot be read ({reason}); use another checkpoint") from error
    except (AssertionError, ValueError) as error:
        raise InputError(_foreign(path, error)) from error


def _foreign(path, error):
    reason = first_line(error)
    return f"{path}: is of another model ({reason}); use the gin file it was trained with"


def completed(run_dir: str) -> list[str]:
    """Paths of the checkpoints of a run that are complete, in the order of steps."""
    return complete(os.path.join(run_dir, FOLDER))


def newest(run_dir: str) -> str:
    """The path of the newest complete checkpoint of a run; InputError if it has none."""
    paths = completed(run_dir)
    if not paths:
        raise InputError(f"{run_dir}: holds no checkpoint yet; train first")
    return paths[-1]


def path_of(folder: str, step: int) -> str:
    """The path of the checkpoint of a step in a folder."""
    return os.path.join(folder, f"ckpt-{step}")


def step_of(path: str) -> int:
    """The training step of a checkpoint, from its name; InputError if that does not end in one."""
    match = re.search(r"-(\d+)$", path)
    if not match:
        raise InputError(f"{path}: no checkpoint's name; give its prefix, such as .../ckpt-1000")
    return int(match[1])
