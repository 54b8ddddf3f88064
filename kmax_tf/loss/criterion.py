"""The objective: match once on the final prediction, then every term on every output."""

import dataclasses
from typing import NamedTuple

import tensorflow as tf

from kmax_tf.loss import terms
from kmax_tf.loss.matcher import match
from kmax_tf.model.layers import resize_bilinear


class Losses(NamedTuple):
    """Weighted loss terms, float32; output 0 is the final prediction, 1, 2, ... the decoders."""

    pq_mask: tf.Tensor  # [outputs, batch]
    pq_class: tf.Tensor  # [outputs, batch]
    mask_id: tf.Tensor  # [outputs, batch]
    contrast: tf.Tensor  # [outputs, batch]
    semantic: tf.Tensor  # [batch]

    @property
    def total(self):
        """The sum of all terms, [batch]."""
        deep = self.pq_mask + self.pq_class + self.mask_id + self.contrast
        return tf.reduce_sum(deep, axis=0) + self.semantic


class Matching(NamedTuple):
    """The assignment of segments to clusters, and what it weighs; no gradient passes through."""

    cluster_of_segment: tf.Tensor  # int32 [batch, segments], -1 where the segment does not exist
    dice: tf.Tensor  # float32 [batch, segments, clusters]
    cost: tf.Tensor  # float32 [batch, segments, clusters]
    cluster_of_pixel: tf.Tensor  # int32 [batch, pixels], -1 for void and crowd
    class_of_cluster: tf.Tensor  # int32 [batch, clusters], the number of classes for void
    mask_weight: tf.Tensor  # float32 [batch, clusters]
    class_weight: tf.Tensor  # float32 [batch, clusters]


def _flat(x):
    return tf.reshape(x, [tf.shape(x)[0], x.shape[1] * x.shape[2], *x.shape[3:]])


def match_segments(final, targets):
    """Matches segments to clusters by mask dice times class probability (MaX-DeepLab, section 3.3).

    `final` is the final `Prediction`, `targets` are at its resolution.
    """
    segment, classes = _flat(targets.segment), targets.segment_class
    exists = classes >= 0
    void_class = final.class_logits.shape[-1] - 1
    num_segments, num_clusters = classes.shape[1], final.class_logits.shape[1]

    mask = tf.nn.softmax(_flat(final.mask_logits))
    nonvoid = tf.cast(_flat(targets.semantic) >= 0, tf.float32)
    truth = tf.one_hot(segment, num_segments)
    overlap = tf.einsum("bpg,bpn->bgn", truth, mask)
    mask_area = tf.reduce_sum(mask, axis=1)
    nonvoid_area = tf.einsum("bpn,bp->bn", mask, nonvoid)
    segment_area = tf.reduce_sum(truth, axis=1)
    dice = overlap / ((segment_area[:, :, None] + nonvoid_area[:, None, :]) / 2 + 1e-5)

    probability = tf.transpose(tf.nn.softmax(final.class_logits), [0, 2, 1])
    probability = tf.gather(probability, tf.maximum(classes, 0), batch_dims=1)
    probability = tf.where(exists[:, :, None], probability, 0.0)
    cost = tf.stop_gradient(-dice * probability)
    cluster_of_segment = match(cost, exists)

    # [batch, segments, clusters]: 1 at each match; at most one a row and a column.
    matched = tf.one_hot(cluster_of_segment, num_clusters)
    is_matched = tf.reduce_any(matched > 0, axis=1)
    class_of_cluster = tf.einsum("bgn,bg->bn", matched, tf.cast(classes, tf.float32))
    quality, confidence = (
        tf.maximum(tf.reduce_sum(matched * v, axis=1), terms.PROBABILITY_FLOOR)
        for v in (dice, probability)
    )
    # An unmatched cluster weighs as much as of its mask lies in void, as in the official code.
    void_ratio = tf.maximum(
        (mask_area - nonvoid_area) / (mask_area + 1e-5), terms.PROBABILITY_FLOOR
    )
    by_pixel = tf.gather(cluster_of_segment, tf.maximum(segment, 0), batch_dims=1)
    matching = Matching(
        cluster_of_segment=cluster_of_segment,
        dice=dice,
        cost=cost,
        cluster_of_pixel=tf.where(segment >= 0, by_pixel, -1),
        class_of_cluster=tf.where(is_matched, tf.cast(class_of_cluster, tf.int32), void_class),
        mask_weight=tf.where(is_matched, confidence, 0.0),
        class_weight=tf.where(is_matched, quality, void_ratio),
    )
    return Matching(*(tf.stop_gradient(t) for t in matching))


@dataclasses.dataclass(frozen=True)
class Criterion:
    """The training objective; the paper's weights, the rest from the official configurations."""

    pq_weight: float = 3.0
    mask_id_weight: float = 0.3
    contrast_weight: float = 1.0
    semantic_weight: float = 1.0
    contrast_pixels: int = 4096
    contrast_temperature: float = 1.5
    semantic_top_fraction: float = 1.0

    def __call__(self, outputs, targets, noise):
        """Losses of a batch.

        Arguments:
          outputs: the model's `Outputs`.
          targets: `Targets` at the resolution of the final prediction.
          noise: float32 [outputs, batch, pixels], uniform in [0, 1), for the contrast's samples.
        Returns `Losses`. Auxiliary masks and features are resized to the final resolution.
        """
        matching = match_segments(outputs.final, targets)
        size = outputs.final.mask_logits.shape[1:3]
        segment = _flat(targets.segment)
        area = tf.reduce_sum(tf.one_hot(segment, targets.segment_class.shape[1]), axis=1)
        area = tf.gather(area, tf.maximum(segment, 0), batch_dims=1)
        area = tf.where(segment >= 0, area, 1.0)
        nonvoid = _flat(targets.semantic) >= 0

        rows = []
        for i, prediction in enumerate([outputs.final, *outputs.auxiliary]):
            logits = _flat(resize_bilinear(prediction.mask_logits, size))
            features = _flat(resize_bilinear(prediction.pixel_features, size))
            sample = terms.sample_pixels(
                nonvoid, area, noise[i], self.contrast_pixels, self.contrast_temperature
            )
            rows.append(
                (
                    self.pq_weight
                    * terms.pq_mask(logits, matching.cluster_of_pixel, matching.mask_weight),
                    self.pq_weight
                    * terms.pq_class(
                        prediction.class_logits, matching.class_of_cluster, matching.class_weight
                    ),
                    self.mask_id_weight * terms.mask_id(logits, matching.cluster_of_pixel, nonvoid),
                    self.contrast_weight * terms.contrast(features, segment, sample),
                )
            )
        deep = [tf.stack(term) for term in zip(*rows, strict=True)]
        return Losses(*deep, semantic=self._semantic(outputs.semantic_logits, targets))

    def _semantic(self, logits, targets):
        stride = (targets.semantic.shape[1] - 1) // (logits.shape[1] - 1)
        loss = terms.semantic(
            _flat(logits),
            _flat(targets.semantic[:, ::stride, ::stride]),
            _flat(targets.semantic_weight[:, ::stride, ::stride]),
            self.semantic_top_fraction,
        )
        return self.semantic_weight * loss
