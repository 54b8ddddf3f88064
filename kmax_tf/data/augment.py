"""Geometry of the input: how an image is scaled and placed, and that done on the host.

What is random is drawn first, as numbers (`Draw`), and is exact integers (`Geometry`) before a
pixel is touched: `device.py` makes the same picture from the same integers.
"""

import itertools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

GREY = 127.5  # becomes 0 in the model


class Sample(NamedTuple):
    """An image with its segments."""

    image: tf.Tensor  # uint8 or float32 [height, width, 3], 0..255
    segment_map: tf.Tensor  # uint8 or int32 [height, width], 0 void, k the k-th segment


class Draw(NamedTuple):
    """The random numbers of one image's augmentation."""

    scale: tf.Tensor  # float32, one of the scale set
    place: tf.Tensor  # float32 [2], in [0, 1): where in the crop, or where the crop is
    flip: tf.Tensor  # bool
    policy: tf.Tensor  # int32, which sub-policy of colour.py
    chance: tf.Tensor  # float32 [2], in [0, 1), for each of its two operations


class Geometry(NamedTuple):
    """Where an image goes: its sizes on the way, and its place in the crop; int32 [2] each."""

    fitted: tf.Tensor  # height and width before the random scale
    scaled: tf.Tensor  # and after it
    offset: tf.Tensor  # row and column of its corner in the crop, negative where it is cropped
    flip: tf.Tensor  # bool: the crop is mirrored left to right


def scale_set(low, high, step=0.1):
    """Evenly spaced scales from `low` to `high`, about `step` apart, as floats of float32 value.

    Their number is cut off after float32 rounding, as in the official code: 15 of 0.5 to 2.
    """
    low, high, step = (float(np.float32(v)) for v in (low, high, step))
    count = int((high - low) / step + 1)
    return tuple(float(v) for v in tf.linspace(np.float32(low), np.float32(high), count))


def draw(seed, scales):
    """Draws the numbers of one image by `seed`, an integer [2]."""
    scale, place, flip, policy, chance = tf.unstack(tf.random.split(seed, 5), num=5)
    index = tf.random.stateless_uniform([], scale, 0, len(scales), tf.int32)
    return Draw(
        scale=tf.gather(tf.constant(scales, tf.float32), index),
        place=tf.random.stateless_uniform([2], place),
        flip=tf.random.stateless_uniform([], flip) < 0.5,
        policy=tf.random.stateless_uniform([], policy, 0, 5, tf.int32),
        chance=tf.random.stateless_uniform([2], chance),
    )


def fit(shape, smallest, largest):
    """A size int32 [2] of the proportions of `shape`, as the official resize_to_range has it.

    Both sides become at least `smallest`, and then are shrunk to at most `largest`; the floors
    act on float32 products, so that a side may end one pixel short.
    """

    shape = tf.cast(shape, tf.float32)
    shape = tf.floor(shape * tf.reduce_max(tf.constant(smallest, tf.float32) / shape))
    shrink = tf.reduce_min(tf.constant(largest, tf.float32) / shape)
    return tf.cast(tf.floor(shape * tf.minimum(shrink, 1.0)), tf.int32)


def fitted_size(sample, size):
    """The largest size, int32 [2], of the sample's proportions that fits into `size`."""
    return fit(tf.shape(sample.segment_map), size, size)


def locate(fitted, draw, size):
    """The `Geometry` of an image of size `fitted`, int32 [2], in a crop of `size`."""
    scaled = tf.cast(tf.cast(fitted, tf.float32) * draw.scale, tf.int32)
    margin = tf.constant(size) - scaled
    # The pad offset never takes its largest value, as in the official code.
    pad = tf.cast(draw.place * tf.cast(tf.maximum(margin, 0), tf.float32), tf.int32)
    crop = tf.cast(draw.place * tf.cast(tf.maximum(-margin, 0) + 1, tf.float32), tf.int32)
    return Geometry(fitted, scaled, pad - crop, draw.flip)


def step(size, original):
    """How many pixels of the original side one of the scaled side is, corners aligned: float32."""
    return tf.math.divide_no_nan(tf.cast(original - 1, tf.float32), tf.cast(size - 1, tf.float32))


def nearest(pixels, *sides):
    """The pixels of a side that are nearest to `pixels`, integers [n], of the side once scaled.

    `sides` are its sizes on the way back, from the scaled one to the original.
    """
    pixels = tf.cast(pixels, tf.float32)
    for size, original in itertools.pairwise(sides):
        pixels = tf.floor(pixels * step(size, original) + 0.5)
    return tf.cast(pixels, tf.int32)


def resize(sample, *sizes):
    """Scales to each size, int32 [2], in turn; the image becomes float32.

    Bilinear for the image, nearest for the segments, corners aligned.
    """
    image, shape = tf.cast(sample.image, tf.float32), tf.shape(sample.segment_map)
    for size in sizes:
        image = tf.cond(
            tf.reduce_all(tf.shape(image)[:2] == size),
            lambda image=image: image,
            lambda image=image, size=size: tf.compat.v1.image.resize_bilinear(
                image[None], size, align_corners=True
            )[0],
        )
    rows, columns = (
        nearest(tf.range(sides[0]), *sides)
        for sides in zip(*(tf.unstack(size, num=2) for size in (*reversed(sizes), shape)))
    )
    # Columns first, which are the slower ones: there are fewer of them before the rows.
    return Sample(image, tf.gather(tf.gather(sample.segment_map, columns, axis=1), rows, axis=0))


def place(sample, geometry, size):
    """Crops and pads the scaled sample into `size`, and mirrors it; the image becomes float32."""
    crop = tf.maximum(-geometry.offset, 0)

    def cropped(x):
        x = x[crop[0] : crop[0] + size[0], crop[1] : crop[1] + size[1]]
        return tf.cond(geometry.flip, lambda: tf.reverse(x, axis=[1]), lambda: x)

    image, segment_map = cropped(sample.image), cropped(sample.segment_map)
    before = tf.maximum(geometry.offset, 0)
    after = tf.constant(size) - before - tf.shape(segment_map)
    (top, left), (bottom, right) = tf.unstack(before), tf.unstack(after)
    left, right = tf.cond(geometry.flip, lambda: (right, left), lambda: (left, right))
    margins = [[top, bottom], [left, right]]
    image = tf.pad(tf.cast(image, tf.float32), [*margins, [0, 0]], constant_values=GREY)
    segment_map = tf.pad(segment_map, margins)
    return Sample(tf.ensure_shape(image, [*size, 3]), tf.ensure_shape(segment_map, size))


def fit_and_pad(sample, size):
    """Evaluation input: scaled to fit into `size` (height, width), padded at bottom and right."""
    fitted = fitted_size(sample, size)
    corner = Geometry(fitted, fitted, tf.constant([0, 0]), tf.constant(False))
    return place(resize(sample, fitted), corner, size)
