"""Axial attention with relative positions (Axial-DeepLab, arXiv 2003.07853), as kMaX uses it."""

import tensorflow as tf
import tf_keras

from kmax_tf.errors import InputError
from kmax_tf.model.layers.conv import fused_matmul_bn
from kmax_tf.model.layers.norms import BatchNorm
from kmax_tf.model.layers.ops import (
    get_activation,
    softmax,
    truncated_normal,
    use_fused_cpu_kernels,
    with_narrow_gradient,
)

MAX_SPAN = 255  # positions of the longest axis


class AxialAttention(tf_keras.layers.Layer):
    """Self-attention along one axis.

    Logits have three terms (query-key, query-position, key-position), outputs two (value,
    position). Each term has its own batch norm instead of a factor 1 / sqrt(depth).
    """

    keep_logits = True  # see `softmax`

    def __init__(self, width: int, heads: int = 8):
        super().__init__()
        self.width, self.heads = width, heads
        self.qkv_norm = BatchNorm()
        self.similarity_norm = BatchNorm(axis=(0, 2))
        self.output_norm = BatchNorm(axis=(0, 2, 4))

    def build(self, shape: tf.TensorShape) -> None:
        channels, depth = shape[-1], self.width // self.heads
        self.qkv_kernel = self.add_weight(
            "qkv_kernel", [channels, 4 * self.width], initializer=truncated_normal(channels**-0.5)
        )
        rows = 2 * MAX_SPAN - 1
        tables = [("query", depth), ("key", depth), ("value", 2 * depth)]
        self.query_positions, self.key_positions, self.value_positions = [
            self.add_weight(f"{name}_positions", [rows, d], initializer=truncated_normal(1.0))
            for name, d in tables
        ]
        # Built here, because some of them are never called: their input is not always computed.
        self.qkv_norm.build([None, None, 4 * self.width])
        self.similarity_norm.build([3, None, self.heads, None, None])
        self.output_norm.build([2, None, self.heads, None, 2 * depth])

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Maps float [batch, length, channels] to [batch, length, 2 * width].

        Raises InputError if the length exceeds MAX_SPAN.
        """
        length, width, heads = x.shape[1], self.width, self.heads
        if length > MAX_SPAN:  # a look-up beyond the table is wrong in silence on a GPU or TPU
            raise InputError(
                f"axial attention over {length} positions, and it knows {MAX_SPAN}; choose a"
                " smaller image size, or tiles"
            )
        if use_fused_cpu_kernels(training):
            qkv = fused_matmul_bn(x, self.qkv_kernel, self.qkv_norm)
        else:
            qkv = self.qkv_norm(tf.einsum("blc,cd->bld", x, self.qkv_kernel))
        q, k, v = (
            tf.reshape(t, [-1, length, heads, t.shape[-1] // heads])
            for t in tf.split(qkv, [width, width, 2 * width], axis=-1)
        )
        position = tf.range(length)
        row = position[None, :] - position[:, None] + MAX_SPAN - 1  # [i, j] -> j - i
        tables = [
            tf.gather(tf.cast(t, x.dtype), row)
            for t in (self.query_positions, self.key_positions, self.value_positions)
        ]
        output = self._attend(q, k, v, *tables, training)
        return tf.reshape(tf.transpose(output, [0, 2, 1, 3]), [-1, length, 2 * width])

    def _attend(self, q, k, v, rq, rk, rv, training):
        """Maps [batch, length, heads, depth] and tables [length, length, depth] to [b, h, l, d].

        The scale of each term's norm multiplies queries or keys, which are smaller than logits. The
        offset is dropped, because it does not change the softmax.
        """
        if training:
            scale, _ = self.similarity_norm.batch_affine(*_moments(q, k, rq, rk))
        else:
            scale, _ = self.similarity_norm.affine()
        a, b, c = tf.unstack(tf.cast(tf.reshape(scale, [3, self.heads, 1]), q.dtype))
        logits = tf.einsum("bihd,bjhd->bhij", q * a, k)
        logits += tf.einsum("bihd,ijd->bhij", q * b, rq)
        logits += tf.einsum("bjhd,ijd->bhij", k * c, rk)
        attention = softmax(logits, self.keep_logits)
        if training:
            output = (
                tf.einsum("bhij,bjhd->bhid", attention, v),
                tf.einsum("bhij,ijd->bhid", attention, rv),
            )
            output = [tf.cast(t, tf.float32) for t in output]
            scale, offset = self.output_norm.batch_affine(
                *(
                    tf.stack([tf.reduce_mean(f(t), axis=[0, 2], keepdims=True) for t in output])
                    for f in (tf.identity, tf.square)
                )
            )
            output = output[0] * scale[0] + output[1] * scale[1] + tf.reduce_sum(offset, axis=0)
            return with_narrow_gradient(tf.cast(output, v.dtype))
        scale, offset = (tf.cast(t, v.dtype) for t in self.output_norm.affine())
        output = tf.einsum("bhij,bjhd->bhid", attention, v * scale[0, :, :, 0])
        output += tf.einsum("bhij,ijd->bhid", attention, rv) * scale[1]
        return output + (offset[0] + offset[1])


def _moments(q, k, rq, rk):
    """Means of the three terms of the logits and of their squares, float32 [3, 1, heads, 1, 1].

    They need no logits: sum_ij (q_i . k_j)^2 is the sum of the elementwise product of
    sum_i q_i q_i^T and sum_j k_j k_j^T.
    """
    sums = [
        (_sums(q, "bihd", "bh"), _sums(k, "bihd", "bh"), "bh", "bh"),
        (_sums(q, "bihd", "ih"), _sums(rq, "ijd", "i"), "ih", "i"),
        (_sums(k, "bihd", "ih"), _sums(rk, "jid", "i"), "ih", "i"),
    ]
    pairs = tf.cast(tf.shape(q)[0] * q.shape[1] ** 2, tf.float32)
    moments = [
        [tf.einsum(f"{a}{depth},{b}{depth}->h", x[i], y[i]) / pairs for x, y, a, b in sums]
        for i, depth in enumerate(("d", "de"))
    ]
    return [tf.reshape(tf.stack(m), [3, 1, -1, 1, 1]) for m in moments]


def _sums(x, axes, kept):
    """Sums x, and its outer product with itself, over all axes except those kept; float32."""
    other = axes.replace("d", "e")

    @tf.custom_gradient
    def squares(x):
        def gradient(upstream):
            # One product instead of TensorFlow's two, because both factors are x.
            both = upstream + tf.linalg.matrix_transpose(upstream)
            return tf.einsum(f"{kept}de,{other}->{axes}", tf.cast(both, x.dtype), x)

        wide = tf.cast(x, tf.float32)
        return tf.einsum(f"{axes},{other}->{kept}de", wide, wide), gradient

    return tf.einsum(f"{axes}->{kept}d", tf.cast(x, tf.float32)), squares(x)


class AxialAttention2D(tf_keras.layers.Layer):
    """Attention along the height, then along the width, then the activation."""

    def __init__(self, width: int, strides: int, activation: str, heads: int = 8):
        super().__init__()
        self.strides = strides
        self.height_axis, self.width_axis = (
            AxialAttention(width, heads),
            AxialAttention(width, heads),
        )
        self.activation = get_activation(activation)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Maps float [batch, height, width, channels] to 2 * width channels.

        Sides are at most MAX_SPAN. Height and width become height / strides and width / strides,
        rounded up.
        """
        x = self._along_rows(self.height_axis, tf.transpose(x, [0, 2, 1, 3]))
        x = self._along_rows(self.width_axis, tf.transpose(x, [0, 2, 1, 3]))
        return self.activation(x)

    def _along_rows(self, attention, x):
        _, rows, length, channels = x.shape
        x = attention(tf.reshape(x, [-1, length, channels]))
        x = tf.reshape(x, [-1, rows, length, x.shape[-1]])
        return x[:, :, :: self.strides]
