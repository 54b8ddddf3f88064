"""Recomputation: the gradient computes a layer's inner values again, instead of keeping them."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
import tf_keras
from tensorflow.compiler.tf2xla.python import xla

from kmax_tf.model.layers.ops import compiled_by_xla
from kmax_tf.model.layers.stateless_random import random_seed, random_state

SECOND_PASS = "second_pass"  # in the names of operations


class _Pass(threading.local):
    """Which pass runs, in each thread by itself: each mirrored replica is traced in one."""

    is_second = False


_pass = _Pass()


def is_second_pass() -> bool:
    """Tells whether a layer runs again for its gradient; it must not change variables then."""
    return _pass.is_second


class _Second(tf_keras.layers.Layer):
    """Calls a layer for its gradient: in training mode, with the random numbers of before."""

    def __init__(self, layer: Callable, state: tuple[tf.Tensor, int]):
        super().__init__(name=SECOND_PASS, autocast=False)
        self.layer, self.state = layer, state

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        _pass.is_second = True
        try:
            with random_seed(*self.state):
                return self.layer(inputs)
        finally:
            _pass.is_second = False


def recomputed(layer: Callable, inputs: Any) -> Any:
    """Calls a layer in training mode, and keeps only inputs and outputs for its gradient.

    Outputs, gradients and moving statistics are those of layer(inputs). Batch norm sums over the
    replicas in both passes.

    Args:
        layer: a layer whose variables exist, or a function of such layers.
        inputs: its argument, a float tensor or a list of some.
    """
    state = random_state()

    @tf.custom_gradient
    def call(*tensors):
        outputs = layer(tf.nest.pack_sequence_as(inputs, tensors))

        def gradient(*upstream, variables=()):
            again = _after(upstream, tensors)
            with tf.GradientTape() as tape:
                tape.watch(again)
                second = _Second(layer, state)(
                    tf.nest.pack_sequence_as(inputs, again), training=True
                )
            sources = [*again, *variables]
            gradients = tape.gradient(tf.nest.flatten(second), sources, upstream)
            return gradients[: len(again)], gradients[len(again) :]

        return outputs, gradient

    return call(*tf.nest.flatten(inputs))


def run_stage(
    layers: Sequence[tf_keras.layers.Layer], x: tf.Tensor, recompute: bool, name: str
) -> tf.Tensor:
    """Calls layers one after another on x.

    Args:
        layers: the layers, whose variables exist if they are recomputed.
        x: float [batch, height, width, channels].
        recompute: keep only x and the result for the gradient, see `recomputed`.
        name: of the part of the model that the layers belong to, for operations of the gradient.
    """

    def stage(x):
        for layer in layers:
            x = layer(x)
        return x

    def named_stage(x):
        with tf.name_scope(name):  # the second pass has no other name of its part
            return stage(x)

    return recomputed(named_stage, x) if recompute else stage(x)


def _after(first, then):
    """Returns the tensors `then` as ones that wait for all of `first`.

    Without it, a compiler would see that both passes are the same, and keep the values of one.
    """
    if compiled_by_xla():
        return xla.optimization_barrier(*then, *first)[: len(then)]
    with tf.control_dependencies(first):
        return [tf.identity(tensor) for tensor in then]
