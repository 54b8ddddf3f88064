"""A number to watch while a model learns: how many segments it finds."""

from typing import Any

import tensorflow as tf


def found_share(class_logits: tf.Tensor, segment_class: tf.Tensor, matching: Any) -> tf.Tensor:
    """The share of the segments that their cluster finds, [batch]; 1 where there is none.

    Found is as PQ has it, without hard masks: the cluster's most probable class is the segment's,
    and their dice is over 2/3, which is an intersection over union of a half.

    Arguments:
      class_logits: float32 [batch, clusters, classes + 1], of the final prediction.
      segment_class: int32 [batch, segments], of the `Targets`.
      matching: the `Matching` of both.
    """
    predicted = tf.argmax(class_logits, axis=-1, output_type=tf.int32)
    matched = tf.one_hot(matching.cluster_of_segment, class_logits.shape[1], True, False)
    right = predicted[:, None, :] == segment_class[:, :, None]
    found = tf.reduce_any(matched & right & (matching.dice > 2 / 3), axis=2)
    missed = tf.cast((segment_class >= 0) & ~found, tf.float32)
    exists = tf.cast(segment_class >= 0, tf.float32)
    return 1 - tf.math.divide_no_nan(tf.reduce_sum(missed, axis=1), tf.reduce_sum(exists, axis=1))
