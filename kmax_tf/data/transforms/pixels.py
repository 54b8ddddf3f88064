"""Operations on many pixels: count, look up in small tables, cut, insert, pad and choose.

Gather and scatter of single numbers are fast on a CPU and slow on a TPU. A TPU compares each pixel
with each row in one fused loop, which stores no intermediate result.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf


class Tables(NamedTuple):
    """The operations that differ between `HOST` (a CPU) and `DEVICE` (XLA)."""

    count: Callable  # integers of any shape, rows -> int32 [rows], how often each occurs
    lookup: Callable  # table [rows], integers of any shape -> that shape, of the table's dtype
    recolor: Callable  # levels uint8 [3, 256], image uint8 [h, w, 3] -> uint8 [h, w, 3]


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


def _recolor(levels, image):
    """Looks up two values at once, as one of 16 bits: a gather takes as long for two as for one."""
    levels = tf.cast(levels, tf.int32)
    # Pairs of values follow each other as channels (0, 1), (2, 0), (1, 2).
    first, second = tf.gather(levels, [0, 2, 1]), tf.gather(levels, [1, 0, 2])
    table = tf.cast(first[:, None, :] + 256 * second[:, :, None], tf.uint16)
    height, width = tf.unstack(tf.shape(image)[:2])
    even = tf.pad(image, [[0, 0], [0, width % 2], [0, 0]])
    pairs = tf.cast(tf.bitcast(tf.reshape(even, [height, -1, 2]), tf.uint16), tf.int32)
    which = tf.range(tf.shape(pairs)[1]) % 3
    found = tf.gather(tf.reshape(table, [-1]), pairs + 65536 * which)
    return tf.reshape(tf.bitcast(found, tf.uint8), tf.shape(even))[:, :width]


def _compared_recolor(levels, image):
    channels = zip(tf.unstack(levels), tf.unstack(image, axis=-1), strict=True)
    return tf.stack([_compared_lookup(*channel) for channel in channels], axis=-1)


HOST = Tables(_bincount, lambda table, index: tf.gather(table, tf.cast(index, tf.int32)), _recolor)
DEVICE = Tables(_compared_count, _compared_lookup, _compared_recolor)


def cut(image: tf.Tensor, begin: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
    """Cuts rows and columns from `begin` to `end`, int32 [2], out of [height, width, ...]."""
    return image[begin[0] : end[0], begin[1] : end[1]]


def insert(image: tf.Tensor, part: tf.Tensor, corner: tf.Tensor) -> tf.Tensor:
    """Inserts `part` [h, w, ...] into `image` [height, width, ...] at `corner`, int32 [2]."""
    (top, left), (bottom, right) = tf.unstack(corner), tf.unstack(corner + tf.shape(part)[:2])
    rows = image[top:bottom]
    rows = tf.concat([rows[:, :left], part, rows[:, right:]], axis=1)
    return tf.ensure_shape(tf.concat([image[:top], rows, image[bottom:]], axis=0), image.shape)


def pad(part: tf.Tensor, corner: tf.Tensor, size: tuple[int, int], value: float) -> tf.Tensor:
    """Pads `part` [h, w, ...] with `value` to `size` (height, width), its corner at `corner`."""
    shape = tf.shape(part)
    after = size - corner - shape[:2]
    # A CPU pads rows of numbers twice as fast as pixels.
    numbers = math.prod(part.shape[2:])
    margins = tf.stack([corner, after], axis=1) * [[1], [numbers]]
    rows = tf.reshape(part, [shape[0], shape[1] * numbers])
    return tf.reshape(tf.pad(rows, margins, constant_values=value), [*size, *part.shape[2:]])


def choose(mask: tf.Tensor, image: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    """Chooses the pixels [..., 3] of `image` if `mask`, bool [...], is true, else of `other`.

    Whole pixels are three times as fast on a CPU as channel by channel.
    """
    chosen = tf.compat.v1.where(
        tf.reshape(mask, [-1]), tf.reshape(image, [-1, 3]), tf.reshape(other, [-1, 3])
    )
    return tf.reshape(chosen, tf.shape(other))
