"""Converts a model to ONNX, and runs it with onnxruntime. Needs the extra `onnx`."""

import numpy as np
import tensorflow as tf

from kmax_tf.errors import InputError
from kmax_tf.inference.file_format import FileFormat
from kmax_tf.model.postprocess import Panoptic

try:
    import onnxruntime
    import tf2onnx
    from onnx import TensorProto, numpy_helper
except ImportError as error:
    raise InputError(f"{error}; pip install 'kmax_tf[onnx]'") from error

USE = """import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
names = [output.name for output in session.get_outputs()]
result = dict(zip(names, session.run(None, {"image": image})))"""
OPSET = 18  # the newest that tf2onnx 1.17 writes


def _convert(frozen):
    names = dict(zip(frozen.outputs, sorted(frozen.structure), strict=True))
    model, _ = tf2onnx.convert.from_graph_def(
        frozen.graph,
        input_names=["image:0", *frozen.weights],
        output_names=frozen.outputs,
        tensors_to_rename={"image:0": "image", **names},
        opset=OPSET,
        custom_op_handlers={name: (handler, []) for name, handler in HANDLERS.items()},
    )
    del model.graph.input[1:]
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(  # others are of branches without outputs
        numpy_helper.from_array(weight, name)
        for name, weight in frozen.weights.items()
        if name in used
    )
    return model.SerializeToString()


def _load_predictor(content):
    session = onnxruntime.InferenceSession(content)

    def predict(image):
        outputs = session.run(Panoptic._fields, {"image": image.numpy()})
        return Panoptic(*map(tf.constant, outputs)), []

    return predict


def _resize(graph, node, *_):
    """Resizes to a size; tf2onnx gives a scale, whose rounding can lose a row."""
    image, size = node.input
    node.type = "Resize"
    graph.replace_inputs(node, [image, "", "", _int64(graph, size)])
    node.set_attr("mode", "linear")
    node.set_attr("coordinate_transformation_mode", "align_corners")
    node.set_attr("axes", [1, 2])


def _select(_, node, *__):
    """Selects; tf2onnx multiplies with zeros and ones, which is slower and spreads NaN."""
    node.type = "Where"


def _segment_sum(graph, node, *_):
    """Adds to zeros; tf2onnx makes a table of all segments times the largest one's pixels."""
    values, ids, count = node.input
    one = graph.make_const(tf2onnx.utils.make_name("one"), np.array([1])).output[0]
    shape = graph.make_node("Reshape", [_int64(graph, count), one]).output[0]
    zeros = graph.make_node("ConstantOfShape", [shape]).output[0]
    node.type = "ScatterElements"
    graph.replace_inputs(node, [zeros, _int64(graph, ids), values])
    node.set_attr("reduction", "add")


def _int64(graph, tensor):
    return graph.make_node("Cast", [tensor], {"to": TensorProto.INT64}).output[0]


HANDLERS = {
    "ResizeBilinear": _resize,
    "SelectV2": _select,
    "UnsortedSegmentSum": _segment_sum,
}
# Sums of another order round differently; that may change a pixel between two near masks.
ONNX = FileFormat(
    name="ONNX",
    file_name="model.onnx",
    runtime="onnxruntime",
    use=USE,
    batch=None,
    convert=_convert,
    load_predictor=_load_predictor,
    largest_difference=1e-4,
)
