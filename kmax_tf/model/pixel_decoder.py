"""The pixel decoder, from the encoder's endpoints to the output stride (paper, section 4.1)."""

from collections.abc import Sequence

import tensorflow as tf
import tf_keras

from kmax_tf.errors import InputError, check_equal_lengths
from kmax_tf.model.layers.blocks import ResidualBlock
from kmax_tf.model.layers.conv import ConvBN
from kmax_tf.model.layers.norms import LayerNorm
from kmax_tf.model.layers.ops import get_activation, resize_bilinear


class Fuse(tf_keras.layers.Layer):
    """Sums two feature maps at the second's size, each activated and projected to `channels`.

    A second map of that many channels is taken as it is (official code and PyTorch port).
    """

    def __init__(self, channels: int, activation: str):
        super().__init__()
        self.channels, self.activation = channels, get_activation(activation)
        self.coarse, self.fine = ConvBN(channels), ConvBN(channels)

    def call(self, x: tf.Tensor, skip: tf.Tensor) -> tf.Tensor:
        """Fuses x, float [batch, h, w, *], into skip: float [batch, height, width, channels]."""
        x = self.coarse(self.activation(x))
        if skip.shape[-1] != self.channels:
            skip = self.fine(self.activation(skip))
        return resize_bilinear(x, skip.shape[1:3]) + skip


class PixelDecoder(tf_keras.layers.Layer):
    """Residual stages from the coarsest endpoint to the finest, each fused with its endpoint.

    Args:
        widths: width of each stage, coarse to fine; its output has 4 * width channels.
        depths: number of blocks of each stage.
        kinds: kind of these blocks: "axial", "bottleneck" or "basic".
        activation: name of a Keras activation.
        heads: attention heads of axial blocks.
        dilation: of the 3 x 3 convolutions in bottleneck blocks; the PyTorch port has 1.
        endpoints: index of each stage's endpoint, fine to coarse from 0; by default from the last
            one back. The PyTorch port's Cityscapes ResNet-50 has another order.
    """

    def __init__(
        self,
        widths: Sequence[int] = (512, 256, 128, 64),
        depths: Sequence[int] = (1, 5, 1, 1),
        kinds: Sequence[str] = ("axial", "axial", "bottleneck", "bottleneck"),
        activation: str = "gelu",
        heads: int = 8,
        dilation: int = 2,
        endpoints: Sequence[int] | None = None,
    ):
        super().__init__()
        self.endpoints = list(endpoints or [-1 - i for i in range(len(widths))])
        lengths = dict(widths=widths, depths=depths, kinds=kinds, endpoints=self.endpoints)
        check_equal_lengths("PixelDecoder", **lengths)
        self.dilation, self.activation_name = dilation, activation
        self.norms = [LayerNorm() for _ in widths]
        self.fuses = [Fuse(width, activation) for width in widths[1:]]
        self.stages = [
            [
                ResidualBlock(kind, width, 4 * width, activation, dilation=dilation, heads=heads)
                for _ in range(depth)
            ]
            for width, depth, kind in zip(widths, depths, kinds, strict=True)
        ]

    def stage(self, i: int, x: tf.Tensor | None, endpoints: list[tf.Tensor]) -> tf.Tensor:
        """Runs stage i on x, the output of the stage before (None for the first).

        `endpoints` are float [batch, height, width, depth] each, fine to coarse. The result is
        float [batch, height, width, 4 * widths[i]] at the size of the stage's endpoint.
        """
        if not -len(endpoints) <= self.endpoints[i] < len(endpoints):
            raise InputError(
                f"PixelDecoder: stage {i} takes endpoint {self.endpoints[i]}, and the pixel encoder"
                f" has {len(endpoints)}; bind fewer stages or other endpoints"
            )
        skip = self.norms[i](endpoints[self.endpoints[i]])
        x = skip if i == 0 else self.fuses[i - 1](x, skip)
        for block in self.stages[i]:
            x = block(x)
        return x

    def call(self, endpoints: list[tf.Tensor]) -> list[tf.Tensor]:
        """Maps endpoints, fine to coarse, to the outputs of all stages, coarse to fine."""
        outputs = [None]
        for i in range(len(self.stages)):
            outputs.append(self.stage(i, outputs[-1], endpoints))
        return outputs[1:]
