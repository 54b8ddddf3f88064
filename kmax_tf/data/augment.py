"""Augmentations: small functions (sample, ...) -> sample, random by an explicit seed alone."""

from typing import NamedTuple

import tensorflow as tf

GREY = 127.5  # becomes 0 in the model


class Sample(NamedTuple):
    """An image with its segments."""

    image: tf.Tensor  # float32 [height, width, 3], 0..255
    segment_map: tf.Tensor  # int32 [height, width], 0 void, k the k-th segment


def _resize(sample, height, width):
    """Bilinear for the image, nearest for the segments, corners aligned."""
    image = tf.compat.v1.image.resize_bilinear(
        sample.image[None], [height, width], align_corners=True
    )[0]
    segment_map = tf.compat.v1.image.resize_nearest_neighbor(
        sample.segment_map[None, :, :, None], [height, width], align_corners=True
    )[0, :, :, 0]
    return Sample(image, segment_map)


def fitted_size(sample, size):
    """The largest size, int32 [2], of the sample's proportions that fits into `size`."""
    shape = tf.cast(tf.shape(sample.segment_map), tf.float32)
    # The floors act on float32 products, as in the official code.
    return tf.cast(shape * tf.reduce_min(tf.constant(size, tf.float32) / shape), tf.int32)


def resize_to_fit(sample, size):
    """Scales the sample, up or down, to its `fitted_size`."""
    height, width = tf.unstack(fitted_size(sample, size))
    return _resize(sample, height, width)


def random_scale(sample, scales, seed):
    """Scales the sample by one of `scales`, drawn uniformly by `seed` (int32 [2])."""
    index = tf.random.stateless_uniform([], seed, 0, len(scales), tf.int32)
    size = tf.cast(tf.shape(sample.segment_map), tf.float32) * tf.gather(tf.constant(scales), index)
    height, width = tf.unstack(tf.cast(size, tf.int32))
    return _resize(sample, height, width)


def _pad(sample, size, top, left):
    height, width = tf.unstack(tf.shape(sample.segment_map))
    rows = [top, tf.maximum(size[0] - height - top, 0)]
    columns = [left, tf.maximum(size[1] - width - left, 0)]
    return Sample(
        tf.pad(sample.image, [rows, columns, [0, 0]], constant_values=GREY),
        tf.pad(sample.segment_map, [rows, columns]),
    )


def random_pad_and_crop(sample, size, seed):
    """Places the sample at random into `size` (height, width), or crops it at random to it."""
    margin = tf.constant(size) - tf.shape(sample.segment_map)
    # The pad offset never takes its largest value, as in the official code.
    draw = tf.random.stateless_uniform([2], seed)
    pad = tf.cast(draw * tf.cast(tf.maximum(margin, 0), tf.float32), tf.int32)
    crop = tf.cast(draw * tf.cast(tf.maximum(-margin, 0) + 1, tf.float32), tf.int32)
    image, segment_map = _pad(sample, size, pad[0], pad[1])
    rows, columns = slice(crop[0], crop[0] + size[0]), slice(crop[1], crop[1] + size[1])
    return Sample(
        tf.ensure_shape(image[rows, columns], [*size, 3]),
        tf.ensure_shape(segment_map[rows, columns], size),
    )


def random_flip(sample, seed):
    """Mirrors the sample left to right with probability one half."""
    flip = tf.random.stateless_uniform([], seed) < 0.5
    return tf.cond(
        flip, lambda: Sample(sample.image[:, ::-1], sample.segment_map[:, ::-1]), lambda: sample
    )


def fit_and_pad(sample, size):
    """Evaluation input: scaled to fit into `size` (height, width), padded at bottom and right."""
    image, segment_map = _pad(resize_to_fit(sample, size), size, 0, 0)
    return Sample(tf.ensure_shape(image, [*size, 3]), tf.ensure_shape(segment_map, size))
