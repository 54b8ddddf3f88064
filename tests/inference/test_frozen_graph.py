"""A frozen function gives what the function gives, and leaves out no weight."""

import numpy as np
import tensorflow as tf
import tf_keras

from kmax_tf.inference import frozen_graph


def test_large_weights_are_inputs_and_the_rest_is_constant():
    rng = np.random.default_rng(0)
    large = tf.Variable(rng.normal(size=(300, 100)), dtype=tf.float32)  # 120,000 bytes
    small = tf.Variable(rng.normal(size=100), dtype=tf.float32)
    x = tf.constant(rng.normal(size=(4, 300)), tf.float32)

    @tf.function(input_signature=[tf.TensorSpec([None, 300], name="x")])
    def function(x):
        rows = tf.map_fn(tf.nn.silu, x)  # a loop, and an operation with a gradient of its own
        return {"b": rows @ large + small, "a": (tf.shape(x), tf_keras.activations.gelu(rows))}

    frozen = frozen_graph.freeze(function)
    [(name, weight)] = frozen.weights.items()
    np.testing.assert_array_equal(weight, large)
    expected = function(x)
    small.assign(tf.zeros_like(small))  # a constant does not follow
    result = tf.function(lambda x, weight: frozen(x, {name: weight}))(x, tf.constant(weight))
    for ours, theirs in zip(tf.nest.flatten(result), tf.nest.flatten(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    doubled = tf.function(lambda x, weight: frozen(x, {name: weight}))(x, tf.constant(2 * weight))
    assert not np.allclose(doubled["b"], expected["b"])
