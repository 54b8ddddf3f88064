"""Geometry of the input: how an image is scaled and placed, and that done on the host.

What is random is drawn first, as numbers (`Draw`), and is exact integers (`Geometry`) before a
pixel is touched: `device.py` makes the same picture from the same integers.
"""

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


def resize(sample, size):
    """Bilinear for the image, which becomes float32, nearest for the segments; corners aligned."""

    def resized():
        image = tf.compat.v1.image.resize_bilinear(sample.image[None], size, align_corners=True)
        segment_map = tf.compat.v1.image.resize_nearest_neighbor(
            sample.segment_map[None, :, :, None], size, align_corners=True
        )
        return Sample(image[0], segment_map[0, :, :, 0])

    same = tf.reduce_all(tf.shape(sample.segment_map) == size)
    return tf.cond(
        same, lambda: Sample(tf.cast(sample.image, tf.float32), sample.segment_map), resized
    )


def place(sample, geometry, size):
    """Crops and pads the scaled sample into `size`, and mirrors it; the image becomes float32."""
    begin, room = tf.maximum(-geometry.offset, 0), tf.maximum(geometry.offset, 0)
    image = sample.image[begin[0] :, begin[1] :][: size[0], : size[1]]
    segment_map = sample.segment_map[begin[0] :, begin[1] :][: size[0], : size[1]]
    after = tf.constant(size) - room - tf.shape(segment_map)
    margins = tf.stack([room, after], axis=1)
    image = tf.pad(
        tf.cast(image, tf.float32), tf.concat([margins, [[0, 0]]], 0), constant_values=GREY
    )
    segment_map = tf.pad(segment_map, margins)
    image, segment_map = tf.cond(
        geometry.flip,
        lambda: (image[:, ::-1], segment_map[:, ::-1]),
        lambda: (image, segment_map),
    )
    return Sample(tf.ensure_shape(image, [*size, 3]), tf.ensure_shape(segment_map, size))


def fit_and_pad(sample, size):
    """Evaluation input: scaled to fit into `size` (height, width), padded at bottom and right."""
    fitted = fitted_size(sample, size)
    corner = Geometry(fitted, fitted, tf.constant([0, 0]), tf.constant(False))
    return place(resize(sample, fitted), corner, size)
