"""Training targets: the segments of an image as id maps of static shape."""

from typing import NamedTuple

import tensorflow as tf

from kmax_tf.data.datasets import Dataset
from kmax_tf.data.transforms import pixels


class Targets(NamedTuple):
    """Ground truth at the output stride; crowd and void have no segment."""

    segment: tf.Tensor  # int32 [height, width], index of the pixel's segment, -1 for none
    segment_class: tf.Tensor  # int32 [segments], class index, -1 for unused rows
    semantic: tf.Tensor  # int32 [height, width], class index, -1 for void
    semantic_weight: tf.Tensor  # float32 [height, width], weight in the semantic loss


def class_indices(dataset: Dataset, category_id: tf.Tensor) -> tf.Tensor:
    """Maps category ids, int64 [n], to class indices, int32 [n]; -1 for an unknown id."""
    table = dataset.class_of_category
    ids = tf.constant(sorted(table), tf.int64)
    place = tf.minimum(tf.searchsorted(ids, category_id), len(table) - 1)
    known = tf.gather(ids, place) == category_id
    return tf.where(known, tf.gather([table[i] for i in sorted(table)], place), -1)


def make_targets(
    segment_map: tf.Tensor,
    segment_class: tf.Tensor,
    *,
    num_things: int,
    stride: int,
    max_segments: int,
    small_thing_area: int = 0,
    small_thing_weight: float = 1.0,
    table: pixels.Tables = pixels.HOST,
) -> Targets:
    """Makes the targets of one image, with static shapes; stuff of one class is one segment.

    Args:
        segment_map: integers [height, width], 0 void, k the k-th segment.
        segment_class: int32 [n], class index of each segment, -1 for void.
        num_things: number of thing classes; higher indices are stuff.
        stride: the output stride; every stride-th pixel of the map is taken.
        max_segments: rows of the targets; the smallest segments beyond it become void.
        small_thing_area: pixels at full resolution; things with fewer are small.
        small_thing_weight: weight of small things in the semantic loss; all else has weight 1.
        table: pixels.HOST or pixels.DEVICE.

    Returns:
        `Targets`, [ceil(height / stride), ceil(width / stride)] and [max_segments].
    """
    segments = segment_class.shape[0]
    number = tf.range(segments)
    thing = (segment_class >= 0) & (segment_class < num_things)
    same = tf.cast(segment_class[:, None] == segment_class, tf.int32)
    first = tf.where(thing, number, tf.argmax(same, axis=1, output_type=tf.int32))

    grid = segment_map[::stride, ::stride]
    area = tf.where(segment_class >= 0, table.count(grid, segments + 1)[1:], 0)
    area = tf.math.unsorted_segment_sum(area, first, segments)
    # Keys are distinct, so that CPU and TPU sort alike: by area, then by number.
    key = area * segments + (segments - 1 - number)
    by_area = tf.math.top_k(key, min(max_segments, segments)).indices
    exists = tf.gather(area, by_area) > 0
    row = tf.tensor_scatter_nd_update(
        tf.fill([segments], -1), by_area[:, None], tf.where(exists, tf.range(by_area.shape[0]), -1)
    )
    row = tf.gather(row, first)

    def at_pixels(values, void):
        return table.lookup(tf.concat([tf.constant([void], values.dtype), values], 0), grid)

    weight = tf.ones(tf.shape(grid))
    if small_thing_weight != 1.0:
        small = table.count(segment_map, segments + 1)[1:] < small_thing_area
        small &= thing & (row >= 0)
        weight = at_pixels(tf.where(small, float(small_thing_weight), 1.0), 1.0)

    classes = tf.where(exists, tf.gather(segment_class, by_area), -1)
    return Targets(
        segment=at_pixels(row, -1),
        segment_class=tf.pad(classes, [[0, max_segments - classes.shape[0]]], constant_values=-1),
        semantic=at_pixels(tf.where(row >= 0, segment_class, -1), -1),
        semantic_weight=weight,
    )
