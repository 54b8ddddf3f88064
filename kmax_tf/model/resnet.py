"""ResNet pixel encoders: ResNet-50 of deeplab2 or of torchvision, MaX-S, narrow relatives."""

import math
from collections.abc import Sequence

import tensorflow as tf
import tf_keras

from kmax_tf.errors import check_equal_lengths
from kmax_tf.model.layers.blocks import ResidualBlock
from kmax_tf.model.layers.conv import ConvBN
from kmax_tf.model.layers.ops import get_activation
from kmax_tf.model.layers.recompute import run_stage


class ResNet(tf_keras.layers.Layer):
    """A stem and stages of residual blocks, each stage at half the resolution of the one before.

    `axial_from=16` makes it MaX-S (MaX-DeepLab, arXiv 2012.00759). `stride` is that of the last
    stage.

    Args:
        stem: (kernel size, strides, filters) of each stem convolution; the last is not activated.
        widths, depths: width and number of blocks of each stage.
        kind: "bottleneck" or "basic", of the blocks that are not axial.
        expansion: channels of a stage / its width: 4 for "bottleneck", 1 for "basic".
        activation: name of a Keras activation.
        axial_from: input stride from which blocks are axial.
        axial_keep_prob: drop path in the axial blocks of the last stage; linear in the stage, from
            1 at the stem.
        max_pool: activates the stem and halves it by a 3 x 3 max-pool, as torchvision does; the
            first stage then keeps the resolution. deeplab2 has no max-pool.
        activate_endpoints: activates the endpoints, as the PyTorch port does.
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
        max_pool: bool = False,
        activate_endpoints: bool = False,
    ):
        super().__init__()
        check_equal_lengths("ResNet", widths=widths, depths=depths)
        self.activation, self.activation_name = get_activation(activation), activation
        self.max_pool, self.activate_endpoints = max_pool, activate_endpoints
        self.stem = [
            ConvBN(filters, kernel, strides, activation=activation if i < len(stem) - 1 else None)
            for i, (kernel, strides, filters) in enumerate(stem)
        ]

        self.stride = math.prod(strides for _, strides, _ in stem) * (2 if max_pool else 1)

        def block(stage, i):
            strides = 2 if i == 0 and not (max_pool and stage == 0) else 1
            axial = self.stride >= axial_from
            self.stride *= strides
            level = stage if i == 0 else stage + 1  # number of stages before the block
            keep_prob = 1 - (1 - axial_keep_prob) * level / len(widths) if axial else 1.0
            return ResidualBlock(
                "axial" if axial else kind,
                widths[stage],
                expansion * widths[stage],
                activation,
                strides,
                drop_path_keep_prob=keep_prob,
            )

        self.stages = [[block(stage, i) for i in range(n)] for stage, n in enumerate(depths)]

    def call(self, x: tf.Tensor, recompute: bool = False) -> list[tf.Tensor]:
        """Maps images float [batch, height, width, 3] in [-1, 1] to endpoints, fine to coarse.

        With `recompute`, the gradient computes the stages again.

        Returns:
            The outputs of the stem and of each stage. Strides are 2, 4, 8, ..., with max_pool 4, 4,
            8, .... Each is float [batch, (height - 1) / stride + 1, (width - 1) / stride + 1,
            channels].
        """
        for layer in self.stem:
            x = layer(x)
        if self.max_pool:
            x = tf.nn.max_pool2d(self.activation(x), 3, 2, "SAME")
        endpoints = [x]
        for blocks in self.stages:
            x = run_stage(blocks, x, recompute, self.name)
            endpoints.append(x)
        return [self.activation(x) for x in endpoints] if self.activate_endpoints else endpoints
