"""The layers that stand in for a TensorFlow operation compute what it computes."""

import numpy as np
import pytest
import scipy.special
import tensorflow as tf
import tf_keras

from kmax_tf.model.layers.conv import Conv2D, ConvBN, DenseBN, DepthwiseBN, SparseConv2D
from kmax_tf.model.layers.norms import LayerNorm
from kmax_tf.model.layers.ops import gelu, resize_bilinear, softmax, with_narrow_gradient
from kmax_tf.model.layers.stateless_random import DropPath, random_seed


def dilated(kernel, dilation):
    """A kernel with zeros between its taps: without oneDNN a CPU has no gradient with dilation."""
    taps = dilation * tf.range(kernel.shape[0])
    places = tf.one_hot(taps, taps[-1] + 1, dtype=kernel.dtype)
    return tf.einsum("ijcd,iy,jx->yxcd", kernel, places, places)


@pytest.mark.parametrize("dilation", [1, 6, 12])
def test_a_sparse_convolution_is_the_dilated_one_with_its_gradients(dilation):
    generator = np.random.default_rng(dilation)
    # At a dilation of 12 most taps are outside of the image.
    image = tf.constant(generator.normal(size=[2, 9, 13, 5]), tf.float32)
    layer = SparseConv2D(4, 3, padding="same", dilation_rate=dilation, use_bias=False)
    layer.build(image.shape)

    with tf.GradientTape(persistent=True) as tape:
        tape.watch(image)
        results = [
            layer(image),
            tf.nn.conv2d(image, dilated(layer.kernel, dilation), 1, "SAME"),
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


@pytest.mark.xla
@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(
    ("channels", "size", "strides", "dilation"),
    [
        (3, 7, 2, 1),
        (3, 3, 2, 1),
        (3, 4, 4, 1),
        (5, 1, 1, 1),
        (20, 1, 2, 1),
        (20, 3, 2, 1),
        (20, 3, 1, 2),
    ],
)
def test_a_convolution_under_xla_is_that_of_tensorflow(
    channels, size, strides, dilation, padding, dtype
):
    generator = np.random.default_rng(size)
    image, kernel = (
        tf.cast(tf.constant(generator.integers(-3, 4, shape)), dtype)
        for shape in ([2, 18, 33, channels], [size, size, channels, 4])
    )
    layer = Conv2D(4, size, strides, padding=padding, dilation_rate=dilation, dtype=dtype)
    layer.build(image.shape)
    layer.kernel.assign(kernel)

    @tf.function(jit_compile=True)
    def compiled(image):
        with tf.GradientTape() as tape:
            tape.watch(image)
            y = layer(image)
        return y, *tape.gradient(y, [image, layer.kernel], output_gradients=y / 64)

    found = compiled(image)
    with tf.GradientTape() as tape:
        image, kernel = (tf.cast(t, tf.float32) for t in (image, kernel))
        tape.watch([image, kernel])
        y = tf.nn.conv2d(image, dilated(kernel, dilation), strides, padding.upper())
    expected = y, *tape.gradient(y, [image, kernel], output_gradients=y / 64)
    # Whole numbers, so that the products are exact; the sums of bfloat16 are not.
    tolerance = 1e-5 if dtype == tf.float32 else 0.02
    for ours, theirs in zip(found, expected, strict=True):
        ours, theirs = (np.asarray(tf.cast(t, tf.float32)) for t in (ours, theirs))
        np.testing.assert_allclose(ours, theirs, atol=tolerance * np.abs(theirs).max())


@pytest.mark.xla
@pytest.mark.parametrize("batch", [1, 2])  # one image has a form of its own
def test_a_depthwise_convolution_under_xla_is_that_of_tensorflow(batch):
    generator = np.random.default_rng(batch)
    image = tf.constant(generator.integers(-4, 5, [batch, 6, 9, 3]), tf.bfloat16)
    layer = DepthwiseBN("linear")
    layer.build(image.shape)
    layer.conv.depthwise_kernel.assign(generator.integers(-2, 3, [5, 5, 3, 1]))
    layer.norm.moving_variance.assign(tf.fill([3], 1 - layer.norm.epsilon))  # changes nothing

    compiled = tf.function(layer.call, jit_compile=True)(image)
    # These sums of whole numbers are exact, in bfloat16 too.
    expected = tf.nn.depthwise_conv2d(
        tf.cast(image, tf.float32), layer.conv.depthwise_kernel, [1, 1, 1, 1], "SAME"
    )
    np.testing.assert_array_equal(tf.cast(compiled, tf.float32), expected)


@pytest.mark.parametrize("keep_logits", [True, False])
@pytest.mark.parametrize("compiled", [False, True])
def test_softmax_has_the_gradient_of_tensorflow(compiled, keep_logits):
    logits = tf.constant(np.random.default_rng(0).normal(size=[2, 3, 7]), tf.float32)

    @tf.function(jit_compile=compiled)
    def gradients():
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(logits)
            own = with_narrow_gradient(softmax(logits, keep_logits))
            values = [tf.reduce_sum(y**2) for y in (own, tf.nn.softmax(logits))]
        return [tape.gradient(value, logits) for value in values]

    np.testing.assert_allclose(*gradients(), atol=1e-6)
    operations = gradients.get_concrete_function().graph.get_operations()
    barriers = sum(operation.type == "XlaOptimizationBarrier" for operation in operations)
    assert barriers == compiled * (1 + (not keep_logits))


@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize(
    "layer, options, shape",
    [
        (ConvBN, dict(kernel_size=1), (2, 5, 7, 6)),
        (ConvBN, dict(kernel_size=1, strides=2), (2, 5, 7, 6)),
        (ConvBN, dict(kernel_size=3, dilation=2), (2, 9, 9, 6)),
        (DenseBN, {}, (2, 5, 6)),
    ],
)
def test_merged_in_inference_is_product_norm_and_activation(layer, options, shape, activation):
    generator = np.random.default_rng(0)
    layer = layer(4, activation=activation, **options)
    x = tf.constant(generator.normal(size=shape), tf.float32)
    layer(x, training=False)
    for v in layer.norm.weights:
        v.assign(generator.uniform(0.5, 2, v.shape))

    gamma, beta, mean, variance = (v.numpy() for v in layer.norm.weights)
    if isinstance(layer, DenseBN):
        y = tf.tensordot(x, layer.dense.kernel, 1)
    else:
        y = tf_keras.layers.Conv2D.call(layer.conv, x)
    y = (y - mean) / np.sqrt(variance + 1e-3) * gamma + beta
    expected = {None: y, "relu": np.maximum(y, 0), "gelu": y * scipy.special.ndtr(y)}[activation]
    for function in (layer, tf.function(layer)):
        np.testing.assert_allclose(function(x, training=False), expected, rtol=1e-5, atol=2e-6)


def test_layer_norm_is_that_of_keras_in_inference_and_training():
    x = tf.constant(np.random.default_rng(0).normal(3, 2, [2, 5, 7, 6]), tf.float32)
    layer, keras = LayerNorm(), tf_keras.layers.LayerNormalization(epsilon=1e-6)
    for norm in (layer, keras):
        norm.build(x.shape)
        norm.gamma.assign(np.linspace(0.5, 2, 6))
        norm.beta.assign(np.linspace(-1, 1, 6))
    for training in (False, True):
        np.testing.assert_allclose(layer(x, training=training), keras(x), atol=2e-6)


def test_drop_path_drops_whole_images_and_scales_the_others():
    layer, ones = DropPath(0.8), tf.ones([4000, 2, 2])
    with random_seed(tf.constant([3, 4])):
        first, second = layer(ones, training=True).numpy(), layer(ones, training=True).numpy()
    assert set(np.unique(first)) == {0, np.float32(1.25)}
    np.testing.assert_array_equal(first, first[:, :1, :1] * ones)  # the same for a whole image
    assert abs(first.mean() - 1) < 0.03
    assert (first != second).any()  # each layer draws anew
    np.testing.assert_array_equal(layer(ones, training=False), ones)
