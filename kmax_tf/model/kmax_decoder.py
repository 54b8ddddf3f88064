"""The cluster path: cluster centres that k-means cross-attention updates (paper, section 3.2)."""

import tensorflow as tf
import tf_keras

from kmax_tf.model.heads import PredictionHead
from kmax_tf.model.layers import BatchNorm, ConvBN, DenseBN, DropPath, truncated_normal


def kmeans_update(mask_logits, values):
    """Sum of the values of the pixels that are assigned to each cluster (equations 5 to 7).

    Arguments:
      mask_logits: float [batch, pixels, clusters], the similarity of pixels and cluster centres.
      values: float [batch, pixels, channels].
    Returns float [batch, clusters, channels]. The arg-max has no gradient: centres and pixels learn
    to agree through the losses on `mask_logits`.
    """
    clusters = mask_logits.shape[-1]
    assignment = tf.one_hot(tf.argmax(mask_logits, axis=-1), clusters, dtype=values.dtype)
    return tf.einsum("bpn,bpc->bnc", tf.stop_gradient(assignment), values)


class KMaXDecoder(tf_keras.layers.Layer):
    """One decoder: k-means cross-attention, self-attention among the centres, feed-forward.

    Every branch is added to the centres as in a transformer; batch norm stands where others have
    layer norm, and queries carry no positions.
    """

    def __init__(self, head, channels, hidden, heads, activation, keep):
        super().__init__()
        self.activation = tf_keras.activations.get(activation)
        self.heads, self.depth = heads, channels // 2
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
        self.drop_paths = [DropPath(keep) for _ in range(3)]

    def call(self, centres, pixels):
        """centres [batch, clusters, channels], pixels [batch, height, width, *].

        Returns the updated centres and the `Prediction` that assigned the pixels.
        """
        c = self.centre_projection(centres)
        x = self.pixel_projection(self.activation(pixels))
        prediction = self.head(x, mask_embedding=c, class_embedding=c)

        flat = x.shape[1] * x.shape[2]
        logits = tf.reshape(prediction.mask_logits, [-1, flat, centres.shape[1]])
        values = self.pixel_value(tf.reshape(x, [-1, flat, x.shape[-1]]))
        update = self.update_projection(self.update_norm(kmeans_update(logits, values)))
        centres += self.drop_paths[0](update)
        centres = self.activation(centres + self.drop_paths[1](self._self_attention(c)))

        y = centres
        for layer in self.feed_forward:
            y = layer(y)
        return self.activation(centres + self.drop_paths[2](y)), prediction

    def _self_attention(self, c):
        """Attention among the centres as they were before the k-means update."""
        clusters, d, heads = c.shape[1], self.depth, self.heads
        q, k, v = (
            tf.reshape(t, [-1, clusters, heads, t.shape[-1] // heads])
            for t in tf.split(self.qkv(c), [d, d, 2 * d], axis=-1)
        )
        logits = self.similarity_norm(tf.einsum("bihd,bjhd->bhij", q, k))
        attention = tf.cast(tf.nn.softmax(tf.cast(logits, tf.float32)), c.dtype)
        value = self.value_norm(tf.einsum("bhij,bjhd->bhid", attention, v))
        value = self.activation(tf.transpose(value, [0, 2, 1, 3]))
        return self.attention_projection(tf.reshape(value, [-1, clusters, 2 * d]))


class ClusterPath(tf_keras.layers.Layer):
    """Learned cluster centres and their decoders, `depths[i]` on the pixel decoder's i-th output.

    A call on these outputs returns the last centres' mask embedding and class embedding,
    [batch, clusters, channels], and the list of the decoders' `Prediction`s.
    """

    def __init__(
        self,
        num_classes,
        num_clusters=128,
        channels=256,
        hidden=2048,
        heads=8,
        head_depth=128,
        depths=(2, 2, 2),
        activation="gelu",
        keep=0.8,
    ):
        super().__init__()
        self.num_clusters, self.channels = num_clusters, channels
        self.source = [i for i, depth in enumerate(depths) for _ in range(depth)]
        self.decoders = [
            KMaXDecoder(
                PredictionHead(num_classes, channels, head_depth, activation),
                channels,
                hidden,
                heads,
                activation,
                keep,
            )
            for _ in self.source
        ]
        self.class_projection = DenseBN(channels, activation)
        self.mask_projection = DenseBN(channels, activation)
        self.head = PredictionHead(num_classes, channels, head_depth, activation)

    def build(self, _):
        self.cluster_centres = self.add_weight(
            "cluster_centres",
            [1, self.num_clusters, self.channels],
            initializer=truncated_normal(1.0),
        )

    def call(self, pixel_features):
        """pixel_features: the pixel decoder's outputs, coarse to fine.

        Returns the final `Prediction`, at the finest output, and the decoders' ones in order.
        """
        batch = tf.shape(pixel_features[0])[0]
        centres = tf.tile(tf.cast(self.cluster_centres, self.compute_dtype), [batch, 1, 1])
        auxiliary = []
        for decoder, source in zip(self.decoders, self.source, strict=True):
            centres, prediction = decoder(centres, pixel_features[source])
            auxiliary.append(prediction)
        final = self.head(
            pixel_features[-1],
            mask_embedding=self.mask_projection(centres),
            class_embedding=self.class_projection(centres),
        )
        return final, auxiliary
