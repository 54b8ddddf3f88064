"""The moving average of the weights, which evaluation and export take in place of the weights."""

from collections.abc import Callable

import tensorflow as tf
import tf_keras


def copy_of(build_model: Callable[[], tf_keras.Model]) -> tf_keras.Model:
    """A model of `build_model()` whose variables every replica moves by itself.

    Call it in the strategy's scope. No replica needs another's: their weights are the same, and so
    are the statistics of their batch norms.
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
    average: tf_keras.Model, model: tf_keras.Model, decay: float, step: tf.Tensor, finite: tf.Tensor
) -> None:
    """Moves weights and statistics of `average` towards those of `model`; in a replica context.

    Early steps decay faster, by (1 + step) / (10 + step) as tf.train.ExponentialMovingAverage has
    it, so that the initial weights are soon forgotten.

    Arguments:
      decay: of the average, a step.
      step: int64 scalar, the number of steps before; at 0 the average becomes a copy.
      finite: bool scalar; where it is false the step was skipped, and the average stays.
    """
    step = tf.cast(step, tf.float32)
    share = 1 - tf.minimum(decay, (1 + step) / (10 + step))
    share = tf.where(step == 0, 1.0, tf.where(finite, share, 0.0))
    for mean, value in zip(average.variables, model.variables, strict=True):
        mean.assign(share * value + (1 - share) * mean)
