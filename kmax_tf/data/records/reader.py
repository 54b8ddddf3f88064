"""The records of a split: where they are, and whose.

Three schemas give the same `Example`: ours (example.py), that of the official deeplab2, and that of
TFDS' `coco/2017_panoptic` (foreign.py). The keys of the first record tell which one it is.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import tensorflow as tf

from kmax_tf import errors, files
from kmax_tf.data import datasets
from kmax_tf.data.records import example, foreign, shards
from kmax_tf.data.records.example import Example


class Records(NamedTuple):
    """All records of a split."""

    paths: list[str]  # the shards, in order
    parse: Callable[[tf.Tensor], Example]  # scalar string -> Example, in TensorFlow operations
    num_examples: int | None  # None where only counting tells, see `count`


def find(folder: str, split: str, dataset: datasets.Dataset) -> Records:
    """Finds the records of a split of `dataset`.

    Raises:
        InputError: no shard is there or one is missing, they hold no record, the records are of no
            schema that is known, or of other classes than `dataset`.
    """
    paths = shards.paths(folder, split)
    first = next(itertools.chain.from_iterable(map(shards.read, paths)), None)
    if first is None:
        raise errors.InputError(f"{folder}: split {split!r} holds no example; convert it again")
    try:
        keys = tf.train.Example.FromString(first).features.feature.keys()
    except Exception as error:  # of protobuf, whose kind depends on its version
        raise errors.InputError(f"{paths[0]}: its records are no tf.train.Example") from error
    if "panoptic/encoded" in keys:
        datasets.check_classes(folder, dataset)
        return Records(paths, example.parse, datasets.read_split(folder, split).num_examples)
    if "panoptic_image" in keys:
        ids = _tfds_category_ids(folder, dataset)
        return Records(paths, lambda record: foreign.parse_tfds(record, ids), None)
    if "image/channels" in keys:
        if dataset.label_divisor is None or dataset.ignore_label is None:
            raise errors.InputError(
                f"{folder}: records of the official schema, but dataset {dataset.name!r} has no"
                ' "label_divisor" and "ignore_label"; add them to its JSON'
            )
        return Records(paths, lambda record: foreign.parse_deeplab2(record, dataset), None)
    raise errors.InputError(
        f"{paths[0]}: records of an unknown schema, with {', '.join(sorted(keys)) or 'no keys'};"
        " convert them with data_prep"
    )


def count(records: Records) -> int:
    """Returns the number of examples; those of others are read to the end for it."""
    if records.num_examples is not None:
        return records.num_examples
    return int(tf.data.TFRecordDataset(records.paths).reduce(0, lambda number, _: number + 1))


def serialized(records: Records) -> Iterator[bytes]:
    """Yields every record, in order."""
    return itertools.chain.from_iterable(map(shards.read, records.paths))


def check(records: Records) -> None:
    """Reads all records; InputError names the file with the first that is corrupt."""
    for path in records.paths:
        for number, record in enumerate(shards.read(path)):
            parse_one(records.parse, record, f"{path}: record {number}")


@contextlib.contextmanager
def named_errors(records: Records, split: str) -> Iterator[None]:
    """Within it an input that TensorFlow cannot read is an InputError that names the record.

    `split`: what the user calls the records.
    """
    try:
        yield
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError):
        check(records)
        raise
    except tf.errors.FailedPreconditionError as error:
        if "expected to contain" not in error.message:
            raise
        raise errors.InputError(
            f"{split} does not hold as many records as {datasets.FILE_NAME} says; convert again"
        ) from error


def parse_one(parse: Callable, record: bytes, place: str) -> Example:
    """Parses one record here and now; InputError, which names the place, if it is corrupt."""
    try:
        return parse(tf.constant(record))
    except tf.errors.OpError as error:
        reason = errors.first_line(error.message)
    except UnicodeDecodeError:  # TensorFlow's message, which quotes the record
        reason = "no tf.train.Example"
    raise errors.InputError(f"{place} is corrupt ({reason}); convert again")


def _tfds_category_ids(folder: str, dataset: datasets.Dataset) -> list[int]:
    """Returns the category id of each label, by the names that TFDS keeps beside its records."""
    path = os.path.join(folder, "panoptic_objects-label.labels.txt")
    names = files.read_bytes(path).decode("utf-8", "replace").splitlines()
    ids = {category.name: category.id for category in dataset.categories}
    if sorted(names) != sorted(ids):
        raise errors.InputError(
            f"{path}: its classes are not those of dataset {dataset.name!r};"
            " bind datasets.load.source to the dataset of these records"
        )
    return [ids[name] for name in names]
