"""The objective: match once on the final prediction, then every term on every output."""

import dataclasses
from typing import Any, NamedTuple

import tensorflow as tf

from kmax_tf.data.targets import Targets
from kmax_tf.files import InputError
from kmax_tf.loss import terms
from kmax_tf.loss.found import found_share
from kmax_tf.loss.matcher import match
from kmax_tf.loss.relaxation import class_shares, relax_masks
from kmax_tf.model.layers import look_up, resize_bilinear


class Losses(NamedTuple):
    """Weighted loss terms, float32; output 0 is the final prediction, 1, 2, ... the decoders.

    And one number to watch, which no gradient comes from: `found`.
    """

    pq_mask: tf.Tensor  # [outputs, batch]
    pq_class: tf.Tensor  # [outputs, batch]
    mask_id: tf.Tensor  # [outputs, batch]
    contrast: tf.Tensor  # [outputs, batch]
    semantic: tf.Tensor  # [batch]
    found: tf.Tensor  # [batch], see `found_share`

    @property
    def total(self) -> tf.Tensor:
        """The sum of all terms over the outputs [outputs, batch]: float32 [batch]."""
        deep = self.pq_mask + self.pq_class + self.mask_id + self.contrast
        return tf.reduce_sum(deep, axis=0) + self.semantic


class Matching(NamedTuple):
    """The assignment of segments to clusters, and what it weighs; no gradient passes through."""

    cluster_of_segment: tf.Tensor  # int32 [batch, segments], -1 where the segment does not exist
    dice: tf.Tensor  # float32 [batch, segments, clusters]
    cost: tf.Tensor  # float32 [batch, segments, clusters]
    cluster_of_pixel: tf.Tensor  # int32 [batch, height, width], -1 for void and crowd
    class_of_cluster: tf.Tensor  # int32 [batch, clusters], the number of classes for void
    mask_weight: tf.Tensor  # float32 [batch, clusters]
    class_weight: tf.Tensor  # float32 [batch, clusters]


class _Truth(NamedTuple):
    """Ground truth at the resolution of a comparison, int32 [batch, height, width]; -1 is none."""

    segment: tf.Tensor
    semantic: tf.Tensor
    cluster: tf.Tensor  # the one matched to the segment


def match_segments(final: Any, targets: Targets, unmatched: str = "void") -> Matching:
    """Matches segments to clusters by mask dice times class probability (MaX-DeepLab, section 3.3).

    Arguments:
      final: the final `Prediction`.
      targets: `Targets` at its resolution.
      unmatched: what of its mask an unmatched cluster weighs, see `Criterion`.
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
    cluster_of_segment = match(cost, exists)

    # [batch, segments, clusters]: 1 at each match; at most one a row and a column.
    matched = tf.one_hot(cluster_of_segment, num_clusters)
    is_matched = tf.reduce_any(matched > 0, axis=1)
    class_of_cluster = tf.einsum("bgn,bg->bn", matched, tf.cast(classes, tf.float32))
    quality, confidence = (
        tf.maximum(tf.reduce_sum(matched * v, axis=1), terms.PROBABILITY_FLOOR)
        for v in (dice, probability)
    )
    share = (mask_area - nonvoid_area) / (mask_area + 1e-5)
    share = tf.maximum(share if unmatched == "void" else 1 - share, terms.PROBABILITY_FLOOR)
    matching = Matching(
        cluster_of_segment=cluster_of_segment,
        dice=dice,
        cost=cost,
        cluster_of_pixel=look_up(cluster_of_segment + 1, segment) - 1,  # 0 for no segment
        class_of_cluster=tf.where(is_matched, tf.cast(class_of_cluster, tf.int32), void_class),
        mask_weight=tf.where(is_matched, confidence, 0.0),
        class_weight=tf.where(is_matched, quality, share),
    )
    return Matching(*(tf.stop_gradient(t) for t in matching))


@dataclasses.dataclass(frozen=True)
class Criterion:
    """The training objective; the paper's weights, the rest from the official configurations.

    Fields that the paper does not have:
      unmatched: the class term of an unmatched cluster weighs the share of its mask in "void", as
        in the official code, or, with "nonvoid", the rest, as its comment says was meant. On images
        without void the first is nearly 0, and instances separate slowly.
      own_resolution: the decoders' masks and features are compared with the ground truth at their
        own resolution and not, resized, at that of the final prediction.
      relaxation: eta of ReMaX (arXiv 2306.17319), there 0.1; 0 is off.
    Raises InputError for another value of `unmatched`.
    """

    pq_weight: float = 3.0
    mask_id_weight: float = 0.3
    contrast_weight: float = 1.0
    semantic_weight: float = 1.0
    contrast_pixels: int = 4096
    contrast_temperature: float = 1.5
    semantic_top_fraction: float = 1.0
    unmatched: str = "void"
    own_resolution: bool = False
    relaxation: float = 0.0

    def __post_init__(self):
        if self.unmatched not in ("void", "nonvoid"):
            raise InputError(f"Criterion.unmatched {self.unmatched!r} is neither void nor nonvoid")

    def __call__(self, outputs: Any, targets: Targets, noise: tf.Tensor) -> Losses:
        """Losses of a batch.

        Arguments:
          outputs: the model's `Outputs`.
          targets: `Targets` at the resolution of the final prediction.
          noise: float32 [outputs, batch, pixels], uniform in [0, 1), for the contrast's samples.
        Returns `Losses`.
        """
        predictions = [outputs.final, *outputs.auxiliary]
        if self.relaxation:
            predictions = [relax_masks(p, outputs.semantic_logits) for p in predictions]
        matching = match_segments(predictions[0], targets, self.unmatched)
        full = _Truth(targets.segment, targets.semantic, matching.cluster_of_pixel)
        rows = []
        for prediction, uniform in zip(predictions, tf.unstack(noise), strict=True):
            own = prediction.mask_logits.shape[1] if self.own_resolution else full.segment.shape[1]
            stride = (full.segment.shape[1] - 1) // (own - 1)
            truth = _Truth(*(v[:, ::stride, ::stride] for v in full))
            rows.append(
                (
                    *self._mask_terms(prediction, truth, matching),
                    self._contrast(prediction, truth, targets.segment_class.shape[1], uniform),
                )
            )
        deep = [tf.stack(term) for term in zip(*rows, strict=True)]
        return Losses(
            *deep,
            semantic=self._semantic(outputs.semantic_logits, targets),
            found=found_share(predictions[0].class_logits, targets.segment_class, matching),
        )

    def _mask_terms(self, prediction, truth, matching):
        logits = resize_bilinear(prediction.mask_logits, truth.segment.shape[1:3])
        relaxation = 0.0
        if self.relaxation:
            num_classes = prediction.class_logits.shape[-1] - 1
            relaxation = self.relaxation * class_shares(logits, truth.semantic, num_classes)
        pq_mask = terms.pq_mask(logits, truth.cluster, matching.mask_weight)
        pq_class = terms.pq_class(
            prediction.class_logits, matching.class_of_cluster, matching.class_weight, relaxation
        )
        mask_id = terms.mask_id(logits, truth.cluster, truth.semantic >= 0)
        return self.pq_weight * pq_mask, self.pq_weight * pq_class, self.mask_id_weight * mask_id

    def _contrast(self, prediction, truth, segments, uniform):
        height, width = truth.segment.shape[1:3]
        pixels = height * width
        segment, semantic = (tf.reshape(v, [-1, pixels]) for v in (truth.segment, truth.semantic))
        area = tf.reduce_sum(tf.one_hot(segment, segments), axis=1)
        area = tf.where(segment >= 0, look_up(area, segment), 1.0)
        count = min(self.contrast_pixels, pixels)
        sample = terms.sample_pixels(
            semantic >= 0, area, uniform[:, :pixels], count, self.contrast_temperature
        )
        features = terms.gather_features(prediction.pixel_features, sample, (height, width))
        segment = tf.gather(segment, sample, batch_dims=1)
        return self.contrast_weight * terms.contrast(features, segment, segments)

    def _semantic(self, logits, targets):
        stride = (targets.semantic.shape[1] - 1) // (logits.shape[1] - 1)
        loss = terms.semantic(
            logits,
            targets.semantic[:, ::stride, ::stride],
            targets.semantic_weight[:, ::stride, ::stride],
            self.semantic_top_fraction,
        )
        return self.semantic_weight * loss
