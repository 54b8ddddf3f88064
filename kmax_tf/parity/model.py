"""Golden cases of the model: forward passes, one training step's statistics and gradients."""

import contextlib
import re
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf
import tf_keras

from kmax_tf import config, runtime
from kmax_tf.experiment import Experiment
from kmax_tf.importers import classes, importer, names
from kmax_tf.importers.variables import variables
from kmax_tf.model.layers.ops import resize_bilinear
from kmax_tf.parity import rule
from kmax_tf.parity.cases import Case, Comparison, checkpoint_shapes

# Official backbone names where ours differ, in the names of the experiments.
BACKBONES = {"r50": "resnet50", "axial_r50": "max_s"}
FIELDS = {
    "pixel_space_mask_logits": "mask_logits",
    "transformer_class_logits": "class_logits",
    "pixel_space_normalized_feature": "pixel_features",
}
KIND = "deeplab2"


def gin_file(model: str) -> str:
    """Returns the experiment of an official model's name, such as "coco_axial_r50"."""
    dataset, backbone = model.split("_", 1)
    return f"gin/experiments/{dataset}_{BACKBONES.get(backbone, backbone)}.gin"


def compare(case: Case, comparison: Comparison) -> None:
    """Compares every array of a model's case."""
    experiment = config.load(Experiment, gin_file(case.facts["model"]))
    model = _filled_model(case, experiment)
    semantic = _semantic_order(model, experiment.dataset)
    seed = case.facts["seed"]
    image = rule.image(seed, case.facts["input_shape"])
    comparison.add("image", image, case["image"], 0)

    infer = _forward(model, image, semantic, training=False)
    before = {path: v.numpy() for path, v in variables(model).items() if not v.trainable}
    with tf.GradientTape() as tape:
        train = _forward(model, image, semantic, training=True)
        outputs = [n for n in train if re.fullmatch(r"(main|aux_\d+)/[^/]*", n)]
        means = [tf.reduce_mean(train[n] * rule.pattern(n, train[n].shape, seed)) for n in outputs]
        train["scalar"] = tf.add_n(means)
    gradients = tape.gradient(
        train["scalar"], model.trainable_variables, unconnected_gradients="zero"
    )

    tensors = {f"infer/{n}": v for n, v in infer.items()}
    tensors |= {f"train/{n}": v for n, v in train.items()}
    for facts in case.facts["tensors"]:
        name = facts["name"]
        if name in tensors:
            comparison.add_whole(facts, tensors[name], case[name])
        else:
            comparison.fail(f"{name}: not computed")
    _compare_statistics(case, comparison, model, before)
    _compare_gradients(case, comparison, model, gradients, semantic)


def _filled_model(case, experiment):
    """Returns the model without random layers, with the official variables of the rule."""
    runtime.set_precision("float32")
    size = case.facts["input_shape"][1:3]
    model = experiment.model(experiment.dataset.num_classes).create_variables(*size)
    for layer in model.submodules:
        if hasattr(layer, "keep_prob"):  # drop path and dropout
            layer.keep_prob = 1.0
    shapes = checkpoint_shapes(case.folder, case.facts["model"])
    weights = {key: rule.weight(key, shape, case.facts["seed"]) for key, shape in shapes.items()}
    importer.import_weights(model, KIND, weights, experiment.dataset)
    return model


def _semantic_order(model, dataset):
    """Returns our channel of each official channel of the semantic logits."""
    count = model.semantic_branch.classifier.filters
    order = names.load(KIND).semantic_channels
    return np.argsort(classes.channels(dataset, order, count)[:count])


def _forward(model, image, semantic, training):
    """Returns outputs and intermediate tensors of a call, by their official names."""
    encoder, decoders = model.pixel_encoder, model.cluster_path.decoders
    with record_outputs([encoder, model.pixel_decoder, *decoders]) as recorded:
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
    for i, (centers, *_) in enumerate(decoded):
        tensors[f"kmeans_{i}/cluster_centers"] = centers

    size = outputs.final.mask_logits.shape[1:3]
    tensors["main/semantic_logits"] = tf.gather(outputs.semantic_logits, semantic, axis=-1)
    for official, field in FIELDS.items():
        tensors[f"main/{official}"] = getattr(outputs.final, field)
        for i, prediction in enumerate(outputs.auxiliary):
            value = getattr(prediction, field)
            if training and field != "class_logits":
                tensors[f"aux_{i}/own_resolution/{official}"] = value
                value = resize_bilinear(value, size)
            tensors[f"aux_{i}/{official}"] = value
    return tensors


@contextlib.contextmanager
def record_outputs(layers: Sequence[tf_keras.layers.Layer]) -> Iterator[list]:
    """Yields a list that holds, after a call of the model, what each of the layers returned."""
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
    """Compares the moving statistics after one step.

    The official code recomputes the encoder's axial blocks for the gradient and so updates theirs
    twice: m <- 0.9801 m + 0.0199 batch. From our one update follows `batch`, and what two give.
    """
    ours = {path: v for path, v in variables(model).items() if not v.trainable}
    keys = _our_paths(case.facts["moving_names"])
    twice = {k.split("/_attention/")[0] for k in keys if re.match("encoder/.*/_attention/", k)}
    arrays = (case[f"moving/{name}"] for name in ("norm", "head", "head_tol"))
    for (key, path), norm, head, tolerance in zip(keys.items(), *arrays, strict=True):
        value = ours[path].numpy().astype(np.float64).ravel()
        if any(key.startswith(f"{block}/") for block in twice):
            start = before[path].astype(np.float64).ravel()
            batch = (value - 0.99 * start) / 0.01
            value = 0.9801 * start + 0.0199 * batch
        comparison.add(f"moving/head/{key}", value[:4], head[: value.size], tolerance)
        size = np.sqrt(value.size)
        comparison.add(f"moving/norm/{key}", np.linalg.norm(value), norm, size * tolerance)
        if (full := f"moving_full/{key}") in case:
            comparison.add(full, value, case[full].ravel(), tolerance)
    for path in ours.keys() - keys.values():
        comparison.fail(f"moving/{path}: not stored")


def _compare_gradients(case, comparison, model, gradients, semantic):
    """Compares the gradient of every variable: its norm, and its first values."""
    gradient_of = {v.ref(): g for v, g in zip(model.trainable_variables, gradients, strict=True)}
    ours = {path: v for path, v in variables(model).items() if v.trainable}
    keys = _our_paths(case.facts["grad_names"])
    arrays = (case[f"grad/{name}"] for name in ("norm", "norm_tol", "head", "head_tol"))
    for (key, path), norm, norm_tolerance, head, head_tolerance in zip(
        keys.items(), *arrays, strict=True
    ):
        gradient = tf.convert_to_tensor(gradient_of[ours[path].ref()]).numpy()
        if path.startswith("semantic_branch/classifier/"):
            gradient = gradient[..., semantic]
        flat = gradient.astype(np.float64).ravel()
        comparison.add(f"grad/norm/{key}", np.linalg.norm(flat), norm, norm_tolerance)
        comparison.add(f"grad/head/{key}", flat[:4], head[: flat.size], head_tolerance)
    for path in ours.keys() - keys.values():
        comparison.fail(f"grad/{path}: not stored")


def _our_paths(keys):
    """Returns the path of our variable for each official key."""
    return {key: names.load(KIND).rename(key) for key in keys}
