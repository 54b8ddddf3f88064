"""The small layers that every part of the model is made of."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf
import tf_keras
from tensorflow.python.ops import control_flow_util

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


def compiled_by_xla() -> bool:
    """Whether what is traced here is for XLA, which is quick at other operations than the CPU's."""
    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def resize_bilinear(x: tf.Tensor, size: Sequence[int]) -> tf.Tensor:
    """Bilinear resize, corners aligned, of [batch, height, width, channels] to size [2]."""
    if tuple(x.shape[1:3]) == tuple(size):
        return x
    if compiled_by_xla():
        # XLA makes of TensorFlow's operation a gather of nine values for each one of the result.
        x = tf.einsum("Ww,bhwc->bhWc", _interpolation(x.shape[2], size[1], x.dtype), x)
        return tf.einsum("Hh,bhwc->bHwc", _interpolation(x.shape[1], size[0], x.dtype), x)
    resized = tf.compat.v1.image.resize_bilinear(x, size, align_corners=True)
    return tf.cast(resized, x.dtype)


def _interpolation(old, new, dtype):
    """The matrix [new, old] that resizes an axis linearly."""
    position = tf.range(new, dtype=tf.float32)[:, None] * ((old - 1) / (new - 1))
    return tf.cast(tf.nn.relu(1 - tf.abs(position - tf.range(old, dtype=tf.float32))), dtype)


def look_up(table: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """table [batch, n] at int32 index [batch, ...]; 0 where the index is -1."""
    none = tf.zeros([], table.dtype)
    if compiled_by_xla():
        # One fused loop; a gather of single numbers takes a TPU 128 lanes for each.
        table = tf.reshape(table, [-1, *[1] * (index.shape.rank - 1), table.shape[1]])
        chosen = tf.one_hot(index, table.shape[-1], True, False)
        return tf.reduce_sum(tf.where(chosen, table, none), axis=-1)
    flat = tf.reshape(index, [tf.shape(index)[0], -1])
    found = tf.gather(table, tf.maximum(flat, 0), batch_dims=1)
    return tf.reshape(tf.where(flat < 0, none, found), tf.shape(index))


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
        scale, offset = self.training_affine(*moments)
        return tf.cast(wide * scale + offset, x.dtype)

    def training_affine(
        self, mean: tf.Tensor, mean_square: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
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


@tf.custom_gradient
def gelu(x: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """The exact gelu of float [batch, ..., channels].

    tf.nn.gelu computes it by erfc, which takes a CPU twice as long.

    Its gradient starts from `x` again, in another form, so that XLA keeps nothing else for it.
    """

    def gradient(upstream):
        below = 0.5 * tf.math.erfc(x * -math.sqrt(0.5))
        density = tf.exp(-0.5 * tf.square(x)) * (1 / math.sqrt(2 * math.pi))
        return upstream * (below + x * density)

    erf = tf.math.erf(x * math.sqrt(0.5))
    if compiled_by_xla():  # in the other form a training step on a TPU moves 2 % more bytes
        return x * (0.5 + 0.5 * erf), gradient
    # In this form TensorFlow merges it with a product before it.
    return x * (0.5 * (1.0 + erf)), gradient


def get_activation(name: str | None) -> Callable:
    """The activation function of that Keras name."""
    return gelu if name == "gelu" else tf_keras.activations.get(name)


@tf.custom_gradient
def softmax(logits: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Over the last axis of float [batch, ..., n], in float32 whatever the type.

    Keeps for its gradient but the result.
    """
    result = tf.cast(tf.nn.softmax(tf.cast(logits, tf.float32)), logits.dtype)

    def gradient(upstream):
        p, g = (tf.cast(t, tf.float32) for t in (result, upstream))
        return tf.cast((g - tf.reduce_sum(g * p, axis=-1, keepdims=True)) * p, logits.dtype)

    return result, gradient


class Conv2D(tf_keras.layers.Conv2D):
    """A convolution, to XLA in the form that fits a TPU's memory.

    There the channels of a convolution come in groups of 128, and in bfloat16 its images in groups
    of 4, so that 3 channels or 2 images are mostly padding. So a strided kernel on few channels
    sees as channels the pixels that lie within a stride, and in bfloat16 a 1 x 1 kernel becomes a
    matrix product.
    """

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """[batch, height, width, depth] -> [batch, height / strides, width / strides, filters]."""
        xla = compiled_by_xla()
        if training and not xla:
            return super().call(x)
        rows, columns = self.strides
        if xla and self.kernel_size == (1, 1) and x.dtype == tf.bfloat16:
            x = tf.einsum("bhwc,cd->bhwd", x[:, ::rows, ::columns], self.kernel[0, 0])
        elif xla and rows > 1 and x.shape[-1] < 16:
            x = self._from_strides(x)
        else:
            # Keras would dilate by moving pixels to batches, as gradients on some CPUs need it.
            padding, dilations = self.padding.upper(), self.dilation_rate
            x = tf.nn.conv2d(x, self.kernel, self.strides, padding, dilations=dilations)
        return tf.nn.bias_add(x, self.bias) if self.use_bias else x

    def _from_strides(self, x):
        """The stride s becomes 1: [b, s * h, s * w, c] are [b, h, w, s * s * c]."""
        stride, size = self.strides[0], self.kernel_size[0]
        taps = -(-size // stride)
        pads, totals = [], []
        for length in x.shape[1:3]:
            valid = (length - size) // stride + 1
            outputs = valid if self.padding == "valid" else -(-length // stride)
            before = max((outputs - 1) * stride + size - length, 0) // 2
            totals.append((outputs + taps - 1) * stride)
            pads.append([before, max(totals[-1] - length - before, 0)])
        x = tf.pad(x, [[0, 0], *pads, [0, 0]])[:, : totals[0], : totals[1]]
        offsets = [(i, j) for i in range(stride) for j in range(stride)]
        x = tf.concat([x[:, i::stride, j::stride] for i, j in offsets], axis=-1)
        extra = taps * stride - size
        kernel = tf.pad(self.kernel, [[0, extra], [0, extra], [0, 0], [0, 0]])
        kernel = tf.concat([kernel[i::stride, j::stride] for i, j in offsets], axis=2)
        return tf.nn.conv2d(x, kernel, 1, "VALID")


class SparseConv2D(tf_keras.layers.Conv2D):
    """A 3 x 3 convolution of large dilation, each tap computed only where it meets the image.

    Stride 1, "same", without bias. On 21 x 21 pixels a dilation of 18 leaves 18 % of the products.
    """

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Float [batch, height, width, depth] -> [batch, height, width, filters]."""
        taps = [self._tap(x, i, j) for i in range(3) for j in range(3)]
        return tf.add_n([tap for tap in taps if tap is not None])

    def _tap(self, x, i, j):
        """What kernel[i, j] adds to each pixel, or None if it meets the image nowhere."""
        down, right = ((k - 1) * d for k, d in zip((i, j), self.dilation_rate, strict=True))
        height, width = x.shape[1:3]
        if abs(down) >= height or abs(right) >= width:
            return None
        rows = slice(max(down, 0), height + min(down, 0))
        columns = slice(max(right, 0), width + min(right, 0))
        y = tf.einsum("bhwc,cd->bhwd", x[:, rows, columns], self.kernel[i, j])
        edges = [[max(-v, 0), max(v, 0)] for v in (down, right)]
        return tf.pad(y, [[0, 0], *edges, [0, 0]])


def plain_inference(training: bool | None) -> bool:
    """Whether each operation will be a pass over memory, and no gradient is to come through it."""
    return not training and not compiled_by_xla()


def merged_product(
    x: tf.Tensor, kernel: tf.Tensor, norm: BatchNorm, activation: Callable = tf.identity
) -> tf.Tensor:
    """Product, norm and activation of plain inference, which TensorFlow makes one operation of.

    Float [batch, ..., depth] and kernel [depth, units] -> [batch, ..., units].
    """
    scale, offset = norm.affine()
    kernel = tf.cast(tf.cast(kernel, tf.float32) * scale, x.dtype)
    y = tf.matmul(tf.reshape(x, [-1, x.shape[-1]]), kernel)
    y = activation(tf.nn.bias_add(y, tf.cast(offset, x.dtype)))
    return tf.reshape(y, [-1, *x.shape[1:-1], y.shape[-1]])


class ConvBN(tf_keras.layers.Layer):
    """Convolution without bias, batch norm, activation: [batch, height, width, channels].

    On the odd sizes that the model takes, "same" is the official symmetric padding.
    """

    convolution = Conv2D

    def __init__(
        self,
        filters: int,
        kernel_size: int = 1,
        strides: int = 1,
        dilation: int = 1,
        activation: str | None = None,
        gamma: float = 1.0,
    ):
        super().__init__()
        self.conv = self.convolution(
            filters,
            kernel_size,
            strides,
            padding="same",
            dilation_rate=dilation,
            use_bias=False,
            kernel_initializer="he_normal",
        )
        self.norm = BatchNorm(gamma=gamma)
        self.activation = get_activation(activation)

    def build(self, shape: tf.TensorShape) -> None:
        self.conv.build(shape)
        self.norm.build(self.conv.compute_output_shape(shape))

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """[batch, height, width, depth] -> [batch, height / strides, width / strides, filters]."""
        if self.conv.kernel_size == self.conv.strides == (1, 1) and plain_inference(training):
            return merged_product(x, self.conv.kernel[0, 0], self.norm, self.activation)
        return self.activation(self.norm(self.conv(x)))


class SparseConvBN(ConvBN):
    """The same with a `SparseConv2D`."""

    convolution = SparseConv2D


class DepthwiseBN(tf_keras.layers.Layer):
    """5 x 5 depthwise convolution without bias, batch norm, activation."""

    def __init__(self, activation: str):
        super().__init__()
        self.conv = tf_keras.layers.DepthwiseConv2D(5, padding="same", use_bias=False)
        self.norm = BatchNorm()
        self.activation = get_activation(activation)

    def build(self, shape: tf.TensorShape) -> None:
        self.conv.build(shape)  # in inference neither is called
        self.norm.build(shape)

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """x: float [batch, height, width, channels]; returns the same shape."""
        if training:
            return self.activation(self.norm(self.conv(x)))
        scale, offset = (tf.cast(v, x.dtype) for v in self.norm.affine())
        kernel = tf.cast(self.conv.depthwise_kernel, x.dtype) * scale[:, None]
        if compiled_by_xla() and x.dtype == tf.bfloat16 and x.shape[0] == 1:
            y = self._taps(x, kernel)
        else:
            y = tf.nn.depthwise_conv2d(x, kernel, [1, 1, 1, 1], "SAME")
        return self.activation(tf.nn.bias_add(y, offset))

    def _taps(self, x, kernel):
        """The sum of the 25 products, one fused loop, where XLA would move pixels to batches."""
        height, width = x.shape[1:3]
        x = tf.pad(x, [[0, 0], [2, 2], [2, 2], [0, 0]])
        taps = [
            tf.cast(x[:, i : i + height, j : j + width], tf.float32)
            * tf.cast(kernel[i, j, :, 0], tf.float32)
            for i in range(5)
            for j in range(5)
        ]
        return tf.cast(tf.add_n(taps), x.dtype)


class DenseBN(tf_keras.layers.Layer):
    """Dense layer without bias, batch norm, activation: [batch, length, channels]."""

    def __init__(
        self,
        units: int,
        activation: str | None = None,
        gamma: float = 1.0,
        kernel_initializer: Any = "he_normal",
    ):
        super().__init__()
        self.dense = tf_keras.layers.Dense(
            units, use_bias=False, kernel_initializer=kernel_initializer
        )
        self.norm = BatchNorm(gamma=gamma)
        self.activation = get_activation(activation)

    def build(self, shape: tf.TensorShape) -> None:
        self.dense.build(shape)
        self.norm.build(self.dense.compute_output_shape(shape))

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Float [batch, length, depth] -> [batch, length, units]."""
        if plain_inference(training):
            return merged_product(x, self.dense.kernel, self.norm, self.activation)
        return self.activation(self.norm(self.dense(x)))


class LayerNorm(tf_keras.layers.LayerNormalization):
    """Over the channels. Keras goes over as many numbers eight times, and here it is five."""

    def __init__(self) -> None:
        super().__init__(epsilon=1e-6)

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """x: float [batch, ..., channels]; returns its shape and dtype."""
        if not plain_inference(training):
            return super().call(x)
        wide = tf.cast(x, tf.float32)
        wide -= tf.reduce_mean(wide, axis=-1, keepdims=True)
        variance = tf.reduce_mean(tf.square(wide), axis=-1, keepdims=True)
        wide *= tf.math.rsqrt(variance + self.epsilon)
        gamma, beta = (tf.cast(v, tf.float32) for v in (self.gamma, self.beta))
        return tf.cast(wide * gamma + beta, x.dtype)


class DropPath(tf_keras.layers.Layer):
    """Drops a residual branch per image in training, and scales the kept ones by 1 / keep."""

    def __init__(self, keep: float):
        super().__init__()
        self.keep = keep

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """x: float [batch, ...], of any shape; returns its shape and dtype."""
        if not training or self.keep == 1.0:
            return x
        shape = [tf.shape(x)[0]] + [1] * (x.shape.rank - 1)
        kept = tf.floor(random_uniform(shape) + self.keep) / self.keep
        return x * tf.cast(kept, x.dtype)


def truncated_normal(stddev: float) -> tf_keras.initializers.Initializer:
    return tf_keras.initializers.TruncatedNormal(stddev=stddev)
