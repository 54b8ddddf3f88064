"""Images whose squares of pixels are channels, the form of large maps of few channels for a TPU.

There channels come in groups of 128, and in bfloat16 convolutions take images in groups of 4: of
64 channels and 2 images three quarters of the memory would be padding. A strided convolution of
packed pixels needs no stride, and so its gradient no zeros between pixels.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf


class Packed:
    """[batch, height, width, channels] as cells of block x block pixels.

    `cells` is float [batch, ceil(height / block), ceil(width / block), block * block * channels];
    pixels beyond the image are 0.
    """

    def __init__(self, cells: tf.Tensor, block: int, size: Sequence[int]):
        self.cells, self.block, self.size = cells, block, tuple(size)

    @property
    def dtype(self) -> tf.DType:
        return self.cells.dtype

    @property
    def shape(self) -> tf.TensorShape:
        """Of the image, so that layers are built as on an image."""
        batch, _, _, channels = self.cells.shape
        return tf.TensorShape([batch, *self.size, channels // self.block**2])

    def _crop(self, cells):
        """`cells` with 0 beyond the image."""
        block, channels = self.block, self.shape[-1]
        rows, columns = (
            np.arange(-(-n // block) * block).reshape(-1, block) < n for n in self.size
        )
        rows = np.repeat(rows, block * channels, axis=1)[:, None]
        columns = np.tile(np.repeat(columns, channels, axis=1), block)
        return cells * tf.constant(rows, cells.dtype) * tf.constant(columns, cells.dtype)

    def map(self, function: Callable) -> "Packed":
        """The image with `function` applied to each number, which leaves 0 as it is."""
        return Packed(function(self.cells), self.block, self.size)

    def affine(self, scale: tf.Tensor, offset: tf.Tensor) -> "Packed":
        """x * scale + offset, computed in float32; scale and offset [channels]."""
        repeats = [self.block**2]
        wide = tf.cast(self.cells, tf.float32) * tf.tile(scale, repeats) + tf.tile(offset, repeats)
        return Packed(self._crop(tf.cast(wide, self.dtype)), self.block, self.size)

    def mean(self, function: Callable) -> tf.Tensor:
        """The mean of `function` over all pixels, float32 [channels]."""
        values = function(tf.cast(self._crop(self.cells), tf.float32))
        total = tf.reshape(tf.reduce_sum(values, [0, 1, 2]), [self.block**2, -1])
        height, width = self.size
        count = tf.cast(tf.shape(self.cells)[0] * height * width, tf.float32)
        return tf.reduce_sum(total, 0) / count

    def conv(self, kernel: tf.Tensor, strides: int, padding: str) -> Any:
        """The convolution with a kernel [rows, columns, channels, filters], "same" or "valid".

        `Packed` with blocks of block / strides pixels, or an image if that is 1.
        """
        block = self.block // strides
        selections, pads, sizes = [], [], []
        for length, cells, taps in zip(
            self.size, self.cells.shape[1:3], kernel.shape[:2], strict=True
        ):
            size = -(-length // strides) if padding == "same" else (length - taps) // strides + 1
            before = max((size - 1) * strides + taps - length, 0) // 2
            first = -before // self.block
            last = (strides * (block - 1) + taps - 1 - before) // self.block
            # Which tap meets a pixel of a cell around the one that a pixel of the result is in.
            cell, pixel, result, tap = np.ogrid[first : last + 1, : self.block, :block, :taps]
            selections.append(tap == self.block * cell + pixel - strides * result + before)
            pads.append([-first, -(-size // block) - cells + last])
            sizes.append(size)
        rows, columns = (tf.constant(s, kernel.dtype) for s in selections)
        kernel = tf.einsum("Tiak,Ujbl,klcd->TUijcabd", rows, columns, kernel)
        shape = kernel.shape
        kernel = tf.reshape(kernel, [*shape[:2], math.prod(shape[2:5]), math.prod(shape[5:])])
        if kernel.shape[:2] == (1, 1):
            cells = tf.einsum("bhwc,cd->bhwd", self.cells, kernel[0, 0])
        else:
            cells = tf.nn.conv2d(self.cells, kernel, 1, [[0, 0], *pads, [0, 0]])
        return cells if block == 1 else Packed(cells, block, sizes)


def pack(image: tf.Tensor, block: int) -> Packed:
    """An image [batch, height, width, channels] as `Packed`."""
    size = image.shape[1:3]
    x = tf.pad(image, [[0, 0], *([0, -n % block] for n in size), [0, 0]])
    pixels = [x[:, i::block, j::block] for i in range(block) for j in range(block)]
    return Packed(tf.concat(pixels, axis=-1), block, size)


def unpack(x: Any) -> tf.Tensor:
    """The image of a `Packed`; an image stays as it is."""
    if not isinstance(x, Packed):
        return x
    return tf.nn.depth_to_space(x.cells, x.block)[:, : x.size[0], : x.size[1]]


def apply(function: Callable, x: Any) -> Any:
    """function(x), of an image or a `Packed`."""
    return x.map(function) if isinstance(x, Packed) else function(x)
