"""Corrupt records, where they are skipped: no position moves, and what is lost weighs nothing."""

from collections.abc import Callable

import tensorflow as tf

from kmax_tf.data.records.example import Example
from kmax_tf.data.transforms.targets import Targets


def read(path: tf.Tensor, skip: bool) -> tf.data.Dataset:
    """The records of a file, whose path is a string scalar; to be skipped, those it can read."""
    records = tf.data.TFRecordDataset(path)
    return records.ignore_errors() if skip else records


def assert_count(records: tf.data.Dataset, number: int, skip: bool) -> tf.data.Dataset:
    """The `number` records of an epoch: what was skipped is replaced by nothing, else an error."""
    if skip:
        return records.concatenate(tf.data.Dataset.from_tensors("").repeat()).take(number)
    return records.apply(tf.data.experimental.assert_cardinality(number))


def parse_or_blank(record: tf.Tensor, parse: Callable) -> tuple[Example, tf.Tensor]:
    """The `Example` of a record, a string scalar, and True, or one black pixel of void and False.

    `parse` gives an `Example`.
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
    """How many of a batch's examples are of corrupt records: float32 scalar.

    Those weigh nothing: their semantic_weight [batch, height, width] is 0 everywhere.
    """
    weight = tf.reduce_max(targets.semantic_weight, axis=[1, 2])
    return tf.reduce_sum(tf.cast(weight == 0, tf.float32))
