"""The records of a split: its files, their schema and their number.

Three schemas give the same `Example`: ours (example.py), deeplab2.py and tfds.py. The keys of the
first record tell which one it is.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import tensorflow as tf

from kmax_tf import errors, files
from kmax_tf.data import autotuning, datasets
from kmax_tf.data.records import deeplab2, example, shards, tfds
from kmax_tf.data.records.example import Example


class Records(NamedTuple):
    """All records of a split."""

    paths: list[str]  # the shards, in order
    parse: Callable[[tf.Tensor], Example]  # of a record, string scalar, by TensorFlow operations
    num_examples: int | None  # None if only counting tells, see `count`
    fingerprint: str | None = None  # of their content, None if it is not stored


def find(folder: str, split: str, dataset: datasets.Dataset) -> Records:
    """Finds the records of a split of `dataset`.

    Raises:
        InputError: a shard is missing, no record exists, or the schema is unknown. Also if the
            records have other classes than `dataset`.
    """
    paths = shards.paths(folder, split)
    path, first = _first_record(paths)
    if first is None:
        raise errors.InputError(f"{folder}: split {split!r} holds no example; convert it again")
    try:
        keys = tf.train.Example.FromString(first).features.feature.keys()
    except Exception as error:  # of protobuf, whose kind depends on its version
        raise errors.InputError(
            f"{path}: its records are no tf.train.Example; convert them with kmax prepare"
        ) from error
    if "panoptic/encoded" in keys:
        datasets.check_classes(folder, dataset)
        stored = datasets.read_split(folder, split)
        return Records(paths, example.parse, stored.num_examples, stored.fingerprint)
    if "panoptic_image" in keys:
        ids = tfds.category_ids(folder, dataset)
        return Records(paths, lambda record: tfds.parse(record, ids), None)
    if "image/channels" in keys:
        if dataset.label_divisor is None or dataset.ignore_label is None:
            raise errors.InputError(
                f"{folder}: records of the official schema, but dataset {dataset.name!r} has no"
                ' "label_divisor" and "ignore_label"; add them to its JSON'
            )
        return Records(paths, lambda record: deeplab2.parse(record, dataset), None)
    raise errors.InputError(
        f"{path}: records of an unknown schema, with {', '.join(sorted(keys)) or 'no keys'};"
        " convert them with kmax prepare"
    )


def _first_record(paths: list[str]) -> tuple[str, bytes | None]:
    """Returns the first file whose first record can be read, and that record.

    The record is None if all files are empty. Raises InputError if none can be read.
    """
    damage = []
    for path in paths:
        try:
            for record in shards.read(path):
                return path, record
        except errors.InputError as error:
            damage.append(error)
    if damage:
        raise damage[0]
    return paths[0], None


def count(records: Records) -> int:
    """Returns the number of examples; reads all records if their schema does not store it."""
    if records.num_examples is not None:
        return records.num_examples
    return int(tf.data.TFRecordDataset(records.paths).reduce(0, lambda number, _: number + 1))


def serialized(records: Records) -> tf.data.Dataset:
    """Returns all records in order, string scalars.

    The dataset ends in a FailedPreconditionError if a file lost records; see `named_errors`.
    """
    found = autotuning.off(tf.data.TFRecordDataset(records.paths))
    if records.num_examples is None:
        return found
    return found.apply(tf.data.experimental.assert_cardinality(records.num_examples))


def decode_each(dataset: tf.data.Dataset, decode: Callable, *, large: bool) -> tf.data.Dataset:
    """Decodes the records of a dataset in order.

    Args:
        dataset: its elements are the arguments of `decode`.
        decode: parses a record by TensorFlow operations.
        large: the images may be large: decode one at a time, while the one before is used.
    """
    dataset = autotuning.off(dataset)
    if large:  # without `synchronous`, tf.data would parallelize this map too
        return dataset.map(decode, synchronous=True).prefetch(1)
    return dataset.map(decode, tf.data.AUTOTUNE, deterministic=True).prefetch(1)


def check(records: Records) -> None:
    """Reads all records; InputError names the file and the number of the first corrupt one."""
    for path in records.paths:
        for number, record in enumerate(shards.read(path)):
            parse_one(records.parse, record, f"{path}: record {number}")


@contextlib.contextmanager
def named_errors(records: Records, split: str, *, skips: bool = False) -> Iterator[None]:
    """Turns TensorFlow's errors about corrupt records into an InputError that names the record.

    That of a file that cannot be read any more becomes one, too.

    Args:
        records: the records that the block reads.
        split: the user's name of them, for messages.
        skips: whether the block skips corrupt records, so that its errors have other causes.
    """
    try:
        yield
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError):
        if not skips:
            print(f"{split}: looking for a corrupt record", flush=True)
            check(records)
        raise
    except tf.errors.FailedPreconditionError as error:
        if "expected to contain" not in error.message:
            raise
        raise errors.InputError(
            f"{split} does not hold as many records as {datasets.FILE_NAME} says; convert again"
        ) from error
    except tf.errors.OpError as error:
        path = next((path for path in records.paths if path in error.message), None)
        if path is None:
            raise
        before, _, after = error.message.partition(f"{path}; ")
        reason = errors.first_line(after or before).partition(" [Op:")[0]
        raise files.kind_of(error)(
            f"{path}: cannot be read any more ({reason}); bring it back, and run the same command"
            " again"
        ) from error


def parse_one(parse: Callable, record: bytes, place: str) -> Example:
    """Parses one record eagerly; InputError, which names the place, if it is corrupt."""
    try:
        return parse(tf.constant(record))
    except tf.errors.OpError as error:
        reason = errors.first_line(error.message)
    except UnicodeDecodeError:  # TensorFlow's message, which quotes the record
        reason = "no tf.train.Example"
    raise errors.InputError(f"{place} is corrupt ({reason}); convert again")
