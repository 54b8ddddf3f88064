"""Random numbers as pure functions of the step's seed, and the layer that drops paths."""

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tf_keras

_seeds = []


@contextlib.contextmanager
def random_seed(seed: tf.Tensor) -> Iterator[None]:
    """Within it, `random_uniform` is a pure function of `seed` (int32 [2]) and of the call's place.

    Stateless, so that a resumed training draws the numbers that an undisturbed one draws.
    """
    _seeds.append([seed, 0])
    try:
        yield
    finally:
        _seeds.pop()


def random_uniform(shape: Any) -> tf.Tensor:
    """float32 numbers in [0, 1) of `shape`; outside of `random_seed` an error."""
    if not _seeds:
        raise RuntimeError("a random layer is called in training mode outside of random_seed()")
    seed, count = _seeds[-1]
    _seeds[-1][1] += 1
    seed += tf.constant([0, count * 1_000_003], tf.int32)
    # Named, for the default algorithm differs between devices.
    return tf.random.stateless_uniform(shape, seed, alg="philox")


class DropPath(tf_keras.layers.Layer):
    """Drops a residual branch per image in training, and scales the kept ones by 1 / keep_prob."""

    def __init__(self, keep_prob: float):
        super().__init__()
        self.keep_prob = keep_prob

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """x: float [batch, ...], of any shape; returns its shape and dtype."""
        if not training or self.keep_prob == 1.0:
            return x
        shape = [tf.shape(x)[0]] + [1] * (x.shape.rank - 1)
        kept = tf.floor(random_uniform(shape) + self.keep_prob) / self.keep_prob
        return x * tf.cast(kept, x.dtype)
