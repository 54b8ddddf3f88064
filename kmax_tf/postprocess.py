"""Mask-wise merging (MaX-DeepLab, section 3.5): a prediction becomes one panoptic map.

The official code pastes the masks one after the other. With a pixel threshold above 1/3 at most two
masks claim a pixel, so the areas that decide come from one table of pairwise overlaps.
"""

import dataclasses
from typing import NamedTuple

import tensorflow as tf

from kmax_tf.model.layers import resize_bilinear


class Panoptic(NamedTuple):
    """The panoptic segmentation of a batch of images."""

    segment_map: tf.Tensor  # int32 [batch, height, width], 0 void, k the k-th segment
    segment_class: tf.Tensor  # int32 [batch, segments], class index, -1 where there is none
    segment_score: tf.Tensor  # float32 [batch, segments], class confidence times mask score


@dataclasses.dataclass(frozen=True)
class PostProcess:
    """Thresholds of the merging; areas in pixels of the evaluation size.

    Raises ValueError for a pixel threshold that more than two masks of a pixel could pass.
    """

    thing_threshold: float = 0.7
    stuff_threshold: float = 0.5
    overlap_threshold: float = 0.8
    thing_area: int = 0
    stuff_area: int = 0
    pixel_threshold: float = 0.4
    mask_exponent: float = 1.0

    def __post_init__(self):
        if not 1 / 3 < self.pixel_threshold < 1:
            raise ValueError(f"pixel_threshold is {self.pixel_threshold}: choose from 1/3 to 1")

    def __call__(self, prediction, size, num_things):
        """Merges a final `Prediction` at `size` (height, width); returns `Panoptic`.

        Segment k is the k-th in the order of pasting; masks of one stuff class share a segment.
        """
        probabilities = tf.nn.softmax(prediction.class_logits)[..., :-1]
        classes = tf.argmax(probabilities, axis=-1, output_type=tf.int32)
        confidence = tf.reduce_max(probabilities, axis=-1)
        quality = self._mask_score(prediction.mask_logits)
        score = confidence * quality**self.mask_exponent
        order = tf.argsort(score, direction="DESCENDING", stable=True)
        classes, confidence, score = (
            tf.gather(v, order, batch_dims=1) for v in (classes, confidence, score)
        )
        is_thing = classes < num_things

        first, second = self._claims(prediction.mask_logits, order, size)
        threshold = tf.where(is_thing, self.thing_threshold, self.stuff_threshold)
        pasted = self._paste(first, second, confidence >= threshold)
        segment_map = tf.where(
            _lookup(pasted, first), first + 1, tf.where(_lookup(pasted, second), second + 1, 0)
        )
        segment_map = _merge_stuff(segment_map, classes, is_thing)

        area = _count(segment_map, classes.shape[1] + 1)[:, 1:]
        kept = (area > 0) & (area >= tf.where(is_thing, self.thing_area, self.stuff_area))
        return Panoptic(
            tf.where(_lookup(kept, segment_map - 1), segment_map, 0),
            tf.where(kept, classes, -1),
            tf.where(kept, score, 0.0),
        )

    def _mask_score(self, mask_logits):
        """Mean probability of each mask's pixels, at the output stride: [batch, clusters]."""
        mask = tf.nn.softmax(mask_logits)
        inside = tf.cast(mask > self.pixel_threshold, tf.float32)
        count = tf.reduce_sum(inside, axis=[1, 2])
        return tf.math.divide_no_nan(tf.reduce_sum(mask * inside, axis=[1, 2]), count)

    def _claims(self, mask_logits, order, size):
        """The ranks of the masks that claim each pixel, first pasted first; -1 for none.

        Returns two int32 [batch, height, width].
        """
        logits = resize_bilinear(mask_logits, size)
        top = tf.math.top_k(logits, 2)
        norm = tf.reduce_logsumexp(logits, axis=-1, keepdims=True)
        claims = tf.exp(top.values - norm) > self.pixel_threshold
        rank = tf.argsort(order)  # rank of each cluster
        rank = tf.gather(rank, tf.reshape(top.indices, [tf.shape(rank)[0], -1]), batch_dims=1)
        last = rank.dtype.max
        rank = tf.where(claims, tf.reshape(rank, tf.shape(claims)), last)
        earlier, later = tf.reduce_min(rank, -1), tf.reduce_max(rank, -1)
        return tf.where(earlier == last, -1, earlier), tf.where(later == last, -1, later)

    def _paste(self, first, second, confident):
        """Which masks are pasted, in order of rank: bool [batch, clusters]."""
        n = confident.shape[1]
        pair = tf.where(second >= 0, first * n + second, -1)
        overlap = tf.reshape(_count(pair + 1, n * n + 1)[:, 1:], [-1, n, n])
        area = _count(first + 1, n + 1)[:, 1:] + _count(second + 1, n + 1)[:, 1:]
        area, overlap = tf.cast(area, tf.float32), tf.cast(overlap, tf.float32)

        def body(rank, pasted):
            taken = tf.reduce_sum(overlap[:, :, rank] * pasted, axis=1)
            whole = area[:, rank]
            ok = confident[:, rank] & (whole - taken > self.overlap_threshold * whole)
            column = tf.cast(tf.range(n) == rank, tf.float32)
            return rank + 1, pasted + column * tf.cast(ok, tf.float32)[:, None]

        start = (0, tf.zeros(tf.shape(confident)))
        return tf.while_loop(lambda rank, _: rank < n, body, start)[1] > 0


def _count(ids, n):
    """How often each of 0 to n - 1 occurs in each image: [batch, height, width] -> [batch, n]."""
    batch = tf.shape(ids)[0]
    shifted = tf.reshape(ids, [batch, -1]) + tf.range(batch)[:, None] * n
    ones = tf.ones_like(shifted)
    return tf.reshape(tf.math.unsorted_segment_sum(ones, shifted, batch * n), [batch, n])


def _lookup(table, ids):
    """table[ids] of each image, False for -1: [batch, n], [batch, height, width] -> bool."""
    flat = tf.reshape(ids, [tf.shape(ids)[0], -1])
    found = tf.gather(table, tf.maximum(flat, 0), batch_dims=1) & (flat >= 0)
    return tf.reshape(found, tf.shape(ids))


def _merge_stuff(segment_map, classes, is_thing):
    """Gives all segments of one stuff class the id of the first of them that is on the map."""
    n = classes.shape[1]
    present = _count(segment_map, n + 1)[:, 1:] > 0
    same = (classes[:, :, None] == classes[:, None, :]) & ~is_thing[:, :, None]
    same = (same & present[:, None, :]) | tf.eye(n, dtype=tf.bool)[None]
    leader = tf.argmax(same, axis=2, output_type=tf.int32)  # the first of its class
    leader = tf.pad(leader + 1, [[0, 0], [1, 0]])
    flat = tf.reshape(segment_map, [tf.shape(segment_map)[0], -1])
    return tf.reshape(tf.gather(leader, flat, batch_dims=1), tf.shape(segment_map))


def to_original_size(values, fitted_size, original_size):
    """Takes one canvas back to the image: the padding cut off, then nearest neighbour.

    values: int32 [height, width]; sizes: int32 [2]. Returns int32 [*original_size].
    """
    values = values[None, : fitted_size[0], : fitted_size[1], None]
    resized = tf.compat.v1.image.resize_nearest_neighbor(values, original_size, align_corners=True)
    return resized[0, :, :, 0]
