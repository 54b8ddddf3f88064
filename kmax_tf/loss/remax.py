"""ReMaX (arXiv 2306.17319): relaxed masks and class targets, in training only."""

from typing import Any

import tensorflow as tf

from kmax_tf.model.layers.ops import resize_bilinear


def relax_masks(prediction: Any, semantic_logits: tf.Tensor) -> Any:
    """Strengthens masks where the semantic branch agrees with their cluster's class (ReMask).

    Softmax replaces ReMaX's sigmoid, because both heads are trained with softmax.

    Args:
        prediction: a `Prediction`.
        semantic_logits: float32 [batch, height, width, channels], channels in the order of the
            classes. They get no gradient.

    Returns:
        The prediction with mask logits m + m * (class probability x semantic probability).
    """
    classes = tf.nn.softmax(prediction.class_logits)[..., :-1]
    semantic = tf.nn.softmax(semantic_logits)[..., : classes.shape[-1]]
    semantic = resize_bilinear(semantic, prediction.mask_logits.shape[1:3])
    agreement = tf.stop_gradient(tf.einsum("bnc,bhwc->bhwn", classes, semantic))
    return prediction._replace(mask_logits=prediction.mask_logits * (1 + agreement))


def reclass_targets(mask_logits: tf.Tensor, semantic_map: tf.Tensor, num_classes: int) -> tf.Tensor:
    """Computes the share of each class's pixels that lies in each cluster's mask (ReClass).

    Args:
        mask_logits: float32 [batch, height, width, clusters].
        semantic_map: int32 [batch, height, width], class index, -1 for void.

    Returns:
        float32 [batch, clusters, num_classes + 1], 0 for void and absent classes; no gradient.
    """
    mask = tf.nn.softmax(mask_logits)
    truth = tf.one_hot(semantic_map, num_classes + 1)
    area = tf.reduce_sum(truth, axis=[1, 2])[:, None, :]
    shares = tf.math.divide_no_nan(tf.einsum("bhwn,bhwc->bnc", mask, truth), area)
    return tf.stop_gradient(shares)
