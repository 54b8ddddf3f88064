"""Many pixels at once: counted, looked up in small tables, chosen from one of two images.

Gather and scatter of single numbers are fast on a CPU and slow on a TPU; there the comparison
of each pixel with each row is one fused loop, of which nothing is stored.
"""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf


class Tables(NamedTuple):
    """The two operations."""

    count: Callable  # integers of any shape, rows -> int32 [rows], how often each occurs
    lookup: Callable  # table [rows], integers of any shape -> that shape, of the table's dtype


def _bincount(index, rows):
    flat = tf.cast(tf.reshape(index, [-1]), tf.int32)
    return tf.math.bincount(flat, minlength=rows, maxlength=rows, dtype=tf.int32)


def _equal(index, rows):
    return tf.cast(index, tf.int32)[..., None] == tf.range(rows)


def _compared_count(index, rows):
    return tf.reduce_sum(tf.cast(_equal(tf.reshape(index, [-1]), rows), tf.int32), axis=0)


def _compared_lookup(table, index):
    chosen = tf.where(_equal(index, table.shape[0]), table, tf.zeros([], table.dtype))
    return tf.reduce_sum(chosen, axis=-1)


HOST = Tables(_bincount, lambda table, index: tf.gather(table, tf.cast(index, tf.int32)))
DEVICE = Tables(_compared_count, _compared_lookup)


def choose(mask, image, other):
    """The pixels of `image` where `mask` is, those of `other` elsewhere: [..., 3] by bool [...].

    As rows of numbers, which on a CPU is three times as fast as channel by channel.
    """
    chosen = tf.compat.v1.where(
        tf.reshape(mask, [-1]), tf.reshape(image, [-1, 3]), tf.reshape(other, [-1, 3])
    )
    return tf.reshape(chosen, tf.shape(other))
