"""The two cross-attentions against their formulas, and what k-means passes gradients to."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from kmax_tf import runtime
from kmax_tf.errors import InputError
from kmax_tf.model import kmax_decoder
from kmax_tf.model.kmax_decoder import PredictionHead
from kmax_tf.model.layers.attention import softmax_update
from kmax_tf.model.layers.stateless_random import random_seed

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
    update = softmax_update(queries, keys, values, heads=2).numpy()
    for head in (slice(0, 2), slice(2, 4)):
        q, k, v = (t.numpy()[..., head] for t in (queries, keys, values))
        weight = np.exp(q @ k.transpose(0, 2, 1) / 2**0.5)
        weight /= weight.sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(update[..., head], weight @ v, atol=1e-5)


def test_kmeans_gradients_are_those_of_a_fixed_assignment():
    runtime.set_seed(0)  # near a tie, a step could give a pixel another cluster
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
        # A random direction alone may have almost no slope.
        gradient = gradients[kernel.ref()]
        direction = _normal(*kernel.shape) + 4 * gradient / tf.norm(gradient)
        start, step, values = kernel.numpy(), 1e-3, []
        for sign in (1, -1):
            kernel.assign(start + sign * step * direction)
            values.append(float(loss()))
        kernel.assign(start)
        slope = tf.reduce_sum(gradient * direction)
        np.testing.assert_allclose((values[0] - values[1]) / (2 * step), slope, rtol=2e-2)


def test_impossible_cross_attentions():
    path = functools.partial(kmax_decoder.ClusterPath, 3)
    with pytest.raises(InputError, match="'softmax' is neither 'kmeans' nor 'spatial_softmax'"):
        path(cross_attention="softmax")
    with pytest.raises(InputError, match="bind ClusterPath.deep_supervision to True"):
        path(deep_supervision=False)


@pytest.fixture
def dropping():
    """A path of 8 centers that drops half of them, and features of one image for it."""
    path = kmax_decoder.ClusterPath(
        3,
        num_clusters=8,
        channels=16,
        hidden=16,
        heads=2,
        head_depth=8,
        depths=(1, 1),
        drop_query=True,
    )
    features = [_normal(1, 3, 4, 6), _normal(1, 5, 7, 6)]
    path(features)
    return path, features


def _training_centres(path, seed, batch=1):
    with random_seed(tf.constant([seed, 0])):
        return path._centres(batch, training=True).numpy()


def test_drop_query_trains_half_of_the_centres_and_infers_with_all(dropping):
    path, features = dropping
    final, auxiliary = path(features, training=False)
    assert {p.mask_logits.shape[-1] for p in (final, *auxiliary)} == {8}
    assert {p.class_logits.shape[1] for p in (final, *auxiliary)} == {8}
    with random_seed(tf.constant([1, 0])), tf.GradientTape() as tape:
        final, auxiliary = path(features, training=True)
        loss = tf.add_n([tf.reduce_sum(x**2) for x in tf.nest.flatten((final, auxiliary))])
    assert {p.mask_logits.shape[-1] for p in (final, *auxiliary)} == {4}
    assert {p.class_logits.shape[1] for p in (final, *auxiliary)} == {4}
    gradient = tf.convert_to_tensor(tape.gradient(loss, path.cluster_centres)).numpy()[0]
    kept = _training_centres(path, 1)[0]
    reached = path.cluster_centres.numpy()[0][np.abs(gradient).sum(axis=1) > 0]
    assert set(map(tuple, reached)) == set(map(tuple, kept)) and len(kept) == 4


def test_dropped_queries_are_uniform_and_each_images_own(dropping):
    path, _ = dropping
    rows = {tuple(row): i for i, row in enumerate(path.cluster_centres.numpy()[0])}
    subsets = [
        frozenset(rows[tuple(row)] for row in image)
        for seed in range(100)
        for image in _training_centres(path, seed, batch=4)
    ]
    assert {len(subset) for subset in subsets} == {4}
    counts = [sum(i in subset for subset in subsets) for i in range(8)]
    assert min(counts) > 150 and max(counts) < 250  # 200 expected, 10 the standard deviation
    assert len(set(subsets[:4])) > 1
    np.testing.assert_array_equal(_training_centres(path, 5), _training_centres(path, 5))
