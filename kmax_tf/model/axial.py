"""Axial attention with relative positions (Axial-DeepLab, arXiv 2003.07853), as kMaX uses it."""

import tensorflow as tf
import tf_keras

from kmax_tf.model.layers import BatchNorm, get_activation, truncated_normal

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

    def call(self, x):
        length, width, heads = x.shape[1], self.width, self.heads
        qkv = self.qkv_norm(tf.einsum("blc,cd->bld", x, self.qkv_kernel))
        q, k, v = (
            tf.reshape(t, [-1, length, heads, t.shape[-1] // heads])
            for t in tf.split(qkv, [width, width, 2 * width], axis=-1)
        )
        position = tf.range(length)
        row = position[None, :] - position[:, None] + MAX_SPAN - 1  # [i, j] -> j - i
        rq, rk, rv = (
            tf.gather(tf.cast(t, x.dtype), row)
            for t in (self.query_positions, self.key_positions, self.value_positions)
        )
        logits = tf.stack(
            [
                tf.einsum("bihd,bjhd->bhij", q, k),
                tf.einsum("bihd,ijd->bhij", q, rq),
                tf.einsum("bjhd,ijd->bhij", k, rk),
            ]
        )
        logits = tf.reduce_sum(self.similarity_norm(logits), axis=0)
        attention = tf.cast(tf.nn.softmax(tf.cast(logits, tf.float32)), x.dtype)
        output = tf.stack(
            [
                tf.einsum("bhij,bjhd->bhid", attention, v),
                tf.einsum("bhij,ijd->bhid", attention, rv),
            ]
        )
        output = tf.reduce_sum(self.output_norm(output), axis=0)
        return tf.reshape(tf.transpose(output, [0, 2, 1, 3]), [-1, length, 2 * width])


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
