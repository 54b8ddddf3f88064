"""Training targets: the segments of a sample as id maps of static shape."""

from typing import NamedTuple

import tensorflow as tf


class Targets(NamedTuple):
    """Ground truth at the output stride; crowd and void belong to no segment."""

    segment: tf.Tensor  # int32 [height, width], the row of the pixel's segment or -1
    segment_class: tf.Tensor  # int32 [segments], class index, -1 where no such segment exists
    semantic: tf.Tensor  # int32 [height, width], class index, -1 for void
    semantic_weight: tf.Tensor  # float32 [height, width], weight in the semantic loss


def class_indices(dataset, category_id):
    """Class index of each category id, int64 [n] -> int32 [n]; -1 for an id of another dataset."""
    table = dataset.class_of_category
    ids = tf.constant(sorted(table), tf.int64)
    place = tf.minimum(tf.searchsorted(ids, category_id), len(table) - 1)
    known = tf.gather(ids, place) == category_id
    return tf.where(known, tf.gather([table[i] for i in sorted(table)], place), -1)


def make_targets(
    segment_map, segment_class, is_crowd, *, num_things, stride, max_segments, thing_weight
):
    """Targets of one sample.

    Arguments:
      segment_map: int32 [height, width], 0 void, k the k-th segment.
      segment_class: int32 [n], class index of each segment; things come before stuff.
      is_crowd: bool [n]; crowd becomes void.
      stride: the output stride; the map is reduced by taking every stride-th pixel.
      max_segments: rows of the targets; the smallest segments beyond it become void.
      thing_weight: weight of thing pixels in the semantic loss, stuff weighing 1.
    """
    segment_map = segment_map[::stride, ::stride]
    area = tf.math.bincount(
        tf.reshape(segment_map, [-1]), minlength=tf.size(segment_class) + 1, dtype=tf.int32
    )[1:]
    area = tf.where(is_crowd | (segment_class < 0), 0, area)
    by_area = tf.argsort(area, direction="DESCENDING", stable=True)[:max_segments]
    by_area = tf.boolean_mask(by_area, tf.gather(area, by_area) > 0)
    row = tf.scatter_nd(by_area[:, None] + 1, tf.range(tf.size(by_area)) + 1, [tf.size(area) + 1])
    segment = tf.gather(row - 1, segment_map)

    classes = tf.gather(segment_class, by_area)
    classes = tf.pad(classes, [[0, max_segments - tf.size(classes)]], constant_values=-1)
    semantic = tf.where(segment >= 0, tf.gather(classes, tf.maximum(segment, 0)), -1)
    is_thing = (semantic >= 0) & (semantic < num_things)
    return Targets(
        segment=segment,
        segment_class=tf.ensure_shape(classes, [max_segments]),
        semantic=semantic,
        semantic_weight=tf.where(is_thing, float(thing_weight), 1.0),
    )
