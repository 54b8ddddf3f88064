"""Starts a model from a checkpoint of this project, whose classes may be others."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras

from kmax_tf.data import datasets
from kmax_tf.data.datasets import Dataset
from kmax_tf.errors import InputError
from kmax_tf.importers import importer
from kmax_tf.importers.variables import variables
from kmax_tf.run_folder import checkpoint

KIND = "kmax_tf"  # of source that is read here, see names.py
CHANNELS = "model/semantic_branch/classifier/kernel"
CENTRES = "model/cluster_path/cluster_centres"


class Heads(NamedTuple):
    """What a checkpoint asks of the heads of a model that starts from it."""

    num_clusters: int
    void_channel: bool  # of the semantic branch


def find(source: str) -> str:
    """Returns the checkpoint that a run folder, or the prefix of a checkpoint, names."""
    return checkpoint.newest(source) if tf.io.gfile.isdir(source) else source


def check_classes(path: str, given: Dataset) -> None:
    """Raises InputError if a checkpoint says that its classes are not the `given` ones."""
    theirs = checkpoint.read_classes(path)
    if theirs and not datasets.same_classes(given.categories, theirs.categories):
        raise InputError(
            f"--classes={given.name}: {path} has other classes, those of {theirs.name}; omit the"
            " flag"
        )


def read(path: str, build: Callable, dataset: Dataset) -> tuple[dict[str, np.ndarray], Dataset]:
    """Reads the weights of a checkpoint, their EMA if it has one, and its classes.

    A model of its classes reads it: a variable's name in the file depends on what else it holds.

    Args:
        build: number of classes -> a built `KMaX`.
        dataset: the classes of a checkpoint that does not say them.

    Returns:
        {path of the variable: array}, and the classes.

    Raises:
        InputError: the checkpoint is missing, corrupt or of another model.
    """
    theirs = checkpoint.read_classes(path) or dataset
    source = build(theirs.num_classes)
    checkpoint.restore_model(source, path)
    return {name: v.numpy() for name, v in variables(source).items()}, theirs


def heads(path: str, dataset: Dataset) -> Heads | None:
    """Returns the heads of a checkpoint, None if it holds an encoder alone.

    Args:
        path: prefix of the checkpoint.
        dataset: as in `read`.

    Raises:
        InputError: the checkpoint is missing or corrupt.
    """
    theirs = checkpoint.read_classes(path) or dataset
    channels, centres = (checkpoint.variable_shape(path, name) for name in (CHANNELS, CENTRES))
    if not (channels and centres):
        return None
    return Heads(centres[1], channels[-1] > theirs.num_classes)


def start_from(model: tf_keras.Model, path: str, dataset: Dataset, build: Callable) -> list[str]:
    """Restores weights to start from: of a whole model, or of a pixel encoder alone.

    Classes of the same name keep their weights; other classes keep their initial values.

    Args:
        model: a built `KMaX`.
        path: prefix of the checkpoint.
        dataset: the classes of the model.
        build: as in `read`.

    Returns:
        Lines about the classes, none if they are the same ones.

    Raises:
        InputError: the checkpoint is missing, corrupt or of another model.
    """
    theirs = checkpoint.read_classes(path)
    if theirs is None or _names(theirs) == _names(dataset):
        checkpoint.restore_initial(model, path)
        unknown = theirs is None and checkpoint.has_heads(path)
        return [f"{path}: does not list its classes; assuming {dataset.name}'s"] * unknown
    weights, theirs = read(path, build, dataset)
    try:
        report = importer.import_weights(model, KIND, weights, dataset, theirs)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    kept = [c.name for c in dataset.categories if c.name not in report.fresh_classes]
    return [f"kept the weights of classes: {', '.join(kept) or 'none'}", *report.lines()]


def _names(dataset):
    return [category.name for category in dataset.categories]
