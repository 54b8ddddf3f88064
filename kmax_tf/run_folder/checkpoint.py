"""Saves checkpoints, resumes from them, and restores weights alone.

A checkpoint is written under another name and then renamed, its index last. So a save is finished
if ckpt-STEP.index and all its data files exist. tf.train.CheckpointManager keeps a list of
checkpoints instead. With a corrupt list it silently starts from step 0. It never removes what a
killed save left. Reading detects damaged files: the index has a checksum of each tensor and block.
"""

import glob
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable
from typing import Any

import tensorflow as tf
import tf_keras
from absl import logging
from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

from kmax_tf.data import datasets
from kmax_tf.data.datasets import Dataset
from kmax_tf.errors import InputError, first_line
from kmax_tf.files import (
    NOT_AT_HAND,
    NotAtHand,
    check_literal,
    make_folder,
    matching,
    names,
    read_bytes,
    read_json,
)
from kmax_tf.model import function
from kmax_tf.run_folder import layout

UNREADABLE = (tf.errors.OpError, IndexError)  # IndexError: a truncated file
_WRITING = "writing-"
_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"  # key of the objects and their attributes


class Description(tf.train.experimental.PythonState):
    """The function of a model, and its classes unless it is an encoder alone.

    It is the item `classes` of each checkpoint.
    """

    def __init__(self, model: tf_keras.Model, dataset: Dataset | None):
        content: dict[str, Any] = {"function": function.describe(model)}
        if dataset:
            categories = [category._asdict() for category in dataset.categories]
            content |= {"name": dataset.name, "categories": categories}
        self._text = json.dumps(content)

    def serialize(self) -> str:
        return self._text

    def deserialize(self, string_value: str) -> None:
        """Keeps what this run says; `provenance.check` compares it."""


def read_classes(path: str) -> Dataset | None:
    """Returns the classes of a checkpoint's model, None if it does not say them."""
    content = _description(path)
    if "categories" not in content:
        return None
    return Dataset(content["name"], datasets.parse_categories(content, path))


def _description(path):
    """Returns what a checkpoint says of its model; {} for one of older versions."""
    check_literal(path)
    key = "classes/.ATTRIBUTES/py_state"
    try:
        reader = tf.train.load_checkpoint(path)
        return json.loads(reader.get_tensor(key)) if reader.has_tensor(key) else {}
    except (*UNREADABLE, ValueError) as error:  # ValueError: a folder
        raise _unreadable(path, error) from error


def save(saver: tf.train.Checkpoint, run_dir: str, step: int, keep: int) -> None:
    """Saves RUN_DIR/checkpoints/ckpt-STEP, and keeps the `keep` newest checkpoints up to it.

    It also removes checkpoints of later steps, which cannot be read: see `check_alone`.
    """
    folder = layout.checkpoints(run_dir)
    write(saver, path_of(folder, step))
    prune(folder, [path for path in complete(folder) if step_of(path) <= step][-keep:])


def check_alone(run_dir: str, step: int) -> None:
    """Raises InputError if another training has reached `step`: call it before `save` of it.

    `resume` took the newest checkpoint that can be read; so one of this step or a later one that
    can be read is not of this training.
    """
    for path in completed(run_dir):
        if step_of(path) >= step and _may_be_whole(path):
            raise InputError(
                f"{path}: another training wrote it before this one came to step {step}; let only"
                " that one run, or use another run_dir"
            )


def _may_be_whole(path):
    try:
        reader = tf.train.load_checkpoint(path)
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    except UNREADABLE as error:
        return isinstance(error, NOT_AT_HAND)
    return True


def write(saver: tf.train.Checkpoint, path: str) -> None:
    """Writes a checkpoint with the prefix `path`, whole or not at all."""
    check_literal(path)
    folder, name = os.path.split(path)
    folder, written = folder or ".", _WRITING + name
    make_folder(folder)
    try:
        saver.write(os.path.join(folder, written))
        for file in matching(folder, f"{glob.escape(written)}.*"):  # .data-... before .index
            ending = os.path.basename(file).removeprefix(written)
            tf.io.gfile.rename(file, path + ending, overwrite=True)
    except tf.errors.NotFoundError as error:
        reason = first_line(error)
        raise NotAtHand(
            f"{path}: was removed while it was written ({reason}); let only one program write there"
        ) from error
    except tf.errors.OpError:  # such as a full disk
        _remove_unfinished(folder)
        raise


def prune(folder: str, kept: Iterable[str]) -> None:
    """Removes the checkpoints of a folder except `kept`, and the remains of killed saves."""
    _remove_unfinished(folder)
    names = {os.path.basename(path) for path in kept}
    for path in matching(folder, "ckpt-*")[::-1]:  # .index before .data-...
        file = re.fullmatch(r"(ckpt-\d+)\.(index|data-\d{5}-of-\d{5})", os.path.basename(path))
        if file and file[1] not in names:  # others are the user's
            tf.io.gfile.remove(path)


def _remove_unfinished(folder):
    for path in matching(folder, f"{_WRITING}*"):
        remove = tf.io.gfile.rmtree if tf.io.gfile.isdir(path) else tf.io.gfile.remove
        remove(path)


def complete(folder: str) -> list[str]:
    """Returns the paths of a folder's complete checkpoints, in the order of steps."""
    check_literal(folder)
    present = names(folder, required=False)
    shards = {}  # name of a checkpoint -> for each data file, how many it should have
    for name in present:
        match = re.fullmatch(r"(ckpt-\d+)\.data-\d{5}-of-(\d{5})", name)
        if match:
            shards.setdefault(match[1], []).append(int(match[2]))
    whole = [
        os.path.join(folder, name)
        for name, counts in shards.items()
        if f"{name}.index" in present and any(counts.count(count) == count for count in counts)
    ]
    return sorted(whole, key=step_of)


def resume(saver: tf.train.Checkpoint, run_dir: str) -> str | None:
    """Restores the newest readable checkpoint of a run; returns its path, or None without any.

    Raises InputError if the run has checkpoints and none is readable. So it does if the newest one
    cannot be read now, for lack of access or network.
    """
    paths = completed(run_dir)[::-1]
    for path in paths:
        try:
            saver.read(path).assert_existing_objects_matched()
            return path
        except NOT_AT_HAND as error:  # an older one must not become the newest
            raise _unreadable(path, error) from error
        except UNREADABLE as error:
            reason = first_line(error)
            logging.warning("%s cannot be read (%s); trying the previous one", path, reason)
        except (AssertionError, ValueError) as error:
            raise InputError(_lacks(saver, path) or _other_model(path, error)) from error
    if paths:
        folder = os.path.dirname(paths[0])
        raise InputError(
            f"{folder}: no readable checkpoint; to start from step 0, delete the folder and move"
            " eval/ and best/ next to it away"
        )
    return None


def restore_model(model: tf_keras.Model, path: str, dataset: Dataset | None = None) -> None:
    """Restores all weights and nothing else: their EMA if the checkpoint has one.

    The EMA is an item `ema` of the same structure as `model`.
    Raises InputError if the checkpoint is missing, corrupt, of another model, or of other classes
    than those of `dataset`. Raises `NotAtHand` if it cannot be read now.
    """
    if dataset and (theirs := read_classes(path)):
        _check_classes(path, theirs, dataset)
    _read_first(model, {"ema": model, "model": model}, path)


def _check_classes(path, theirs, dataset):
    """Raises InputError unless a checkpoint has the classes of a dataset."""
    pairs = itertools.zip_longest(theirs.categories, dataset.categories)
    other = [(a, b) for a, b in pairs if a is None or b is None or a[:3] != b[:3]]
    if other:
        first = " against ".join(str(category and tuple(category[:3])) for category in other[0])
        raise InputError(
            f"{path}: has other classes than {dataset.name} (id, name, isthing: {first});"
            " use the records that it was trained on, or train again"
        )


def restore_initial(model: tf_keras.Model, path: str) -> None:
    """Restores weights to start from: of a whole model, or of a pixel encoder alone.

    A checkpoint of an encoder has the one item `pixel_encoder`.
    """
    items = {"pixel_encoder": model.pixel_encoder, "ema": model, "model": model}
    _read_first(model, items, path)


def has_heads(path: str) -> bool:
    """Returns whether a checkpoint holds a whole model, not only an encoder."""
    return not _items(path).isdisjoint({"ema", "model"})


def variable_shape(path: str, name: str) -> list[int] | None:
    """Returns the shape of a variable in a checkpoint, None if there is no such variable.

    The key of a variable is the shortest path to it, so the optimizer's for what a run trained.

    Args:
        path: prefix of the checkpoint.
        name: attributes that lead to the variable, such as "model/cluster_path/cluster_centres".

    Raises:
        InputError: the checkpoint is missing or corrupt.
    """
    try:
        reader = tf.train.load_checkpoint(path)
        nodes = TrackableObjectGraph.FromString(reader.get_tensor(_GRAPH)).nodes
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    node = nodes[0]
    for part in name.split("/"):
        children = {child.local_name: child.node_id for child in node.children}
        if part not in children:
            return None
        node = nodes[children[part]]
    return reader.get_variable_to_shape_map()[node.attributes[0].checkpoint_key]


def _items(path):
    return {name.partition("/")[0] for name, _ in tf.train.list_variables(path)}


def _read_first(model, items, path):
    """Restores the first item of a model that the checkpoint holds, completely."""
    theirs = _description(path).get("function", {})
    try:
        names = _items(path)
        item = next((item for item in items if item in names), "model")
        part = "" if items[item] is model else item
        if differences := function.differences(model, theirs, part):
            raise ValueError(", ".join(differences))
        status = tf.train.Checkpoint(**{item: items[item]}).read(path)
        status.assert_existing_objects_matched().expect_partial()
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    except (AssertionError, ValueError) as error:
        raise InputError(_other_model(path, error)) from error


def _unreadable(path, error):
    reason = first_line(error)
    if isinstance(error, NOT_AT_HAND):
        return NotAtHand(f"{path}: cannot be read now ({reason}); check access, or retry later")
    return InputError(f"{path}: cannot be read ({reason}); use another checkpoint")


def _lacks(saver, path):
    """Says which part of a training a checkpoint lacks; "" if it has all parts."""
    items = _items(path)
    start = f"experiment.Experiment.initial_checkpoint = {path!r}"
    if "step" not in items:
        return f"{path}: has weights only; use another run_dir, and bind {start}"
    if hasattr(saver, "ema") and "ema" not in items:
        return (
            f"{path}: has no EMA; bind experiment.Experiment.ema_decay = 0, or use another"
            f" run_dir, and bind {start}"
        )
    return ""


def _other_model(path, error):
    reason = first_line(error)
    return f"{path}: belongs to another model ({reason}); use the gin file it was trained with"


def completed(run_dir: str) -> list[str]:
    """Returns the paths of a run's complete checkpoints, in the order of steps."""
    return complete(layout.checkpoints(run_dir))


def newest(run_dir: str) -> str:
    """Returns the path of a run's newest complete checkpoint; InputError if it has none."""
    paths = completed(run_dir)
    if not paths:
        raise InputError(f"{run_dir}: has no checkpoint yet; train first")
    return paths[-1]


def fingerprint(path: str) -> str | None:
    """Returns a digest of a checkpoint's numbers, None if the checkpoint is missing.

    Raises NotAtHand if its storage does not answer.
    """
    try:
        content = read_bytes(f"{path}.index")  # it has a checksum of each tensor
    except NotAtHand:
        raise
    except InputError:
        return None
    return hashlib.sha256(content).hexdigest()[:16]


def read_metrics(run_dir: str, path: str) -> dict | None:
    """Returns the metrics of a checkpoint, None if there are none or if they are of another one.

    Those of older versions do not name their checkpoint, and must not be older than it.
    """
    place, index = layout.metrics(run_dir, step_of(path)), f"{path}.index"
    if not tf.io.gfile.exists(place):
        return None
    metrics = read_json(place)
    if named := metrics.get("checkpoint"):
        return metrics if named == fingerprint(path) else None
    try:
        is_older = tf.io.gfile.stat(place).mtime_nsec < tf.io.gfile.stat(index).mtime_nsec
    except tf.errors.NotFoundError:  # the checkpoint is pruned
        return metrics
    return None if is_older else metrics


def path_of(folder: str, step: int) -> str:
    """Returns the path of a step's checkpoint in a folder."""
    return os.path.join(folder, f"ckpt-{step}")


def step_of(path: str) -> int:
    """Returns the training step in a checkpoint's name; InputError if the name has none."""
    match = re.search(r"-(\d+)$", path)
    if not match:
        raise InputError(
            f"{path}: not the name of a checkpoint; give its prefix, such as .../ckpt-1000"
        )
    return int(match[1])
