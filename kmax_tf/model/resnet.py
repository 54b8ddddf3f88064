"""ResNet pixel encoders: ResNet-50 and its narrow relatives (deeplab2's variant, no max-pool)."""

import tf_keras

from kmax_tf.model.blocks import ResidualBlock
from kmax_tf.model.layers import ConvBN


class ResNet(tf_keras.layers.Layer):
    """A stem and stages of residual blocks, each stage at half the resolution of the one before.

    Arguments:
      stem: (kernel size, strides, filters) of each stem convolution; the last is not activated.
      widths, depths: width and number of blocks of each stage.
      kind: "bottleneck" (expansion 4) or "basic" (expansion 1).
    Returns of a call on [batch, height, width, 3]: the unactivated output of the stem and of each
    stage, `[batch, (height - 1) / stride + 1, (width - 1) / stride + 1, channels]` at strides
    2, 4, 8, ...
    """

    def __init__(
        self,
        stem=((7, 2, 64),),
        widths=(64, 128, 256, 512),
        depths=(3, 4, 6, 3),
        kind="bottleneck",
        expansion=4,
        activation="relu",
    ):
        super().__init__()
        self.stem = [
            ConvBN(filters, kernel, strides, activation=activation if i < len(stem) - 1 else None)
            for i, (kernel, strides, filters) in enumerate(stem)
        ]
        self.stages = [
            [
                ResidualBlock(kind, width, expansion * width, activation, strides)
                for strides in [2] + [1] * (depth - 1)
            ]
            for width, depth in zip(widths, depths, strict=True)
        ]

    def call(self, x):
        endpoints = []
        for blocks in [self.stem, *self.stages]:
            for block in blocks:
                x = block(x)
            endpoints.append(x)
        return endpoints
