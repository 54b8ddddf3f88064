"""ResNet pixel encoders: ResNet-50, MaX-S, narrow relatives (deeplab2's variant, no max-pool)."""

import math
from collections.abc import Sequence

import tensorflow as tf
import tf_keras

from kmax_tf.model.layers.blocks import ResidualBlock
from kmax_tf.model.layers.conv import ConvBN


class ResNet(tf_keras.layers.Layer):
    """A stem and stages of residual blocks, each stage at half the resolution of the one before.

    With `axial_from=16` the blocks behind are axial: MaX-S (MaX-DeepLab, arXiv 2012.00759).

    Arguments:
      stem: (kernel size, strides, filters) of each stem convolution; the last is not activated.
      widths, depths: width and number of blocks of each stage.
      kind: "bottleneck" (expansion 4) or "basic" (expansion 1), of the blocks that are not axial.
      axial_from: stride from which on a block's input makes it axial.
      axial_keep_prob: of drop path in axial blocks, linear in the stage from 1 at the stem.
    Returns of a call on [batch, height, width, 3]: the unactivated output of the stem and of each
    stage, `[batch, (height - 1) / stride + 1, (width - 1) / stride + 1, channels]` at strides
    2, 4, 8, ...; `stride` is the last one.
    """

    def __init__(
        self,
        stem: Sequence[tuple[int, int, int]] = ((7, 2, 64),),
        widths: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (3, 4, 6, 3),
        kind: str = "bottleneck",
        expansion: int = 4,
        activation: str = "relu",
        axial_from: float = math.inf,
        axial_keep_prob: float = 1.0,
    ):
        super().__init__()
        stem_stride = math.prod(strides for _, strides, _ in stem)
        self.stride = stem_stride * 2 ** len(widths)
        self.stem = [
            ConvBN(filters, kernel, strides, activation=activation if i < len(stem) - 1 else None)
            for i, (kernel, strides, filters) in enumerate(stem)
        ]

        def block(stage, strides):
            level = stage if strides == 2 else stage + 1  # stages that the input has behind it
            axial = stem_stride * 2**level >= axial_from
            return ResidualBlock(
                "axial" if axial else kind,
                widths[stage],
                expansion * widths[stage],
                activation,
                strides,
                drop_path_keep_prob=1 - (1 - axial_keep_prob) * level / len(widths)
                if axial
                else 1.0,
            )

        self.stages = [
            [block(stage, strides) for strides in [2] + [1] * (depth - 1)]
            for stage, depth in zip(range(len(widths)), depths, strict=True)
        ]

    def call(self, x: tf.Tensor) -> list[tf.Tensor]:
        """x: float [batch, height, width, 3] in [-1, 1]; returns the endpoints, fine to coarse."""
        endpoints = []
        for blocks in [self.stem, *self.stages]:
            for block in blocks:
                x = block(x)
            endpoints.append(x)
        return endpoints
