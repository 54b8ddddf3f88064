"""A traced function as one graph: its large weights are inputs, its small ones constants.

Small weights are many. As variables, they make up more than half of the time that an export takes
to load. Large weights as constants are worse: every pass over the graph would copy them.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

LARGE = 2**16  # bytes of a weight


class FrozenGraph(NamedTuple):
    """A function of one argument.

    Attributes:
        graph: a GraphDef without variables.
        argument: the TensorSpec of the argument; its name is that of the placeholder.
        weights: {name of a placeholder's tensor: float32 array}.
        outputs: names of the tensors that `structure` consists of.
        structure: what the function returns.
    """

    graph: Any
    argument: tf.TensorSpec
    weights: dict[str, np.ndarray]
    outputs: list[str]
    structure: Any

    def __call__(self, argument: tf.Tensor, weights: Mapping[str, tf.Tensor]) -> Any:
        """Adds the graph to a `tf.function` that is being traced, and returns the `structure`."""
        inputs = {f"{self.argument.name}:0": argument, **weights}
        outputs = tf.graph_util.import_graph_def(self.graph, inputs, self.outputs, name="")
        # The graph knows less of the shapes than the code that made it.
        for output, traced in zip(outputs, tf.nest.flatten(self.structure), strict=True):
            output.set_shape(traced.shape)
        return tf.nest.pack_sequence_as(self.structure, outputs)


def freeze(function: Any) -> FrozenGraph:
    """Freezes a `tf.function` whose input signature is one named TensorSpec."""
    concrete = function.get_concrete_function()
    # Control flow stays as it is, for converters know it.
    frozen = convert_variables_to_constants_v2(
        concrete, lower_control_flow=False, aggressive_inlining=True
    )
    graph = frozen.graph.as_graph_def()
    [argument] = function.input_signature
    outputs = [tensor.name for tensor in frozen.outputs]
    return FrozenGraph(graph, argument, _take_weights(graph), outputs, concrete.structured_outputs)


def _take_weights(graph):
    """Makes placeholders of large constants, and drops gradients, which need variables."""
    weights = {}
    for node in graph.node:
        node.attr.pop("_gradient_op_type", None)
        tensor = node.attr["value"].tensor if node.op == "Const" else None
        if tensor and tensor.dtype == tf.float32 and len(tensor.tensor_content) > LARGE:
            weights[f"{node.name}:0"] = tf.make_ndarray(tensor)
            node.op = "Placeholder"
            node.attr["shape"].shape.CopyFrom(tensor.tensor_shape)
            del node.attr["value"]
    return weights
