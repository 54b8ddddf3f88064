"""What XLA computes on packed images is what the golden numbers hold without it."""

import numpy as np
import pytest
import tensorflow as tf

from kmax_tf.model.packed import pack, unpack
from kmax_tf.model.resnet import ResNet

STEMS = {"resnet50": ((7, 2, 8),), "max_s": ((3, 2, 8), (3, 1, 8), (3, 1, 16))}


@pytest.mark.parametrize("block", [2, 3])
def test_packing_and_unpacking(block):
    image = tf.constant(np.random.default_rng(0).normal(size=[2, 7, 6, 5]), tf.float32)
    packed = pack(image, block)
    assert packed.shape == image.shape
    np.testing.assert_array_equal(unpack(packed), image)
    np.testing.assert_allclose(packed.mean(tf.square), tf.reduce_mean(image**2, [0, 1, 2]), 1e-6)
    scale, offset = tf.range(5.0), tf.range(1.0, 6.0)
    moved = packed.affine(scale, offset)
    np.testing.assert_allclose(unpack(moved), image * scale + offset, 1e-6)
    # Nothing comes into being beyond the image, where a convolution would see it.
    np.testing.assert_allclose(
        tf.reduce_sum(moved.cells), tf.reduce_sum(image * scale + offset), 1e-5
    )


@pytest.mark.xla
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(33, 49), (30, 35)])
@pytest.mark.parametrize("stem", STEMS)
def test_a_stem_and_a_stage_under_xla(stem, size, training):
    generator = np.random.default_rng(0)
    encoder = ResNet(STEMS[stem], widths=(8,), depths=(2,), activation="gelu")
    image = tf.constant(generator.uniform(-1, 1, [2, *size, 3]), tf.float32)
    encoder(image)
    for v in encoder.variables:
        positive = "gamma" in v.name or "variance" in v.name
        v.assign(generator.uniform(0.5 if positive else -0.5, 1.0, v.shape))
    initial = encoder.get_weights()

    def run(image):
        with tf.GradientTape() as tape:
            endpoints = encoder(image, training=training)
            loss = tf.add_n([tf.reduce_mean(x**2) for x in endpoints])
        return endpoints, tape.gradient(loss, encoder.trainable_variables)

    results = []
    for jit_compile in (False, True):
        encoder.set_weights(initial)
        returned = tf.function(run, jit_compile=jit_compile)(image)
        results.append([*tf.nest.flatten(returned), *encoder.get_weights()])
    for expected, found in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
