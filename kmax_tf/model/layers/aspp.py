"""Atrous spatial pyramid pooling of the semantic branch."""

from collections.abc import Sequence

import tensorflow as tf
import tf_keras

from kmax_tf.model.layers.conv import ConvBN, SparseConvBN
from kmax_tf.model.layers.stateless_random import random_uniform


class ASPP(tf_keras.layers.Layer):
    """Atrous spatial pyramid pooling (DeepLabv3): four convolutions and the image's mean."""

    def __init__(self, channels: int, rates: Sequence[int], activation: str, dropout: float):
        super().__init__()
        self.branches = [ConvBN(channels, activation=activation)] + [
            SparseConvBN(channels, 3, dilation=rate, activation=activation) for rate in rates
        ]
        self.pool = ConvBN(channels, activation=activation)
        self.projection = ConvBN(channels, activation=activation)
        self.keep_prob = 1.0 - dropout

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Maps float [batch, height, width, depth] to [batch, height, width, channels]."""
        pooled = self.pool(tf.reduce_mean(x, axis=[1, 2], keepdims=True))
        pooled = tf.broadcast_to(pooled, [tf.shape(x)[0], *x.shape[1:3], pooled.shape[-1]])
        x = tf.concat([branch(x) for branch in self.branches] + [pooled], axis=-1)
        x = self.projection(x)
        if training and self.keep_prob < 1.0:
            x *= tf.cast(
                tf.floor(random_uniform(tf.shape(x)) + self.keep_prob) / self.keep_prob, x.dtype
            )
        return x
