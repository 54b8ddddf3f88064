"""The auxiliary semantic branch, on the encoder alone."""

from collections.abc import Sequence

import tensorflow as tf
import tf_keras

from kmax_tf.model.layers.aspp import ASPP
from kmax_tf.model.layers.conv import Conv2D, ConvBN, DepthwiseBN
from kmax_tf.model.layers.ops import get_activation, resize_bilinear, truncated_normal


class SemanticBranch(tf_keras.layers.Layer):
    """Semantic segmentation from the encoder alone, a training signal that inference leaves out.

    Panoptic-DeepLab's decoder: ASPP on the coarsest endpoint, then fused with the low-level ones.

    Arguments:
      num_classes: channels of the logits, and one more (never a target) with `void_channel`.
      low_level: (stage, channels) of each endpoint fused in, stage 1 being the stem; empty for
        logits straight from the coarsest endpoint without ASPP.
      low_level_activation: the encoder's, for endpoints come unactivated.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int = 256,
        rates: Sequence[int] = (6, 12, 18),
        low_level: Sequence[tuple[int, int]] = ((3, 64), (2, 32)),
        low_level_activation: str = "relu",
        activation: str = "gelu",
        dropout: float = 0.1,
        void_channel: bool = False,
    ):
        super().__init__()
        self.low_level_stages = [stage for stage, _ in low_level]
        self.low_level_activation = get_activation(low_level_activation)
        self.aspp = ASPP(channels, rates, activation, dropout) if low_level else None
        self.projections = [ConvBN(c, activation=activation) for _, c in low_level]
        self.fusions = [
            [DepthwiseBN(activation), ConvBN(channels, activation=activation)] for _ in low_level
        ]
        self.head = [DepthwiseBN(activation), ConvBN(channels, activation=activation)]
        self.classifier = Conv2D(
            num_classes + void_channel, 1, kernel_initializer=truncated_normal(0.01)
        )

    def call(self, endpoints: list[tf.Tensor]) -> tf.Tensor:
        """Endpoints fine to coarse -> logits [batch, height, width, num_classes], float32."""
        x = endpoints[-1]
        if self.aspp is not None:
            x = self.aspp(x)
        for stage, projection, fusion in zip(
            self.low_level_stages, self.projections, self.fusions, strict=True
        ):
            skip = projection(self.low_level_activation(endpoints[stage - 1]))
            x = tf.concat([resize_bilinear(x, skip.shape[1:3]), skip], axis=-1)
            for layer in fusion:
                x = layer(x)
        for layer in self.head:
            x = layer(x)
        return tf.cast(self.classifier(x), tf.float32)
