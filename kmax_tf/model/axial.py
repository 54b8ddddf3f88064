"""Axial attention with relative positions (Axial-DeepLab, arXiv 2003.07853), as kMaX uses it."""

import tensorflow as tf
import tf_keras

from kmax_tf.model.layers import BatchNorm, get_activation, softmax, truncated_normal

MAX_SPAN = 255  # the longest axis is (MAX_SPAN + 3) / 2 = 129 positions


class AxialAttention(tf_keras.layers.Layer):
    """Self-attention along one axis: [batch, length, channels] -> [batch, length, 2 * width].

    Logits have three terms (query-key, query-position, key-position), the output has two (value,
    position); each term is batch-normalised on its own, there is no 1 / sqrt(depth).
    """

    def __init__(self, width, heads=8):
        super().__init__()
        self.width, self.heads = width, heads
        self.qkv_norm = BatchNorm()
        self.similarity_norm = BatchNorm(axis=(0, 2))
        self.output_norm = BatchNorm(axis=(0, 2, 4))

    def build(self, shape):
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

    def call(self, x, training=None):
        length, width, heads = x.shape[1], self.width, self.heads
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
        attend = self._attend if training or not self.output_norm.built else self._attend_merged
        output = attend(q, k, v, *tables)
        return tf.reshape(tf.transpose(output, [0, 2, 1, 3]), [-1, length, 2 * width])

    def _attend(self, q, k, v, rq, rk, rv):
        """[batch, length, heads, depth] and tables [length, length, depth] -> [b, h, l, d]."""
        logits = tf.stack(
            [
                tf.einsum("bihd,bjhd->bhij", q, k),
                tf.einsum("bihd,ijd->bhij", q, rq),
                tf.einsum("bjhd,ijd->bhij", k, rk),
            ]
        )
        attention = softmax(tf.reduce_sum(self.similarity_norm(logits), axis=0))
        output = tf.stack(
            [
                tf.einsum("bhij,bjhd->bhid", attention, v),
                tf.einsum("bhij,ijd->bhid", attention, rv),
            ]
        )
        return tf.reduce_sum(self.output_norm(output), axis=0)

    def _attend_merged(self, q, k, v, rq, rk, rv):
        """The same in inference, the norms merged into what is smaller than the logits."""
        scale, _ = self.similarity_norm.affine(q.dtype)  # the softmax is blind to the offset
        a, b, c = tf.unstack(tf.reshape(scale, [3, self.heads, 1]))
        logits = tf.einsum("bihd,bjhd->bhij", q * a, k)
        logits += tf.einsum("bihd,ijd->bhij", q * b, rq)
        logits += tf.einsum("bjhd,ijd->bhij", k * c, rk)
        attention = softmax(logits)
        scale, offset = self.output_norm.affine(q.dtype)  # [2, 1, heads, 1, depth]
        output = tf.einsum("bhij,bjhd->bhid", attention, v * scale[0, :, :, 0])
        return (
            output
            + (tf.einsum("bhij,ijd->bhid", attention, rv) * scale[1])
            + (offset[0] + offset[1])
        )


class AxialAttention2D(tf_keras.layers.Layer):
    """Attention along the height, then along the width, then the activation.

    [batch, height, width, channels] -> [batch, height / strides, width / strides, 2 * width].
    """

    def __init__(self, width, strides, activation, heads=8):
        super().__init__()
        self.strides = strides
        self.height_axis, self.width_axis = (
            AxialAttention(width, heads),
            AxialAttention(width, heads),
        )
        self.activation = get_activation(activation)

    def call(self, x):
        x = self._along_rows(self.height_axis, tf.transpose(x, [0, 2, 1, 3]))
        x = self._along_rows(self.width_axis, tf.transpose(x, [0, 2, 1, 3]))
        return self.activation(x)

    def _along_rows(self, attention, x):
        _, rows, length, channels = x.shape
        x = attention(tf.reshape(x, [-1, length, channels]))
        x = tf.reshape(x, [-1, rows, length, x.shape[-1]])
        return x[:, :, :: self.strides]
