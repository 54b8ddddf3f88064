"""Softmax attention of the centers, and the variants of cross-attention (paper, table 4)."""

import tensorflow as tf
import tf_keras

from kmax_tf.model.layers.conv import DenseBN
from kmax_tf.model.layers.norms import BatchNorm
from kmax_tf.model.layers.ops import get_activation, softmax, truncated_normal
from kmax_tf.model.layers.stateless_random import DropPath


def softmax_update(queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor, heads: int) -> tf.Tensor:
    """Averages the pixels' values by a softmax over the pixels (equation 4), multi-head.

    Args:
        queries: float [batch, clusters, channels].
        keys, values: float [batch, pixels, channels].

    Returns:
        float [batch, clusters, channels].
    """
    q, k, v = (_split_heads(t, heads) for t in (queries, keys, values))
    logits = tf.einsum("bnhd,bphd->bhnp", q, k) * q.shape[-1] ** -0.5
    return _merge_heads(tf.einsum("bhnp,bphd->bhnd", softmax(logits), v))


def attention(
    queries: tf.Tensor,
    keys: tf.Tensor,
    values: tf.Tensor,
    heads: int,
    similarity_norm: BatchNorm,
    value_norm: BatchNorm,
) -> tf.Tensor:
    """Multi-head attention that batch-normalizes logits and results instead of scaling them.

    Args:
        queries, keys, values: float [batch, i, depth], [batch, j, depth], [batch, j, channels].
        similarity_norm: norm of [batch, heads, i, j].
        value_norm: norm of [batch, heads, i, channels / heads].

    Returns:
        float [batch, i, channels].
    """
    q, k, v = (_split_heads(t, heads) for t in (queries, keys, values))
    logits = similarity_norm(tf.einsum("bihd,bjhd->bhij", q, k))
    return _merge_heads(value_norm(tf.einsum("bhij,bjhd->bhid", softmax(logits), v)))


def _split_heads(x, heads):
    return tf.reshape(x, [-1, x.shape[1], heads, x.shape[2] // heads])


def _merge_heads(x):
    x = tf.transpose(x, [0, 2, 1, 3])
    return tf.reshape(x, [-1, x.shape[1], x.shape[2] * x.shape[3]])


class PixelAttention(tf_keras.layers.Layer):
    """The pixels' half of a dual path: every pixel attends to the centers (MaX-DeepLab, eq. 4)."""

    def __init__(self, channels: int, heads: int, activation: str, drop_path_keep_prob: float):
        super().__init__()
        self.heads, self.activation = heads, get_activation(activation)
        self.query = DenseBN(channels // 2, kernel_initializer=truncated_normal(channels**-0.5))
        self.similarity_norm, self.value_norm = BatchNorm(axis=(1,)), BatchNorm(axis=(1, 3))
        self.drop_path = DropPath(drop_path_keep_prob)

    def build(self, shape: tf.TensorShape) -> None:
        self.projection = DenseBN(shape[-1], gamma=0.0)

    def call(
        self, pixels: tf.Tensor, x: tf.Tensor, keys: tf.Tensor, values: tf.Tensor
    ) -> tf.Tensor:
        """Updates pixels [batch, height, width, depth] by attention from x to the centers.

        x is a projection of the pixels, [batch, pixels, channels]; keys and values are those of the
        centers, [batch, clusters, *]. All are float.
        """
        norms = self.similarity_norm, self.value_norm
        y = self.activation(attention(self.query(x), keys, values, self.heads, *norms))
        y = tf.reshape(self.projection(y), [-1, *pixels.shape[1:]])
        return pixels + self.drop_path(y)
