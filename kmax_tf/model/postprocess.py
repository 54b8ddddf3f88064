"""Mask-wise merging of a prediction into a panoptic map (MaX-DeepLab, section 3.5).

The official code pastes the masks one after the other. With a pixel threshold above 1/3 at most two
masks claim a pixel. So all areas that decide come from one table of pairwise overlaps.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops

from kmax_tf.errors import InputError
from kmax_tf.model.layers.ops import compiled_by_xla, look_up, resize_bilinear

# Parts of an image that are counted alone, because float32 counts ones up to 2^24, or 16.8 million.
STRIPS = 8


class Panoptic(NamedTuple):
    """The panoptic segmentation of a batch of images; segments are in the order of pasting."""

    segment_map: tf.Tensor  # int32 [batch, height, width], 0 void, k the k-th segment
    segment_class: tf.Tensor  # int32 [batch, segments], class index, -1 for no segment
    segment_confidence: tf.Tensor  # float32 [batch, segments], class probability, 0 to 1
    segment_score: tf.Tensor  # float32 [batch, segments], that times the mean `Pasted.probability`
    semantic_map: tf.Tensor  # int32 [batch, height, width], class index of the likeliest mask


class Pasted(NamedTuple):
    """The masks on the canvas, in the order of pasting, from which `merge` makes segments."""

    mask_map: tf.Tensor  # int32 [batch, height, width], 0 no mask, k the k-th mask
    mask_class: tf.Tensor  # int32 [batch, masks], class index
    confidence: tf.Tensor  # float32 [batch, masks], class probability, 0 to 1
    probability: tf.Tensor  # float32 [batch, height, width], of the pixel's likeliest mask
    semantic_map: tf.Tensor  # int32 [batch, height, width], class index of that mask


@dataclasses.dataclass(frozen=True)
class PostProcess:
    """Thresholds of the merging.

    Args:
        thing_threshold, stuff_threshold: least class probability of a mask.
        overlap_threshold: share of a mask that better masks must leave uncovered.
        thing_area, stuff_area: least area of a segment, in pixels of the evaluation size; of the
            image with `at_image_size`.
        pixel_threshold: least mask probability of a pixel.
        mask_exponent: exponent of the mean mask probability in the order of pasting.
        at_image_size: merge at the size of each image and score masks there, as the PyTorch port
            does. Otherwise masks are scored at the output stride, and the merged map is resized.

    Raises:
        InputError: `pixel_threshold` is not between 1/3 and 1.
    """

    thing_threshold: float = 0.7
    stuff_threshold: float = 0.5
    overlap_threshold: float = 0.8
    thing_area: int = 0
    stuff_area: int = 0
    pixel_threshold: float = 0.4
    mask_exponent: float = 1.0
    at_image_size: bool = False

    def __post_init__(self):
        if not 1 / 3 < self.pixel_threshold < 1:
            raise InputError(
                f"PostProcess.pixel_threshold is {self.pixel_threshold}; bind it between 1/3 and 1"
            )

    def __call__(self, prediction: Any, size: Sequence[int], num_things: int) -> Panoptic:
        """Pastes and merges a final `Prediction` at `size` (height, width) in pixels."""
        return self.merge(self.paste(prediction, size, num_things), num_things)

    def merge_image(
        self,
        prediction: Any,
        size: Sequence[int],
        fitted_size: tf.Tensor,
        original_size: tf.Tensor,
        num_things: int,
    ) -> tuple[Panoptic, Pasted]:
        """Pastes and merges a final `Prediction` of batch size 1 at the size of its image.

        Args:
            size: evaluation size, (height, width) in pixels.
            fitted_size, original_size: int32 [2], of the image within `size`, and in the file.
        """
        height, width = fitted_size[0], fitted_size[1]
        # One expression: each of these tensors may have gigabytes, and goes once it is used.
        logits = tf.compat.v1.image.resize_bilinear(
            resize_bilinear(prediction.mask_logits, size)[:, :height, :width],
            original_size,
            align_corners=True,
        )
        pasted = self.paste(prediction._replace(mask_logits=logits), None, num_things)
        return self.merge(pasted, num_things), pasted

    def merge_assignment(
        self, assignment: tf.Tensor, class_logits: tf.Tensor, size: Sequence[int], num_things: int
    ) -> Panoptic:
        """Merges the clusters of one decoder, each with all pixels that are assigned to it.

        These masks share no pixel, so the thresholds of the class and of the area decide alone.

        Args:
            assignment: int32 [batch, rows, columns], each pixel's cluster at the decoder's stride.
            class_logits: float32 [batch, clusters, classes + 1], void last.
            size: evaluation size, (height, width) in pixels.

        Returns:
            A `Panoptic` of the size of `assignment`, with the mask probability 1.
        """
        classes, confidence = _likeliest(class_logits)
        confident = tf.cast(self._confident(classes, confidence, num_things), tf.int32)
        pasted = Pasted(
            mask_map=(assignment + 1) * look_up(confident, assignment),
            mask_class=classes,
            confidence=confidence,
            probability=tf.ones_like(assignment, tf.float32),
            semantic_map=look_up(classes, assignment),
        )
        stride = (size[0] - 1) / (assignment.shape[1] - 1)
        return self.merge(pasted, num_things, stride**2)

    def merge(self, pasted: Pasted, num_things: int, pixel_area: float = 1.0) -> Panoptic:
        """Makes segments from pasted masks, whose pixels have an area in those of the canvas.

        Masks of one stuff class share a segment, which has the number of the first one.
        """
        is_thing = pasted.mask_class < num_things
        n = pasted.mask_class.shape[1]
        area = _sum(tf.ones_like(pasted.probability), pasted.mask_map, n)
        probability = _sum(pasted.probability, pasted.mask_map, n)
        leader = _leaders(pasted.mask_class, is_thing, area > 0)

        member = tf.one_hot(leader, n)  # [batch, mask, segment]
        area, confidence, probability = (  # no einsum: a TPU would round areas to bfloat16
            tf.reduce_sum(value[:, :, None] * member, axis=1)
            for value in (area, area * pasted.confidence, probability)
        )
        confidence = tf.math.divide_no_nan(confidence, area)
        score = confidence * tf.math.divide_no_nan(probability, area)

        smallest = tf.where(is_thing, self.thing_area / pixel_area, self.stuff_area / pixel_area)
        kept = (area > 0) & (area >= smallest)
        number = tf.where(tf.gather(kept, leader, batch_dims=1), leader + 1, 0)
        return Panoptic(
            look_up(number, pasted.mask_map - 1),
            tf.where(kept, pasted.mask_class, -1),
            tf.where(kept, confidence, 0.0),
            tf.where(kept, score, 0.0),
            pasted.semantic_map,
        )

    def paste(self, prediction: Any, size: Sequence[int] | None, num_things: int) -> Pasted:
        """Pastes the masks of a `Prediction` that pass the thresholds, best first.

        `size` is (height, width) in pixels; None takes the logits as they are.
        """
        logits = prediction.mask_logits
        canvas = logits if size is None else resize_bilinear(logits, size)
        classes, confidence = _likeliest(prediction.class_logits)
        quality = self._mask_score(canvas if self.at_image_size else logits)
        score = confidence * quality**self.mask_exponent
        order = tf.argsort(score, direction="DESCENDING", stable=True)
        rank = tf.argsort(order)  # of each cluster

        n, num_classes = prediction.class_logits.shape[1], prediction.class_logits.shape[2] - 1
        # One number holds a cluster's class and rank; among equal masks the first cluster wins.
        numbers = (tf.range(n) * n + rank) * num_classes + classes
        best = _two_largest(canvas, numbers)
        probability = 1 / best.total
        probabilities = [probability, probability * tf.exp(best.next_value - best.value)]
        ranks = [v // num_classes % n for v in (best.number, best.next_number)]
        first, second = self._claims(probabilities, ranks)

        mask_class, ordered = (tf.gather(v, order, batch_dims=1) for v in (classes, confidence))
        confident = self._confident(mask_class, ordered, num_things)
        pasted = tf.cast(self._paste(first, second, confident), tf.int32)
        mask_map = tf.where(look_up(pasted, first - 1) > 0, first, second)
        return Pasted(
            mask_map * look_up(pasted, mask_map - 1),
            mask_class,
            ordered,
            probability,
            best.number % num_classes,
        )

    def _confident(self, classes, confidence, num_things):
        """Returns which masks pass the threshold of their class; all are [batch, masks]."""
        threshold = tf.where(classes < num_things, self.thing_threshold, self.stuff_threshold)
        return confidence >= threshold

    def _mask_score(self, mask_logits):
        """Averages each mask's probability over its pixels, at the output stride: [batch, n]."""
        mask = tf.nn.softmax(mask_logits)
        inside = mask > self.pixel_threshold
        count, total = (
            tf.reduce_sum(tf.reduce_sum(v, axis=2), axis=1)  # over rows, as in `_sum`
            for v in (tf.cast(inside, tf.float32), tf.where(inside, mask, 0.0))
        )
        return tf.math.divide_no_nan(total, count)

    def _claims(self, probabilities, ranks):
        """Finds which of a pixel's two likeliest masks claim it, in the order of pasting.

        Takes two float32 and two int32 [batch, height, width]. Returns two int32 of that shape,
        rank + 1, or 0 for no mask.
        """
        last = tf.int32.max
        numbers = [
            tf.where(probability > self.pixel_threshold, rank + 1, last)
            for probability, rank in zip(probabilities, ranks, strict=True)
        ]
        earlier, later = tf.minimum(*numbers), tf.maximum(*numbers)
        return tf.where(earlier == last, 0, earlier), tf.where(later == last, 0, later)

    def _paste(self, first, second, confident):
        """Decides which masks are pasted, in order of rank: bool [batch, masks]."""
        n = confident.shape[1]
        # A pixel with one claim counts on the diagonal, so in no overlap of two masks.
        overlap = _overlaps(first, tf.where(second > 0, second, first), n)
        both_ways = overlap + tf.linalg.matrix_transpose(overlap)
        area = tf.reduce_sum(both_ways - overlap * tf.eye(n), axis=1)

        def body(rank, pasted):
            taken = tf.reduce_sum(overlap[:, :, rank] * pasted, axis=1)
            whole = area[:, rank]
            ok = confident[:, rank] & (whole - taken > self.overlap_threshold * whole)
            column = tf.cast(tf.range(n) == rank, tf.float32)
            return rank + 1, pasted + column * tf.cast(ok, tf.float32)[:, None]

        start = (0, tf.zeros(tf.shape(confident)))
        return tf.while_loop(lambda rank, _: rank < n, body, start)[1] > 0


def _likeliest(class_logits):
    """Returns the likeliest class of each mask but void, int32, and its probability, float32."""
    by_class = tf.nn.softmax(class_logits)[..., :-1]
    return tf.argmax(by_class, axis=-1, output_type=tf.int32), tf.reduce_max(by_class, axis=-1)


class _TwoLargest(NamedTuple):
    """The two largest logits, float32, with their clusters' numbers, int32."""

    value: tf.Tensor
    number: tf.Tensor
    next_value: tf.Tensor
    next_number: tf.Tensor
    total: tf.Tensor  # float32, the sum of exp(logit - value)


def _two_largest(logits, numbers):
    """Finds the `_TwoLargest` of each pixel; among equal logits the smaller number is first.

    Args:
        logits: float32 [batch, height, width, clusters].
        numbers: int32 [batch, clusters], ascending.
    """
    low = logits.dtype.min
    if compiled_by_xla():
        # One reduction, which XLA fuses with the resize, so that the large logits are not stored.
        shape = tf.shape(logits)
        number = tf.broadcast_to(numbers[:, None, None], shape)
        each = _TwoLargest(logits, number, tf.fill(shape, low), number, tf.ones(shape))
        nothing = _TwoLargest(*map(tf.constant, (low, tf.int32.max, low, tf.int32.max, 0.0)))
        axes, merge = [3], _merge.get_concrete_function()
        return _TwoLargest(*gen_xla_ops.xla_variadic_reduce_v2(each, nothing, axes, merge))
    value, index = tf.reduce_max(logits, axis=-1), tf.argmax(logits, axis=-1, output_type=tf.int32)
    total = tf.reduce_sum(tf.exp(logits - value[..., None]), axis=-1)
    others = tf.where(index[..., None] == tf.range(logits.shape[-1]), low, logits)
    next_index = tf.argmax(others, axis=-1, output_type=tf.int32)
    number, next_number = (look_up(numbers, i) for i in (index, next_index))
    return _TwoLargest(value, number, tf.reduce_max(others, axis=-1), next_number, total)


_SCALARS = [tf.TensorSpec([], t) for t in (tf.float32, tf.int32, tf.float32, tf.int32, tf.float32)]


@tf.function(autograph=False, input_signature=2 * _SCALARS)
def _merge(*both):
    """Merges two `_TwoLargest` of scalars into one."""
    a, b = _TwoLargest(*both[:5]), _TwoLargest(*both[5:])
    first = _larger(a.value, a.number, b.value, b.number)
    best, other = (
        _TwoLargest(*(tf.where(first, *pair) for pair in zip(x, y, strict=True)))
        for x, y in ((a, b), (b, a))
    )
    kept = _larger(best.next_value, best.next_number, other.value, other.number)
    return best._replace(
        next_value=tf.where(kept, best.next_value, other.value),
        next_number=tf.where(kept, best.next_number, other.number),
        total=best.total + other.total * tf.exp(other.value - best.value),
    )


def _larger(value, number, other, other_number):
    return (value > other) | ((value == other) & (number < other_number))


def _sum(values, ids, n):
    """Sums the values of the pixels of each id from 1 to n: [batch, height, width] to [batch, n].

    Each row is summed on its own first: one float32 sum of millions of values drifts by percents.
    """
    if compiled_by_xla():
        inside = tf.one_hot(ids - 1, n, True, False)  # a TPU would round a product to bfloat16
        return tf.reduce_sum(tf.where(inside, values[..., None], 0.0), axis=[1, 2])
    batch, height = tf.shape(ids)[0], tf.shape(ids)[1]
    rows = tf.reshape(tf.range(batch * height), [batch, height, 1])
    sums = _sum_groups(values, ids, rows, batch * height, n)
    return tf.reduce_sum(tf.reshape(sums, [batch, height, n]), axis=1)


def _sum_groups(values, ids, groups, count, n):
    """Sums the values of each id from 1 to n in each of `count` groups: [count, n].

    `groups` are the numbers of the groups from 0, int32, and broadcast to `ids`.
    """
    # TensorFlow Lite would overwrite `ids` with the sum, if a reshape of them came before.
    flat = (tf.reshape(x, [-1]) for x in (values, ids + groups * (n + 1)))
    sums = tf.math.unsorted_segment_sum(*flat, count * (n + 1))
    return tf.reshape(sums, [-1, n + 1])[:, 1:]


def _overlaps(first, second, n):
    """Counts the pixels of each pair of ids from 1 to n: [batch, n, n], float32."""
    if compiled_by_xla():  # a matrix product is fast, and exact for zeros and ones up to 2^24
        return tf.einsum("bhwi,bhwj->bij", *(tf.one_hot(ids - 1, n) for ids in (first, second)))
    pair = tf.where(second > 0, (first - 1) * n + second, 0)
    batch, height = tf.shape(pair)[0], tf.shape(pair)[1]
    images = tf.range(batch)[:, None, None] * STRIPS
    strips = tf.range(height)[:, None] * STRIPS // height
    counts = _sum_groups(tf.ones(tf.shape(pair)), pair, images + strips, batch * STRIPS, n * n)
    return tf.reduce_sum(tf.reshape(counts, [-1, STRIPS, n, n]), axis=1)


def _leaders(classes, is_thing, present):
    """Maps each mask to the one whose segment it joins: itself or its stuff class's first present.

    All arguments are [batch, masks], and so is the result, int32.
    """
    same = (classes[:, :, None] == classes[:, None, :]) & ~is_thing[:, :, None]
    same = (same & present[:, None, :]) | tf.eye(classes.shape[1], dtype=tf.bool)[None]
    # A number, for ONNX has no arg max of a bool.
    return tf.argmax(tf.cast(same, tf.int32), axis=2, output_type=tf.int32)
