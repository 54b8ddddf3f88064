"""The layers that stand in for a TensorFlow operation compute what it computes."""

import numpy as np
import pytest
import scipy.special
import tensorflow as tf

from kmax_tf.model.layers import SparseConv2D, gelu, resize_bilinear


@pytest.mark.parametrize("dilation", [1, 6, 12])
def test_a_sparse_convolution_is_the_dilated_one_with_its_gradients(dilation):
    generator = np.random.default_rng(dilation)
    # At a dilation of 12 most taps meet the image nowhere.
    image = tf.constant(generator.normal(size=[2, 9, 13, 5]), tf.float32)
    layer = SparseConv2D(4, 3, padding="same", dilation_rate=dilation, use_bias=False)
    layer.build(image.shape)

    with tf.GradientTape(persistent=True) as tape:
        tape.watch(image)
        results = [
            layer(image),
            tf.nn.conv2d(image, layer.kernel, 1, "SAME", dilations=dilation),
        ]
        losses = [tf.reduce_sum(tf.sin(y)) for y in results]
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-5)
    for source in (image, layer.kernel):
        np.testing.assert_allclose(
            *(tape.gradient(loss, source) for loss in losses), rtol=1e-5, atol=1e-5
        )


def test_gelu_is_the_exact_one():
    x = np.linspace(-8, 8, 1001)
    np.testing.assert_allclose(
        gelu(tf.constant(x, tf.float32)), x * scipy.special.ndtr(x), atol=2e-6
    )


@pytest.mark.xla
@pytest.mark.parametrize("size", [(9, 13), (33, 49), (17, 13), (6, 20)])
def test_resize_under_xla_is_that_of_tensorflow(size):
    image = tf.constant(np.random.default_rng(0).normal(size=[2, 9, 13, 5]), tf.float32)
    expected = tf.compat.v1.image.resize_bilinear(image, size, align_corners=True)
    for jit_compile in (False, True):
        resize = tf.function(resize_bilinear, jit_compile=jit_compile)
        np.testing.assert_allclose(resize(image, size), expected, atol=2e-6)
        assert resize(image, size).shape == (2, *size, 5)


def test_gradient_of_gelu():
    x = tf.constant(np.linspace(-8, 8, 1001), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = gelu(x)
    slope = tape.gradient(y, x)
    x = x.numpy().astype(np.float64)
    expected = scipy.special.ndtr(x) + x * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(slope, expected, atol=2e-6)
