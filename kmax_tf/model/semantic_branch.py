"""The auxiliary semantic branch: a training signal for the encoder."""

from collections.abc import Sequence

import tensorflow as tf
import tf_keras

from kmax_tf.model.layers.aspp import ASPP
from kmax_tf.model.layers.conv import Conv2D, ConvBN, DepthwiseBN
from kmax_tf.model.layers.ops import get_activation, resize_bilinear, truncated_normal


class SemanticBranch(tf_keras.layers.Layer):
    """Semantic segmentation from the encoder's endpoints, in training only.

    Panoptic-DeepLab's decoder: ASPP on the coarsest endpoint, then fusion with finer ones.

    Args:
        num_classes: things and stuff together, without void.
        channels: channels of ASPP and of the fusions.
        rates: dilations of ASPP.
        low_level: (stage, channels) of each endpoint to fuse; stage 1 is the stem. If empty, the
            logits come from the coarsest endpoint without ASPP.
        low_level_activation: of the endpoints: the encoder's, or "linear" if they are activated.
        activation: name of a Keras activation.
        dropout: rate after ASPP.
        void_channel: add a channel of logits that is never a target.
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
        self.activation_name = activation
        self.low_level_stages = [stage for stage, _ in low_level]
        self.low_level_activation = get_activation(low_level_activation)
        self.activates_low_level = low_level_activation != "linear" if low_level else None
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
        """Maps endpoints, fine to coarse, to float32 logits [batch, height, width, channels]."""
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
