"""An export predicts what the evaluator predicts, at the images' own sizes, by every signature."""

import dataclasses
import json
import os
import pathlib
import shutil
import types
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from kmax_tf import commands, config, files, predict
from kmax_tf.data.records import shards
from kmax_tf.errors import InputError
from kmax_tf.evaluation import evaluate
from kmax_tf.experiment import Experiment
from kmax_tf.importers import output
from kmax_tf.inference import export, predictor
from kmax_tf.model.layers.ops import resize_bilinear


@pytest.fixture(scope="module")
def loaded(exported):
    return tf.saved_model.load(exported.folder)


@pytest.fixture(scope="module")
def evaluated(exported, predict_batch):
    """What the evaluator sees of the validation images, a list of `ImagePrediction`."""
    split = exported.experiment, predict_batch
    return list(predictor.predict_split(*split, lambda _, segmented: segmented))


@pytest.fixture(scope="module")
def images(exported):
    """The files of the validation images, as the records have them."""
    paths = shards.paths(exported.experiment.data_dir, "val")
    records = [r for path in paths for r in shards.read(path)]
    feature = {"image/encoded": tf.io.FixedLenFeature([], tf.string)}
    return [tf.io.parse_single_example(r, feature)["image/encoded"].numpy() for r in records]


def check(result, evaluated):
    """Compares the outputs of a signature with what the evaluator made of the same images."""
    result = {name: value.numpy() for name, value in result.items()}
    for i, expected in enumerate(evaluated):
        height, width = result["size"][i]
        panoptic_map = result["panoptic_map"][i, :height, :width]
        np.testing.assert_array_equal(panoptic_map, expected.segment_map)
        ids, areas = np.unique(panoptic_map[panoptic_map > 0], return_counts=True)
        assert len(ids) > 1
        missing = result["segment_id"].shape[1] - len(ids)
        np.testing.assert_array_equal(result["segment_id"][i], [*ids, *[0] * missing])
        np.testing.assert_array_equal(result["area"][i], [*areas, *[0] * missing])
        np.testing.assert_allclose(
            result["score"][i, : len(ids)], expected.segment_score[ids - 1], atol=1e-5
        )
        for k, box in zip(ids, result["box"][i], strict=False):
            rows, columns = np.nonzero(panoptic_map == k)
            corner = columns.min(), rows.min()
            assert tuple(box) == (*corner, np.ptp(columns) + 1, np.ptp(rows) + 1)
        assert not result["panoptic_map"][i, height:].any()
        assert not result["panoptic_map"][i, :, width:].any()


@pytest.mark.parametrize("name", ["serving_default", "serving_details"])
def test_files_give_what_the_evaluator_gives(name, loaded, evaluated, images):
    check(loaded.signatures[name](images=tf.constant(images)), evaluated)


@pytest.mark.parametrize("name", ["uint8", "uint8_details"])
def test_pixels_give_what_the_evaluator_gives(name, loaded, evaluated, images):
    for image, expected in zip(images, evaluated, strict=True):
        pixels = tf.io.decode_image(image)[None]
        check(loaded.signatures[name](images=pixels), [expected])


def test_classes_of_segments(loaded, exported, evaluated, images):
    result = loaded.signatures["serving_default"](images=tf.constant(images[:1]))
    ids = result["segment_id"][0].numpy()
    index = evaluated[0].segment_class[ids - 1]
    classes = [exported.experiment.dataset.categories[i] for i in index]
    assert result["category_id"][0].numpy().tolist() == [c.id for c in classes]
    assert result["isthing"][0].numpy().tolist() == [c.isthing for c in classes]


def test_images_of_several_sizes(loaded):
    def png(*size):
        image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
        return tf.io.encode_png(image).numpy()

    sizes = [(30, 70), (200, 11), (1, 1), (1, 900)]
    images = [png(*size) for size in sizes]
    together = loaded.signatures["serving_details"](images=tf.constant(images))
    assert together["size"].numpy().tolist() == [list(size) for size in sizes]
    assert together["panoptic_map"].shape == [4, 200, 900]
    for i, (image, (height, width)) in enumerate(zip(images, sizes, strict=True)):
        alone = loaded.signatures["serving_details"](images=tf.constant([image]))
        for name in ("panoptic_map", "confidence", "assignments"):
            other = together[name][i, ..., :height, :width]
            np.testing.assert_allclose(alone[name][0], other, atol=1e-4)


def test_details(loaded, exported, evaluated, images):
    result = loaded.signatures["serving_details"](images=tf.constant(images[:1]))
    assert set(result) == set(export.SEGMENTS) | set(export.DETAILS)
    [assignment] = evaluated[0].assignments  # of the toy model's one decoder, here at stride 16
    height, width = evaluated[0].segment_map.shape
    size = exported.experiment.evaluation_size
    fitted = result["fitted_size"][0].numpy()

    def nearest(pixels, length, other):  # of another grid, corners aligned
        return np.floor(pixels * np.float32((other - 1) / (length - 1)) + 0.5).astype(int)

    rows, columns = (  # image > what is fitted, a corner of the input > the decoder's grid
        nearest(nearest(np.arange(n), n, f), whole, cells)
        for n, f, whole, cells in zip((height, width), fitted, size, assignment.shape, strict=True)
    )
    expected = assignment[rows][:, columns]
    assert (result["assignments"][0, 0].numpy() == expected).mean() > 0.99
    np.testing.assert_allclose(tf.reduce_sum(result["mask_probability"], -1), 1, rtol=1e-4)
    np.testing.assert_allclose(tf.reduce_sum(result["class_probability"], -1), 1, rtol=1e-4)
    confidence = result["confidence"].numpy()
    assert confidence.shape == (1, height, width)
    assert confidence.min() > 0 and confidence.max() <= 1 + 1e-5
    pasted = result["panoptic_map"].numpy() > 0
    assert (confidence[pasted] > 0.4).all()  # the pixel threshold


def test_details_are_what_the_model_computes(loaded, exported, images):
    """The images have the model's size, so nothing is fitted."""
    pixels = tf.io.decode_image(images[0])[None]
    size = exported.experiment.evaluation_size
    assert pixels.shape[1:3] == size
    final = exported.model(pixels, training=False).final
    result = loaded.signatures["uint8_details"](images=pixels)
    for kind in ("mask", "class"):
        expected = tf.nn.softmax(getattr(final, f"{kind}_logits"))
        np.testing.assert_allclose(result[f"{kind}_probability"], expected, atol=1e-4)
    pasted = tf.nn.softmax(resize_bilinear(final.mask_logits, size))
    np.testing.assert_allclose(result["confidence"], tf.reduce_max(pasted, -1), atol=1e-3)


@pytest.mark.slow
def test_merging_at_the_size_of_the_image(exported, images):
    """As the PyTorch port does; the images are larger than the model's input."""
    merging = dataclasses.replace(exported.experiment.postprocess, at_image_size=True)
    experiment = dataclasses.replace(
        exported.experiment, evaluation_size=(65, 81), postprocess=merging
    )
    run = predictor.build_predictor(exported.model, experiment)
    evaluated = list(predictor.predict_split(experiment, run, lambda _, segmented: segmented))
    signatures = export.ExportedModel(exported.model, experiment).signatures()
    for name in ("serving_default", "serving_details"):
        check(signatures[name](images=tf.constant(images)), evaluated)


def stub_of_saving(monkeypatch):
    """Lets `export` write a file instead of a SavedModel, which takes its time."""

    def save(module, folder, signatures):
        files.write_atomic(f"{folder}/saved_model.pb", "the new one")

    monkeypatch.setattr(tf.saved_model, "save", save)


@pytest.mark.parametrize("merges_there", [True, False])
def test_the_number_of_masks_at_the_size_of_the_image_is_told(
    exported, loaded, stub, merges_there, tmp_path, monkeypatch
):
    """Prediction needs it to know what an image takes of the memory."""
    stub_of_saving(monkeypatch)
    merging = dataclasses.replace(exported.experiment.postprocess, at_image_size=merges_there)
    experiment = dataclasses.replace(exported.experiment, postprocess=merging)
    export.export(experiment, stub, str(tmp_path / "export"))
    described = json.loads((tmp_path / "export/categories.json").read_text())
    clusters = stub(tf.zeros([1, 97, 97, 3]), training=False).final.class_logits.shape[1]
    assert described.get("merged_clusters") == (clusters if merges_there else None)
    monkeypatch.setattr(tf.saved_model, "load", lambda folder: exported_signatures())
    assert predict.load(str(tmp_path / "export"))._merged_clusters == merges_there * clusters
    probability = loaded.signatures["uint8_details"].structured_outputs["class_probability"]
    assert probability.shape[1] == exported.model.cluster_path.num_clusters  # of the real model


def exported_signatures():
    return types.SimpleNamespace(signatures={"uint8_details": None})


def test_masks_at_the_size_of_the_image_are_of_one_image_at_a_time(exported, stub):
    """Those of a batch of photos would take ten times the memory."""
    together = {}
    for merges_there in (False, True):
        merging = dataclasses.replace(exported.experiment.postprocess, at_image_size=merges_there)
        experiment = dataclasses.replace(exported.experiment, postprocess=merging)
        run = export.ExportedModel(stub, experiment).signatures()["uint8"]
        operations = run.get_concrete_function().graph.get_operations()
        loops = [operation for operation in operations if "While" in operation.type]
        together[merges_there] = sorted(loop.get_attr("parallel_iterations") for loop in loops)
    # The first loop fits the images, the other one restores small maps, or merges large masks.
    assert together == {False: [10, 10], True: [1, 10]}


def test_a_link_stays_and_its_target_is_replaced(exported, stub, tmp_path, monkeypatch):
    stub_of_saving(monkeypatch)
    (tmp_path / "disk/old").mkdir(parents=True)
    (tmp_path / "disk/old/saved_model.pb").write_text("the old one")
    (tmp_path / "export").symlink_to("disk/old")
    export.export(exported.experiment, stub, f"{tmp_path}/export/")
    assert (tmp_path / "export").is_symlink()
    assert (tmp_path / "export/saved_model.pb").read_text() == "the new one"
    assert os.listdir(tmp_path / "disk") == ["old"]
    assert sorted(os.listdir(tmp_path)) == ["disk", "export"]


def test_an_export_that_cannot_be_replaced_stays(exported, stub, tmp_path, monkeypatch):
    stub_of_saving(monkeypatch)
    (tmp_path / "export").mkdir()
    (tmp_path / "export/saved_model.pb").write_text("the old one")
    rename = tf.io.gfile.rename

    def refuse(source, target, overwrite=False):
        if source == f"{tmp_path}/export":
            raise tf.errors.FailedPreconditionError(None, None, "Device or resource busy")
        rename(source, target, overwrite)

    monkeypatch.setattr(tf.io.gfile, "rename", refuse)
    with pytest.raises(tf.errors.FailedPreconditionError):
        export.export(exported.experiment, stub, f"{tmp_path}/export")
    assert (tmp_path / "export/saved_model.pb").read_text() == "the old one"
    with pytest.raises(InputError, match="^/proc: is a mount point, and cannot be replaced; name"):
        export.export(exported.experiment, stub, "/proc")


@pytest.mark.slow
def test_measured_and_submitted_by_command(exported, tmp_path, capsys):
    gin_file = pathlib.Path(exported.folder).with_name("tiny.gin")
    bindings = ["postprocess.PostProcess.thing_threshold = 0.0"]
    experiment = config.load(Experiment, str(gin_file), bindings)
    run, zipped = tmp_path / "run", tmp_path / "test.zip"
    output.write(exported.model, experiment.dataset, str(run))
    commands.main(["export", f"--run_dir={run}", f"--out={tmp_path}/export", "--measure"])
    predict_one = predictor.build_predictor(exported.model, experiment)
    metrics, *_ = evaluate.evaluate(experiment, predict_one, step=0)
    printed = capsys.readouterr().out
    for name in ("model", "SavedModel"):
        assert f"{name}: PQ {metrics['PQ']:.2f} on 3 images\n" in printed

    commands.main(["submit", f"--run_dir={run}", f"--out={zipped}"])
    with zipfile.ZipFile(zipped) as archive:
        (listed,) = [name for name in archive.namelist() if name.endswith(".json")]
        annotations = json.loads(archive.read(listed))["annotations"]
        files = {pathlib.Path(name).name for name in archive.namelist()}
    assert len(annotations) == 3 and {a["file_name"] for a in annotations} < files
    with pytest.raises(SystemExit, match="error: --labels is for Cityscapes"):
        commands.main(["submit", f"--run_dir={run}", f"--out={zipped}", "--labels=gtFine"])


def test_the_evaluators_export_is_not_replaced(tmp_path):
    words = ["export", f"--run_dir={tmp_path}/run", f"--out={tmp_path}/run//best/export/"]
    with pytest.raises(SystemExit, match="run/best/export: is the evaluator's; choose another"):
        commands.main(words)


def test_only_an_export_is_replaced(exported, stub, tmp_path, capsys):
    """Else --out=RUN would delete the checkpoints of the run."""
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "exports/one").mkdir(parents=True)
    (tmp_path / "file").write_text("mine")
    shutil.copytree(exported.folder, tmp_path / "more")
    (tmp_path / "more/predictions").mkdir()  # by kmax predict --out
    before = sorted(tmp_path.rglob("*"))
    for name, what in (
        ("run", "has checkpoints, which is not part of an export"),
        ("exports", "has one, which is not part of an export"),
        ("more", "has predictions, which is not part of an export"),
        ("file", "is a file"),
    ):
        with pytest.raises(InputError, match=f"{name}: {what}, and would be replaced"):
            export.export(exported.experiment, stub, str(tmp_path / name))
    assert sorted(tmp_path.rglob("*")) == before
    # What an interrupted replacement leaves, of the evaluator's too.
    (tmp_path / "half/variables").mkdir(parents=True)
    (tmp_path / "half/best.json").write_text("{}")
    (tmp_path / "half/0a1b2c3d.tmp").write_text("a part of a file")
    (tmp_path / "half/model.onnx").write_text("of an older checkpoint")
    export.export(exported.experiment, stub, str(tmp_path / "half"))
    assert (tmp_path / "half/saved_model.pb").exists()
    assert not (tmp_path / "half/model.onnx").exists()
    assert not (tmp_path / "half/0a1b2c3d.tmp").exists()
    assert "half: removed model.onnx of the earlier export; --onnx writes it anew" in (
        capsys.readouterr().out
    )


def test_describes_itself(exported, segmenter):
    experiment = config.load(Experiment, os.path.join(exported.folder, "config.gin"))
    assert experiment.postprocess == exported.experiment.postprocess
    assert segmenter.categories == exported.experiment.dataset.categories
    card = files.read_bytes(os.path.join(exported.folder, "model_card.md")).decode()
    for category in experiment.dataset.categories:
        assert category.name in card
    assert "`serving_details` | string [batch]: JPEG, PNG, GIF, or BMP without a palette |" in card
    for name in ("| weights | none |", *export.SEGMENTS, *export.DETAILS):
        assert name in card
