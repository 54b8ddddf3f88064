"""EfficientNet-Lite pixel encoders (arXiv 1905.11946, without squeeze and excitation)."""

import math

import tensorflow as tf
import tf_keras

from kmax_tf.model.layers.conv import ConvBN, DepthwiseBN
from kmax_tf.model.layers.recompute import run_stage

_ACTIVATION = "relu6"
_STEM = 32  # filters, at every width
# Kernel size, strides, expansion, filters and depth of each stage of EfficientNet-Lite0.
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


def _round_filters(filters, width):
    """Scales to a multiple of 8 that is at least 90 % of the exact number."""
    rounded = max(8, int(filters * width + 4) // 8 * 8)
    return rounded + 8 * (rounded < 0.9 * filters * width)


class Block(tf_keras.layers.Layer):
    """Inverted residual: expansion, depthwise convolution, projection, which is not activated.

    The input is added where the shape stays the same.
    """

    def __init__(self, filters: int, kernel_size: int, strides: int, expansion: int):
        super().__init__()
        self.filters, self.strides, self.expansion = filters, strides, expansion
        self.expand: ConvBN | None = None
        self.depthwise = DepthwiseBN(_ACTIVATION, kernel_size, strides)
        self.project = ConvBN(filters)

    def build(self, shape: tf.TensorShape) -> None:
        self.residual = self.strides == 1 and shape[-1] == self.filters
        if self.expansion > 1:
            self.expand = ConvBN(self.expansion * shape[-1], activation=_ACTIVATION)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Maps float [batch, height, width, depth] to [.., height / strides, .., filters]."""
        y = x if self.expand is None else self.expand(x)
        y = self.project(self.depthwise(y))
        return x + y if self.residual else y


class EfficientNetLite(tf_keras.layers.Layer):
    """A stem and seven stages of inverted residual blocks.

    Args:
        width, depth: factors of the filters and of the number of blocks of a stage. Lite0 has
            (1, 1), Lite1 (1, 1.1), Lite2 (1.1, 1.2). First and last stage have one block.
    """

    stride = 32

    def __init__(self, width: float = 1.0, depth: float = 1.0):
        super().__init__()
        self.stem = ConvBN(_STEM, 3, 2, activation=_ACTIVATION)
        self.blocks = []
        for i, (kernel_size, strides, expansion, filters, repeats) in enumerate(_STAGES):
            if 0 < i < len(_STAGES) - 1:
                repeats = math.ceil(depth * repeats)
            for step in [strides] + [1] * (repeats - 1):
                block = Block(_round_filters(filters, width), kernel_size, step, expansion)
                self.blocks.append(block)

    def call(self, x: tf.Tensor, recompute: bool = False) -> list[tf.Tensor]:
        """Maps images float [batch, height, width, 3] in [-1, 1] to endpoints, fine to coarse.

        With `recompute`, the gradient computes the blocks again.

        Returns:
            The unactivated output of the last block at each stride, 2, 4, 8, 16 and 32. Each is
            float [batch, (height - 1) / stride + 1, (width - 1) / stride + 1, channels].
        """
        x = x * (127.5 / 128) + 0.5 / 128  # the published weights expect (pixel - 127) / 128
        x, endpoints = self.stem(x), []
        starts = [i for i, block in enumerate(self.blocks) if block.strides > 1]
        for start, end in zip([0, *starts], [*starts, None], strict=True):
            x = run_stage(self.blocks[start:end], x, recompute, self.name)
            endpoints.append(x)
        return endpoints
