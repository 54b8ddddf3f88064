"""Skips corrupt records.

A skipped example is an image of void: its semantic loss is 0, and its clusters learn to be void.
An image or label that cannot be decoded does not shift the other records. A file with damaged
bytes ends there: the records after them are lost too. The order of the others changes, and the
epoch is filled with void. It is the same in every run, so that training resumes exactly.
"""

from collections.abc import Callable

import tensorflow as tf

from kmax_tf.data.records.example import Example
from kmax_tf.data.transforms.targets import Targets


def read(path: tf.Tensor, skip: bool) -> tf.data.Dataset:
    """Reads the file of records at `path`, a string scalar; with `skip`, up to damaged bytes."""
    records = tf.data.TFRecordDataset(path)
    if not skip:
        return records
    # `ignore_errors` would try for ever to open a file that is gone, so another dataset opens it.
    first_byte = tf.data.FixedLengthRecordDataset(path, 1, buffer_size=1).take(1)
    return first_byte.flat_map(lambda _: records.ignore_errors())


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
