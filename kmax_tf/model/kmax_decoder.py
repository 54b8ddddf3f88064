"""The cluster path: k-means cross-attention updates cluster centers (paper, section 3.2)."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf
import tf_keras

from kmax_tf.errors import InputError
from kmax_tf.model.layers.attention import PixelAttention, attention, softmax_update
from kmax_tf.model.layers.conv import Conv2D, ConvBN, DenseBN, DepthwiseBN
from kmax_tf.model.layers.norms import BatchNorm
from kmax_tf.model.layers.ops import get_activation, truncated_normal
from kmax_tf.model.layers.stateless_random import DropPath, random_uniform


class Prediction(NamedTuple):
    """The prediction of one decoder at its own resolution, float32."""

    mask_logits: tf.Tensor  # [batch, height, width, clusters]
    class_logits: tf.Tensor  # [batch, clusters, classes + 1], void last
    pixel_features: tf.Tensor  # [batch, height, width, depth], of unit length


class PredictionHead(tf_keras.layers.Layer):
    """Predicts masks, products of pixel features and mask embeddings, and their classes."""

    def __init__(
        self, num_classes: int, channels: int = 256, depth: int = 128, activation: str = "gelu"
    ):
        super().__init__()
        self.depthwise = DepthwiseBN(activation)
        self.pointwise = ConvBN(channels, activation=activation)
        self.pixel_projection = Conv2D(depth, 1, kernel_initializer=truncated_normal(0.01))
        self.pixel_norm = BatchNorm()
        self.mask_projection = DenseBN(depth)
        self.mask_norm = BatchNorm(axis=(), gamma=0.1)
        self.classifier = tf_keras.layers.Dense(
            num_classes + 1, kernel_initializer=truncated_normal(0.01)
        )
        # An untrained head predicts void with probability 0.9 (MaX-DeepLab, appendix).
        self.void_prior = [0.0] * num_classes + [math.log(num_classes * 0.9 / 0.1)]

    def call(
        self, pixels: tf.Tensor, mask_embedding: tf.Tensor, class_embedding: tf.Tensor
    ) -> Prediction:
        """Predicts from pixels [batch, height, width, channels] and the embeddings of clusters.

        Embeddings are [batch, clusters, channels]; all are float.
        """
        x = self.pixel_projection(self.pointwise(self.depthwise(pixels)))
        features = tf.math.l2_normalize(tf.cast(self.pixel_norm(x), tf.float32), -1)
        masks = self.mask_projection(mask_embedding)
        logits = tf.einsum("bhwd,bnd->bhwn", tf.cast(features, masks.dtype), masks)
        return Prediction(
            mask_logits=tf.cast(self.mask_norm(logits), tf.float32),
            class_logits=tf.cast(self.classifier(class_embedding), tf.float32) + self.void_prior,
            pixel_features=features,
        )


def kmeans_update(mask_logits: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Sums the values of the pixels that are assigned to each cluster (equations 5 to 7).

    The arg-max has no gradient. Centers and pixels learn to agree by the losses on `mask_logits`.

    Args:
        mask_logits: float [batch, pixels, clusters], similarity of pixels and cluster centers.
        values: float [batch, pixels, channels].

    Returns:
        float [batch, clusters, channels].
    """
    clusters = mask_logits.shape[-1]
    assignment = tf.one_hot(tf.argmax(mask_logits, axis=-1), clusters, dtype=values.dtype)
    return tf.einsum("bpn,bpc->bnc", tf.stop_gradient(assignment), values)


class KMaXDecoder(tf_keras.layers.Layer):
    """One decoder: cross-attention to the pixels, self-attention of the centers, feed-forward.

    As in a transformer, every branch is added to the centers. Unlike there, norms are batch norms
    and queries have no positions. Without a `head` it predicts nothing; see also `ClusterPath`.
    """

    def __init__(
        self,
        head: PredictionHead | None,
        channels: int,
        hidden: int,
        heads: int,
        activation: str,
        drop_path_keep_prob: float,
        cross_attention: str,
        dual_path: bool,
    ):
        super().__init__()
        self.activation = get_activation(activation)
        self.heads, self.depth = heads, channels // 2
        self.cross_attention = cross_attention
        std = channels**-0.5
        self.centre_projection = DenseBN(channels, activation)
        self.pixel_projection = ConvBN(channels, activation=activation)
        self.qkv = DenseBN(2 * channels, kernel_initializer=truncated_normal(std))
        self.pixel_value = DenseBN(channels, kernel_initializer=truncated_normal(std))
        self.head = head
        self.update_norm = BatchNorm()
        self.update_projection = DenseBN(channels, gamma=0.0)
        self.similarity_norm, self.value_norm = BatchNorm(axis=(1,)), BatchNorm(axis=(1, 3))
        self.attention_projection = DenseBN(channels, gamma=0.0)
        self.feed_forward = [DenseBN(hidden, activation), DenseBN(channels, gamma=0.0)]
        self.drop_paths = [DropPath(drop_path_keep_prob) for _ in range(3)]
        self.pixel_attention = (
            PixelAttention(channels, heads, activation, drop_path_keep_prob) if dual_path else None
        )

    def call(
        self, centres: tf.Tensor, pixels: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, Prediction | None]:
        """Updates centers [batch, clusters, channels] by pixels [batch, height, width, depth].

        Returns:
            The updated centers; the pixels, updated in a dual path; and the `Prediction`, if any.
        """
        c = self.centre_projection(centres)
        x = self.pixel_projection(self.activation(pixels))
        prediction = self.head(x, mask_embedding=c, class_embedding=c) if self.head else None

        x = tf.reshape(x, [-1, x.shape[1] * x.shape[2], x.shape[3]])
        values = self.pixel_value(x)
        if self.cross_attention == "kmeans":
            logits = tf.reshape(prediction.mask_logits, [-1, x.shape[1], c.shape[1]])
            update = kmeans_update(logits, values)
        else:
            update = softmax_update(c, x, values, self.heads)
        centres += self.drop_paths[0](self.update_projection(self.update_norm(update)))

        # Self-attention and pixel attention use the centers from before that update.
        q, k, v = tf.split(self.qkv(c), [self.depth, self.depth, 2 * self.depth], axis=-1)
        y = attention(q, k, v, self.heads, self.similarity_norm, self.value_norm)
        y = self.attention_projection(self.activation(y))
        centres = self.activation(centres + self.drop_paths[1](y))
        if self.pixel_attention:
            pixels = self.pixel_attention(pixels, x, k, v)

        y = centres
        for layer in self.feed_forward:
            y = layer(y)
        return self.activation(centres + self.drop_paths[2](y)), pixels, prediction


class ClusterPath(tf_keras.layers.Layer):
    """Learned cluster centers and their decoders (paper, table 4 for the variants).

    Args:
        num_classes: things and stuff together, without void.
        num_clusters: number of cluster centers, the most segments of an image.
        channels, hidden: channels of the centers, and within the feed-forward branches.
        heads: attention heads.
        head_depth: depth of pixel features and mask embeddings.
        depths: number of decoders on each output of the pixel decoder, coarse to fine.
        activation: name of a Keras activation.
        drop_path_keep_prob: probability of keeping a branch in training.
        cross_attention: "kmeans", or "spatial_softmax" of projected centers (queries) and pixels
            (keys), which needs no prediction.
        dual_path: the pixels attend to the centers too, and enter the pixel decoder's next stage.
        deep_supervision: every decoder predicts, as k-means needs.
        drop_query: train each image with a random half of the centers (section 4.1), at the cost of
            half the centers; inference uses all.

    Raises:
        InputError: another `cross_attention`, or k-means without predictions.
    """

    def __init__(
        self,
        num_classes: int,
        num_clusters: int = 128,
        channels: int = 256,
        hidden: int = 2048,
        heads: int = 8,
        head_depth: int = 128,
        depths: Sequence[int] = (2, 2, 2),
        activation: str = "gelu",
        drop_path_keep_prob: float = 0.8,
        cross_attention: str = "kmeans",
        dual_path: bool = False,
        deep_supervision: bool = True,
        drop_query: bool = False,
    ):
        super().__init__()
        if cross_attention not in ("kmeans", "spatial_softmax"):
            raise InputError(
                f"ClusterPath.cross_attention {cross_attention!r} is neither 'kmeans' nor"
                " 'spatial_softmax'; bind one of them"
            )
        if cross_attention == "kmeans" and not deep_supervision:
            raise InputError(
                "ClusterPath.cross_attention 'kmeans' assigns pixels by the prediction of each"
                " decoder; bind ClusterPath.deep_supervision to True"
            )
        self.num_clusters, self.channels, self.dual_path = num_clusters, channels, dual_path
        self.drop_query = drop_query
        self.activation_name, self.cross_attention = activation, cross_attention

        def head():
            return PredictionHead(num_classes, channels, head_depth, activation)

        self.source = [i for i, depth in enumerate(depths) for _ in range(depth)]
        options = channels, hidden, heads, activation, drop_path_keep_prob
        self.decoders = [
            KMaXDecoder(head() if deep_supervision else None, *options, cross_attention, dual_path)
            for _ in self.source
        ]
        self.class_projection = DenseBN(channels, activation)
        self.mask_projection = DenseBN(channels, activation)
        self.head = head()

    def build(self, _: Any) -> None:
        self.cluster_centres = self.add_weight(
            "cluster_centres",
            [1, self.num_clusters, self.channels],
            initializer=truncated_normal(1.0),
        )

    def _centres(self, batch, training):
        """Returns the initial centers of a batch: [batch, clusters, channels]."""
        centres = tf.cast(self.cluster_centres, self.compute_dtype)
        if not (training and self.drop_query):
            return tf.tile(centres, [batch, 1, 1])
        order = tf.argsort(random_uniform([batch, self.num_clusters]), axis=1)
        return tf.gather(centres[0], order[:, : self.num_clusters // 2])

    def call(
        self,
        features: list[tf.Tensor],
        pixel_decoder: tf_keras.layers.Layer | None = None,
        training: bool | None = None,
    ) -> tuple[Prediction, list[Prediction]]:
        """Predicts from the pixel decoder's outputs [batch, height, width, depth], coarse to fine.

        In a dual path the features are the pixel encoder's endpoints, fine to coarse, and
        `pixel_decoder` runs stage by stage.

        Returns:
            The final `Prediction`, at the finest output; and those of the decoders, in order.
        """
        centres = self._centres(features[0].shape[0] or tf.shape(features[0])[0], training)
        x, auxiliary = None, []
        stages = len(pixel_decoder.stages if pixel_decoder else features)
        if max(self.source, default=0) >= stages:
            raise InputError(
                f"ClusterPath.depths puts decoders on output {max(self.source) + 1} of the pixel"
                f" decoder, which has {stages}; bind at most {stages} depths"
            )
        for i in range(stages):
            x = pixel_decoder.stage(i, x, features) if pixel_decoder else features[i]
            for decoder, source in zip(self.decoders, self.source, strict=True):
                if source == i:
                    centres, x, prediction = decoder(centres, x)
                    auxiliary.append(prediction)
        final = self.head(
            x,
            mask_embedding=self.mask_projection(centres),
            class_embedding=self.class_projection(centres),
        )
        return final, [prediction for prediction in auxiliary if prediction is not None]
