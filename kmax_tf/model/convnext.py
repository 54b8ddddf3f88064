"""ConvNeXt pixel encoders (arXiv 2201.03545), for images of odd size."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tf_keras

from kmax_tf.errors import check_equal_lengths
from kmax_tf.model.layers.conv import Conv2D
from kmax_tf.model.layers.norms import LayerNorm
from kmax_tf.model.layers.ops import gelu, truncated_normal
from kmax_tf.model.layers.recompute import run_stage
from kmax_tf.model.layers.stateless_random import DropPath


def _patches(channels, size):
    """Makes a convolution of patches that do not overlap."""
    return Conv2D(channels, size, size, kernel_initializer=truncated_normal(0.02))


def _dense(channels, activation=None):
    return tf_keras.layers.Dense(channels, activation, kernel_initializer=truncated_normal(0.02))


class Block(tf_keras.layers.Layer):
    """Depthwise convolution, layer norm and two dense layers; their scale starts at 1e-6."""

    def __init__(self, channels: int, drop_path_keep_prob: float):
        super().__init__()
        self.depthwise = tf_keras.layers.DepthwiseConv2D(
            7, padding="same", depthwise_initializer=truncated_normal(0.02)
        )
        self.norm = LayerNorm()
        self.expand, self.project = _dense(4 * channels, gelu), _dense(channels)
        self.drop_path = DropPath(drop_path_keep_prob)

    def build(self, shape: tf.TensorShape) -> None:
        self.layer_scale = self.add_weight(
            "layer_scale", [shape[-1]], initializer=tf_keras.initializers.Constant(1e-6)
        )

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Maps float [batch, height, width, channels] to the same shape."""
        y = self.project(self.expand(self.norm(self.depthwise(x))))
        return x + self.drop_path(y * self.layer_scale)


class ConvNeXt(tf_keras.layers.Layer):
    """A stem of 4 x 4 patches and four stages, each at half the resolution of the one before.

    `stride` is that of the last stage.

    Args:
        widths, depths: channels and number of blocks of each stage; the defaults are ConvNeXt-T.
        drop_path_keep_prob: of the last block; linear over all blocks from 1 in the first.
    """

    def __init__(
        self,
        widths: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (3, 3, 9, 3),
        drop_path_keep_prob: float = 1.0,
    ):
        super().__init__()
        check_equal_lengths("ConvNeXt", widths=widths, depths=depths)
        self.stride = 4 * 2 ** (len(widths) - 1)
        self.stem = [_patches(widths[0], 4), LayerNorm()]
        self.downsamplings = [[LayerNorm(), _patches(width, 2)] for width in widths[1:]]
        keeps = iter(np.linspace(1.0, drop_path_keep_prob, sum(depths)))
        self.stages = [
            [Block(width, float(next(keeps))) for _ in range(depth)]
            for width, depth in zip(widths, depths, strict=True)
        ]

    def call(self, x: tf.Tensor, recompute: bool = False) -> list[tf.Tensor]:
        """Maps images float [batch, height, width, 3] in [-1, 1] to endpoints, fine to coarse.

        With `recompute`, the gradient computes the blocks again.

        Returns:
            The outputs of the stem and of each stage, at strides 4, 4, 8, 16 and 32. Each is float
            [batch, (height - 1) / stride + 1, (width - 1) / stride + 1, channels].
        """
        x = tf.pad(x, [[0, 0], [1, 2], [1, 2], [0, 0]])
        for layer in self.stem:
            x = layer(x)
        endpoints = [x]
        for i, blocks in enumerate(self.stages):
            if i > 0:
                # Padding comes before the norm, as in the official code: the border becomes beta.
                x = tf.pad(x, [[0, 0], [0, 1], [0, 1], [0, 0]])
                for layer in self.downsamplings[i - 1]:
                    x = layer(x)
            x = run_stage(blocks, x, recompute, self.name)
            endpoints.append(x)
        return endpoints
