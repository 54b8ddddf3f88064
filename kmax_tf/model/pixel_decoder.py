"""The pixel decoder: from the encoder's endpoints up to the output stride (paper, section 4.1)."""

from collections.abc import Sequence

import tensorflow as tf
import tf_keras

from kmax_tf.model.layers.blocks import ResidualBlock
from kmax_tf.model.layers.conv import ConvBN
from kmax_tf.model.layers.norms import LayerNorm
from kmax_tf.model.layers.ops import get_activation, resize_bilinear


class Fuse(tf_keras.layers.Layer):
    """Sums two feature maps at the second's size, each activated and projected to `channels`."""

    def __init__(self, channels: int, activation: str):
        super().__init__()
        self.activation = get_activation(activation)
        self.coarse, self.fine = ConvBN(channels), ConvBN(channels)

    def call(self, x: tf.Tensor, skip: tf.Tensor) -> tf.Tensor:
        """Float [b, h, w, depth] and [b, height, width, depth] -> [b, height, width, channels]."""
        x = self.coarse(self.activation(x))
        return resize_bilinear(x, skip.shape[1:3]) + self.fine(self.activation(skip))


class PixelDecoder(tf_keras.layers.Layer):
    """Residual stages from the coarsest endpoint to the finest, each fused with its endpoint.

    Stage i has `depths[i]` blocks of `kinds[i]` and width `widths[i]`, with 4 * width channels out.
    A call on the encoder's endpoints (fine to coarse) returns the stages' outputs, coarse to fine.
    """

    def __init__(
        self,
        widths: Sequence[int] = (512, 256, 128, 64),
        depths: Sequence[int] = (1, 5, 1, 1),
        kinds: Sequence[str] = ("axial", "axial", "bottleneck", "bottleneck"),
        activation: str = "gelu",
        heads: int = 8,
    ):
        super().__init__()
        self.norms = [LayerNorm() for _ in widths]
        self.fuses = [Fuse(width, activation) for width in widths[1:]]
        self.stages = [
            [
                # The official decoder dilates its 3 x 3 convolutions.
                ResidualBlock(kind, width, 4 * width, activation, dilation=2, heads=heads)
                for _ in range(depth)
            ]
            for width, depth, kind in zip(widths, depths, kinds, strict=True)
        ]

    def stage(self, i: int, x: tf.Tensor | None, endpoints: list[tf.Tensor]) -> tf.Tensor:
        """The output of stage i, [batch, height, width, channels], at its endpoint's size.

        x is the output of the stage before, None for the first; endpoints are fine to coarse.
        """
        skip = self.norms[i](endpoints[-1 - i])
        x = skip if i == 0 else self.fuses[i - 1](x, skip)
        for block in self.stages[i]:
            x = block(x)
        return x

    def call(self, endpoints: list[tf.Tensor]) -> list[tf.Tensor]:
        """Endpoints [b, height, width, depth], fine to coarse -> outputs, coarse to fine."""
        outputs = [None]
        for i in range(len(self.stages)):
            outputs.append(self.stage(i, outputs[-1], endpoints))
        return outputs[1:]
