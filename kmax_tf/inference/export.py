"""Exports a trained model as a SavedModel that needs none of this code.

The SavedModel decodes, resizes, pads and normalizes images, merges masks, and restores the size of
the image. It cuts no tiles: with `Experiment.tiles`, `kmax_tf.predict` does. Its four signatures
take a batch of images. Their outputs are `SEGMENTS`, and with details also `DETAILS`:

    serving_default, serving_details   string [batch]: JPEG, PNG, GIF, or BMP without a palette
    uint8, uint8_details               uint8 [batch, height, width, 3]
"""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf
import tf_keras

from kmax_tf import config
from kmax_tf.data.records import example
from kmax_tf.data.transforms import geometry, host
from kmax_tf.errors import InputError
from kmax_tf.experiment import Experiment
from kmax_tf.files import check_literal, is_unfinished, names, write_atomic
from kmax_tf.inference import file_format, model_card, predictor
from kmax_tf.inference.file_format import FileFormat
from kmax_tf.inference.frozen_graph import freeze
from kmax_tf.model import postprocess
from kmax_tf.model.kmax_decoder import Prediction
from kmax_tf.predict.segmenter import CATEGORIES
from kmax_tf.run_folder import checkpoint, layout

FILES = tf.TensorSpec([None], tf.string, name="images")
PIXELS = tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")
CONVERTED = {"model.onnx", "model.tflite"}
PARTS = {"assets", "fingerprint.pb", "saved_model.pb", "variables"}  # what an export may hold
PARTS |= {CATEGORIES, "config.gin", "model_card.md", *CONVERTED}
PARTS.add(layout.best_note(""))

# Images of a batch differ in size and number of segments; missing entries are 0.
SEGMENTS = {
    "panoptic_map": "int32 [batch, height, width]: 0 void, else the id of a segment",
    "size": "int32 [batch, 2]: height and width of each image; the map is 0 outside of it",
    "segment_id": "int32 [batch, segments], 0 after the last one",
    "category_id": "int64 [batch, segments], as in categories.json",
    "score": "float32 [batch, segments], probability of the class times that of the mask",
    "area": "int32 [batch, segments], in pixels of the image",
    "isthing": "bool [batch, segments]",
    "box": "int32 [batch, segments, 4]: left, top, width, height in pixels of the image",
}
DETAILS = {
    "confidence": "float32 [batch, height, width], probability of the pixel's likeliest mask",
    "assignments": "int32 [batch, decoders, height, width], the pixel's cluster in each decoder",
    "mask_probability": "float32 [batch, rows, columns, clusters], at the model's output stride",
    "class_probability": "float32 [batch, clusters, classes + 1], the last is void; the others"
    " are in the order of categories.json",
    "fitted_size": "int32 [batch, 2], height and width of the image within the model's input",
}


class Canvases(NamedTuple):
    """Images as the model's input."""

    image: tf.Tensor  # float32 [batch, *evaluation size, 3], fitted and padded
    fitted_size: tf.Tensor  # int32 [batch, 2], without the padding
    original_size: tf.Tensor  # int32 [batch, 2]


class ExportedModel(tf.Module):
    """Maps images to panoptic segmentations at the images' own sizes."""

    def __init__(self, model: tf_keras.Model, experiment: Experiment):
        super().__init__()
        self.size, self.tiles = experiment.evaluation_size, experiment.tiles
        self.enlarges = experiment.enlarges
        self.categories = experiment.dataset.categories
        signature = [tf.TensorSpec([None, *self.size, 3], name="image")]

        @tf.function(input_signature=signature)
        @tf.autograph.experimental.do_not_convert
        def segment(image):
            outputs = model(image, training=False)
            num_things = experiment.dataset.num_things
            pasted = experiment.postprocess.paste(outputs.final, self.size, num_things)
            panoptic = experiment.postprocess.merge(pasted, num_things)
            return panoptic, pasted.probability, outputs.final, predictor.assignments(outputs)

        frozen = freeze(segment)
        weights = {name: tf.Variable(array) for name, array in frozen.weights.items()}
        self.weights = list(weights.values())

        @tf.function(input_signature=signature)
        @tf.autograph.experimental.do_not_convert
        def predict(image):
            return frozen(image, {name: weight.read_value() for name, weight in weights.items()})

        self.predict = predict  # traced once, and shared by the signatures
        self.num_things, self.postprocess = experiment.dataset.num_things, experiment.postprocess

    def signatures(self) -> dict[str, Callable]:
        """Returns the four signatures by name, for tf.saved_model.save."""

        def signature(spec, prepare, finish):
            @tf.autograph.experimental.do_not_convert
            def run(images):
                return finish(self._each(prepare, images))

            return tf.function(run, input_signature=[spec])

        return {
            "serving_default": signature(FILES, self._decode, self.segments),
            "serving_details": signature(FILES, self._decode, self.details),
            "uint8": signature(PIXELS, self._fit, self.segments),
            "uint8_details": signature(PIXELS, self._fit, self.details),
        }

    def segments(self, canvases: Canvases) -> dict[str, tf.Tensor]:
        """Maps `Canvases` to the outputs of `SEGMENTS`."""
        panoptic, _, final, _ = self.predict(canvases.image)
        return self._listed(self._restored(panoptic, final, canvases)[0], canvases)

    def details(self, canvases: Canvases) -> dict[str, tf.Tensor]:
        """Maps `Canvases` to the outputs of `SEGMENTS` and `DETAILS`."""
        panoptic, probability, final, assignments = self.predict(canvases.image)
        # Corners are aligned, as everywhere in the model.
        resize = tf.compat.v1.image.resize_nearest_neighbor
        enlarged = [
            resize(a[..., None], self.size, align_corners=True)[..., 0] for a in assignments
        ]
        panoptic, confidence = self._restored(panoptic, final, canvases)
        if confidence is None:
            confidence = _restore(probability, canvases)
        segments = self._listed(panoptic, canvases)
        nothing = segments["panoptic_map"][:, None][
            :, :0
        ]  # for a model whose decoders do not predict
        restored = [_restore(a, canvases)[:, None] for a in enlarged]
        return segments | {
            "confidence": confidence,
            "assignments": tf.concat([nothing, *restored], axis=1),
            "mask_probability": tf.nn.softmax(final.mask_logits),
            "class_probability": tf.nn.softmax(final.class_logits),
            "fitted_size": canvases.fitted_size,
        }

    def _decode(self, file):
        return self._fit(example.decode_image(file))

    def _fit(self, image):
        shape = tf.shape(image)[:2]
        sample = geometry.Sample(image, tf.zeros(shape, tf.int32))
        fitted = host.fitted_size(sample, self.size, self.enlarges)
        if self.tiles:  # a smaller image keeps its scale
            scaled = self.tiles.scaled_size(shape)
            fitted = tf.where(tf.reduce_all(scaled <= self.size), scaled, fitted)
        canvas = host.pad(host.resize(sample, fitted), tf.constant([0, 0]), self.size).image
        return Canvases(canvas, fitted, shape)

    def _each(self, prepare, images):
        """Applies `prepare` to each image, and stacks the results as one `Canvases`."""
        size = tf.TensorSpec([2], tf.int32)
        output = Canvases(tf.TensorSpec([*self.size, 3]), size, size)
        return tf.map_fn(prepare, images, fn_output_signature=output)

    def _restored(self, panoptic, final, canvases):
        """Returns the `Panoptic` at the images' sizes; with `at_image_size` also the confidence."""
        if not self.postprocess.at_image_size:
            return panoptic._replace(segment_map=_restore(panoptic.segment_map, canvases)), None
        largest = tf.reduce_max(canvases.original_size, axis=0)

        def merge(inputs):
            masks, classes, fitted, original = inputs
            one = final._replace(mask_logits=masks[None], class_logits=classes[None])
            sizes = self.size, fitted, original
            merged, pasted = self.postprocess.merge_image(one, *sizes, self.num_things)
            margin = tf.stack([tf.zeros([2], tf.int32), largest - original], axis=1)
            maps = (tf.pad(m[0], margin) for m in (merged.segment_map, pasted.probability))
            return *maps, merged.segment_class[0], merged.segment_score[0]

        n = final.class_logits.shape[1]
        types = (
            (tf.int32, [None, None]),
            (tf.float32, [None, None]),
            (tf.int32, [n]),
            (tf.float32, [n]),
        )
        segment_map, confidence, classes, scores = tf.map_fn(
            merge,
            (final.mask_logits, final.class_logits, *canvases[1:]),
            parallel_iterations=1,  # the masks of one image may have gigabytes
            fn_output_signature=tuple(tf.TensorSpec(shape, dtype) for dtype, shape in types),
        )
        restored = dict(segment_map=segment_map, segment_class=classes, segment_score=scores)
        return panoptic._replace(**restored), confidence

    def _listed(self, panoptic, canvases):
        panoptic_map = panoptic.segment_map
        area, box = _measure(panoptic_map, panoptic.segment_class.shape[1])
        order = tf.argsort(tf.where(area > 0, 0, 1), stable=True)  # segments with pixels first
        order = order[:, : tf.reduce_max(tf.math.count_nonzero(area, axis=1, dtype=tf.int32))]

        def listed(values):
            return tf.gather(values, order, batch_dims=1)

        area = listed(area)
        there = area > 0
        classes = tf.maximum(listed(panoptic.segment_class), 0)
        ids = tf.gather(tf.constant([c.id for c in self.categories], tf.int64), classes)
        isthing = tf.gather(tf.constant([c.isthing for c in self.categories]), classes)
        return {
            "panoptic_map": panoptic_map,
            "size": canvases.original_size,
            "segment_id": tf.where(there, order + 1, 0),
            "category_id": tf.where(there, ids, 0),
            "score": tf.where(there, listed(panoptic.segment_score), 0.0),
            "area": area,
            "isthing": there & isthing,
            "box": tf.where(there[..., None], listed(box), 0),
        }


def _restore(maps, canvases):
    """Restores maps [batch, *evaluation size] to the images' sizes, with 0 up to the largest."""
    largest = tf.reduce_max(canvases.original_size, axis=0)

    def restore(inputs):
        values, fitted, original = inputs
        restored = host.to_original_size(values, fitted, original)
        return tf.pad(restored, tf.stack([tf.zeros([2], tf.int32), largest - original], axis=1))

    output = tf.TensorSpec([None, None], maps.dtype)
    return tf.map_fn(restore, (maps, *canvases[1:]), fn_output_signature=output)


def _measure(panoptic_map, n):
    """Measures area [batch, n] and box [batch, n, 4] of the segments 1 to n, int32.

    panoptic_map: int32 [batch, height, width]. The box of a segment without pixels is undefined.
    """
    batch, height, width = tf.unstack(tf.shape(panoptic_map))
    ids = panoptic_map + tf.range(batch)[:, None, None] * (n + 1)

    def counts(line, size):  # of the pixels of each segment in each row, or in each column
        flat = tf.math.bincount(
            tf.reshape(ids * size + line, [-1]), minlength=batch * (n + 1) * size
        )
        return tf.reshape(flat, [batch, n + 1, size])[:, 1:]

    def extent(count):
        there = tf.cast(count > 0, tf.int32)
        first = tf.argmax(there, axis=-1, output_type=tf.int32)
        last = tf.shape(there)[-1] - tf.argmax(there[..., ::-1], axis=-1, output_type=tf.int32)
        return first, last - first

    rows = counts(tf.range(height)[:, None], height)
    top, tall = extent(rows)
    left, wide = extent(counts(tf.range(width), width))
    return tf.reduce_sum(rows, axis=-1), tf.stack([left, top, wide, tall], axis=-1)


def export(
    experiment: Experiment,
    model: tf_keras.Model,
    export_dir: str,
    facts: Sequence[tuple[str, str]] = (),
    formats: Sequence[FileFormat] = (),
    fingerprint: str | None = None,
) -> None:
    """Writes the SavedModel, its description, and files of other formats into `export_dir`.

    Each file is compared with the SavedModel on one image, and a line tells what differs. The
    description is:
      - categories.json: names and colors of the classes, the fingerprint of the checkpoint, the
        tiles if there are any, and the number of clusters that are merged at the image's size;
      - config.gin: the configuration loaded last;
      - model_card.md.
    An existing export is replaced once the new one is complete, and a line names each file of
    another format that the new one lacks. Any other folder is refused. A
    link stays, and its target is replaced.

    Args:
        facts: (name, value) pairs about the weights, for the model card.
        formats: of the files.
        fingerprint: `checkpoint.fingerprint` of the weights, None if they are of no checkpoint.

    Raises:
        InputError: a converter refuses the model, or its file segments too differently. Or
            `export_dir` holds something else than an export, or is a mount point.
    """
    check_literal(export_dir)
    export_dir = export_dir if "://" in export_dir else os.path.realpath(export_dir)
    _check_replaceable(export_dir)
    segmenter = ExportedModel(model, experiment)
    contents = {kind: file_format.convert(kind, segmenter) for kind in formats}
    texts: dict[str, str | bytes] = {
        CATEGORIES: _description(experiment, model, fingerprint),
        "config.gin": config.resolved(),
        "model_card.md": model_card.text(experiment, model, facts, SEGMENTS, DETAILS, formats),
    }
    texts |= {kind.file_name: content for kind, content in contents.items()}
    temporary = export_dir.rstrip("/") + ".unfinished"
    _remove(temporary)
    try:
        tf.saved_model.save(segmenter, temporary, signatures=segmenter.signatures())
        for name, content in texts.items():
            write_atomic(os.path.join(temporary, name), content)
        if formats:
            _check(experiment, temporary, contents)
    except (tf.errors.OpError, InputError):  # such as a full disk
        _remove(temporary)
        raise
    for name in sorted(CONVERTED.intersection(names(export_dir, required=False)) - texts.keys()):
        flag = name.replace("model.", "--")
        print(f"{export_dir}: removed {name} of the earlier export; {flag} writes it anew")
    _replace(export_dir, temporary)


def _description(experiment, model, fingerprint):
    """Returns the content of categories.json."""
    content = {"categories": [c._asdict() for c in experiment.dataset.categories]}
    if experiment.tiles:
        size = list(experiment.evaluation_size)
        content["tiles"] = {"size": size, **dataclasses.asdict(experiment.tiles)}
    if experiment.postprocess.at_image_size:
        content["merged_clusters"] = model.cluster_path.num_clusters
    if fingerprint:
        content["checkpoint"] = fingerprint
    return json.dumps(content)


def _replace(folder, new):
    """Puts a new folder in the place of one that may exist, which is deleted at the very end."""
    old = f"{new}.old"
    _remove(old)
    if tf.io.gfile.exists(folder):
        tf.io.gfile.rename(folder, old)
    tf.io.gfile.rename(new, folder)
    _remove(old)


def _check_replaceable(folder):
    """Raises InputError if a folder holds anything else than an export, or what is left of one."""
    if tf.io.gfile.exists(folder) and not tf.io.gfile.isdir(folder):
        raise InputError(f"{folder}: is a file, and would be replaced; choose another --out")
    if os.path.ismount(folder):
        raise InputError(f"{folder}: is a mount point, and cannot be replaced; name a folder in it")
    others = sorted(set(names(folder, required=False)) - PARTS)
    if others := [name for name in others if not is_unfinished(name)]:
        raise InputError(
            f"{folder}: has {others[0]}, which is not part of an export, and would be replaced;"
            " move it away, or choose another --out"
        )


def _check(experiment, export_dir, contents):
    image, what = file_format.example_image(experiment)
    panoptic, _ = load_predictor(export_dir)(image)
    for kind, content in contents.items():
        found = file_format.check(kind, content, panoptic, image)
        print(f"{kind.name}: {found}, on {what}", flush=True)


def export_checkpoint(
    run_dir: str,
    path: str,
    export_dir: str,
    *,
    precision: str | None = None,
    formats: Sequence[FileFormat] = (),
) -> tuple[Experiment, tf_keras.Model]:
    """Exports the checkpoint `path` of a run, and prints a line.

    Args:
        precision: "float32" or "mixed_bfloat16"; None for the run's.
        formats: as in `export`.

    Returns:
        The experiment and the model.

    Raises:
        InputError: the checkpoint is missing, corrupt, of another model or of other classes.
    """
    bindings = [f"experiment.Experiment.precision = {precision!r}"] if precision else []
    experiment = config.load(Experiment, layout.config(run_dir), bindings)
    model = experiment.build_evaluation_model()
    fingerprint = checkpoint.fingerprint(path)
    checkpoint.restore_model(model, path, experiment.dataset)
    facts = model_card.weights_facts(path, checkpoint.read_metrics(run_dir, path))
    export(experiment, model, export_dir, facts, formats, fingerprint)
    print(f"exported {path} to {export_dir}", flush=True)
    return experiment, model


def _remove(folder):
    if tf.io.gfile.exists(folder):
        tf.io.gfile.rmtree(folder)


def load_predictor(export_dir: str, at_image_size: bool = False) -> Callable:
    """Loads an export as a function like that of `build_predictor`, without assignments.

    `at_image_size` is that of the experiment's `PostProcess`.
    """
    check_literal(export_dir)
    loaded = tf.saved_model.load(export_dir)

    def predict(image):
        panoptic, _, final, _ = loaded.predict(image)
        if at_image_size:
            return Prediction(*final)._replace(pixel_features=()), []
        return postprocess.Panoptic(*panoptic), []

    return predict
