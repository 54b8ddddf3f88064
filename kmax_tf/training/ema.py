"""The exponential moving average (EMA) of the weights, which evaluation and export use."""

from collections.abc import Callable

import tensorflow as tf
import tf_keras


def build_ema(build_model: Callable[[], tf_keras.Model]) -> tf_keras.Model:
    """Builds a model by `build_model()` whose variables each replica updates by itself.

    Call it in the strategy's scope. Replicas need not exchange these variables: their weights and
    the statistics of their batch norms are equal.
    """

    def local(create, **options):
        options |= dict(
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )
        return create(**options)

    with tf.variable_creator_scope(local):
        return build_model()


def update(
    ema: tf_keras.Model, model: tf_keras.Model, decay: float, step: tf.Tensor, finite: tf.Tensor
) -> None:
    """Moves weights and statistics of `ema` toward those of `model`; in a replica context.

    Early steps decay faster, by (1 + step) / (10 + step) as in tf.train.ExponentialMovingAverage,
    so that the initial weights are soon forgotten.

    Args:
        decay: of the EMA, a step.
        step: int64 scalar, steps completed so far; at step 0 the EMA is set to the weights.
        finite: bool scalar; if false the step was skipped, and the EMA stays.
    """
    step = tf.cast(step, tf.float32)
    share = 1 - tf.minimum(decay, (1 + step) / (10 + step))
    share = tf.where(step == 0, 1.0, tf.where(finite, share, 0.0))
    for mean, value in zip(ema.variables, model.variables, strict=True):
        mean.assign(share * value + (1 - share) * mean)
