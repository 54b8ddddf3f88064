"""Panoptic copy-paste: all things and some stuff of one image over another one.

The segments of an image are numbered so that those to be pasted come first: the mask of what is
pasted is then one comparison, and no table is looked up for each pixel.
"""

from typing import NamedTuple

import tensorflow as tf

from kmax_tf.data.transforms import pixels
from kmax_tf.data.transforms.geometry import Sample

MAX_SEGMENTS = 255  # of one image, so that ids are uint8 and exact in bfloat16


class Segments(NamedTuple):
    """What the ids of one image's segment map mean."""

    classes: tf.Tensor  # int32 [MAX_SEGMENTS], class index of segment k at k - 1, -1 for none
    pasted: tf.Tensor  # int32, the segments 1 to `pasted` go onto another image


def draw_stuff(seed: tf.Tensor, num_classes: int) -> tf.Tensor:
    """Which classes are pasted if they are stuff, bool [num_classes], by `seed`, integers [2].

    Each with the same probability, itself drawn uniformly: their number is then uniform and the
    choice of so many uniform too, which is how the official code draws.
    """
    draw = tf.random.stateless_uniform([1 + num_classes], seed)
    return draw[1:] < draw[0]


def number_segments(
    segment_map: tf.Tensor, segment_class: tf.Tensor, num_things: int, pasted_stuff: tf.Tensor
) -> tuple[tf.Tensor, Segments]:
    """Numbers segments anew: what is pasted first, stuff of one class as one segment.

    Arguments:
      segment_map: int32 [height, width], 0 void, k the k-th segment.
      segment_class: int32 [n], class index, -1 for void (crowd, unknown class).
      num_things: classes from this on are stuff.
      pasted_stuff: bool [num_classes], of `draw_stuff`.
    Returns the map, uint8, and its `Segments`. Those beyond MAX_SEGMENTS become void.
    """
    number = tf.range(tf.size(segment_class))
    known, thing = segment_class >= 0, segment_class < num_things
    same = (segment_class[:, None] == segment_class) & ~thing
    first = tf.reduce_min(tf.where(same, number, number[:, None]), axis=1)
    pasted = known & (thing | tf.gather(pasted_stuff, tf.maximum(segment_class, 0)))

    # 0 is pasted, 1 stays, 2 is no segment of its own; in this order, else as before.
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
    sample: Sample, segments: Segments, other: Sample, other_segments: Segments
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Pastes one `Sample` onto another of the same size; both may be batched, with `Segments`.

    Returns the image, (batch, height, width, 3) of the dtype of the first; the segment map, int32
    (batch, height, width), in which the pasted ids follow the others; and the class index of
    each, int32 [(batch,) 2 * MAX_SEGMENTS].
    """
    last = other_segments.pasted[..., None, None]
    segment_map = tf.cast(other.segment_map, tf.int32)
    pasted = (segment_map > 0) & (segment_map <= last)
    return (
        pixels.choose(pasted, tf.cast(other.image, sample.image.dtype), sample.image),
        tf.where(pasted, segment_map + MAX_SEGMENTS, tf.cast(sample.segment_map, tf.int32)),
        tf.concat([segments.classes, other_segments.classes], axis=-1),
    )


def paste_part(
    sample: Sample, segments: Segments, part: Sample, part_segments: Segments, corner: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """As `paste`, unbatched, of a smaller sample [h, w, ...], its corner at int32 [2] `corner`."""
    end = corner + tf.shape(part.segment_map)
    under = tf.nest.map_structure(lambda x: pixels.cut(x, corner, end), sample)
    image, segment_map, classes = paste(under, segments, part, part_segments)
    return (
        pixels.insert(sample.image, image, corner),
        pixels.insert(tf.cast(sample.segment_map, segment_map.dtype), segment_map, corner),
        classes,
    )
