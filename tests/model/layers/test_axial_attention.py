"""Axial attention in training: the norms of the three terms, which are never made, are theirs."""

import numpy as np
import pytest
import tensorflow as tf

from kmax_tf.model.layers.axial_attention import AxialAttention


def normalised(x, axes, epsilon=1e-3):
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon), mean, variance


@pytest.mark.parametrize("length", [5, 12])
def test_training_is_the_formula_of_axial_deeplab(length):
    """With numpy: each term of the logits and of the output is made, normalized, and summed."""
    heads, width = 2, 8
    generator = np.random.default_rng(length)
    x = generator.normal(size=[3, length, 6]).astype(np.float32)
    layer = AxialAttention(width, heads)
    layer(x)
    for variable in layer.trainable_variables:
        variable.assign(generator.normal(1.0, 0.5, variable.shape))
    layer.similarity_norm.moving_mean.assign_add(1.0 + tf.zeros_like(layer.similarity_norm.beta))
    output = layer(x, training=True)
    assert len(layer.trainable_variables) == 4 + 3 * 2

    qkv, _, _ = normalised(x @ layer.qkv_kernel.numpy(), (0, 1))
    qkv = qkv * layer.qkv_norm.gamma.numpy() + layer.qkv_norm.beta.numpy()
    q, k, v = (t.reshape(3, length, heads, -1) for t in np.split(qkv, [width, 2 * width], axis=-1))
    row = np.arange(length)[None] - np.arange(length)[:, None] + 254
    rq, rk, rv = (
        table.numpy()[row]
        for table in (layer.query_positions, layer.key_positions, layer.value_positions)
    )
    terms = np.stack(
        [
            np.einsum("bihd,bjhd->bhij", q, k),
            np.einsum("bihd,ijd->bhij", q, rq),
            np.einsum("bjhd,ijd->bhij", k, rk),
        ]
    )
    terms, mean, variance = normalised(terms, (1, 3, 4))
    norm = layer.similarity_norm
    logits = (terms * norm.gamma.numpy() + norm.beta.numpy()).sum(0)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    results = np.stack(
        [np.einsum("bhij,bjhd->bhid", weights, v), np.einsum("bhij,ijd->bhid", weights, rv)]
    )
    results, _, _ = normalised(results, (1, 3))
    norm = layer.output_norm
    expected = (results * norm.gamma.numpy() + norm.beta.numpy()).sum(0)
    expected = expected.transpose(0, 2, 1, 3).reshape(3, length, 2 * width)

    np.testing.assert_allclose(output, expected, atol=2e-4)
    moved = layer.similarity_norm
    np.testing.assert_allclose(moved.moving_mean, 0.99 + 0.01 * mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moved.moving_variance, 0.99 + 0.01 * variance, rtol=1e-4)
