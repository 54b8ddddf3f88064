"""The training objective: match on the final prediction, then apply every term to every output."""

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
    """Weighted loss terms, float32; output 0 is the final prediction, 1, 2, ... the decoders."""

    pq_mask: tf.Tensor  # [outputs, batch]
    pq_class: tf.Tensor  # [outputs, batch]
    mask_id: tf.Tensor  # [outputs, batch]
    contrast: tf.Tensor  # [outputs, batch]
    semantic: tf.Tensor  # [batch]
    recall: tf.Tensor  # [batch], a number to watch without gradient, see `matching.recall`

    @property
    def total(self) -> tf.Tensor:
        """The sum of all terms over all outputs: float32 [batch]."""
        deep = self.pq_mask + self.pq_class + self.mask_id + self.contrast
        return tf.reduce_sum(deep, axis=0) + self.semantic


class _GroundTruth(NamedTuple):
    """Ground truth at the resolution of one output: int32 [batch, height, width], -1 for none."""

    segment: tf.Tensor
    semantic: tf.Tensor
    cluster: tf.Tensor  # the cluster that is matched to the segment


@dataclasses.dataclass(frozen=True)
class Criterion:
    """The training objective, with the paper's weights and the official configurations' numbers.

    Args:
        pq_weight, mask_id_weight, contrast_weight, semantic_weight: weights of the terms.
        contrast_pixels: pixels drawn from each image for the contrast term.
        contrast_temperature: how strongly small segments are preferred among them, see
            `terms.sample_pixels`.
        semantic_top_fraction: fraction of the pixels, the hardest, in the semantic term.
        unmatched_class_weight: weight of an unmatched cluster's class loss. "void_share" is the
            fraction of its mask on void pixels (official code), "nonvoid_share" the rest. On images
            without void the first is nearly 0, and instances separate slowly.
        native_resolution_supervision: supervise each decoder at its native resolution instead of
            resizing it to the final one.
        relaxation: eta of ReMaX (arXiv 2306.17319), 0.1 in that paper; 0 is off.

    Raises:
        InputError: another value of `unmatched_class_weight`.
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
                ' "void_share" nor "nonvoid_share"; bind one of them'
            )

    def __call__(self, outputs: Any, targets: Targets, noise: tf.Tensor) -> Losses:
        """Computes the losses of a batch.

        Args:
            outputs: the model's `Outputs`.
            targets: `Targets` at the resolution of the final prediction.
            noise: float32 [outputs, batch, pixels], uniform in [0, 1); draws the contrast's pixels.
        """
        predictions = [outputs.final, *outputs.auxiliary]
        if self.relaxation:
            predictions = [relax_masks(p, outputs.semantic_logits) for p in predictions]
        matching = match_segments(predictions[0], targets, self.unmatched_class_weight)
        full = _GroundTruth(targets.segment, targets.semantic, matching.cluster_of_pixel)
        rows = []
        for prediction, uniform in zip(predictions, tf.unstack(noise), strict=True):
            supervised = (
                prediction.mask_logits if self.native_resolution_supervision else full.segment
            )
            stride = (full.segment.shape[1] - 1) // (supervised.shape[1] - 1)
            truth = _GroundTruth(*(v[:, ::stride, ::stride] for v in full))
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
