"""The two cross-attentions against their formulas, and what k-means passes gradients to."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from kmax_tf.files import InputError
from kmax_tf.model import kmax_decoder
from kmax_tf.model.heads import PredictionHead

RANDOM = np.random.default_rng(0)


def _normal(*shape):
    return tf.constant(RANDOM.normal(size=shape), tf.float32)


def test_kmeans_update_sums_what_is_assigned():
    logits, values = _normal(2, 9, 3), _normal(2, 9, 5)
    update = kmax_decoder.kmeans_update(logits, values).numpy()
    cluster = logits.numpy().argmax(axis=-1)
    for b in range(2):
        for n in range(3):
            expected = values.numpy()[b][cluster[b] == n].sum(axis=0)
            np.testing.assert_allclose(update[b, n], expected, atol=1e-5)


def test_softmax_update_is_attention():
    queries, keys, values = _normal(2, 3, 4), _normal(2, 9, 4), _normal(2, 9, 4)
    update = kmax_decoder.softmax_update(queries, keys, values, heads=2).numpy()
    for head in (slice(0, 2), slice(2, 4)):
        q, k, v = (t.numpy()[..., head] for t in (queries, keys, values))
        weight = np.exp(q @ k.transpose(0, 2, 1) / 2**0.5)
        weight /= weight.sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(update[..., head], weight @ v, atol=1e-5)


def test_kmeans_gradients_are_those_of_a_fixed_assignment():
    head = PredictionHead(2, channels=8, depth=8)
    decoder = kmax_decoder.KMaXDecoder(head, 8, 16, 2, "gelu", 1.0, "kmeans", dual_path=False)
    centres, pixels, weight = _normal(1, 3, 8), _normal(1, 4, 5, 6), _normal(1, 3, 8)

    def loss():
        return tf.reduce_sum(decoder(centres, pixels)[0] * weight)

    loss()
    for v in decoder.trainable_variables:
        if "gamma" in v.name:  # some start at 0
            v.assign(1 + 0.1 * _normal(*v.shape))
    with tf.GradientTape() as tape:
        value = loss()
    variables = decoder.trainable_variables
    gradients = {v.ref(): g for v, g in zip(variables, tape.gradient(value, variables))}

    # The arg-max stops what the head's own parameters would get; its losses train them.
    assert all(gradients[v.ref()] is None for v in head.trainable_variables)
    reached = [v for v in variables if gradients[v.ref()] is not None]
    assert len(reached) == len(variables) - len(head.trainable_variables)
    for layer in (decoder.pixel_projection, decoder.pixel_value, decoder.qkv):
        kernel = layer.trainable_variables[0]
        direction = _normal(*kernel.shape)
        start, step, values = kernel.numpy(), 1e-3, []
        for sign in (1, -1):
            kernel.assign(start + sign * step * direction)
            values.append(float(loss()))
        kernel.assign(start)
        slope = tf.reduce_sum(gradients[kernel.ref()] * direction)
        np.testing.assert_allclose((values[0] - values[1]) / (2 * step), slope, rtol=2e-2)


def test_impossible_cross_attentions():
    path = functools.partial(kmax_decoder.ClusterPath, 3)
    with pytest.raises(InputError, match="'softmax' is neither kmeans nor spatial_softmax"):
        path(cross_attention="softmax")
    with pytest.raises(InputError, match="set deep_supervision to True"):
        path(deep_supervision=False)
