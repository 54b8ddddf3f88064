"""A model that takes no time, for what does not depend on the network."""

import types

import tensorflow as tf

from kmax_tf.model.kmax import Outputs
from kmax_tf.model.kmax_decoder import Prediction


class Stub(tf.Module):
    """Two vertical halves; the weights say which class the left one is."""

    cluster_path = types.SimpleNamespace(num_clusters=2, drop_query=False)

    def __init__(self, num_classes):
        super().__init__()
        self.num_classes = num_classes
        self.step = tf.Variable(0.0)
        self.ballast = tf.Variable(tf.random.stateless_normal([20000], [1, 2]))

    def check_size(self, height, width):
        pass

    def create_variables(self, height, width):
        return self

    def __call__(self, image, training):
        side = tf.cast(tf.range(9) < 4 + tf.cast(self.step, tf.int32) % 3, tf.float32)
        masks = 20 * tf.broadcast_to(tf.stack([side, 1 - side], -1), [9, 9, 2])
        classes = [tf.cast(self.step, tf.int32) % self.num_classes, self.num_classes - 1]
        logits = 20 * tf.one_hot(classes, self.num_classes + 1)
        batch = image.shape[0] or tf.shape(image)[0]  # an export takes any
        final = Prediction(
            tf.tile(masks[None], [batch, 1, 1, 1]),
            tf.tile(logits[None], [batch, 1, 1]),
            tf.zeros([batch, 9, 9, 1]),
        )
        return Outputs(final, (), None)
