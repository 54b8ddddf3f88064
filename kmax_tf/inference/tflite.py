"""Converts a model to TensorFlow Lite, with 8-bit weights by dynamic range quantization."""

import numpy as np
import tensorflow as tf

from kmax_tf.inference.file_format import FileFormat
from kmax_tf.model.postprocess import Panoptic

USE = """import tensorflow as tf

result = tf.lite.Interpreter("model.tflite").get_signature_runner()(image=image)"""


def _convert(frozen):
    _regroup_gelu(frozen.graph)

    @tf.function(input_signature=[frozen.argument])
    @tf.autograph.experimental.do_not_convert
    def predict(image):
        return frozen(image, {name: tf.constant(array) for name, array in frozen.weights.items()})

    concrete = predict.get_concrete_function()
    # With an object, any, the file gets the names of the function.
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module())
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return converter.convert()


def _regroup_gelu(graph):
    """Makes (0.5 * x) * (1 + erf), the GELU of the converter, of x * (0.5 * (1 + erf))."""
    nodes = {node.name: node for node in graph.node}

    def second_input(node):
        return nodes.get(node.input[1]) if node and len(node.input) > 1 else None

    for product in graph.node:
        half = second_input(product)
        total = second_input(half)
        erf = second_input(total)
        if erf and [n.op for n in (product, half, total, erf)] == ["Mul", "Mul", "AddV2", "Erf"]:
            half.input[1] = product.input[0]
            product.input[:] = [half.name, total.name]


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
