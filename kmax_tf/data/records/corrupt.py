"""Skips corrupt records.

A skipped example is an image of void: its semantic loss is 0, and its clusters learn to be void.
An image or label that cannot be decoded does not shift the other records. A file with damaged
bytes ends there: the records after them are lost too. The order of the others changes, and the
epoch is filled with void. It is the same in every run, so that training resumes exactly.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import tensorflow as tf

from kmax_tf import errors
from kmax_tf.data.records.example import Example
from kmax_tf.data.transforms.targets import Targets


def check_files(paths: Sequence[str], skip: bool) -> None:
    """With `skip`, raises InputError if a file cannot be opened: `read` would try so for ever."""
    if skip:
        with ThreadPoolExecutor(32) as pool:  # on gs:// each answer takes its time
            list(pool.map(_check_file, paths))


def _check_file(path):
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            file.seek(0)  # opens it, but reads nothing
    except tf.errors.OpError as error:
        raise errors.InputError(
            f"{path}: cannot be opened ({error.message}); check the path, or convert again"
        ) from error


def read(path: tf.Tensor, skip: bool) -> tf.data.Dataset:
    """Reads the file of records at `path`, a string scalar; with `skip`, up to damaged bytes."""
    records = tf.data.TFRecordDataset(path)
    return records.ignore_errors() if skip else records


def assert_count(records: tf.data.Dataset, number: int, skip: bool) -> tf.data.Dataset:
    """Pads an epoch with empty records to `number`; without `skip`, asserts that it has so many."""
    if skip:
        return records.concatenate(tf.data.Dataset.from_tensors("").repeat()).take(number)
    return records.apply(tf.data.experimental.assert_cardinality(number))


def parse_or_blank(record: tf.Tensor, parse: Callable) -> tuple[Example, tf.Tensor]:
    """Parses a record; one that is corrupt becomes one black pixel of void.

    Args:
        record: a string scalar.
        parse: maps a record to an `Example`.

    Returns:
        The `Example`, and a bool scalar that is False for a corrupt record.
    """
    blank = Example(
        image=tf.zeros([1, 1, 3], tf.uint8),
        segment_map=tf.zeros([1, 1], tf.int32),
        segment_id=tf.zeros([0], tf.int64),
        category_id=tf.zeros([0], tf.int64),
        is_crowd=tf.zeros([0], tf.bool),
        filename=tf.constant(""),
        image_id=tf.constant(""),
    )
    decoded = tf.data.Dataset.from_tensors(record).map(lambda r: (parse(r), True)).ignore_errors()
    return (
        decoded.concatenate(tf.data.Dataset.from_tensors((blank, False)))
        .take(1)
        .get_single_element()
    )


def count(targets: Targets) -> tf.Tensor:
    """Counts the examples of corrupt records in a batch: float32 scalar.

    Their semantic_weight [batch, height, width] is 0 everywhere.
    """
    weight = tf.reduce_max(targets.semantic_weight, axis=[1, 2])
    return tf.reduce_sum(tf.cast(weight == 0, tf.float32))
