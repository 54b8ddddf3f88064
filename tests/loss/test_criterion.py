"""Every loss term, the matching and the gradients equal the official code's numbers."""

import numpy as np
import pytest
import tensorflow as tf

from kmax_tf.data.transforms.targets import Targets
from kmax_tf.loss.criterion import Criterion
from kmax_tf.model.kmax import Outputs
from kmax_tf.model.kmax_decoder import Prediction
from kmax_tf.parity import check


def test_golden(golden):
    for result in check.check(str(golden), "loss"):
        assert result.passed, result
        assert result.tensors >= 59  # 30 terms, 22 gradients, 7 of the matching


def test_image_without_segments_leaves_the_class_term():
    rng = np.random.default_rng(0)
    masks, classes, features, semantic = (
        tf.Variable(rng.normal(size=shape), dtype=tf.float32)
        for shape in ((1, 9, 13, 5), (1, 5, 4), (1, 9, 13, 8), (1, 9, 13, 3))
    )
    nothing = tf.fill([1, 9, 13], -1)
    targets = Targets(nothing, tf.fill([1, 4], -1), nothing, tf.ones([1, 9, 13]))
    with tf.GradientTape() as tape:
        outputs = Outputs(Prediction(masks, classes, features), (), semantic)
        losses = Criterion()(outputs, targets, tf.fill([1, 1, 9 * 13], 0.5))
        (total,) = losses.total
    void = np.exp(classes.numpy()[..., -1]) / np.exp(classes.numpy()).sum(-1)
    assert float(total) == pytest.approx(3 * 0.25 * -np.log(void).mean(), rel=1e-4)
    assert float(total) == float(losses.pq_class[0, 0])
    sources = masks, classes, features, semantic
    gradients = tape.gradient(total, sources, unconnected_gradients="zero")
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert np.any(gradients[1])
