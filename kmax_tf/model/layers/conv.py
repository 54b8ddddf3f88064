"""Convolutions and dense layers, alone or with batch norm and activation."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras

from kmax_tf.model.layers.norms import BatchNorm
from kmax_tf.model.layers.ops import compiled_by_xla, get_activation, use_fused_cpu_kernels


class Conv2D(tf_keras.layers.Conv2D):
    """A convolution in the form that suits the compiler.

    A TPU pads channels to groups of 128 and, in bfloat16, images to groups of 4: 3 channels or 2
    images are mostly padding. So, for XLA, a strided kernel on few channels reads the pixels within
    a stride as channels. A 1 x 1 kernel in bfloat16 becomes a matrix product.
    """

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Maps float [batch, height, width, depth] to [.., height / strides, .., filters]."""
        xla = compiled_by_xla()
        if training and not xla:
            return super().call(x)
        rows, columns = self.strides
        if xla and self.kernel_size == (1, 1) and x.dtype == tf.bfloat16:
            x = tf.einsum("bhwc,cd->bhwd", x[:, ::rows, ::columns], self.kernel[0, 0])
        elif xla and rows > 1 and x.shape[-1] < 16:
            x = self._from_strides(x)
        else:
            # Keras would dilate by moving pixels to batches, which only gradients on a CPU need.
            padding, dilations = self.padding.upper(), self.dilation_rate
            x = tf.nn.conv2d(x, self.kernel, self.strides, padding, dilations=dilations)
        return tf.nn.bias_add(x, self.bias) if self.use_bias else x

    def _from_strides(self, x):
        """Convolves with stride 1 instead of s, on [b, height / s, width / s, s * s * channels]."""
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
    """A 3 x 3 convolution of large dilation that computes each tap only inside the image.

    Stride 1, "same", no bias. On 21 x 21 pixels a dilation of 18 needs 18 % of the products.
    """

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Maps float [batch, height, width, depth] to [batch, height, width, filters]."""
        taps = [self._tap(x, i, j) for i in range(3) for j in range(3)]
        return tf.add_n([tap for tap in taps if tap is not None])

    def _tap(self, x, i, j):
        """Returns the share of kernel[i, j] in each pixel, or None if it is always outside."""
        down, right = ((k - 1) * d for k, d in zip((i, j), self.dilation_rate, strict=True))
        height, width = x.shape[1:3]
        if abs(down) >= height or abs(right) >= width:
            return None
        rows = slice(max(down, 0), height + min(down, 0))
        columns = slice(max(right, 0), width + min(right, 0))
        y = tf.einsum("bhwc,cd->bhwd", x[:, rows, columns], self.kernel[i, j])
        edges = [[max(-v, 0), max(v, 0)] for v in (down, right)]
        return tf.pad(y, [[0, 0], *edges, [0, 0]])


def fused_matmul_bn(
    x: tf.Tensor, kernel: tf.Tensor, norm: BatchNorm, activation: Callable = tf.identity
) -> tf.Tensor:
    """Product, batch norm and activation of inference, which TensorFlow fuses into one operation.

    Maps float [batch, ..., depth], by kernel [depth, units], to [batch, ..., units].
    """
    scale, offset = norm.affine()
    kernel = tf.cast(tf.cast(kernel, tf.float32) * scale, x.dtype)
    y = tf.matmul(tf.reshape(x, [-1, x.shape[-1]]), kernel)
    y = activation(tf.nn.bias_add(y, tf.cast(offset, x.dtype)))
    return tf.reshape(y, [-1, *x.shape[1:-1], y.shape[-1]])


class ConvBN(tf_keras.layers.Layer):
    """Convolution without bias, batch norm, activation.

    At the model's odd sizes, "same" equals the official symmetric padding.
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
        """Maps float [batch, height, width, depth] to [.., height / strides, .., filters]."""
        if self.conv.kernel_size == self.conv.strides == (1, 1) and use_fused_cpu_kernels(training):
            return fused_matmul_bn(x, self.conv.kernel[0, 0], self.norm, self.activation)
        return self.activation(self.norm(self.conv(x)))


class SparseConvBN(ConvBN):
    """`ConvBN` with a `SparseConv2D`."""

    convolution = SparseConv2D


class DepthwiseBN(tf_keras.layers.Layer):
    """Depthwise convolution without bias, batch norm, activation."""

    def __init__(self, activation: str, kernel_size: int = 5, strides: int = 1):
        super().__init__()
        self.conv = tf_keras.layers.DepthwiseConv2D(
            kernel_size, strides, padding="same", use_bias=False
        )
        self.norm = BatchNorm()
        self.activation = get_activation(activation)

    def build(self, shape: tf.TensorShape) -> None:
        self.conv.build(shape)  # inference calls neither of the two
        self.norm.build(shape)

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Maps float [batch, height, width, channels] to [.., height / strides, .., channels]."""
        if training:
            return self.activation(self.norm(self.conv(x)))
        scale, offset = (tf.cast(v, x.dtype) for v in self.norm.affine())
        kernel = tf.cast(self.conv.depthwise_kernel, x.dtype) * scale[:, None]
        if compiled_by_xla() and x.dtype == tf.bfloat16 and x.shape[0] == 1:
            y = self._taps(x, kernel)
        else:
            y = tf.nn.depthwise_conv2d(x, kernel, [1, *self.conv.strides, 1], "SAME")
        return self.activation(tf.nn.bias_add(y, offset))

    def _taps(self, x, kernel):
        """Sums the products of all taps in one fused loop; XLA would else move pixels to batches.

        As everywhere in the model, height and width are odd.
        """
        (height, width), size, stride = x.shape[1:3], kernel.shape[0], self.conv.strides[0]
        pad = [size // 2, size // 2]
        x = tf.pad(x, [[0, 0], pad, pad, [0, 0]])
        taps = [
            tf.cast(x[:, i : i + height : stride, j : j + width : stride], tf.float32)
            * tf.cast(kernel[i, j, :, 0], tf.float32)
            for i in range(size)
            for j in range(size)
        ]
        return tf.cast(tf.add_n(taps), x.dtype)


class DenseBN(tf_keras.layers.Layer):
    """Dense layer without bias, batch norm, activation."""

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
        """Maps float [batch, length, depth] to [batch, length, units]."""
        if use_fused_cpu_kernels(training):
            return fused_matmul_bn(x, self.dense.kernel, self.norm, self.activation)
        return self.activation(self.norm(self.dense(x)))
