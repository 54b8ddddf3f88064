"""The Hungarian assignment of segments to clusters, and its recall."""

from typing import Any, NamedTuple

import tensorflow as tf

from kmax_tf.data.transforms.targets import Targets
from kmax_tf.loss import hungarian, terms
from kmax_tf.model.layers.ops import look_up


class Matching(NamedTuple):
    """The assignment of segments to clusters, with its loss weights; it has no gradient."""

    cluster_of_segment: tf.Tensor  # int32 [batch, segments], -1 if the segment does not exist
    dice: tf.Tensor  # float32 [batch, segments, clusters], 0 to 1
    cost: tf.Tensor  # float32 [batch, segments, clusters], -1 to 0
    cluster_of_pixel: tf.Tensor  # int32 [batch, height, width], -1 for void and crowd
    class_of_cluster: tf.Tensor  # int32 [batch, clusters], num_classes for void
    mask_weight: tf.Tensor  # float32 [batch, clusters], 0 to 1, 0 for unmatched clusters
    class_weight: tf.Tensor  # float32 [batch, clusters], 0 to 1


def match_segments(
    final: Any, targets: Targets, unmatched_class_weight: str = "void_share"
) -> Matching:
    """Matches segments to clusters by mask dice times class probability (MaX-DeepLab, section 3.3).

    Args:
        final: the final `Prediction`.
        targets: `Targets` at its resolution.
        unmatched_class_weight: as in `Criterion`.
    """
    segment, classes = targets.segment, targets.segment_class
    exists = classes >= 0
    void_class = final.class_logits.shape[-1] - 1
    num_segments, num_clusters = classes.shape[1], final.class_logits.shape[1]

    mask = tf.nn.softmax(final.mask_logits)
    nonvoid = tf.cast(targets.semantic >= 0, tf.float32)
    truth = tf.one_hot(segment, num_segments)
    overlap = tf.einsum("bhwg,bhwn->bgn", truth, mask)
    mask_area = tf.reduce_sum(mask, axis=[1, 2])
    nonvoid_area = tf.reduce_sum(mask * nonvoid[..., None], axis=[1, 2])
    segment_area = tf.reduce_sum(truth, axis=[1, 2])
    dice = overlap / ((segment_area[:, :, None] + nonvoid_area[:, None, :]) / 2 + 1e-5)

    probability = tf.transpose(tf.nn.softmax(final.class_logits), [0, 2, 1])
    probability = tf.gather(probability, tf.maximum(classes, 0), batch_dims=1)
    probability = tf.where(exists[:, :, None], probability, 0.0)
    cost = tf.stop_gradient(-dice * probability)
    cluster_of_segment = hungarian.match(cost, exists)

    # [batch, segments, clusters], 1 for each match: at most one per row and per column.
    matched = tf.one_hot(cluster_of_segment, num_clusters)
    is_matched = tf.reduce_any(matched > 0, axis=1)
    # No einsum: a TPU would round classes above 256 to bfloat16.
    class_of_cluster = tf.reduce_sum(tf.cast(matched, tf.int32) * classes[:, :, None], axis=1)
    quality, confidence = (
        tf.maximum(tf.reduce_sum(matched * v, axis=1), terms.PROBABILITY_FLOOR)
        for v in (dice, probability)
    )
    share = (mask_area - nonvoid_area) / (mask_area + 1e-5)
    share = tf.maximum(
        share if unmatched_class_weight == "void_share" else 1 - share, terms.PROBABILITY_FLOOR
    )
    matching = Matching(
        cluster_of_segment=cluster_of_segment,
        dice=dice,
        cost=cost,
        cluster_of_pixel=look_up(cluster_of_segment + 1, segment) - 1,  # 0 for no segment
        class_of_cluster=tf.where(is_matched, class_of_cluster, void_class),
        mask_weight=tf.where(is_matched, confidence, 0.0),
        class_weight=tf.where(is_matched, quality, share),
    )
    return Matching(*(tf.stop_gradient(t) for t in matching))


def recall(class_logits: tf.Tensor, segment_class: tf.Tensor, matching: Any) -> tf.Tensor:
    """Computes the recall, a number to watch: the share of the segments that are recalled.

    A segment is recalled if its cluster predicts its class and their dice is over 2/3. That is an
    IoU over 1/2, as in PQ, but with soft masks.

    Args:
        class_logits: float32 [batch, clusters, classes + 1], of the final prediction.
        segment_class: int32 [batch, segments], of the `Targets`.
        matching: the `Matching` of both.

    Returns:
        float32 [batch], 0 to 1; 1 for an image without segments.
    """
    predicted = tf.argmax(class_logits, axis=-1, output_type=tf.int32)
    matched = tf.one_hot(matching.cluster_of_segment, class_logits.shape[1], True, False)
    correct = predicted[:, None, :] == segment_class[:, :, None]
    recalled = tf.reduce_any(matched & correct & (matching.dice > 2 / 3), axis=2)
    missed = tf.cast((segment_class >= 0) & ~recalled, tf.float32)
    exists = tf.cast(segment_class >= 0, tf.float32)
    return 1 - tf.math.divide_no_nan(tf.reduce_sum(missed, axis=1), tf.reduce_sum(exists, axis=1))
