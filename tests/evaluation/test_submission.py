"""What the test servers take, read by the official scripts, whose figures are ours."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import tempfile
import zipfile

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kmax_tf import commands, config
from kmax_tf.data import datasets
from kmax_tf.data.coco_writer import PanopticWriter
from kmax_tf.data.records import serialize, shards
from kmax_tf.errors import InputError
from kmax_tf.evaluation import evaluate, submission
from kmax_tf.evaluation.coco_score import panoptic_quality
from kmax_tf.importers import output
from kmax_tf.model.postprocess import Panoptic

SIDE = 97  # what the toy experiment evaluates at, so that nothing is resized
NAMES = [f"frankfurt_000000_{number:06}" for number in range(5)]


def segments_of(rng, dataset):
    """A map of 8 rectangles on void with the class of each, small ones and crowd among them."""
    segment_map = np.zeros((SIDE, SIDE), np.int32)
    for k in range(1, 9):
        top, left = rng.integers(0, SIDE - 10, 2)
        height, width = rng.integers(8, 60, 2)
        segment_map[top : top + height, left : left + width] = k
    classes = rng.integers(0, dataset.num_classes, 8)
    classes[:4] = rng.integers(0, dataset.num_things, 4)
    crowd = (rng.random(8) < 0.2) & (classes < dataset.num_things)
    present, segment_map = np.unique(segment_map, return_inverse=True)
    segment_map = segment_map.reshape(SIDE, SIDE).astype(np.int32)
    kept = present[1:] - 1
    return segment_map, classes[kept], crowd[kept]


def write_records(folder, dataset, labels):
    folder.mkdir()
    (folder / "dataset.json").write_text(
        datasets.with_split(str(folder), dataset, "val", datasets.Split(len(labels), 1))
    )
    png = io.BytesIO()
    Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(png, "PNG")
    with tf.io.TFRecordWriter(str(folder / shards.name("val", 0, 1))) as writer:
        for name, (segment_map, classes, crowd) in zip(NAMES, labels, strict=True):
            writer.write(
                serialize.record(
                    image=png.getvalue(),
                    filename=f"frankfurt/{name}_leftImg8bit.png",
                    image_id=name,
                    segment_map=segment_map,
                    segment_id=list(range(1, len(classes) + 1)),
                    category_id=[dataset.categories[c].id for c in classes],
                    is_crowd=crowd,
                )
            )


def noisy_predictor(labels):
    """Answers image after image with its label, shifted, with some classes wrong."""

    def predict(image):
        results = []
        for number in range(image.shape[0]):
            segment_map, classes, crowd = labels[(predict.done + number) % len(labels)]
            rng = np.random.default_rng(predict.done + number)
            wrong = np.where(rng.random(len(classes)) < 0.15, classes[::-1], classes)
            wrong = np.where(crowd & (rng.random(len(classes)) < 0.5), 0, wrong)
            segment_map = np.roll(segment_map, rng.integers(-3, 4, 2), (0, 1))
            pad = 20 - len(wrong)
            semantic = np.append(wrong, 18)[segment_map - 1]
            score = rng.random(20)
            results.append(
                (segment_map, np.pad(wrong, (0, pad), constant_values=-1), semantic, score)
            )
        predict.done += image.shape[0]
        maps, classes, semantic = (
            tf.constant(np.array([r[i] for r in results]), tf.int32) for i in range(3)
        )
        scores = tf.constant(np.array([r[3] for r in results]), tf.float32)
        return Panoptic(maps, classes, scores, scores, semantic), []

    predict.done = 0
    return predict


@pytest.fixture
def cityscapes(tiny, tmp_path):
    """An experiment on five images of Cityscapes' classes, and their labels."""
    dataset = datasets.load("cityscapes")
    rng = np.random.default_rng(3)
    labels = [segments_of(rng, dataset) for _ in NAMES]
    write_records(tmp_path / "records", dataset, labels)
    experiment = dataclasses.replace(
        tiny(), dataset=dataset, data_dir=str(tmp_path / "records"), evaluation_batch_size=5
    )
    return experiment, labels


def write_official_labels(folder, dataset, labels):
    """gtFine as the official tools leave it: instance ids, label ids and panoptic files."""
    official = pytest.importorskip("cityscapesscripts.helpers.labels").name2label
    ids = np.array([official[c.name].id for c in dataset.categories])
    categories = [c._replace(id=int(i)) for c, i in zip(dataset.categories, ids, strict=True)]
    writer = PanopticWriter(str(folder / "panoptic.json"), str(folder / "panoptic"), categories)
    (folder / "frankfurt").mkdir(parents=True)
    for name, (segment_map, classes, crowd) in zip(NAMES, labels, strict=True):
        label_ids = ids[classes]
        single = (classes < dataset.num_things) & ~crowd
        instance_ids = np.where(single, label_ids * 1000 + np.arange(len(classes)), label_ids)
        for kind, table in (("instanceIds", instance_ids), ("labelIds", label_ids)):
            image = np.append(0, table)[segment_map].astype(
                np.uint16 if kind == "instanceIds" else np.uint8
            )
            Image.fromarray(image).save(folder / "frankfurt" / f"{name}_gtFine_{kind}.png")
        segments = [
            {"id": k, "category_id": int(i), "iscrowd": int(c)}
            for k, (i, c) in enumerate(zip(label_ids, crowd, strict=True), start=1)
        ]
        writer.add(name, f"{name}.png", segment_map, segments)
    writer.finish()
    return categories


def test_cityscapes_submission_scores_as_the_evaluator_says(cityscapes, tmp_path):
    experiment, labels = cityscapes
    gt, out = tmp_path / "gtFine", tmp_path / "out"
    categories = write_official_labels(gt, experiment.dataset, labels)
    submission.write_cityscapes(experiment, noisy_predictor(labels), str(out))
    metrics, _, _ = evaluate.evaluate(experiment, noisy_predictor(labels), step=1)
    by_name = {c["name"]: c for c in metrics["classes"]}

    panoptic = pytest.importorskip("cityscapesscripts.evaluation.evalPanopticSemanticLabeling")
    truth, found = (
        json.loads(path.read_text())
        for path in (gt / "panoptic.json", out / "panoptic" / "predictions.json")
    )
    found_of = {entry["image_id"]: entry for entry in found["annotations"]}
    pairs = [(entry, found_of[entry["image_id"]]) for entry in truth["annotations"]]
    known = {c["id"]: c for c in truth["categories"]}
    with contextlib.redirect_stdout(io.StringIO()):
        counts = panoptic.pq_compute_single_core(
            0, pairs, str(gt / "panoptic"), str(out / "panoptic" / "predictions"), known
        )
    official = panoptic.average_pq(counts, known)
    for group, suffix in (("All", ""), ("Things", "_things"), ("Stuff", "_stuff")):
        for key in ("pq", "sq", "rq"):
            expected = 100 * official[group][key]
            assert metrics[key.upper() + suffix] == pytest.approx(expected, rel=0, abs=1e-10)
    for category in categories:
        if category.name in by_name:
            expected = 100 * official["per_class"][category.id]["pq"]
            assert by_name[category.name]["PQ"] == pytest.approx(expected, rel=0, abs=1e-10)
    assert 5 < metrics["PQ"] < 95  # the case is worth the test

    pixel = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    pixel.args.quiet, pixel.args.JSONOutput, pixel.args.evalInstLevelScore = True, False, False
    images = [str(out / "semantic" / f"{name}.png") for name in NAMES]
    truths = [str(gt / "frankfurt" / f"{name}_gtFine_labelIds.png") for name in NAMES]
    official = pixel.evaluateImgLists(images, truths, pixel.args)
    assert metrics["mIoU"] == pytest.approx(100 * official["averageScoreClasses"], abs=1e-10)
    for name, entry in by_name.items():
        expected = official["classScores"][name]
        assert np.isnan(expected) or entry["IoU"] == pytest.approx(100 * expected, abs=1e-10)


def test_images_of_one_name_have_files_of_their_own(cityscapes, tmp_path):
    """They are in two folders, and the ids of some are the names of others."""
    experiment, labels = cityscapes
    folder = tmp_path / "records"
    names = ["cam1/1.png", "cam1/2.png", *(f"cam2/{k}.png" for k in range(1, 5))]
    size = datasets.Split(len(names), 1)
    text = datasets.with_split(str(folder), experiment.dataset, "val", size)
    (folder / "dataset.json").write_text(text)
    with tf.io.TFRecordWriter(str(folder / shards.name("val", 0, 1))) as writer:
        for number, name in reversed([*enumerate(names, start=1)]):
            image = tf.io.encode_png(np.zeros((40, 50 + number, 3), np.uint8)).numpy()
            facts = dict(image=image, filename=name, image_id=str(number), segment_map=None)
            none = dict(segment_id=[], category_id=[], is_crowd=[])
            writer.write(serialize.record(**facts, **none))
    submission.write_coco(experiment, noisy_predictor(labels), f"{tmp_path}/a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        widths = {
            entry["image_id"]: Image.open(archive.open(f"a/{entry['file_name']}")).width
            for entry in json.loads(archive.read("a.json"))["annotations"]
        }
    assert widths == {number: 50 + number for number in range(1, 7)}


def test_a_dataset_that_is_only_named_cityscapes_makes_a_zip(tiny, tmp_path):
    """`kmax prepare class_maps --out data/cityscapes` names a dataset after its folder."""
    dataset = datasets.Dataset("cityscapes", (datasets.Category(1, "cell", True, (9, 9, 9)),))
    folder, rng = tmp_path / "cityscapes", np.random.default_rng(3)
    write_records(folder, dataset, [segments_of(rng, dataset) for _ in NAMES])
    places = ("datasets.load.source", "experiment.Experiment.data_dir")
    experiment = tiny(*(f'{place} = "{folder}"' for place in places))
    run = str(tmp_path / "run")
    output.write(experiment.build_evaluation_model(), experiment.dataset, run)
    words = ["submit", f"--run_dir={run}", f"--out={tmp_path}/a.zip"]
    commands.main(words)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert len(json.loads(archive.read("a.json"))["annotations"]) == len(NAMES)
    with pytest.raises(SystemExit, match="error: --labels is for Cityscapes' 19 classes; kmax"):
        commands.main([*words, f"--labels={tmp_path}"])


@pytest.mark.parametrize("kind", ["panoptic", "semantic", "instance"])
def test_a_submission_is_not_mixed_with_another(kind, cityscapes, tmp_path):
    experiment, labels = cityscapes
    (tmp_path / "out" / kind).mkdir(parents=True)
    (tmp_path / "out" / kind / "berlin_000000.png").write_bytes(b"of the test split")
    predict = noisy_predictor(labels)
    with pytest.raises(InputError, match=f"out: {kind}/ has 1 files, maybe of another split"):
        submission.write_cityscapes(experiment, predict, str(tmp_path / "out"))
    assert predict.done == 0
    assert len(list((tmp_path / "out").rglob("*.*"))) == 1


def test_a_place_that_cannot_be_written_is_told_before_the_predictions(cityscapes, tmp_path):
    experiment, labels = cityscapes
    predict = noisy_predictor(labels)
    (tmp_path / "file").write_text("no folder")
    for place in (f"{tmp_path}/file/a.zip", "/proc/kmax/a.zip"):
        with pytest.raises(InputError, match=f"^{os.path.dirname(place)}: cannot be "):
            submission.write_coco(experiment, predict, place)
    assert predict.done == 0


def test_the_zip_is_made_where_it_has_room(cityscapes, tmp_path, monkeypatch):
    """Not in /tmp, which may be small; and nothing else stays there."""
    experiment, labels = cityscapes
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    monkeypatch.chdir(tmp_path)
    for path in ("a.zip", f"{tmp_path}/zips/b.zip"):
        submission.write_coco(experiment, noisy_predictor(labels), path)
    assert {"a.zip", "zips"} < {*os.listdir(tmp_path)} <= {"a.zip", "zips", "records", "tiny.gin"}
    assert os.listdir(tmp_path / "zips") == ["b.zip"]


def test_labels_of_another_split_are_told_before_the_predictions(cityscapes, tiny, tmp_path):
    """Before the checkpoint is looked for, too: there is none."""
    records = f'experiment.Experiment.data_dir = "{tmp_path}/records"'
    tiny('datasets.load.source = "cityscapes"', records)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.gin").write_text(config.resolved())
    (tmp_path / "gtFine/bonn").mkdir(parents=True)
    for number in range(3):
        (tmp_path / f"gtFine/bonn/{number}_gtFine_instanceIds.png").write_bytes(b"")
    words = ["submit", f"--run_dir={tmp_path}/run", f"--out={tmp_path}/out"]
    message = r"gtFine: has 3 \*_gtFine_instanceIds.png for the 5 images of split 'val'; give"
    with pytest.raises(SystemExit, match=message):
        commands.main([*words, f"--labels={tmp_path}/gtFine"])


def test_cityscapes_average_precision(cityscapes, tmp_path, monkeypatch):
    """The official reader and script, called as its own main does, give the same."""
    experiment, labels = cityscapes
    gt, out = tmp_path / "gtFine", tmp_path / "out"
    write_official_labels(gt, experiment.dataset, labels)
    submission.write_cityscapes(experiment, noisy_predictor(labels), str(out))
    found = submission.find_labels(str(gt), str(out), "val", len(NAMES))
    ours = submission.cityscapes_average_precision(str(out), found)
    script = pytest.importorskip("cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling")
    monkeypatch.setattr(script, "writeDict2JSON", lambda content, path: None)
    if not hasattr(np, "in1d"):
        monkeypatch.setattr(np, "in1d", np.isin, raising=False)
    monkeypatch.setattr(script.args, "JSONOutput", False)
    monkeypatch.setattr(script.args, "quiet", True)
    monkeypatch.setattr(script.args, "gtInstancesFile", str(tmp_path / "gtInstances.json"))
    monkeypatch.setattr(script.args, "predictionPath", str(out / "instance"))
    monkeypatch.setattr(script.args, "predictionWalk", None)
    truths = sorted(map(str, (gt / "frankfurt").glob("*_instanceIds.png")))
    official = script.evaluateImgLists(
        [script.getPrediction(path, script.args) for path in truths], truths, script.args
    )
    assert ours["AP"] == official["averages"]["allAp"] and 0 < ours["AP"] < 1
    assert ours["AP50"] == official["averages"]["allAp50%"] > ours["AP"]
    with pytest.raises(InputError, match="reads local files only"):
        submission.find_labels(str(gt), "gs://bucket/out", "val", len(NAMES))
    (out / "instance" / f"{NAMES[2]}.txt").unlink()
    with pytest.raises(InputError, match=f"{NAMES[2]}.txt: missing"):
        submission.cityscapes_average_precision(str(out), found)


def test_coco_zip_is_what_the_official_reader_takes(cityscapes, tmp_path):
    experiment, labels = cityscapes
    path = tmp_path / "zips" / "panoptic_val_kmax_results.zip"
    submission.write_coco(experiment, noisy_predictor(labels), str(path))
    with zipfile.ZipFile(path) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        archive.extractall(tmp_path / "unpacked")
    stem = path.stem
    assert names == {f"{stem}.json", *(f"{stem}/{name}_leftImg8bit.png" for name in NAMES)}
    gt = tmp_path / "gtFine"
    dataset = experiment.dataset
    writer = PanopticWriter(str(gt / "truth.json"), str(gt / "truth"), dataset.categories)
    for name, (segment_map, classes, crowd) in zip(NAMES, labels, strict=True):
        segments = [
            {"id": k, "category_id": dataset.categories[c].id, "iscrowd": int(crowd[k - 1])}
            for k, c in enumerate(classes, start=1)
        ]
        writer.add(name, f"{name}.png", segment_map, segments)
    writer.finish()
    unpacked = tmp_path / "unpacked" / stem
    quality = panoptic_quality(
        str(gt / "truth.json"), str(gt / "truth"), f"{unpacked}.json", str(unpacked)
    )
    metrics, _, _ = evaluate.evaluate(experiment, noisy_predictor(labels), step=1)
    assert 100 * quality["All"]["pq"] == pytest.approx(metrics["PQ"], abs=1e-10)
    assert not list(pathlib.Path(path.parent).glob("*.tmp"))
    with pytest.raises(InputError, match="ends in .zip"):
        submission.write_coco(experiment, noisy_predictor(labels), str(tmp_path / "folder"))
    evaluation = pytest.importorskip("panopticapi.evaluation")
    found = json.loads(pathlib.Path(f"{unpacked}.json").read_text())["annotations"]
    truth = json.loads((gt / "truth.json").read_text())
    categories = {c["id"]: c for c in truth["categories"]}
    pairs = list(zip(truth["annotations"], found, strict=True))
    with contextlib.redirect_stdout(io.StringIO()):
        counts = evaluation.pq_compute_single_core(
            0, pairs, str(gt / "truth"), str(unpacked), categories
        )
    official, _ = counts.pq_average(categories, None)
    assert official["pq"] == pytest.approx(quality["All"]["pq"], abs=1e-12)
