"""The files of other runtimes give the segments of the SavedModel, and an export says so."""

import contextlib
import dataclasses
import functools
import importlib
import io
import json
import os
import pathlib
import re
import shutil
import sys
import types
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from PIL import ExifTags, Image

from kmax_tf import config, runtime
from kmax_tf.data import datasets
from kmax_tf.data.evaluation_input import evaluation_input
from kmax_tf.errors import InputError
from kmax_tf.experiment import Experiment
from kmax_tf.inference import export, file_format, model_card, predictor
from kmax_tf.inference.tflite import TFLITE
from kmax_tf.model.layers.ops import gelu
from kmax_tf.model.postprocess import Panoptic
from kmax_tf.predict.tiles import Tiles

FORMATS = ["onnx.ONNX", "tflite.TFLITE"]


def load(name):
    """A `FileFormat`; skips the test without the extra."""
    module, name = name.split(".")
    if module == "onnx":
        pytest.importorskip("tf2onnx")
    return getattr(importlib.import_module(f"kmax_tf.inference.{module}"), name)


@pytest.fixture(scope="module")
def images(exported):
    experiment = exported.experiment
    records = predictor.evaluation_records(experiment)
    [batch] = evaluation_input(records, experiment.evaluation_size, 3)
    return batch.image


class Made(NamedTuple):
    """An export with the file of another runtime."""

    kind: file_format.FileFormat
    folder: pathlib.Path
    said: str

    @property
    def content(self):
        return (self.folder / self.kind.file_name).read_bytes()


@pytest.fixture(scope="module")
def made(exported, tmp_path_factory):
    """A function: the name of a format -> the `Made` of it, which takes its time once."""

    @functools.cache
    def make(name):
        kind, folder = load(name), tmp_path_factory.mktemp("made") / "export"
        with contextlib.redirect_stdout(io.StringIO()) as said:
            export.export(exported.experiment, exported.model, str(folder), formats=[kind])
        return Made(kind, folder, said.getvalue())

    return make


def panoptic(segment_map, *classes):
    """The `Panoptic` of one image, with all that `differing` looks at."""
    return Panoptic(np.array([segment_map]), np.array([classes]), None, None, None)


@pytest.mark.parametrize(
    ("ours", "share"),
    [
        (panoptic([[1, 1], [2, 0]], 5, 6, -1), 0),
        (panoptic([[2, 2], [1, 0]], 6, 5, -1), 0),  # another order
        (panoptic([[2, 2], [1, 0]], 5, 6, -1), 0.75),  # other classes
        (panoptic([[1, 3], [2, 0]], 5, 6, 5), 0.25),  # one segment as two
        (panoptic([[1, 1], [1, 0]], 5, -1, -1), 0.25),  # two as one
        (panoptic([[1, 1], [0, 0]], 5, -1, -1), 0.25),  # one less
        (panoptic([[1, 1], [2, 2]], 5, 6, -1), 0.25),  # no void
    ],
)
def test_the_share_of_pixels_that_differ(ours, share):
    assert file_format.differing(ours, panoptic([[1, 1], [2, 0]], 5, 6, -1)) == share


@pytest.mark.slow
def test_onnx_gives_what_the_model_gives(made, images, predict_batch):
    file = made("onnx.ONNX")
    ours, _ = file.kind.load_predictor(file.content)(images)  # three at once
    expected, _ = predict_batch(images)
    assert np.mean(ours.segment_map != expected.segment_map) <= 1e-4
    assert np.mean(ours.semantic_map != expected.semantic_map) <= 1e-4
    np.testing.assert_array_equal(ours.segment_class, expected.segment_class)
    assert (np.max(ours.segment_map, axis=(1, 2)) > 1).all()  # the case is worth the test
    for name in ("segment_confidence", "segment_score"):
        np.testing.assert_allclose(getattr(ours, name), getattr(expected, name), atol=1e-4)


@pytest.mark.long
@pytest.mark.slow
def test_onnx_of_a_whole_resnet50():
    """At 641, with random weights, sharp masks and no thresholds."""
    names = ("thing_threshold", "stuff_threshold", "overlap_threshold")
    bindings = [f"postprocess.PostProcess.{name} = 0.0" for name in names]
    bindings.append("experiment.Experiment.evaluation_size = (641, 641)")
    experiment = config.load(Experiment, "gin/experiments/coco_resnet50.gin", bindings)
    runtime.set_seed(0)
    model = experiment.build_evaluation_model()
    model.cluster_path.head.mask_norm.gamma.assign(tf.fill([1, 1, 1, 1], 100.0))
    segmenter, kind = export.ExportedModel(model, experiment), load("onnx.ONNX")
    coarse = np.random.default_rng(0).uniform(0, 255, (1, 12, 12, 3))
    image = tf.image.resize(coarse, (641, 641))
    expected, *_ = segmenter.predict(image)
    found = file_format.check(kind, file_format.convert(kind, segmenter), expected, image)
    assert re.match(r"the same \d\d segments, 0.00\d % of the pixels differ", found)


@pytest.mark.slow
def test_tflite_gives_nearly_what_the_model_gives(made, images, predict_batch):
    ours, _ = TFLITE.load_predictor(made("tflite.TFLITE").content)(images)
    expected, _ = predict_batch(images)
    assert np.mean(ours.semantic_map == expected.semantic_map) > 0.9
    for place in range(len(images)):
        part = slice(place, place + 1)
        one, other = (Panoptic(*(f[part] for f in whole)) for whole in (ours, expected))
        assert file_format.differing(one, other) < 0.1
        assert len(np.unique(one.segment_map)) > 2


@pytest.mark.parametrize("name", FORMATS)
def test_gelu_is_converted(name):
    """The toy has none, and TensorFlow Lite no operation for the error function in it."""
    kind = load(name)
    fields = len(Panoptic._fields)
    model = types.SimpleNamespace(
        size=(4, 5), predict=lambda image: [Panoptic(*(gelu(image) + i for i in range(fields)))]
    )
    image = tf.random.stateless_normal([1, 4, 5, 3], [0, 0])
    result, _ = kind.load_predictor(file_format.convert(kind, model))(image)
    for i, values in enumerate(result):
        np.testing.assert_allclose(values, tf.nn.gelu(image) + i, atol=1e-5)


def test_a_refusal_of_the_converter(exported, stub):
    def refuse(*_):
        raise RuntimeError("somewhere: error: no Fancy\nsomewhere else: error: no Fancy\n")

    segmenter = export.ExportedModel(stub, exported.experiment)
    with pytest.raises(
        InputError, match="Lite converter rejects the model: no Fancy; export it in float32"
    ):
        file_format.convert(TFLITE._replace(convert=refuse), segmenter)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_an_export_checks_the_file_and_tells_how_to_run_it(
    name, exported, made, tmp_path, monkeypatch
):
    kind, folder, said = made(name)
    line = rf"{kind.name}: .* segments.*, \d+\.\d{{3}} % of the pixels differ, on an image of val"
    assert re.search(line, said)

    shutil.copytree(folder, tmp_path / "export")
    monkeypatch.chdir(tmp_path / "export")
    height, width = exported.experiment.evaluation_size
    noise = np.random.default_rng(0).integers(0, 256, (height - 20, width, 3), np.uint8)
    Image.fromarray(noise).resize((2 * width, 2 * height - 40), 0).save("photo.jpg", quality=100)
    card = (tmp_path / "export/model_card.md").read_text()
    place = {}
    for code in re.findall(r"```python\n(.*?)```", card.split("## Other runtimes")[1], re.DOTALL):
        exec(code, place)
    assert place["result"].keys() == file_format.OUTPUTS.keys() == set(Panoptic._fields)
    assert place["photo"].size == (width, height - 20)
    expected, _ = export.load_predictor(".")(tf.constant(place["image"]))
    ours = Panoptic(**place["result"])
    assert file_format.differing(ours, expected) <= kind.largest_difference
    categories = json.loads((tmp_path / "export/categories.json").read_text())["categories"]
    assert ours.segment_class.max() < len(categories)


@pytest.mark.parametrize(
    "kind, length, expected",
    [
        ("tiles", 20, (40, 20)),
        ("tiles", 400, (97, 48)),
        ("not enlarged", 20, (20, 10)),
        ("not enlarged", 400, (97, 48)),
        ("fitted", 20, (97, 48)),
    ],
)
def test_the_card_fits_an_image_as_the_savedmodel(
    exported, stub, kind, length, expected, tmp_path, monkeypatch
):
    """A small image may keep its scale, and a photo of a phone is turned upright."""
    experiment = exported.experiment
    if kind == "tiles":
        experiment = dataclasses.replace(experiment, tiles=Tiles(scale=2.0))
    if kind == "not enlarged":
        training = dataclasses.replace(experiment.training_input, resize_to_crop=False)
        experiment = dataclasses.replace(experiment, training_input=training)
    card = model_card.text(experiment, stub, [], {}, {}, [TFLITE])
    code, _ = re.findall(r"```python\n(.*?)```", card.split("## Other runtimes")[1], re.DOTALL)
    monkeypatch.chdir(tmp_path)
    pixels = np.zeros([length, length // 2, 3], np.uint8)
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6  # a quarter, clockwise
    Image.fromarray(np.rot90(pixels)).save("photo.jpg", exif=turned)
    place = {}
    exec(code, place)
    fitted = export.ExportedModel(stub, experiment)._fit(tf.constant(pixels)).fitted_size
    assert place["photo"].size == tuple(fitted.numpy()[::-1])
    assert tuple(fitted) == expected


def test_an_export_without_records_is_checked_on_noise(exported, tmp_path):
    experiment = exported.experiment
    _, what = file_format.example_image(experiment)
    assert what == "an image of val"
    elsewhere = type(experiment)(**vars(experiment) | {"data_dir": str(tmp_path)})
    image, what = file_format.example_image(elsewhere)
    assert what.startswith(f"noise, because no records can be used ({tmp_path}")
    assert image.shape == [1, *experiment.evaluation_size, 3]


def test_records_of_other_classes_are_not_said_to_be_missing(exported):
    experiment, others = exported.experiment, datasets.load("cityscapes")
    _, what = file_format.example_image(dataclasses.replace(experiment, dataset=others))
    with pytest.raises(InputError) as refused:
        predictor.evaluation_records(dataclasses.replace(experiment, dataset=others))
    assert what == f"noise, because no records can be used ({refused.value})"


def test_without_a_segment_nothing_is_said_to_be_the_same():
    def found(ours, expected):
        kind = TFLITE._replace(load_predictor=lambda content: lambda image: (ours, []))
        return file_format.check(kind, b"", expected, None)

    nothing, one = panoptic([[0, 0]], -1, -1), panoptic([[1, 0]], 5, -1)
    assert found(nothing, nothing) == "nothing was compared, because there is no segment"
    assert found(nothing, one).startswith("0 segments, where the SavedModel has 1, 50.000 %")
    assert found(one, one) == "the same 1 segments, 0.000 % of the pixels differ"


@pytest.mark.slow
def test_a_file_that_segments_differently_is_not_exported(exported, stub, tmp_path):
    def nothing(content):
        clusters = stub.cluster_path.num_clusters
        empty = panoptic(np.zeros(exported.experiment.evaluation_size, np.int32), *[-1] * clusters)
        return lambda image: (empty, [])

    kind = TFLITE._replace(convert=lambda *_: b"", load_predictor=nothing, largest_difference=1e-4)
    with pytest.raises(InputError, match=r"model.tflite: 0 segments, where the SavedModel has \d"):
        export.export(exported.experiment, stub, str(tmp_path / "e"), formats=[kind])
    assert not os.listdir(tmp_path)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "kmax_tf.inference.onnx", raising=False)
    with pytest.raises(InputError, match=r"onnxruntime.*pip install 'kmax_tf\[onnx\]'"):
        importlib.import_module("kmax_tf.inference.onnx")
