"""Panoptic copy-paste: all things and some stuff of one image over another one.

Segments are numbered so that those to be pasted come first. The mask of the pasted pixels is then
one comparison, and no table is looked up for each pixel.
"""

from typing import NamedTuple

import tensorflow as tf

from kmax_tf.data.transforms import pixels
from kmax_tf.data.transforms.geometry import Sample

MAX_SEGMENTS = 255  # of one map, so that ids are uint8 and exact in bfloat16


class Segments(NamedTuple):
    """The meaning of the ids in one image's segment map."""

    classes: tf.Tensor  # int32 [MAX_SEGMENTS], class index of segment k at k - 1, -1 for none
    num_pasted: tf.Tensor  # int32, segments 1 to `num_pasted` are pasted onto another image


def draw_stuff(seed: tf.Tensor, num_classes: int) -> tf.Tensor:
    """Draws which stuff classes are pasted: bool [num_classes], from `seed`, integers [2].

    All classes have the same probability, which is uniform itself. So their number is uniform, as
    in the official code.
    """
    draw = tf.random.stateless_uniform([1 + num_classes], seed)
    return draw[1:] < draw[0]


def number_segments(
    segment_map: tf.Tensor, segment_class: tf.Tensor, num_things: int, pasted_stuff: tf.Tensor
) -> tuple[tf.Tensor, Segments]:
    """Renumbers segments: those to be pasted first, and stuff of one class as one segment.

    Args:
        segment_map: int32 [height, width], 0 void, k the k-th segment.
        segment_class: int32 [n], class index, -1 for void (crowd, unknown class).
        num_things: number of thing classes; higher indices are stuff.
        pasted_stuff: bool [num_classes], from `draw_stuff`.

    Returns:
        The map, uint8 [height, width], and the `Segments` that are on it. Segments beyond
        MAX_SEGMENTS become void.
    """
    number = tf.range(tf.size(segment_class))
    thing = segment_class < num_things
    ones = tf.ones(tf.shape(segment_map), tf.int32)
    on_map = tf.math.unsorted_segment_sum(ones, segment_map, tf.size(number) + 1)[1:] > 0
    known = (segment_class >= 0) & on_map
    stuff, classes = ~thing & on_map, tf.size(pasted_stuff)
    firsts = tf.math.unsorted_segment_min(
        number, tf.where(stuff, segment_class, classes), classes + 1
    )
    first = tf.where(stuff, tf.gather(firsts, tf.maximum(segment_class, 0)), number)
    pasted = known & (thing | tf.gather(pasted_stuff, tf.maximum(segment_class, 0)))

    # Rank 0 is pasted, 1 stays, 2 has no segment of its own; the order within a rank is kept.
    rank = tf.where(known & (first == number), tf.where(pasted, 0, 1), 2)
    order = tf.argsort(rank, stable=True)
    new = tf.scatter_nd(order[:, None], number + 1, tf.shape(number))
    new = tf.where(known, tf.gather(new, first), 0)
    new = tf.cast(tf.where(new > MAX_SEGMENTS, 0, new), tf.uint8)
    classes = tf.where(tf.gather(rank, order) < 2, tf.gather(segment_class, order), -1)
    classes = classes[:MAX_SEGMENTS]
    classes = tf.pad(classes, [[0, MAX_SEGMENTS - tf.size(classes)]], constant_values=-1)
    count = tf.minimum(tf.reduce_sum(tf.cast(rank == 0, tf.int32)), MAX_SEGMENTS)
    table = tf.concat([tf.zeros([1], tf.uint8), new], axis=0)
    classes = tf.ensure_shape(classes, [MAX_SEGMENTS])
    return tf.gather(table, segment_map), Segments(classes, count)


def paste(
    sample: Sample, segments: Segments, pasted: Sample, pasted_segments: Segments
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Pastes one image onto another of the same size.

    Args:
        sample, segments: the image below and its segments, [batch, ...] or without that axis.
        pasted, pasted_segments: the image to paste, of the same shape.

    Returns:
        The image, of the dtype of `sample`; the segment map, int32; and the class index of each id,
        int32 [batch, 2 * MAX_SEGMENTS]. Pasted ids follow the others.
    """
    last = pasted_segments.num_pasted[..., None, None]
    segment_map = tf.cast(pasted.segment_map, tf.int32)
    mask = (segment_map > 0) & (segment_map <= last)
    return (
        pixels.choose(mask, tf.cast(pasted.image, sample.image.dtype), sample.image),
        tf.where(mask, segment_map + MAX_SEGMENTS, tf.cast(sample.segment_map, tf.int32)),
        tf.concat([segments.classes, pasted_segments.classes], axis=-1),
    )


def paste_part(
    sample: Sample, segments: Segments, pasted: Sample, pasted_segments: Segments, corner: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Pastes a smaller image [h, w, ...], its corner at `corner`, int32 [2]; else as `paste`."""
    end = corner + tf.shape(pasted.segment_map)
    under = tf.nest.map_structure(lambda x: pixels.cut(x, corner, end), sample)
    image, segment_map, classes = paste(under, segments, pasted, pasted_segments)
    return (
        pixels.insert(sample.image, image, corner),
        pixels.insert(tf.cast(sample.segment_map, segment_map.dtype), segment_map, corner),
        classes,
    )
