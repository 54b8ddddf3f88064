"""Batch norm over all replicas, and layer norm."""

from typing import Any

import tensorflow as tf
import tf_keras

from kmax_tf.model.layers.ops import use_fused_cpu_kernels


class BatchNorm(tf_keras.layers.Layer):
    """Batch normalisation with the statistics of all replicas and the biased variance.

    `axis` names the axes that keep statistics of their own; `axis=()` has one for the whole tensor.
    Statistics are float32 whatever the policy. The official code's SyncBatchNormalization.
    """

    fused = True  # one operation on a single replica; its rounding differs from that of several

    def __init__(
        self,
        axis: tuple[int, ...] = (-1,),
        gamma: float = 1.0,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.axis, self.momentum, self.epsilon = axis, momentum, epsilon
        self.gamma_initializer = tf_keras.initializers.Constant(gamma)

    def build(self, shape: tf.TensorShape) -> None:
        kept = {a % len(shape) for a in self.axis}
        self.reduced = [a for a in range(len(shape)) if a not in kept]
        self.channels_last = kept == {len(shape) - 1}
        if self.channels_last:
            parameter = [shape[-1]]
        else:
            parameter = [shape[a] if a in kept else 1 for a in range(len(shape))]
        own = dict(shape=parameter, dtype=tf.float32, experimental_autocast=False)
        statistics = dict(
            **own,
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.MEAN,
        )
        self.gamma = self.add_weight("gamma", initializer=self.gamma_initializer, **own)
        self.beta = self.add_weight("beta", initializer="zeros", **own)
        self.moving_mean = self.add_weight("moving_mean", initializer="zeros", **statistics)
        self.moving_variance = self.add_weight("moving_variance", initializer="ones", **statistics)
        super().build(shape)

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """x: float [batch, ..., channels], any axes; returns its shape and dtype."""
        gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        if not training:
            return self._infer(x, gamma, beta)
        replicas = tf.distribute.get_replica_context().num_replicas_in_sync
        if self.fused and replicas == 1 and self.channels_last:
            y, mean, variance = self._fused(x, gamma, beta)
            self._move(mean, variance)
            return y
        wide, keep = tf.cast(x, tf.float32), not self.channels_last
        moments = (tf.reduce_mean(v, self.reduced, keepdims=keep) for v in (wide, tf.square(wide)))
        scale, offset = self.batch_affine(*moments)
        return tf.cast(wide * scale + offset, x.dtype)

    def batch_affine(self, mean: tf.Tensor, mean_square: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Scale and offset of a training step, which moves the moving statistics.

        Arguments: float32 of the parameters' shape, as [channels] or, with axes in between,
        [1, heads, 1, depth]: this replica's means of x and of its square.
        """
        moments = tf.stack([mean, mean_square])
        context = tf.distribute.get_replica_context()
        if context.num_replicas_in_sync > 1:
            moments = context.all_reduce("MEAN", moments)
        mean, variance = moments[0], tf.maximum(moments[1] - tf.square(moments[0]), 0.0)
        self._move(mean, variance)
        return self._affine(*map(tf.convert_to_tensor, (self.gamma, self.beta)), mean, variance)

    def _move(self, mean, variance):
        for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            change = (moving - tf.stop_gradient(value)) * (1 - self.momentum)
            # A step that overflows is skipped, and must leave no trace here either.
            moving.assign_sub(tf.where(tf.math.is_finite(change), change, 0.0))

    def affine(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Scale and offset of inference, to be merged with neighbours.

        Float32 of the parameters' shape, as [channels] or [1, heads, 1, depth].
        """
        return self._affine(self.gamma, self.beta, self.moving_mean, self.moving_variance)

    def _affine(self, gamma, beta, mean, variance):
        scale = gamma * tf.math.rsqrt(variance + self.epsilon)
        return scale, beta - mean * scale

    def _infer(self, x, gamma, beta):
        statistics = [tf.convert_to_tensor(v) for v in (self.moving_mean, self.moving_variance)]
        if x.shape.rank == 4 and self.channels_last:
            # This operation TensorFlow merges with the convolution before it.
            return tf.compat.v1.nn.fused_batch_norm(
                x, gamma, beta, *statistics, epsilon=self.epsilon, is_training=False
            )[0]
        scale, offset = self._affine(gamma, beta, *statistics)
        return tf.cast(tf.cast(x, tf.float32) * scale + offset, x.dtype)

    def _fused(self, x, gamma, beta):
        """One pass on a single replica; the operation gives the unbiased variance."""
        shape = tf.shape(x)
        image = x if x.shape.rank == 4 else tf.reshape(x, [shape[0], -1, 1, x.shape[-1]])
        y, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            image, gamma, beta, epsilon=self.epsilon, is_training=True
        )
        n = tf.cast(tf.size(x) // x.shape[-1], tf.float32)
        return tf.reshape(y, shape), mean, variance * (n - 1) / n


class LayerNorm(tf_keras.layers.LayerNormalization):
    """Over the channels. Keras goes over as many numbers eight times, and here it is five."""

    def __init__(self) -> None:
        super().__init__(epsilon=1e-6)

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """x: float [batch, ..., channels]; returns its shape and dtype."""
        if not use_fused_cpu_kernels(training):
            return super().call(x)
        wide = tf.cast(x, tf.float32)
        wide -= tf.reduce_mean(wide, axis=-1, keepdims=True)
        variance = tf.reduce_mean(tf.square(wide), axis=-1, keepdims=True)
        wide *= tf.math.rsqrt(variance + self.epsilon)
        gamma, beta = (tf.cast(v, tf.float32) for v in (self.gamma, self.beta))
        return tf.cast(wide * gamma + beta, x.dtype)
