"""Golden cases of the model: forward passes, one training step's statistics and gradients.

The weights go in as a checkpoint of the official layout, through the importer.
"""

import contextlib
import os
import re
import tempfile
import types

import numpy as np
import tensorflow as tf
import tf_keras

from kmax_tf import config, files, runtime
from kmax_tf.experiment import Experiment
from kmax_tf.importers import classes, importer, names, readers
from kmax_tf.importers.variables import variables
from kmax_tf.model.layers.ops import resize_bilinear
from kmax_tf.parity.cases import Case, Comparison

# Official backbone names where ours differ, in the names of the experiments.
BACKBONES = {"r50": "resnet50", "axial_r50": "max_s"}
FIELDS = {
    "pixel_space_mask_logits": "mask_logits",
    "transformer_class_logits": "class_logits",
    "pixel_space_normalized_feature": "pixel_features",
}
KIND = "deeplab2"


def gin_file(model: str) -> str:
    """The experiment of an official model's name, "coco_axial_r50"."""
    dataset, backbone = model.split("_", 1)
    return f"gin/experiments/{dataset}_{BACKBONES.get(backbone, backbone)}.gin"


def write_official_checkpoint(
    prefix: str, keys: list[dict], rule: types.ModuleType, seed: int
) -> None:
    """Writes a checkpoint with the official keys and shapes, filled by the rule."""
    tensors = [tf.constant(rule.weight(entry["key"], entry["shape"], seed)) for entry in keys]
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=[entry["key"] for entry in keys],
        shape_and_slices=[""] * len(keys),
        tensors=tensors,
    )


def compare(case: Case, comparison: Comparison) -> None:
    """Compares every array of a model's case."""
    name, seed, rule = case.facts["model"], case.facts["seed"], case.rule()
    experiment = config.load(Experiment, gin_file(name))
    runtime.set_precision("float32")
    size = case.facts["input_shape"][1:3]
    model = experiment.model(experiment.dataset.num_classes).create_variables(*size)
    for layer in model.submodules:
        if hasattr(layer, "keep_prob"):  # drop path and dropout
            layer.keep_prob = 1.0
    keys = files.read_json(case.beside(os.path.join("checkpoint_keys", f"{name}.json")))
    with tempfile.TemporaryDirectory() as folder:
        prefix = os.path.join(folder, "ckpt")
        write_official_checkpoint(prefix, keys, rule, seed)
        source = readers.read(prefix)
    importer.import_weights(model, KIND, source, experiment.dataset)

    image = rule.image(seed, case.facts["input_shape"])
    comparison.add("image", image, case["image"], 0)
    semantic = _semantic_order(model, experiment.dataset)
    facts = {entry["name"]: entry for entry in case.facts["tensors"]}

    for tensor, value in _forward(model, image, semantic, training=False).items():
        _add(comparison, facts, case, f"infer/{tensor}", value)

    before = {path: v.numpy() for path, v in variables(model).items() if not v.trainable}
    with tf.GradientTape() as tape:
        tensors = _forward(model, image, semantic, training=True)
        outputs = {n: v for n, v in tensors.items() if re.match(r"(main|aux_\d+)/[^/]*$", n)}
        scalar = tf.add_n(
            [tf.reduce_mean(v * rule.pattern(n, v.shape, seed)) for n, v in outputs.items()]
        )
    for tensor, value in (tensors | {"scalar": scalar}).items():
        _add(comparison, facts, case, f"train/{tensor}", value)
    _compare_statistics(case, comparison, model, before)
    gradients = tape.gradient(scalar, model.trainable_variables, unconnected_gradients="zero")
    gradients = {
        v.ref(): tf.convert_to_tensor(g).numpy()
        for v, g in zip(model.trainable_variables, gradients)
    }
    _compare_gradients(case, comparison, model, gradients, semantic)
    for missing in facts.keys() - comparison.ratios.keys():
        if not any(compared.startswith(f"{missing}:") for compared in comparison.ratios):
            comparison.fail(f"{missing}: not computed")


def _add(comparison, facts, case, name, value):
    if name in facts:
        comparison.add_whole(facts[name], value, case[name])


def _semantic_order(model, dataset):
    """Our channel of each official channel of the semantic logits."""
    count = model.semantic_branch.classifier.filters
    order = names.load(KIND).semantic_channels
    return np.argsort(classes.channels(dataset, order, count)[:count])


def _forward(model, image, semantic, training):
    """Outputs and intermediate tensors of a call, by their official names."""
    encoder, decoders = model.pixel_encoder, model.cluster_path.decoders
    with _recorded([encoder, model.pixel_decoder, *decoders]) as recorded:
        outputs = model(image, training=training)
    endpoints, pixels, *decoded = recorded
    # A ConvNeXt block activates within.
    activation = getattr(encoder.stages[0][0], "activation", tf_keras.activations.gelu)
    tensors = {}
    for i, endpoint in enumerate(endpoints, 1):
        tensors[f"endpoint/stage{i}"] = endpoint
        tensors[f"endpoint/res{i}"] = activation(endpoint)
    for i, x in enumerate(pixels[:-1], 1):
        tensors[f"endpoint/decoder_stage{i}"] = x
    tensors["endpoint/decoder_output"] = pixels[-1]
    for i, (centres, *_) in enumerate(decoded):
        tensors[f"kmeans_{i}/cluster_centers"] = centres

    size = outputs.final.mask_logits.shape[1:3]
    tensors["main/semantic_logits"] = tf.gather(outputs.semantic_logits, semantic, axis=-1)
    for official, field in FIELDS.items():
        tensors[f"main/{official}"] = getattr(outputs.final, field)
        for i, prediction in enumerate(outputs.auxiliary):
            value = getattr(prediction, field)
            if training and field != "class_logits":
                tensors[f"aux_{i}/native_resolution_supervision/{official}"] = value
                value = resize_bilinear(value, size)
            tensors[f"aux_{i}/{official}"] = value
    return tensors


@contextlib.contextmanager
def _recorded(layers):
    """Within it, what each of the layers returned last: a list, one entry a layer."""
    results = [None] * len(layers)

    def record(i, call):
        def recording(*args, **kwargs):
            results[i] = call(*args, **kwargs)
            return results[i]

        return recording

    for i, layer in enumerate(layers):
        vars(layer)["call"] = record(i, layer.call)
    try:
        yield results
    finally:
        for layer in layers:
            del vars(layer)["call"]


def _compare_statistics(case, comparison, model, before):
    """Moving statistics after one step.

    The official code recomputes the encoder's axial blocks for the gradient and so updates theirs
    twice: m <- 0.9801 m + 0.0199 batch. From our one update follows `batch`, and what two give.
    """
    ours, rename = variables(model), names.load(KIND).rename
    keys = case.facts["moving_names"]
    twice = {k.split("/_attention/")[0] for k in keys if re.match("encoder/.*/_attention/", k)}
    stored = zip(keys, case["moving/norm"], case["moving/head"], case["moving/head_tol"])
    for key, norm, head, tolerance in stored:
        path = rename(key)
        value = ours[path].numpy().astype(np.float64).ravel()
        if any(key.startswith(f"{block}/") for block in twice):
            start = before[path].astype(np.float64).ravel()
            batch = (value - 0.99 * start) / 0.01
            value = 0.9801 * start + 0.0199 * batch
        comparison.add(f"moving/head/{key}", _head(value), head[: len(_head(value))], tolerance)
        size = np.sqrt(value.size)
        comparison.add(f"moving/norm/{key}", np.linalg.norm(value), norm, size * tolerance.max())
        full = f"moving_full/{key}"
        if full in case:
            comparison.add(full, value, case[full].ravel(), tolerance.max())
    _expect_all(comparison, keys, [p for p, v in ours.items() if not v.trainable], rename, "moving")


def _compare_gradients(case, comparison, model, gradients, semantic):
    ours, rename = variables(model), names.load(KIND).rename
    keys = case.facts["grad_names"]
    stored = zip(
        keys, *(case[f"grad/{k}"] for k in ("norm", "norm_tol", "head", "head_tol")), strict=True
    )
    for key, norm, norm_tolerance, head, head_tolerance in stored:
        path = rename(key)
        gradient = gradients[ours[path].ref()]
        if path.startswith("semantic_branch/classifier/"):
            gradient = gradient[..., semantic]
        flat = gradient.astype(np.float64).ravel()
        comparison.add(f"grad/norm/{key}", np.linalg.norm(flat), norm, norm_tolerance)
        comparison.add(f"grad/head/{key}", _head(flat), head[: len(_head(flat))], head_tolerance)
    _expect_all(comparison, keys, [p for p, v in ours.items() if v.trainable], rename, "grad")


def _head(values):
    return values[:4]


def _expect_all(comparison, keys, paths, rename, what):
    """Every variable of ours must have been compared."""
    for path in set(paths) - {rename(key) for key in keys}:
        comparison.fail(f"{what}/{path}: not stored")
