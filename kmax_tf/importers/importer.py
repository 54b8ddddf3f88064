"""Fills a model from the arrays of a weight file; changes nothing unless everything fits."""

import dataclasses

import numpy as np
import tf_keras

from kmax_tf.data.datasets import Dataset
from kmax_tf.errors import InputError
from kmax_tf.importers import classes, fold, names
from kmax_tf.importers.variables import PARTS, variables
from kmax_tf.model import function

CONVERTED = "by_id_void_first"  # order of semantic channels that the official code has
_SEMANTIC_KERNEL = "semantic_branch/classifier/kernel"
_SHOWN = 10  # names of each kind of mismatch that a message lists


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of an import."""

    assigned: int  # variables
    fresh_parts: tuple[str, ...]  # parts of the model without values in the source
    fresh_classes: tuple[str, ...]  # our classes that the source does not have
    dropped_classes: tuple[str, ...]  # classes of the source that we do not have
    normalization: str = ""  # of the image, where it went into the weights

    def lines(self) -> list[str]:
        """Says what was not taken over, a line each."""
        entries = (
            ("newly initialized, not in the source", self.fresh_parts),
            ("newly initialized classes, not in the source", self.fresh_classes),
            ("dropped classes of the source", self.dropped_classes),
            ("assumed image normalization", (self.normalization,) * bool(self.normalization)),
        )
        return [f"{what}: {', '.join(names)}" for what, names in entries if names]


def import_weights(
    model: tf_keras.Model,
    kind: str,
    source: dict[str, np.ndarray],
    dataset: Dataset,
    theirs: Dataset | None = None,
    semantic_channels: str | None = None,
    gin_file: str = "",
) -> Report:
    """Fills the variables of a built `KMaX` from weights of another codebase.

    Args:
        model: the model; parts and classes that the report calls fresh keep their values.
        kind: the name map, one of `names.kinds()`.
        source: arrays by the names of that codebase, such as `readers.read` returns.
        dataset: the classes of the model.
        theirs: the classes of the source, if they differ; heads are mapped by class name.
        semantic_channels: order of the semantic head's channels, where the kind does not tell it.
        gin_file: experiment of the model, to name the right one in an error.

    Raises:
        InputError: one of these; the model is then unchanged.
          - the model computes another function;
          - a variable of the source is missing, unexpected, of another shape or not finite;
          - the order of the channels is unknown.
    """
    name_map = _load_map(kind, semantic_channels)
    _check_function(model, kind, name_map, gin_file)
    theirs = theirs or dataset
    weights = {name: value for name, value in source.items() if not name_map.ignores(name)}
    _check_finite(weights)
    name_map = _with_semantic_channels(name_map, kind, weights, theirs, semantic_channels)
    ours = {p: v for p, v in variables(model).items() if p.startswith(name_map.part)}
    values = _by_our_paths(weights, ours, kind, name_map, dataset, theirs)
    if name_map.epsilon:
        fold.fold_epsilon(values, name_map.epsilon)
    if name_map.mean:
        fold.fold_normalization(values, name_map.mean, name_map.std)
    for path, value in values.items():
        ours[path].assign(value)
    return _report(len(values), name_map, dataset, theirs)


def _load_map(kind, semantic_channels):
    """Returns the map of a kind; weights that were converted keep the official function."""
    name_map = names.load(kind)
    if semantic_channels != CONVERTED:
        return name_map
    official = names.load("deeplab2")
    return dataclasses.replace(
        name_map, function=official.function, experiments=official.experiments
    )


def _report(assigned, name_map, dataset, theirs):
    known = {c.name for c in dataset.categories}, {c.name for c in theirs.categories}
    heads = not name_map.part
    normalization = f"mean {list(name_map.mean)} and std {list(name_map.std)}, of 0 to 1"
    return Report(
        assigned=assigned,
        fresh_parts=tuple(p for p in PARTS if not p.startswith(name_map.part)),
        fresh_classes=tuple(c.name for c in dataset.categories if heads and c.name not in known[1]),
        dropped_classes=tuple(
            c.name for c in theirs.categories if heads and c.name not in known[0]
        ),
        normalization=normalization if name_map.mean else "",
    )


def _check_finite(weights):
    infinite = [name for name, value in weights.items() if not np.isfinite(value).all()]
    if infinite:
        raise InputError(
            f"{_listed('weights are not finite', infinite)}; the file is damaged, or float16 was"
            " too small for its numbers; use another one"
        )


def _by_our_paths(weights, ours, kind, name_map, dataset, theirs):
    """Returns {path of our variable: value}; InputError unless all weights and variables match."""
    values, unexpected, misshapen = {}, [], []
    for name, value in weights.items():
        path = name_map.rename(name)
        if path not in ours or path in values:
            unexpected.append(name)
            continue
        try:
            value = _fit(value, path, ours[path], name_map)
            values[path] = _map_classes(value, path, ours[path], name_map, dataset, theirs)
        except ValueError as error:
            values[path] = None
            misshapen.append(f"{name} ({error})")
    missing = [path for path in ours if path not in values]
    mismatches = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if any(mismatches.values()):
        raise InputError(
            f"the weights do not fit as {kind}: "
            + "; ".join(_listed(*entry) for entry in mismatches.items() if entry[1])
            + "; choose another --kind or the experiment of these weights"
            + ", or give their --classes" * (not name_map.part)
        )
    return values


def _check_function(model, kind, name_map, gin_file):
    """Refuses a model of equal names and shapes that computes another function."""
    if differences := function.differences(model, name_map.function):
        of_port = any(line.startswith(function.OF_THE_PORT) for line in differences)
        raise InputError(
            f"weights of kind {kind} need other settings: {', '.join(differences)};"
            f" {names.remedy(name_map, gin_file) if of_port else 'bind as there'}"
        )


def _with_semantic_channels(name_map, kind, weights, theirs, given):
    """Returns the map with the order of the semantic channels that the user gives, if it has none.

    Without a channel for void both orders are the same.
    """
    if name_map.semantic_channels in classes.ORDERS:
        return name_map
    kernels = [v for n, v in weights.items() if name_map.rename(n) == _SEMANTIC_KERNEL]
    axis = 0 if name_map.layout == "torch" else -1
    if given is None and any(k.shape[axis] == theirs.num_classes + 1 for k in kernels):
        raise InputError(
            f"weights of kind {kind} have a semantic void channel of unknown position;"
            " give --semantic_channels=by_id (void last, as the port trains) or"
            f" {CONVERTED} (converted from the TensorFlow code)"
        )
    return dataclasses.replace(name_map, semantic_channels=given or "by_id")


def _listed(what, entries):
    more = f" and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else ""
    return f"{len(entries)} {what}: {', '.join(entries[:_SHOWN])}{more}"


def _fit(value, path, variable, name_map):
    """Brings a value to our layout and shape, except class channels; ValueError if it differs."""
    shape, theirs = list(variable.shape), list(value.shape)
    if name_map.layout == "torch":
        value = _from_torch(value, path)
    if _is_classifier(path):
        shape[-1] = value.shape[-1]
    flat = value.ndim == 1 and name_map.layout == "torch"  # its norms keep statistics in a row
    same = value.size == np.prod(shape) if flat else _squeezed(value.shape) == _squeezed(shape)
    if not same:
        raise ValueError(f"{theirs} for {list(variable.shape)}")
    return value.reshape(shape)


def _squeezed(shape):
    return [n for n in shape if n != 1]


def _from_torch(value, path):
    """Transposes [out, in, height, width] to [height, width, in, out], and likewise other ranks."""
    leaf = path.rsplit("/", 1)[-1]
    if leaf == "depthwise_kernel" and value.ndim == 4:
        return value.transpose(2, 3, 0, 1)
    if leaf.endswith("kernel") and value.ndim >= 2:
        return np.moveaxis(value, (0, 1), (-1, -2))
    return value.T if leaf == "cluster_centres" else value


def _is_classifier(path):
    return "/classifier/" in path


def _map_classes(value, path, variable, name_map, dataset, theirs):
    """Puts the channels of a classifier in our order; those without a source keep their values."""
    if not _is_classifier(path):
        return value
    semantic = path.startswith("semantic_branch/")
    order = name_map.semantic_channels if semantic else name_map.class_channels
    count = variable.shape[-1]
    if theirs is dataset and value.shape[-1] != count:
        raise ValueError(f"{list(value.shape)} for {list(variable.shape)}")
    found = classes.gather(dataset, theirs, order, count, value.shape[-1])
    return np.where(found >= 0, value[..., found], variable.numpy())
