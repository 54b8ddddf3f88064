"""The values that the official code was run on; NumPy must make them to the last bit."""

import numpy as np
import pytest

from kmax_tf.parity import rule


@pytest.mark.parametrize(
    ("key", "shape", "first"),
    [
        (
            "encoder/_stem/_conv/kernel/.ATTRIBUTES/VARIABLE_VALUE",
            (7, 7, 3, 64),
            [0.2109815, 0.11559962, 0.21252127, 0.10846302],
        ),
        (
            "transformer_decoder/cluster_centers",
            (1, 128, 256),
            [0.2656493, -0.26623827, 2.570935],
        ),
        ("pixel_space_mask_batch_norm/gamma", (1,), [1.3450466]),
    ],
)
def test_weight(key, shape, first):
    value = rule.weight(key, shape, seed=1)
    assert value.shape == shape and value.dtype == np.float32
    np.testing.assert_array_equal(value.ravel()[: len(first)], np.float32(first))


def test_unknown_weight():
    with pytest.raises(KeyError, match="sigma"):
        rule.weight("encoder/_stem/sigma", [3], seed=1)


def test_image():
    image = rule.image(1, (2, 65, 97, 3))
    assert image.shape == (2, 65, 97, 3) and image.dtype == np.float32
    assert image.ravel()[:6].tolist() == [0, 51, 95, 0, 44, 96]
    assert image.astype(np.float64).sum() == 4422813


def test_pattern():
    value = rule.pattern("main/semantic_logits", (2, 17, 25, 134), seed=1)
    assert value.shape == (2, 17, 25, 134)
    np.testing.assert_array_equal(value.ravel()[:3], np.float32([0.37287897, 1.3424598, 0.9124863]))
