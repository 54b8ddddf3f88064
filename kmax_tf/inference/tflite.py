"""Converts a model to TensorFlow Lite, with 8-bit weights.

Its input is a fitted and padded image (`host.fit_and_pad`), and its segments have that size.
Devices without TensorFlow are slow at shapes that depend on the image.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from kmax_tf.errors import InputError, first_line
from kmax_tf.model.postprocess import Panoptic

FILE_NAME = "model.tflite"


def convert(segmenter: Any) -> bytes:
    """Returns the content of a .tflite file: float32 [1, height, width, 3] in 0..255 -> `Panoptic`.

    Weights are quantized with dynamic range quantization.
    Raises InputError with the converter's reason if it refuses.
    """

    @tf.function(input_signature=[tf.TensorSpec([1, *segmenter.size, 3], name="image")])
    def predict(image):
        panoptic, *_ = segmenter.predict(image)
        return panoptic._asdict()

    concrete = predict.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], segmenter)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    try:
        return converter.convert()
    except Exception as error:  # the converter has no error class of its own
        # Each operation has a long line, and the reasons repeat.
        reasons = dict.fromkeys(re.findall(r"error: (.*)", str(error))) or [first_line(error)]
        raise InputError(
            f"TensorFlow Lite's converter refuses the model: {'; '.join(reasons):.400};"
            " export it in float32, or without TensorFlow Lite"
        ) from error


def load_predictor(content: bytes) -> Callable:
    """Loads the content of a .tflite file as a function like that of `build_predictor`."""
    interpreter = tf.lite.Interpreter(model_content=content)
    run = interpreter.get_signature_runner()

    def predict(image):
        each = [Panoptic(**run(image=one[None].numpy())) for one in image]
        return tf.nest.map_structure(lambda *rows: tf.constant(np.concatenate(rows)), *each), []

    return predict
