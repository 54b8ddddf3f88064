"""Golden cases of the authors' PyTorch port: its networks through the importer, and its merging."""

import json
import lzma
import os

import numpy as np
import tensorflow as tf

from kmax_tf import config, files, runtime
from kmax_tf.experiment import Experiment
from kmax_tf.importers import classes, importer
from kmax_tf.model.kmax_decoder import Prediction
from kmax_tf.parity import model as official
from kmax_tf.parity import rule
from kmax_tf.parity.cases import Case, Comparison

KIND = "pytorch"
MODELS = (
    "ade20k_convnext_large",
    "ade20k_r50",
    "cityscapes_convnext_large",
    "cityscapes_r50",
    "coco_convnext_base",
    "coco_convnext_large",
    "coco_convnext_small",
    "coco_convnext_tiny",
    "coco_r50",
)
SEMANTIC_CHANNELS = "by_id"  # of the port's own training


def gin_file(model: str) -> str:
    """Returns the experiment of a model of the port, such as "coco_r50"."""
    dataset, encoder = model.split("_", 1)
    encoder = official.BACKBONES.get(encoder, encoder)
    size = "_1281" if dataset == "ade20k" else ""
    return f"gin/experiments/port_{dataset}_{encoder}{size}.gin"


def compare(case: Case, comparison: Comparison) -> None:
    """Compares a network, or the merging of given logits."""
    (_compare_merging if "inputs" in case.facts else _compare_network)(case, comparison)


def state_dict(case: Case) -> dict[str, np.ndarray]:
    """Makes the state dict of a case, {key: array} in PyTorch's layout."""
    keys = case.facts["state_dict"]
    shapes = state_shapes(case.folder, case.facts["model"]) if isinstance(keys, str) else dict(keys)
    return {key: rule.torch_weight(key, shape, case.facts["seed"]) for key, shape in shapes.items()}


def state_shapes(folder: str, model: str) -> dict[str, list[int]]:
    """Returns the shape of every entry in the state dict of a model of the port, by its key.

    Args:
        folder: golden numbers, with port_keys.json.xz or port/keys/MODEL.json.
        model: name of the port's model, such as "coco_r50".
    """
    path = os.path.join(folder, "port_keys.json.xz")
    if tf.io.gfile.exists(path):
        return json.loads(lzma.decompress(files.read_bytes(path)))[model]
    return dict(files.read_json(os.path.join(folder, "port", "keys", f"{model}.json")))


def _compare_network(case, comparison):
    facts = case.facts
    experiment = config.load(Experiment, gin_file(facts["model"]))
    dataset = experiment.dataset
    runtime.set_precision("float32")
    model = experiment.model(dataset.num_classes).create_variables(*facts["input_shape"][1:3])
    importer.import_weights(
        model, KIND, state_dict(case), dataset, semantic_channels=SEMANTIC_CHANNELS
    )
    image = rule.image(facts["seed"], facts["input_shape"])
    comparison.add("image", image, case["image"], 0)
    ours = _tensors(model, dataset, image)
    for tensor in facts["tensors"]:
        name = tensor["name"]
        if name in ours:
            comparison.add_whole(tensor, ours[name], case[name])
        else:
            comparison.fail(f"{name}: not computed")


def _tensors(model, dataset, image):
    """Returns outputs and intermediate tensors of a call, by the port's names."""
    encoder = model.pixel_encoder
    layers = [encoder, model.pixel_decoder, encoder.stem[-1], *model.cluster_path.decoders]
    with official.record_outputs(layers) as recorded:
        outputs = model(image, training=False)
    endpoints, pixels, stem, *decoded = recorded
    names = ("stem", "res2", "res3", "res4", "res5")
    tensors = {f"endpoint/{n}": x for n, x in zip(names, endpoints, strict=True)}
    tensors["encoder/stem_conv"] = stem
    tensors |= {f"endpoint/decoder_stage{i}": x for i, x in enumerate(pixels[:-1], 1)}
    tensors["endpoint/decoder_output"] = pixels[-1]
    tensors |= {f"kmeans_{i}/cluster_centers": c for i, (c, *_) in enumerate(decoded)}

    def theirs(logits):
        """The logits, with their channels in the port's order."""
        count = logits.shape[-1]
        channels = classes.channels(dataset, "by_id", count)[:count]
        return tf.gather(logits, np.argsort(channels), axis=-1)

    predictions = {"main": outputs.final}
    predictions |= {f"aux_{i}": p for i, p in enumerate(outputs.auxiliary)}
    for output, prediction in predictions.items():
        for name, field in official.FIELDS.items():
            value = getattr(prediction, field)
            tensors[f"{output}/{name}"] = theirs(value) if field == "class_logits" else value
    return tensors | {"main/semantic_logits": theirs(outputs.semantic_logits)}


def _compare_merging(case, comparison):
    """Compares label maps, at the size of the canvas and at that of another image."""
    facts = case.facts
    inputs = Case(case.folder, *facts["inputs"].split("/"))
    experiment = config.load(Experiment, gin_file(f"{os.path.basename(facts['inputs'])}_r50"))
    dataset, merge = experiment.dataset, experiment.postprocess.merge_image
    masks = inputs["mask_logits_int8"].astype(np.float32) / 8 + inputs["mask_logits_offset"]
    logits = inputs["class_logits_int8"].astype(np.float32) / 8
    canvas = np.array(facts["canvas"]["size"])
    for name in ("canvas", "resized"):
        size = np.array(facts[name]["size"])
        shown = np.round(size * max(canvas) / max(size)).astype(np.int32)
        maps = []
        for i, segments in enumerate(facts[name]["segments"]):
            one = slice(i, i + 1)
            prediction = Prediction(tf.constant(masks[one]), tf.constant(logits[one]), None)
            panoptic, _ = merge(prediction, canvas.tolist(), shown, size, dataset.num_things)
            label_map, ours = _numbered(panoptic, dataset)
            maps.append(label_map)
            comparison.add(f"{name}/segments", ours, segments, 0)
        comparison.add(f"{name}/panoptic_seg", np.stack(maps), case[f"{name}/panoptic_seg"], 0)


def _numbered(panoptic, dataset):
    """Numbers the segments of a `Panoptic` of one image from 1, in the order of pasting.

    Returns:
        The map, and for each segment [number, rank of the category id, is thing].
    """
    segment_map, segment_class = (v[0].numpy() for v in panoptic[:2])
    present = np.unique(segment_map[segment_map > 0])
    ids = sorted(category.id for category in dataset.categories)
    segments = []
    for number, k in enumerate(present.tolist(), 1):
        category = dataset.categories[segment_class[k - 1]]
        segments.append([number, ids.index(category.id), int(category.isthing)])
    return np.searchsorted(np.append(0, present), segment_map), segments
