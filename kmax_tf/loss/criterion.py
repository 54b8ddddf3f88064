"""The objective: match once on the final prediction, then every term on every output."""

import dataclasses
from typing import Any, NamedTuple

import tensorflow as tf

from kmax_tf.data.transforms.targets import Targets
from kmax_tf.errors import InputError
from kmax_tf.loss import terms
from kmax_tf.loss.matching import match_segments, recall
from kmax_tf.loss.remax import reclass_targets, relax_masks
from kmax_tf.model.layers.ops import look_up, resize_bilinear


class Losses(NamedTuple):
    """Weighted loss terms, float32; output 0 is the final prediction, 1, 2, ... the decoders.

    And one number to watch, which no gradient comes from: `found`.
    """

    pq_mask: tf.Tensor  # [outputs, batch]
    pq_class: tf.Tensor  # [outputs, batch]
    mask_id: tf.Tensor  # [outputs, batch]
    contrast: tf.Tensor  # [outputs, batch]
    semantic: tf.Tensor  # [batch]
    recall: tf.Tensor  # [batch], see `recall`

    @property
    def total(self) -> tf.Tensor:
        """The sum of all terms over the outputs [outputs, batch]: float32 [batch]."""
        deep = self.pq_mask + self.pq_class + self.mask_id + self.contrast
        return tf.reduce_sum(deep, axis=0) + self.semantic


class _Truth(NamedTuple):
    """Ground truth at the resolution of a comparison, int32 [batch, height, width]; -1 is none."""

    segment: tf.Tensor
    semantic: tf.Tensor
    cluster: tf.Tensor  # the one matched to the segment


@dataclasses.dataclass(frozen=True)
class Criterion:
    """The training objective; the paper's weights, the rest from the official configurations.

    Fields that the paper does not have:
      unmatched_class_weight: weight of an unmatched cluster's class loss. "void_share" is the
        fraction of its mask on void pixels (official code), "nonvoid_share" the rest. On images
        without void the first is nearly 0, and instances separate slowly.
      native_resolution_supervision: supervise each decoder at its native resolution, without
        resizing it to that of the final prediction.
      relaxation: eta of ReMaX (arXiv 2306.17319), there 0.1; 0 is off.
    Raises InputError for another value of `unmatched_class_weight`.
    """

    pq_weight: float = 3.0
    mask_id_weight: float = 0.3
    contrast_weight: float = 1.0
    semantic_weight: float = 1.0
    contrast_pixels: int = 4096
    contrast_temperature: float = 1.5
    semantic_top_fraction: float = 1.0
    unmatched_class_weight: str = "void_share"
    native_resolution_supervision: bool = False
    relaxation: float = 0.0

    def __post_init__(self):
        if self.unmatched_class_weight not in ("void_share", "nonvoid_share"):
            raise InputError(
                f"Criterion.unmatched_class_weight {self.unmatched_class_weight!r} is neither"
                " void_share nor nonvoid_share"
            )

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
        matching = match_segments(predictions[0], targets, self.unmatched_class_weight)
        full = _Truth(targets.segment, targets.semantic, matching.cluster_of_pixel)
        rows = []
        for prediction, uniform in zip(predictions, tf.unstack(noise), strict=True):
            own = (
                prediction.mask_logits.shape[1]
                if self.native_resolution_supervision
                else full.segment.shape[1]
            )
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
            recall=recall(predictions[0].class_logits, targets.segment_class, matching),
        )

    def _mask_terms(self, prediction, truth, matching):
        logits = resize_bilinear(prediction.mask_logits, truth.segment.shape[1:3])
        relaxation = 0.0
        if self.relaxation:
            num_classes = prediction.class_logits.shape[-1] - 1
            relaxation = self.relaxation * reclass_targets(logits, truth.semantic, num_classes)
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
