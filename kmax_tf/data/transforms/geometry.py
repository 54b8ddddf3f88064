"""The random parameters of an augmentation, and its geometry: scale and place in the crop.

Random numbers are drawn first (`AugmentParams`) and become exact integers (`Geometry`) before a
pixel is touched, so that `host.py` and `device.py` make the same picture.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

GREY = 127.5  # becomes 0 in the model


class Sample(NamedTuple):
    """An image with its segments."""

    image: tf.Tensor  # uint8 or float32 [height, width, 3], 0..255
    segment_map: tf.Tensor  # uint8 or int32 [height, width], 0 void, k the k-th segment


class AugmentParams(NamedTuple):
    """The random numbers of one image's augmentation."""

    scale: tf.Tensor  # float32, one of the scale set
    place: tf.Tensor  # float32 [2], in [0, 1): where in the crop, or where the crop is
    flip: tf.Tensor  # bool
    policy: tf.Tensor  # int32, which sub-policy of color.py
    chance: tf.Tensor  # float32 [2], in [0, 1), for each of its two operations


class Geometry(NamedTuple):
    """Where an image goes: its sizes on the way, and its place in the crop; int32 [2] each."""

    fitted: tf.Tensor  # height and width before the random scale
    scaled: tf.Tensor  # and after it
    offset: tf.Tensor  # row and column of its corner in the crop, negative where it is cropped
    flip: tf.Tensor  # bool: the crop is mirrored left to right


class Window(NamedTuple):
    """What the crop shows of the scaled image, and where; int32 [2] each."""

    begin: tf.Tensor  # its first row and column
    end: tf.Tensor  # and after its last ones
    corner: tf.Tensor  # row and column of its corner in the crop, which may be mirrored


def scale_set(low: float, high: float, step: float = 0.1) -> tuple[float, ...]:
    """Evenly spaced scales from `low` to `high`, about `step` apart, as floats of float32 value.

    Their number is cut off after float32 rounding, as in the official code: 15 of 0.5 to 2.
    """
    low, high, step = (float(np.float32(v)) for v in (low, high, step))
    count = int((high - low) / step + 1)
    return tuple(float(v) for v in tf.linspace(np.float32(low), np.float32(high), count))


def draw(seed: tf.Tensor, scales: Sequence[float]) -> AugmentParams:
    """Draws the numbers of one image by `seed`, integers of shape [2]."""
    scale, place, flip, policy, chance = tf.unstack(tf.random.split(seed, 5), num=5)
    index = tf.random.stateless_uniform([], scale, 0, len(scales), tf.int32)
    return AugmentParams(
        scale=tf.gather(tf.constant(scales, tf.float32), index),
        place=tf.random.stateless_uniform([2], place),
        flip=tf.random.stateless_uniform([], flip) < 0.5,
        policy=tf.random.stateless_uniform([], policy, 0, 5, tf.int32),
        chance=tf.random.stateless_uniform([2], chance),
    )


def fit(shape: tf.Tensor, smallest: tuple[int, int], largest: tuple[int, int]) -> tf.Tensor:
    """A size (height, width) of the proportions of `shape`, as the official resize_to_range has it.

    Both sides become at least `smallest`, and then are shrunk to at most `largest`; the floors
    act on float32 products, so that a side may end one pixel short. int32 [2] pixels, as `shape`.
    """
    shape = tf.cast(shape, tf.float32)
    shape = tf.floor(shape * tf.reduce_max(tf.constant(smallest, tf.float32) / shape))
    shrink = tf.reduce_min(tf.constant(largest, tf.float32) / shape)
    return tf.cast(tf.floor(shape * tf.minimum(shrink, 1.0)), tf.int32)


def locate(fitted: tf.Tensor, draw: AugmentParams, size: tuple[int, int]) -> Geometry:
    """The `Geometry` of an image of size `fitted`, int32 [2], in a crop of (height, width)."""
    scaled = tf.cast(tf.cast(fitted, tf.float32) * draw.scale, tf.int32)
    margin = tf.constant(size) - scaled
    # The pad offset never takes its largest value, as in the official code.
    pad = tf.cast(draw.place * tf.cast(tf.maximum(margin, 0), tf.float32), tf.int32)
    crop = tf.cast(draw.place * tf.cast(tf.maximum(-margin, 0) + 1, tf.float32), tf.int32)
    return Geometry(fitted, scaled, pad - crop, draw.flip)


def window(geometry: Geometry, size: tuple[int, int]) -> Window:
    """The `Window` of an image in a crop of `size` (height, width)."""
    begin = tf.maximum(-geometry.offset, 0)
    end = tf.minimum(geometry.scaled, size - geometry.offset)
    top, left = tf.unstack(tf.maximum(geometry.offset, 0))
    mirrored = size[1] - left - (end - begin)[1]
    return Window(begin, end, tf.stack([top, tf.where(geometry.flip, mirrored, left)]))


def step(size: tf.Tensor, original: tf.Tensor) -> tf.Tensor:
    """How many pixels of the original side one of the scaled side is, corners aligned: float32.

    Both are whole numbers of pixels, scalars or (height, width).
    """
    return tf.math.divide_no_nan(tf.cast(original - 1, tf.float32), tf.cast(size - 1, tf.float32))


def nearest(pixels: tf.Tensor, *sides: tf.Tensor) -> tf.Tensor:
    """The pixels of a side that are nearest to `pixels`, integers [n], of the side once scaled.

    `sides` are its sizes on the way back, from the scaled one to the original.
    """
    pixels = tf.cast(pixels, tf.float32)
    for size, original in itertools.pairwise(sides):
        pixels = tf.floor(pixels * step(size, original) + 0.5)
    return tf.cast(pixels, tf.int32)
