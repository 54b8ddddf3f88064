"""Converts a model to TensorFlow Lite, with 8-bit weights by dynamic range quantization."""

import numpy as np
import tensorflow as tf

from kmax_tf.inference.file_format import FileFormat
from kmax_tf.model.postprocess import Panoptic

USE = """import tensorflow as tf

result = tf.lite.Interpreter("model.tflite").get_signature_runner()(image=image)"""


def _convert(predict, segmenter):
    concrete = predict.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], segmenter)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return converter.convert()


def _load_predictor(content):
    run = tf.lite.Interpreter(model_content=content).get_signature_runner()

    def predict(image):
        each = [Panoptic(**run(image=one[None].numpy())) for one in image]
        return tf.nest.map_structure(lambda *rows: tf.constant(np.concatenate(rows)), *each), []

    return predict


# Rounded weights move the borders of segments, and may cost one that is near a threshold.
TFLITE = FileFormat(
    name="TensorFlow Lite",
    file_name="model.tflite",
    runtime="TensorFlow",
    use=USE,
    batch=1,
    convert=_convert,
    load_predictor=_load_predictor,
    largest_difference=1.0,
)
