"""The residual block of the pixel encoder and the pixel decoder, in three kinds."""

import tensorflow as tf
import tf_keras

from kmax_tf.errors import InputError
from kmax_tf.model.layers.axial_attention import AxialAttention2D
from kmax_tf.model.layers.conv import ConvBN
from kmax_tf.model.layers.ops import get_activation
from kmax_tf.model.layers.stateless_random import DropPath


def _body(kind, width, channels, strides, dilation, activation, heads):
    last = dict(gamma=0.0)  # a new block starts as the identity
    if kind == "basic":
        return [ConvBN(width, 3, strides, activation=activation), ConvBN(channels, 3, **last)]
    if kind == "bottleneck":
        middle = ConvBN(width, 3, strides, dilation, activation)
        return [ConvBN(width, activation=activation), middle, ConvBN(channels, **last)]
    if kind == "axial":
        middle = AxialAttention2D(width, strides, activation, heads)
        return [ConvBN(2 * width, activation=activation), middle, ConvBN(channels, **last)]
    raise InputError(f"kind of block {kind!r}: bind 'basic', 'bottleneck' or 'axial'")


class ResidualBlock(tf_keras.layers.Layer):
    """Pre-activation block: x <- act(x); shortcut(x) + body(x), not activated.

    The shortcut is the identity, or a strided 1 x 1 convolution if the shape changes.
    """

    def __init__(
        self,
        kind: str,
        width: int,
        channels: int,
        activation: str,
        strides: int = 1,
        dilation: int = 1,
        drop_path_keep_prob: float = 1.0,
        heads: int = 8,
    ):
        super().__init__()
        self.channels, self.strides = channels, strides
        self.activation = get_activation(activation)
        self.body = _body(kind, width, channels, strides, dilation, activation, heads)
        self.drop_path = DropPath(drop_path_keep_prob)
        self.shortcut: ConvBN | None = None

    def build(self, shape: tf.TensorShape) -> None:
        if self.strides > 1 or shape[-1] != self.channels:
            self.shortcut = ConvBN(self.channels, 1, self.strides)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Maps float [batch, height, width, depth] to [.., height / strides, .., channels]."""
        x = self.activation(x)
        y = x
        for layer in self.body:
            y = layer(y)
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return shortcut + self.drop_path(y)
