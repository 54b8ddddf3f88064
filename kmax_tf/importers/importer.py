"""Fills a model from the arrays of a weight file: everything fits, or nothing is changed."""

import dataclasses

import numpy as np
import tf_keras

from kmax_tf.data.datasets import Dataset
from kmax_tf.errors import InputError
from kmax_tf.importers import classes, names
from kmax_tf.importers.variables import PARTS, variables

_SHOWN = 10  # names of each kind of mismatch that a message lists


@dataclasses.dataclass(frozen=True)
class Report:
    """What an import did."""

    assigned: int  # variables
    ignored: int  # names of the source that are no weights of the model
    fresh_parts: tuple[str, ...]  # parts of the model that the source does not hold
    fresh_classes: tuple[str, ...]  # our classes that the source does not know
    dropped_classes: tuple[str, ...]  # the source's classes that ours have no place for


def import_weights(
    model: tf_keras.Model,
    kind: str,
    source: dict[str, np.ndarray],
    dataset: Dataset,
    theirs: Dataset | None = None,
) -> Report:
    """Fills the variables of a built `KMaX` from a source of another code base.

    Args:
      model: keeps its initial values where the report says so.
      kind: the name map, one of `names.kinds()`.
      source: arrays by the names of that code base, such as `readers.read` returns.
      dataset: the classes of the model.
      theirs: the classes of the source, if they are others; heads are mapped by class name.

    Raises:
      InputError: a variable is missing in the source, unexpected, or of another shape; the model is
        as it was.
    """
    name_map = names.load(kind)
    theirs = theirs or dataset
    ours = {p: v for p, v in variables(model).items() if p.startswith(name_map.part)}
    values, unexpected, misshapen, ignored = {}, [], [], 0
    for name, value in source.items():
        path = name_map.rename(name)
        if name_map.ignores(name):
            ignored += 1
        elif path not in ours or path in values:
            unexpected.append(name)
        else:
            variable = ours[path]
            try:
                value = _fit(value, path, variable, name_map)
                values[path] = _map_classes(value, path, variable, name_map, dataset, theirs)
            except ValueError as error:
                values[path] = None
                misshapen.append(f"{name} ({error})")
    missing = [path for path in ours if path not in values]
    mismatches = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if any(mismatches.values()):
        raise InputError(
            f"the weights do not fit as {kind}: "
            + "; ".join(_listed(*entry) for entry in mismatches.items() if entry[1])
        )
    for path, value in values.items():
        ours[path].assign(value)
    known = {c.name for c in dataset.categories}, {c.name for c in theirs.categories}
    heads = not name_map.part
    return Report(
        assigned=len(values),
        ignored=ignored,
        fresh_parts=tuple(p for p in PARTS if not p.startswith(name_map.part)),
        fresh_classes=tuple(c.name for c in dataset.categories if heads and c.name not in known[1]),
        dropped_classes=tuple(
            c.name for c in theirs.categories if heads and c.name not in known[0]
        ),
    )


def _listed(what, entries):
    more = f" and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else ""
    return f"{len(entries)} {what}: {', '.join(entries[:_SHOWN])}{more}"


def _fit(value, path, variable, name_map):
    """The value in our layout and shape but for the class channels; ValueError if it differs."""
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
    """[out, in, height, width] -> [height, width, in, out], and so for other ranks."""
    leaf = path.rsplit("/", 1)[-1]
    if leaf == "depthwise_kernel" and value.ndim == 4:
        return value.transpose(2, 3, 0, 1)
    if leaf.endswith("kernel") and value.ndim >= 2:
        return np.moveaxis(value, (0, 1), (-1, -2))
    return value.T if leaf == "cluster_centres" else value


def _is_classifier(path):
    return "/classifier/" in path


def _map_classes(value, path, variable, name_map, dataset, theirs):
    """Puts the channels of a classifier into our order; those without a source stay as they are."""
    if not _is_classifier(path):
        return value
    semantic = path.startswith("semantic_branch/")
    order = name_map.semantic_channels if semantic else name_map.class_channels
    count = variable.shape[-1]
    if theirs is dataset and value.shape[-1] != count:
        raise ValueError(f"{list(value.shape)} for {list(variable.shape)}")
    found = classes.gather(dataset, theirs, order, count, value.shape[-1])
    return np.where(found >= 0, value[..., found], variable.numpy())
