"""The loss terms: pure functions of float32 tensors to float32 [batch], unweighted.

Ground truth is an id map in *cluster space*: the matched cluster of each pixel's segment. So no
one-hot tensor [pixels, segments] and no permuted logits exist. Sums over the pixels are written as
products with comparisons, which XLA computes in one pass over the logits. Details that the paper
does not give are those of the official code.
"""

import tensorflow as tf

PROBABILITY_FLOOR = 1e-5  # the least weight of a cluster
MATCHED, UNMATCHED = 0.75, 0.25  # alpha of the focal loss, whose gamma is 0
CONTRAST_TEMPERATURE = 0.3
VOID_SCORE = -99999.0


def mean_nonzero(loss: tf.Tensor) -> tf.Tensor:
    """Averages the nonzero numbers of each image, [batch, ...] to [batch]; 0 if all are 0."""
    axes = list(range(1, loss.shape.rank))
    count = tf.math.count_nonzero(loss, axis=axes, dtype=tf.float32)
    return tf.math.divide_no_nan(tf.reduce_sum(loss, axis=axes), count)


def _cross_entropy(logits, index):
    """Computes the softmax cross entropy [...] of logits [..., n] to int32 [...], -1 for no target.

    Without a target the loss is 0 and its gradient is the softmax, which lowers every logit. So is
    TensorFlow's cross entropy to a target of zeros.
    """
    total = tf.reduce_logsumexp(logits, axis=-1)
    chosen = tf.reduce_sum(logits * tf.one_hot(index, logits.shape[-1]), axis=-1)
    return total - tf.where(index >= 0, chosen, tf.stop_gradient(total))


def pq_mask(mask_logits: tf.Tensor, cluster_of_pixel: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    """Dice term of the PQ-style loss (MaX-DeepLab, equation 12).

    Args:
        mask_logits: float32 [batch, height, width, clusters].
        cluster_of_pixel: int32 [batch, height, width], -1 for void and crowd.
        weight: float32 [batch, clusters], 0 for unmatched clusters.
    """
    clusters = mask_logits.shape[-1]
    # A softmax by the log-sum-exp that `mask_id` needs too.
    mask = tf.exp(mask_logits - tf.reduce_logsumexp(mask_logits, axis=-1, keepdims=True))
    truth = tf.one_hot(cluster_of_pixel, clusters)
    valid = tf.cast(cluster_of_pixel >= 0, tf.float32)
    overlap = tf.reduce_sum(mask * truth, axis=[1, 2])
    size = tf.reduce_sum(mask * valid[..., None] + truth, axis=[1, 2])
    dice = 1 - (2 * overlap + 1) / (size + 1)
    return MATCHED / clusters * tf.reduce_sum(weight * dice, axis=1)


def pq_class(
    class_logits: tf.Tensor,
    class_of_cluster: tf.Tensor,
    weight: tf.Tensor,
    relaxation: tf.Tensor | float = 0.0,
) -> tf.Tensor:
    """Cross entropy term of the PQ-style loss.

    Args:
        class_logits: float32 [batch, clusters, classes + 1], void last.
        class_of_cluster: int32 [batch, clusters], num_classes for void.
        weight: float32 [batch, clusters].
        relaxation: float32 [batch, clusters, classes + 1], mixed into one-hot targets; 0 is off.
    """
    void = class_logits.shape[-1] - 1
    target = relaxation + (1 - relaxation) * tf.one_hot(class_of_cluster, void + 1)
    total = tf.reduce_logsumexp(class_logits, axis=-1, keepdims=True)
    loss = tf.reduce_sum(target * (total - class_logits), axis=-1)
    balance = tf.where(class_of_cluster == void, UNMATCHED, MATCHED)
    return mean_nonzero(weight * balance * loss)


def mask_id(mask_logits: tf.Tensor, cluster_of_pixel: tf.Tensor, nonvoid: tf.Tensor) -> tf.Tensor:
    """Cross entropy of each pixel's cluster (MaX-DeepLab, section 3.4).

    Void pixels do not count. Nonvoid pixels without a cluster lower every logit, as officially.

    Args:
        mask_logits: float32 [batch, height, width, clusters].
        cluster_of_pixel: int32 [batch, height, width], -1 for void and crowd.
        nonvoid: bool [batch, height, width].
    """
    loss = _cross_entropy(mask_logits, cluster_of_pixel)
    return mean_nonzero(tf.where(nonvoid, loss, 0.0))


def sample_pixels(
    nonvoid: tf.Tensor, area: tf.Tensor, noise: tf.Tensor, count: int, temperature: float
) -> tf.Tensor:
    """Draws pixels without replacement, by Gumbel top-k (CMT-DeepLab).

    Probabilities are proportional to (1 / area) ** temperature, so small segments are preferred.

    Args:
        nonvoid: bool [batch, pixels]; void pixels are drawn last.
        area: float32 [batch, pixels], area of each pixel's segment in pixels, 1 for void and crowd.
        noise: float32 [batch, pixels], uniform in [0, 1).
        count: pixels to draw from each image.

    Returns:
        int32 [batch, count], positions in [0, pixels).
    """
    score = -temperature * tf.math.log(area) - tf.math.log(-tf.math.log(noise))
    score += tf.where(nonvoid, 0.0, VOID_SCORE)
    return tf.math.top_k(score, count).indices


def gather_features(features: tf.Tensor, pixels: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Gathers features as from a bilinear resize to `size`, corners aligned.

    Args:
        features: float32 [batch, height, width, depth].
        pixels: int32 [batch, count], positions in `size`, row by row.
        size: height and width.

    Returns:
        float32 [batch, count, depth].
    """
    batch, count = pixels.shape[0] or tf.shape(pixels)[0], pixels.shape[1]
    height, width = features.shape[1:3]
    flat = tf.reshape(features, [batch, height * width, features.shape[3]])
    if (height, width) == tuple(size):
        return tf.gather(flat, pixels, batch_dims=1)
    corners, shares = [], []
    for position, side, full in (
        (pixels // size[1], height, size[0]),
        (pixels % size[1], width, size[1]),
    ):
        scaled = position * (side - 1)
        before = scaled // (full - 1)
        corners.append(tf.stack([before, tf.minimum(before + 1, side - 1)], axis=-1))
        shares.append(tf.cast(scaled % (full - 1), tf.float32) / (full - 1))
    index = corners[0][:, :, :, None] * width + corners[1][:, :, None, :]
    values = tf.gather(flat, tf.reshape(index, [batch, 4 * count]), batch_dims=1)
    values = tf.reshape(values, [batch, count, 2, 2, features.shape[3]])
    for share in (shares[1][:, :, None, None], shares[0][:, :, None]):
        left, right = tf.unstack(values, axis=-2)
        values = left + (right - left) * share
    return values


@tf.custom_gradient
def _log_total_similarity(features):
    """Log of the sum over j of exp(f_i . f_j / temperature): [batch, i, depth] to [batch, i].

    The table of pairs is symmetric, so one product with it gives the gradients of both factors.
    The gradient computes it again, because the tables of all outputs would take a gigabyte.
    """
    products = tf.einsum("bid,bjd->bij", features, features)
    total = tf.reduce_sum(tf.exp(products / CONTRAST_TEMPERATURE), axis=2)

    def gradient(upstream):
        # Another form than the product above, or XLA would keep that one.
        table = tf.exp(tf.einsum("bid,bjd->bij", features / CONTRAST_TEMPERATURE, features))
        weight = (upstream / total / CONTRAST_TEMPERATURE)[..., None]
        both = tf.einsum("bij,bjd->bid", table, tf.concat([features, weight * features], axis=2))
        as_i, as_j = tf.split(both, 2, axis=2)
        return weight * as_i + as_j

    return tf.math.log(total), gradient


def contrast(features: tf.Tensor, segment: tf.Tensor, segments: int) -> tf.Tensor:
    """Instance discrimination: pixels of one segment attract each other, other pixels repel.

    Args:
        features: float32 [batch, count, depth], at most of unit length, or exponentials overflow.
        segment: int32 [batch, count], -1 for void and crowd, which repel all (official code).
        segments: the number of segments.
    """
    total = _log_total_similarity(features)
    # The mean similarity to a segment's pixels equals the similarity to their mean feature.
    member = tf.one_hot(segment, segments)
    size = tf.reduce_sum(member, axis=1)[:, :, None]
    mean = tf.math.divide_no_nan(tf.einsum("big,bid->bgd", member, features), size)
    mean = tf.einsum("big,bgd->bid", member, mean)
    attraction = tf.reduce_sum(features * mean, axis=2) / CONTRAST_TEMPERATURE
    return mean_nonzero(total - tf.where(segment >= 0, attraction, tf.stop_gradient(total)))


def semantic(
    logits: tf.Tensor, semantic_map: tf.Tensor, weight: tf.Tensor, top_fraction: float = 1.0
) -> tf.Tensor:
    """Cross entropy of the auxiliary semantic branch.

    Args:
        logits: float32 [batch, height, width, channels].
        semantic_map: int32 [batch, height, width], class index, -1 for void.
        weight: float32 [batch, height, width].
        top_fraction: fraction of the pixels, the hardest, that count.
    """
    loss = _cross_entropy(logits, tf.maximum(semantic_map, 0))
    loss = tf.where(semantic_map >= 0, weight * loss, 0.0)
    if top_fraction < 1.0:
        pixels = loss.shape[1] * loss.shape[2]
        loss = tf.reshape(loss, [-1, pixels])
        loss = tf.math.top_k(loss, round(top_fraction * pixels)).values
    return mean_nonzero(loss)
