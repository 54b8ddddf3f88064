"""Counts a model's parameters, multiply-adds and memory, and lists its output shapes."""

import math
import re
from collections.abc import Iterable

import tensorflow as tf
import tf_keras

from kmax_tf.experiment import Experiment


def describe(experiment: Experiment, height: int, width: int) -> dict:
    """Describes an experiment's model for images of [height, width].

    The model is traced but not run, so images may be large.

    Returns:
        A dictionary of
        - "input_size": [height, width]
        - "parameters": see `parameters`
        - "multiply_adds": of one image's inference, without the semantic branch
        - "outputs": the shape of each output, by name
        - "weight_bytes": of all variables in float32
    """
    model = experiment.model(experiment.dataset.num_classes)
    image = tf.TensorSpec([1, height, width, 3], tf.uint8)
    trace = tf.function(model, autograph=False).get_concrete_function(image)
    outputs = trace.graph.structured_outputs
    predictions = {"final": outputs.final}
    predictions |= {f"decoder_{i}": p for i, p in enumerate(outputs.auxiliary, start=1)}
    shapes = {
        f"{name}/{field}": list(tensor.shape)
        for name, prediction in predictions.items()
        for field, tensor in prediction._asdict().items()
    }
    return {
        "input_size": [height, width],
        "parameters": parameters(model),
        "multiply_adds": multiply_adds(outputs.final),
        "outputs": shapes | {"semantic_logits": list(outputs.semantic_logits.shape)},
        "weight_bytes": 4 * sum(math.prod(v.shape) for v in model.variables),
    }


def parameters(model: tf_keras.Model) -> dict:
    """Counts trainable parameters: "total", "without_semantic_branch" and "by_part"."""
    path = model.cluster_path
    by_part = {
        "encoder": _size(model.pixel_encoder),
        "pixel_decoder": _size(model.pixel_decoder),
        "kmax_decoders": _size(path) - _size(path.head),
        "heads": _size(path.head),
        "semantic_branch": _size(model.semantic_branch),
    }
    total = sum(by_part.values())
    without = total - by_part["semantic_branch"]
    return {"total": total, "without_semantic_branch": without, "by_part": by_part}


def _size(layer):
    return sum(math.prod(v.shape) for v in layer.trainable_variables)


def multiply_adds(outputs: Iterable[tf.Tensor]) -> int:
    """Counts the multiplications of convolutions and matrix products behind graph tensors.

    All shapes must be static.
    """
    todo, needed = [tensor.op for tensor in outputs], set()
    while todo:
        op = todo.pop()
        if op not in needed:
            needed.add(op)
            todo += [tensor.op for tensor in op.inputs]
    return sum(_multiply_adds(op) for op in needed)


def _multiply_adds(op):
    if op.type == "Conv2D":
        return _elements(op.outputs[0]) * math.prod(op.inputs[1].shape[:3])
    if op.type == "DepthwiseConv2dNative":
        return _elements(op.outputs[0]) * math.prod(op.inputs[1].shape[:2])
    if op.type in ("MatMul", "BatchMatMulV2"):
        transposed = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
        return _elements(op.outputs[0]) * op.inputs[0].shape[-2 if transposed else -1]
    if op.type == "Einsum":
        axes = re.split(",|->", op.get_attr("equation").decode())
        sizes = {a: n for term, x in zip(axes, op.inputs) for a, n in zip(term, x.shape)}
        return math.prod(sizes.values())
    return 0


def _elements(tensor):
    return math.prod(tensor.shape)


def text(description: dict) -> str:
    """Returns the description as text."""
    parameters = description["parameters"]
    rows = [*parameters["by_part"].items()]
    rows += [(name, parameters[name]) for name in ("without_semantic_branch", "total")]
    height, width = description["input_size"]
    lines = ["trainable parameters"]
    lines += [f"  {name:<26}{count:>15,}" for name, count in rows]
    lines.append(f"weights in float32           {description['weight_bytes'] / 2**20:>10.1f} MiB")
    lines.append(
        f"multiply-adds of inference   {description['multiply_adds'] / 1e9:>10.1f} G"
        f"   at {height} x {width}, without the semantic branch"
    )
    lines.append("outputs")
    lines += [f"  {name:<26}{shape}" for name, shape in description["outputs"].items()]
    return "\n".join(lines)
