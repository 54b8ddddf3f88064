"""The loss terms: pure functions of float32 tensors, one number an image, unweighted.

Ground truth is an id map in *cluster space*: for each pixel the cluster that was matched to its
segment, so that no [pixels, segments] one-hot tensor and no permuted logits exist. Where the paper
is silent the arithmetic is that of the official code.
"""

import tensorflow as tf

PROBABILITY_FLOOR = 1e-5  # the least weight of a cluster
MATCHED, UNMATCHED = 0.75, 0.25  # the focal loss's alpha, its gamma being 0
CONTRAST_TEMPERATURE = 0.3
VOID_SCORE = -99999.0


def mean_nonzero(loss):
    """Mean over the numbers of each image that are not 0: [batch, n] -> [batch]."""
    count = tf.math.count_nonzero(loss, axis=1, dtype=tf.float32)
    return tf.math.divide_no_nan(tf.reduce_sum(loss, axis=1), count)


def pq_mask(mask_logits, cluster_of_pixel, weight):
    """Dice term of the PQ-style loss (MaX-DeepLab, equation 12).

    Arguments:
      mask_logits: [batch, pixels, clusters].
      cluster_of_pixel: int32 [batch, pixels], -1 for void and crowd.
      weight: [batch, clusters], 0 for unmatched clusters.
    """
    clusters = mask_logits.shape[-1]
    mask = tf.nn.softmax(mask_logits)
    truth = tf.one_hot(cluster_of_pixel, clusters)
    valid = tf.cast(cluster_of_pixel >= 0, tf.float32)
    overlap = tf.reduce_sum(mask * truth, axis=1)
    size = tf.einsum("bpn,bp->bn", mask, valid) + tf.reduce_sum(truth, axis=1)
    dice = 1 - (2 * overlap + 1) / (size + 1)
    return MATCHED / clusters * tf.reduce_sum(weight * dice, axis=1)


def pq_class(class_logits, class_of_cluster, weight):
    """Cross entropy term of the PQ-style loss.

    Arguments:
      class_logits: [batch, clusters, classes + 1], void last.
      class_of_cluster: int32 [batch, clusters], the number of classes for void.
      weight: [batch, clusters].
    """
    void = class_logits.shape[-1] - 1
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(class_of_cluster, class_logits)
    balance = tf.where(class_of_cluster == void, UNMATCHED, MATCHED)
    return mean_nonzero(weight * balance * loss)


def _push_down(logits):
    """TensorFlow's cross entropy against a target of zeros: 0, its gradient the softmax."""
    total = tf.reduce_logsumexp(logits, axis=-1)
    return total - tf.stop_gradient(total)


def mask_id(mask_logits, cluster_of_pixel, nonvoid):
    """Cross entropy of each pixel's cluster (MaX-DeepLab, section 3.4).

    Void has no part in it; crowd pushes every logit down, as in the official code.

    Arguments:
      mask_logits: [batch, pixels, clusters].
      cluster_of_pixel: int32 [batch, pixels], -1 for void and crowd.
      nonvoid: bool [batch, pixels].
    """
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(
        tf.maximum(cluster_of_pixel, 0), mask_logits
    )
    loss = tf.where(cluster_of_pixel >= 0, loss, _push_down(mask_logits))
    return mean_nonzero(tf.where(nonvoid, loss, 0.0))


def sample_pixels(nonvoid, area, noise, count, temperature):
    """Draws `count` pixels an image without replacement, small segments more often.

    Gumbel top-k with probability in proportion to (1 / area) ** temperature (CMT-DeepLab).

    Arguments:
      nonvoid: bool [batch, pixels]; void is drawn last of all.
      area: float32 [batch, pixels], pixels of each pixel's segment, 1 for void and crowd.
      noise: float32 [batch, pixels], uniform in [0, 1).
    Returns int32 [batch, count].
    """
    score = -temperature * tf.math.log(area) - tf.math.log(-tf.math.log(noise))
    score += tf.where(nonvoid, 0.0, VOID_SCORE)
    return tf.math.top_k(score, count).indices


def contrast(features, segment, sample):
    """Instance discrimination: pixels of one segment attract each other, others repel.

    Arguments:
      features: [batch, pixels, depth].
      segment: int32 [batch, pixels], -1 for void and crowd, which repel all (official code).
      sample: int32 [batch, count], the pixels that take part.
    """
    features = tf.gather(features, sample, batch_dims=1)
    segment = tf.gather(segment, sample, batch_dims=1)
    similarity = tf.einsum("bid,bjd->bij", features, features) / CONTRAST_TEMPERATURE
    valid = segment >= 0
    same = (segment[:, :, None] == segment[:, None, :]) & valid[:, :, None]
    positives = tf.reduce_sum(tf.where(same, similarity, 0.0), axis=2)
    count = tf.reduce_sum(tf.cast(same, tf.float32), axis=2)
    loss = tf.reduce_logsumexp(similarity, axis=2) - tf.math.divide_no_nan(positives, count)
    return mean_nonzero(tf.where(valid, loss, _push_down(similarity)))


def semantic(logits, semantic_map, weight, top_fraction=1.0):
    """Cross entropy of the auxiliary semantic branch.

    Arguments:
      logits: [batch, pixels, channels].
      semantic_map: int32 [batch, pixels], -1 for void.
      weight: [batch, pixels].
      top_fraction: share of the pixels, the hardest, that count.
    """
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(semantic_map, 0), logits)
    loss = tf.where(semantic_map >= 0, weight * loss, 0.0)
    if top_fraction < 1.0:
        loss = tf.math.top_k(loss, round(top_fraction * loss.shape[1])).values
    return mean_nonzero(loss)
