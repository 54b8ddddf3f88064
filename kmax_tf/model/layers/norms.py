"""Batch norm over all replicas, and layer norm."""

import tensorflow as tf
import tf_keras

from kmax_tf.model.layers.ops import use_fused_cpu_kernels
from kmax_tf.model.layers.recompute import is_second_pass


class BatchNorm(tf_keras.layers.Layer):
    """Batch norm with the statistics of all replicas, as the official SyncBatchNormalization.

    Statistics are float32 in every policy, and the variance is the biased one.

    Args:
        axis: axes with separate statistics; `()` normalizes the whole tensor together.
        gamma: initial scale.
    """

    fused = True  # one operation on a single replica; rounds differently from several replicas
    momentum = 0.99  # of the moving statistics
    epsilon = 1e-3

    def __init__(self, axis: tuple[int, ...] = (-1,), gamma: float = 1.0):
        super().__init__()
        self.axis = axis
        self.gamma_initializer = tf_keras.initializers.Constant(gamma)

    def build(self, shape: tf.TensorShape) -> None:
        kept = {a % len(shape) for a in self.axis}
        self.reduced = [a for a in range(len(shape)) if a not in kept]
        self.channels_last = kept == {len(shape) - 1}
        if self.channels_last:
            parameter = [shape[-1]]
        else:
            parameter = [shape[a] if a in kept else 1 for a in range(len(shape))]
        options = dict(shape=parameter, dtype=tf.float32, experimental_autocast=False)
        statistics = dict(
            **options,
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.MEAN,
        )
        self.gamma = self.add_weight("gamma", initializer=self.gamma_initializer, **options)
        self.beta = self.add_weight("beta", initializer="zeros", **options)
        self.moving_mean = self.add_weight("moving_mean", initializer="zeros", **statistics)
        self.moving_variance = self.add_weight("moving_variance", initializer="ones", **statistics)
        super().build(shape)

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Normalizes a float tensor of any shape; keeps its shape and dtype."""
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
        """Computes scale and offset of a training step, and updates the moving statistics.

        `mean` and `mean_square` are this replica's, of x. All are float32 of the parameters' shape,
        such as [channels] or [1, heads, 1, depth].
        """
        moments = tf.stack([mean, mean_square])
        context = tf.distribute.get_replica_context()
        if context.num_replicas_in_sync > 1:
            moments = context.all_reduce("MEAN", moments)
        mean, variance = moments[0], tf.maximum(moments[1] - tf.square(moments[0]), 0.0)
        self._move(mean, variance)
        return self._affine(*map(tf.convert_to_tensor, (self.gamma, self.beta)), mean, variance)

    def _move(self, mean, variance):
        if is_second_pass():
            return  # the first pass moved them
        for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            change = (moving - tf.stop_gradient(value)) * (1 - self.momentum)
            # A step with an overflow is skipped, so it must not change the statistics.
            moving.assign_sub(tf.where(tf.math.is_finite(change), change, 0.0))

    def affine(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns scale and offset of inference, float32 of the parameters' shape."""
        return self._affine(self.gamma, self.beta, self.moving_mean, self.moving_variance)

    def _affine(self, gamma, beta, mean, variance):
        scale = gamma * tf.math.rsqrt(variance + self.epsilon)
        return scale, beta - mean * scale

    def _infer(self, x, gamma, beta):
        statistics = [tf.convert_to_tensor(v) for v in (self.moving_mean, self.moving_variance)]
        if x.shape.rank == 4 and self.channels_last:
            # TensorFlow merges this operation with the convolution before it.
            return tf.compat.v1.nn.fused_batch_norm(
                x, gamma, beta, *statistics, epsilon=self.epsilon, is_training=False
            )[0]
        scale, offset = self._affine(gamma, beta, *statistics)
        return tf.cast(tf.cast(x, tf.float32) * scale + offset, x.dtype)

    def _fused(self, x, gamma, beta):
        """Normalizes in one pass on a single replica; returns the biased mean and variance too."""
        shape = tf.shape(x)
        image = x if x.shape.rank == 4 else tf.reshape(x, [shape[0], -1, 1, x.shape[-1]])
        y, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            image, gamma, beta, epsilon=self.epsilon, is_training=True
        )
        n = tf.cast(tf.size(x) // x.shape[-1], tf.float32)
        return tf.reshape(y, shape), mean, variance * (n - 1) / n  # it gives the unbiased one


class LayerNorm(tf_keras.layers.LayerNormalization):
    """Layer norm over the channels, in five passes over memory instead of Keras' eight."""

    def __init__(self) -> None:
        super().__init__(epsilon=1e-6)

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Normalizes float [batch, ..., channels]; keeps its shape and dtype."""
        if not use_fused_cpu_kernels(training):
            return super().call(x)
        wide = tf.cast(x, tf.float32)
        wide -= tf.reduce_mean(wide, axis=-1, keepdims=True)
        variance = tf.reduce_mean(tf.square(wide), axis=-1, keepdims=True)
        wide *= tf.math.rsqrt(variance + self.epsilon)
        gamma, beta = (tf.cast(v, tf.float32) for v in (self.gamma, self.beta))
        return tf.cast(wide * gamma + beta, x.dtype)
