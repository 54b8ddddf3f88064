"""Geometry of the input: how an image is scaled and placed, and that done on the host.

What is random is drawn first, as numbers (`Draw`), and is exact integers (`Geometry`) before a
pixel is touched: `device.py` makes the same picture from the same integers.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from kmax_tf.data import pixels

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


def draw(seed: tf.Tensor, scales: Sequence[float]) -> Draw:
    """Draws the numbers of one image by `seed`, integers of shape [2]."""
    scale, place, flip, policy, chance = tf.unstack(tf.random.split(seed, 5), num=5)
    index = tf.random.stateless_uniform([], scale, 0, len(scales), tf.int32)
    return Draw(
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


def fitted_size(sample: Sample, size: tuple[int, int]) -> tf.Tensor:
    """The largest size (height, width), int32, of the sample's proportions that `size` holds."""
    return tf.maximum(fit(tf.shape(sample.segment_map), size, size), 1)  # of a line of pixels


def locate(fitted: tf.Tensor, draw: Draw, size: tuple[int, int]) -> Geometry:
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


def resize_image(image: tf.Tensor, *sizes: tf.Tensor) -> tf.Tensor:
    """Scales [h, w, 3] to each size, int32 [2], in turn: float32, bilinear, corners aligned."""
    image = tf.cast(image, tf.float32)
    for size in sizes:
        image = tf.cond(
            tf.reduce_all(tf.shape(image)[:2] == size),
            lambda image=image: image,
            lambda image=image, size=size: tf.compat.v1.image.resize_bilinear(
                image[None], size, align_corners=True
            )[0],
        )
    return image


def resize_map(
    segment_map: tf.Tensor, begin: tf.Tensor, end: tf.Tensor, *sizes: tf.Tensor
) -> tf.Tensor:
    """From `begin` to `end`, int32 [2], the map [h, w] scaled to each size in turn.

    To the nearest pixel, corners aligned.
    """
    ways = tf.unstack(tf.stack([*reversed(sizes), tf.shape(segment_map)]), axis=1, num=2)
    rows, columns = (
        nearest(tf.range(first, after), *tf.unstack(way))
        for first, after, way in zip(tf.unstack(begin), tf.unstack(end), ways, strict=True)
    )
    # Columns first, which are the slower ones: there are fewer of them before the rows.
    return tf.gather(tf.gather(segment_map, columns, axis=1), rows, axis=0)


def resize(sample: Sample, size: tf.Tensor) -> Sample:
    """Scales a sample to `size`, int32 (height, width); the image becomes float32 [h, w, 3]."""
    return Sample(
        resize_image(sample.image, size),
        resize_map(sample.segment_map, tf.zeros([2], tf.int32), size, size),
    )


def mirror(sample: Sample, flip: tf.Tensor) -> Sample:
    """The sample [h, w, ...], mirrored left to right where `flip`, a bool scalar."""
    return tf.nest.map_structure(
        lambda x: tf.cond(flip, lambda: tf.reverse(x, axis=[1]), lambda: x), sample
    )


def pad(sample: Sample, corner: tf.Tensor, size: tuple[int, int]) -> Sample:
    """Puts the sample into `size` (height, width), its corner at `corner`, int32 [2].

    The image becomes float32, grey around; the map is void there.
    """
    image = pixels.pad(tf.cast(sample.image, tf.float32), corner, size, GREY)
    return Sample(image, pixels.pad(sample.segment_map, corner, size, 0))


def place(sample: Sample, geometry: Geometry, size: tuple[int, int]) -> Sample:
    """Crops and pads the scaled sample into `size` (height, width), and mirrors it.

    The image becomes float32.
    """
    shown = window(geometry, size)
    sample = tf.nest.map_structure(lambda x: pixels.cut(x, shown.begin, shown.end), sample)
    return pad(mirror(sample, geometry.flip), shown.corner, size)


def fit_and_pad(sample: Sample, size: tuple[int, int]) -> Sample:
    """Evaluation input: scaled to fit into `size` (height, width), padded at bottom and right."""
    fitted = fitted_size(sample, size)
    corner = Geometry(fitted, fitted, tf.constant([0, 0]), tf.constant(False))
    return place(resize(sample, fitted), corner, size)
