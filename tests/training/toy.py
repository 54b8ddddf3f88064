"""An experiment that starts in a moment, for what does not depend on the model."""

import dataclasses
import types

import tensorflow as tf
import tf_keras

from kmax_tf.loss.criterion import Losses
from kmax_tf.model.kmax import Outputs
from kmax_tf.model.kmax_decoder import Prediction
from kmax_tf.model.layers.norms import BatchNorm

GIN = """
from __gin__ import dynamic_registration
from kmax_tf import experiment
import toy

include "tiny.gin"

experiment.Experiment.model = @toy.Toy
experiment.Experiment.criterion = @toy.ToyCriterion()
toy.ToyCriterion.chance = False
"""
CLUSTERS = types.SimpleNamespace(num_clusters=16, drop_query=False)  # what a cluster path tells


class Toy(tf_keras.Model):
    """Three layers, with what training asks of a model."""

    output_stride, num_predictions, cluster_path = 8, 1, CLUSTERS

    def __init__(self, num_classes):
        super().__init__()
        self.pixel_encoder = tf_keras.layers.Conv2D(8, 9, self.output_stride, "same")
        self.norm = BatchNorm()
        self.head = tf_keras.layers.Conv2D(num_classes, 1)

    def check_size(self, height, width):
        pass

    def create_variables(self, height, width):
        self(tf.zeros([1, height, width, 3]), training=False)
        return self

    def call(self, image, training):
        masks = self.head(self.norm(self.pixel_encoder(image / 255), training=training))
        return Outputs(Prediction(masks, None, None), (), None)


class Frozen(Toy):
    """With a part that does not learn."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.pixel_encoder.trainable = False


@dataclasses.dataclass
class ToyCriterion:
    """Asks the logits to be what the image's labels and chance say."""

    unmatched_class_weight: str = "nonvoid_share"
    chance: bool = True  # without it the loss is the same for any number of replicas

    def __call__(self, outputs, targets, noise):
        masks = outputs.final.mask_logits
        labels = tf.one_hot(targets.semantic, masks.shape[-1])
        if self.chance:
            labels *= tf.reshape(noise[0], [*labels.shape[:3], 1])
        loss = tf.reduce_mean((masks - labels) ** 2, axis=[1, 2, 3])
        return Losses(*[loss[None]] * 4, *[loss] * (len(Losses._fields) - 4))


def of(experiment, **settings):
    """The experiment with this model and this criterion."""
    return dataclasses.replace(experiment, model=Toy, criterion=ToyCriterion(**settings))
