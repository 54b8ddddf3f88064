"""The model in TensorFlow Lite: weights in 8 bits, arithmetic as the device has it.

The image comes fitted and padded (`host.fit_and_pad`), and the segments are at that size: shapes
that depend on the image are what devices without TensorFlow run worst.
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
    """The content of a .tflite file: float32 [1, height, width, 3] in 0..255 -> `Panoptic`.

    Weights are quantised with a range each (dynamic range quantisation).
    Raises InputError with what the converter says if it refuses.
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
    except Exception as error:  # the converter's errors are of no kind of their own
        # One line an operation, of hundreds of characters; the reasons repeat.
        reasons = dict.fromkeys(re.findall(r"error: (.*)", str(error))) or [first_line(error)]
        raise InputError(
            f"TensorFlow Lite's converter refuses the model: {'; '.join(reasons):.400};"
            " export it in float32, or without TensorFlow Lite"
        ) from error


def load_predictor(content: bytes) -> Callable:
    """A function as `predictor.build_predictor` makes it, of the content of a .tflite file."""
    interpreter = tf.lite.Interpreter(model_content=content)
    run = interpreter.get_signature_runner()

    def predict(image):
        each = [Panoptic(**run(image=one[None].numpy())) for one in image]
        return tf.nest.map_structure(lambda *rows: tf.constant(np.concatenate(rows)), *each), []

    return predict
