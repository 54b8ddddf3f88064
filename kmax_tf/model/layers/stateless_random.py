"""Random numbers as pure functions of the step's seed, and drop path."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tf_keras


class _Seeds(threading.local):
    """The seeds that are set, of each thread by itself: each mirrored replica is traced in one."""

    def __init__(self) -> None:
        self.stack: list[list[Any]] = []


_seeds = _Seeds()


@contextlib.contextmanager
def random_seed(seed: tf.Tensor, count: int = 0) -> Iterator[None]:
    """Makes `random_uniform` a pure function of `seed`, int32 [2], and of the number of the call.

    So a resumed training draws the same numbers as an uninterrupted one.

    Args:
        seed: int32 [2].
        count: number of the first call.
    """
    _seeds.stack.append([seed, count])
    try:
        yield
    finally:
        _seeds.stack.pop()


def random_state() -> tuple[tf.Tensor, int]:
    """Returns the arguments of a `random_seed` that draws the next numbers once more."""
    seed, count = _seeds.stack[-1]
    return seed, count


def random_uniform(shape: Any) -> tf.Tensor:
    """Draws float32 numbers of `shape` in [0, 1); RuntimeError outside of `random_seed`."""
    if not _seeds.stack:
        raise RuntimeError("a random layer is called in training mode outside of random_seed()")
    seed, count = _seeds.stack[-1]
    _seeds.stack[-1][1] += 1
    seed += tf.constant([0, count * 1_000_003], tf.int32)
    # The algorithm is fixed, because the default differs between devices.
    return tf.random.stateless_uniform(shape, seed, alg="philox")


class DropPath(tf_keras.layers.Layer):
    """Drops the residual branch of random images in training; scales the rest by 1 / keep_prob."""

    def __init__(self, keep_prob: float):
        super().__init__()
        self.keep_prob = keep_prob

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Maps float [batch, ...] to the same shape and dtype."""
        if not training or self.keep_prob == 1.0:
            return x
        shape = [tf.shape(x)[0]] + [1] * (x.shape.rank - 1)
        kept = tf.floor(random_uniform(shape) + self.keep_prob) / self.keep_prob
        return x * tf.cast(kept, x.dtype)
