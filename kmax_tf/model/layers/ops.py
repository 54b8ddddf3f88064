"""Operations in the form that suits a CPU or XLA."""

import math
from collections.abc import Callable, Sequence

import tensorflow as tf
import tf_keras
from tensorflow.compiler.tf2xla.python import xla
from tensorflow.python.ops import control_flow_util

from kmax_tf import errors


def compiled_by_xla() -> bool:
    """Tells whether XLA compiles the current graph; other operations are fast there."""
    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def use_fused_cpu_kernels(training: bool | None) -> bool:
    """Tells whether this is inference outside XLA, where fusing operations by hand pays off."""
    return not training and not compiled_by_xla()


def resize_bilinear(x: tf.Tensor, size: Sequence[int]) -> tf.Tensor:
    """Resizes float [batch, height, width, channels] to `size` (height, width).

    Bilinear, corners aligned; keeps the dtype.
    """
    if tuple(x.shape[1:3]) == tuple(size):
        return x
    if compiled_by_xla():
        # XLA would turn TensorFlow's operation into a gather of nine values for each result.
        x = tf.einsum("Ww,bhwc->bhWc", _interpolation(x.shape[2], size[1], x.dtype), x)
        return tf.einsum("Hh,bhwc->bHwc", _interpolation(x.shape[1], size[0], x.dtype), x)
    resized = tf.compat.v1.image.resize_bilinear(x, size, align_corners=True)
    return tf.cast(resized, x.dtype)


def _interpolation(old, new, dtype):
    """Returns the matrix [new, old] that resizes an axis linearly."""
    position = tf.range(new, dtype=tf.float32)[:, None] * ((old - 1) / (new - 1))
    return tf.cast(tf.nn.relu(1 - tf.abs(position - tf.range(old, dtype=tf.float32))), dtype)


def look_up(table: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """Looks up table [batch, n] at index, int32 [batch, ...]; 0 for index -1."""
    none = tf.zeros([], table.dtype)
    if compiled_by_xla():
        # One fused loop; a gather would use 128 lanes of a TPU for each number.
        table = tf.reshape(table, [-1, *[1] * (index.shape.rank - 1), table.shape[1]])
        chosen = tf.one_hot(index, table.shape[-1], True, False)
        return tf.reduce_sum(tf.where(chosen, table, none), axis=-1)
    flat = tf.reshape(index, [tf.shape(index)[0], -1])
    found = tf.gather(table, tf.maximum(flat, 0), batch_dims=1)
    return tf.reshape(tf.where(flat < 0, none, found), tf.shape(index))


@tf.custom_gradient
def gelu(x: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """The exact gelu of a float tensor of any shape, twice as fast on a CPU as tf.nn.gelu's erfc.

    The gradient computes from `x` in another form, so that XLA keeps only `x` for it.
    """

    def gradient(upstream):
        below = 0.5 * tf.math.erfc(x * -math.sqrt(0.5))
        density = tf.exp(-0.5 * tf.square(x)) * (1 / math.sqrt(2 * math.pi))
        return upstream * (below + x * density)

    erf = tf.math.erf(x * math.sqrt(0.5))
    if compiled_by_xla():  # the other form moves 2 % more bytes in a training step on a TPU
        return x * (0.5 + 0.5 * erf), gradient
    # TensorFlow merges this form with a product before it.
    return x * (0.5 * (1.0 + erf)), gradient


def get_activation(name: str | None) -> Callable:
    """Returns the activation function of a Keras name; InputError if there is none."""
    try:
        return gelu if name == "gelu" else tf_keras.activations.get(name)
    except ValueError:
        known = [n for n in vars(tf_keras.activations) if n.islower() and n[0] != "_"]
        near = errors.closest(name, known)
        hint = f"did you mean {near!r}?" if near else "bind one of Keras, such as 'relu'"
        raise errors.InputError(f"no activation {name!r}; {hint}") from None


def as_it_is(x: tf.Tensor) -> tf.Tensor:
    """Returns x, which XLA then makes in its dtype, and does not make again where it is used."""
    return xla.optimization_barrier(x)[0] if compiled_by_xla() else x


@tf.custom_gradient
def with_narrow_gradient(x: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Returns x, whose gradient XLA copies between layouts in the dtype of x.

    If float32 statistics follow in the gradient, it would copy float32.
    """
    return tf.identity(x), as_it_is


def softmax(logits: tf.Tensor, keep_logits: bool = True) -> tf.Tensor:
    """Softmax over the last axis of float [batch, ..., n], computed in float32.

    XLA may keep both logits and result for the gradient, which is quicker. Without `keep_logits` it
    keeps the result.
    """

    @tf.custom_gradient
    def call(logits):
        result = tf.cast(tf.nn.softmax(tf.cast(logits, tf.float32)), logits.dtype)

        def gradient(upstream):
            kept = result if keep_logits else as_it_is(result)
            p, g = (tf.cast(t, tf.float32) for t in (kept, upstream))
            return tf.cast((g - tf.reduce_sum(g * p, axis=-1, keepdims=True)) * p, logits.dtype)

        return result, gradient

    return call(logits)


def truncated_normal(stddev: float) -> tf_keras.initializers.Initializer:
    """Returns the initializer of a normal distribution, truncated at two standard deviations."""
    return tf_keras.initializers.TruncatedNormal(stddev=stddev)
