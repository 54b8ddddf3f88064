"""The random parameters of an augmentation, and its geometry: scale and place in the crop.

The random numbers (`AugmentParams`) become exact integers (`Geometry`) before a pixel is touched,
so that `host.py` and `device.py` make the same image.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

GRAY = 127.5  # becomes 0 in the model


class Sample(NamedTuple):
    """An image with its segments."""

    image: tf.Tensor  # uint8 or float32 [height, width, 3], 0 to 255
    segment_map: tf.Tensor  # uint8 or int32 [height, width], 0 void, k the k-th segment


class AugmentParams(NamedTuple):
    """The random numbers of one image's augmentation."""

    scale: tf.Tensor  # float32, one of the scale set
    place: tf.Tensor  # float32 [2], in [0, 1): place in the crop, or of the crop in the image
    flip: tf.Tensor  # bool
    policy: tf.Tensor  # int32, index into color.POLICY
    chance: tf.Tensor  # float32 [2], in [0, 1), one for each operation of that sub-policy


class Geometry(NamedTuple):
    """Sizes of an image on its way into the crop, and its place there; int32 [2] each."""

    fitted: tf.Tensor  # height and width before the random scale
    scaled: tf.Tensor  # height and width after it
    offset: tf.Tensor  # row and column of its corner in the crop, negative where it is cropped
    flip: tf.Tensor  # bool: the crop is mirrored left to right


def scale_set(low: float, high: float, step: float = 0.1) -> tuple[float, ...]:
    """Lists evenly spaced scales from `low` to `high`, about `step` apart, of float32 precision.

    Their number is truncated after float32 rounding, as in the official code: 15 for 0.5 to 2.
    """
    low, high, step = (float(np.float32(v)) for v in (low, high, step))
    count = int((high - low) / step + 1)
    return tuple(float(v) for v in tf.linspace(np.float32(low), np.float32(high), count))


def draw_params(seed: tf.Tensor, scales: Sequence[float]) -> AugmentParams:
    """Draws the `AugmentParams` of one image from `seed`, integers [2]."""
    scale, place, flip, policy, chance = tf.unstack(tf.random.split(seed, 5), num=5)
    index = tf.random.stateless_uniform([], scale, 0, len(scales), tf.int32)
    return AugmentParams(
        scale=tf.gather(tf.constant(scales, tf.float32), index),
        place=tf.random.stateless_uniform([2], place),
        flip=tf.random.stateless_uniform([], flip) < 0.5,
        policy=tf.random.stateless_uniform([], policy, 0, 5, tf.int32),
        chance=tf.random.stateless_uniform([2], chance),
    )


def fit(shape: tf.Tensor, smallest: tuple[int, int] | None, largest: tuple[int, int]) -> tf.Tensor:
    """Fits a size into bounds and keeps its proportions (the official resize_to_range).

    Both sides grow to at least `smallest`, if there is one, then shrink to at most `largest`.
    Float32 products are rounded down, so that a side may end one pixel short; a side of a thin
    image keeps one pixel. All are (height, width) in pixels, `shape` and the result int32 [2].
    """
    shape = tf.cast(shape, tf.float32)
    if smallest:
        shape = tf.floor(shape * tf.reduce_max(tf.constant(smallest, tf.float32) / shape))
    shrink = tf.reduce_min(tf.constant(largest, tf.float32) / shape)
    return tf.maximum(tf.cast(tf.floor(shape * tf.minimum(shrink, 1.0)), tf.int32), 1)


def locate(fitted: tf.Tensor, params: AugmentParams, size: tuple[int, int]) -> Geometry:
    """Places an image of size `fitted`, int32 [2], in a crop of `size` (height, width)."""
    scaled = tf.maximum(tf.cast(tf.cast(fitted, tf.float32) * params.scale, tf.int32), 1)
    margin = tf.constant(size) - scaled
    # The pad offset never takes its largest value, as in the official code.
    pad = tf.cast(params.place * tf.cast(tf.maximum(margin, 0), tf.float32), tf.int32)
    crop = tf.cast(params.place * tf.cast(tf.maximum(-margin, 0) + 1, tf.float32), tf.int32)
    return Geometry(fitted, scaled, pad - crop, params.flip)


def window(geometry: Geometry, size: tuple[int, int]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Computes the part of a scaled image that a crop of `size` (height, width) shows.

    Returns:
        Its first row and column, those after its last ones, and its corner in the crop, which may
        be mirrored; int32 [2] each.
    """
    begin = tf.maximum(-geometry.offset, 0)
    end = tf.minimum(geometry.scaled, size - geometry.offset)
    top, left = tf.unstack(tf.maximum(geometry.offset, 0))
    mirrored = size[1] - left - (end - begin)[1]
    return begin, end, tf.stack([top, tf.where(geometry.flip, mirrored, left)])


def step(size: tf.Tensor, original: tf.Tensor) -> tf.Tensor:
    """Distance of neighboring pixels of a scaled side, in pixels of the original one: float32.

    Corners are aligned. `size` and `original` are integers, scalars or (height, width).
    """
    return tf.math.divide_no_nan(tf.cast(original - 1, tf.float32), tf.cast(size - 1, tf.float32))


def nearest(pixels: tf.Tensor, *sides: tf.Tensor) -> tf.Tensor:
    """Maps pixels of a scaled side, integers [n], to the nearest ones of the original: int32 [n].

    `sides` are its sizes on the way back, from the scaled one to the original.
    """
    pixels = tf.cast(pixels, tf.float32)
    for size, original in itertools.pairwise(sides):
        pixels = tf.floor(pixels * step(size, original) + 0.5)
    return tf.cast(pixels, tf.int32)
