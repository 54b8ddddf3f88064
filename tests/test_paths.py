"""Folders and files of any name: every program works there, or refuses before it writes anything.

Also a home folder that the shell left as `~`, and a disk that takes nothing more.
"""

import json
import os
import pathlib
import resource
import shutil
import string
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from data_prep import coco_format, convert, pool, validate
from kmax_tf import commands, config, predict
from kmax_tf.data.records import shards
from kmax_tf.errors import InputError
from kmax_tf.evaluation import compare_runs, evaluate, submission
from kmax_tf.experiment import Experiment
from kmax_tf.files import expanded, matching, write_atomic
from kmax_tf.inference import export, predictor
from kmax_tf.predict import image_sources
from kmax_tf.predict.output_files import OutputFiles
from kmax_tf.run_folder import checkpoint, layout, watch
from kmax_tf.training import train

ROOT = pathlib.Path(__file__).parents[1]
SIGNS = [*string.punctuation.replace("/", ""), " "]
PATTERNS = ["lr=[1e-3,1e-4]", "a[!b]", "a[]]", "back\\slash", "\\"]  # none of them matches itself
NAMES = [
    *(f"a{sign}b" for sign in SIGNS if sign != "\\"),
    *("a][b", "[]", "]]", "[[", "a*[b", "{a,b}", "{records}", "{0}", "%s", "*", "?", "**"),
    *(
        "-x",
        "--out",
        "~",
        "~root",
        "$HOME",
        "`id`",
        " a",
        "a ",
        "a\u202fb",
        "写真\u3000",
        "a\u0301",
    ),
    *("a:", "gs:", "run@5", "config.gin", "*.json", "x" * 250, "写" * 83),
    *PATTERNS,
]
# Few that stand for many, where a name takes its time: most signs at once, and the longest name.
WORKING = ["".join(SIGNS).replace("[", "").replace("\\", "") + "\u202f写真", "-x" * 125]


def refuses(work, folder):
    """Does the work; returns whether it was refused in a line, with nothing written in `folder`."""

    def tree():
        return sorted(folder.rglob("*"))

    before = tree()
    try:
        work()
    except InputError as error:
        assert len(str(error).splitlines()) == 1 and tree() == before
        return True
    return False


def saver(value):
    module = tf.Module()
    module.weight = tf.Variable(float(value))
    return tf.train.Checkpoint(model=module)


def restored(path):
    module = tf.Module()
    module.weight = tf.Variable(0.0)
    checkpoint.restore_model(module, path)
    return float(module.weight)


@pytest.mark.parametrize("name", NAMES)
def test_a_pattern_is_of_names_and_not_of_their_folder(tmp_path, name):
    for place in {name, "other"}:
        (tmp_path / place).mkdir()
        for file in ("b-1.json", "a-2.json", "a-1.json", "a-1.jsonl"):
            write_atomic(str(tmp_path / place / file), b"")
    folder = str(tmp_path / name)
    assert matching(folder, "a-*.json") == [f"{folder}/a-1.json", f"{folder}/a-2.json"]
    assert sorted(os.listdir(tmp_path)) == sorted({name, "other"})
    assert matching(f"{folder}/missing", "*") == []


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_in_a_folder(tmp_path, name):
    run_dir = str(tmp_path / name)

    def save():
        for step in (1, 2, 3):
            checkpoint.save(saver(step), run_dir, step, keep=2)

    assert refuses(save, tmp_path) == (name in PATTERNS)
    if name not in PATTERNS:
        paths = watch.watch_checkpoints(run_dir, lambda path: False, 3, seconds=0)
        assert [checkpoint.step_of(path) for path in paths] == [2, 3]
        assert restored(checkpoint.newest(run_dir)) == 3
        assert os.listdir(tmp_path) == [name]


def test_checkpoints_of_a_name(tmp_path):
    for name in (n for n in NAMES if len(n.encode()) < 200):
        path = str(tmp_path / f"{name}-1")
        refused = refuses(lambda path=path: checkpoint.write(saver(1), path), tmp_path)
        assert refused == (name in PATTERNS)
        assert refused or restored(path) == 1


@pytest.mark.parametrize("name", [*WORKING, *PATTERNS])
def test_a_dataset(records, tmp_path, name):
    """Images and labels become records in a folder of that name, and so does a file of it."""
    root, place = pathlib.Path(records).parent, tmp_path / name
    content = json.loads((root / "panoptic_val.json").read_text())
    for folder in ("val", "panoptic_val"):
        shutil.copytree(root / folder, place / folder)
    entry = content["images"][0]
    other = name[:240] + os.path.splitext(entry["file_name"])[1]
    (place / "val" / entry["file_name"]).rename(place / "val" / other)
    entry["file_name"] = other
    (place / "panoptic.json").write_text(json.dumps(content))
    source = str(place / "val"), str(place / "panoptic.json"), str(place / "panoptic_val")
    text, errors = validate.validate(validate.raw(*source), str(place / "report"), workers=1)
    assert errors == 0, text
    out = str(place / "out")

    def alone(work, jobs):
        return pool.run(work, jobs, workers=1)

    convert.convert(*coco_format.read(*([path] for path in source)), out, "val", run=alone)
    found = b"".join(record for path in shards.paths(out, "val") for record in shards.read(path))
    assert other.encode() in found


@pytest.mark.parametrize("name", [*WORKING, *PATTERNS])
def test_labels_without_json(tmp_path, name):
    """Images and label images become records in a folder of that name."""
    place = tmp_path / name
    for kind in ("images", "labels"):
        (place / kind).mkdir(parents=True)
    for number in range(4):
        file = f"{name[:200]}{number}.png"
        pixels = np.random.default_rng(number).integers(0, 255, (32, 40, 3), np.uint8)
        Image.fromarray(pixels).save(place / "images" / file)
        objects = np.zeros((32, 40), np.uint8)
        objects[4:20, 4:20], objects[8:30, 24:36] = 1, 2
        Image.fromarray(objects).save(place / "labels" / file)
    places = [f"--{flag}={place}/{flag}" for flag in ("images", "labels", "out")]
    commands.main(["prepare", "label_images", *places, "--workers=1"])
    folder = str(place / "out/records")
    paths = [path for split in ("train", "val") for path in shards.paths(folder, split)]
    assert sum(1 for path in paths for _ in shards.read(path)) == 4


@pytest.mark.parametrize("name", PATTERNS)
def test_an_export_in_a_folder_that_cannot_be_read(tmp_path, name):
    with pytest.raises(InputError, match="takes .* for a pattern; choose a name without them"):
        predict.load(str(tmp_path / name))


@pytest.mark.slow
@pytest.mark.parametrize("name", [WORKING[0], PATTERNS[0]])
def test_predictions(exported, tmp_path, name):
    place, photos = tmp_path / name, pathlib.Path(exported.experiment.data_dir).parent / "val"
    shutil.copytree(exported.folder, place / "export")
    photo = next(photos.iterdir())
    image = place / f"{name[:240]}{photo.suffix}"
    shutil.copy(photo, image)
    _, sources = image_sources.find([str(image)])
    segmenter = predict.load(exported.folder if name in PATTERNS else str(place / "export"))
    files = OutputFiles(str(place / "out"), segmenter.categories, sources)
    assert predict.predict_sources(segmenter, sources, files.add) == []
    files.finish()
    [entry] = json.loads((place / "out/predictions.json").read_text())["annotations"]
    assert (place / "out/predictions" / entry["file_name"]).exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", [WORKING[0], PATTERNS[0]])
def test_a_training_and_what_follows(tiny, records, tmp_path, name):
    place = tmp_path / name
    shutil.copytree(records, place / "records")
    data_dir = str(place / "records")
    experiment = tiny(
        f"experiment.Experiment.data_dir = {data_dir!r}", "experiment.Experiment.steps = 1"
    )
    run_dir, cpu = str(place / "run"), tf.distribute.OneDeviceStrategy("/cpu:0")
    if refuses(lambda: train.train(experiment, run_dir, cpu), tmp_path):
        assert name in PATTERNS
        model = experiment.build_evaluation_model()
        assert refuses(lambda: export.export(experiment, model, str(place / "export")), tmp_path)
        return
    assert config.load(Experiment, layout.config(run_dir)).data_dir == data_dir
    assert evaluate.evaluate_run(experiment, run_dir)["step"] == 1
    assert predict.load(layout.best_export(run_dir)).categories
    page = pathlib.Path(layout.report(run_dir)).read_text()
    assert "loss: total" in page and "clusters, decoder 1" in page
    compare_runs.write_comparison(run_dir, f"{run_dir}@1", str(place / "comparison.html"))
    model = experiment.build_evaluation_model()
    checkpoint.restore_model(model, checkpoint.newest(run_dir))
    answer = predictor.build_predictor(model, experiment)
    submission.write_coco(experiment, answer, str(place / f"{name[:230]}.zip"))
    assert sorted(os.listdir(place)) == sorted(
        ["comparison.html", f"{name[:230]}.zip", "records", "run"]
    )


def test_a_run_folder_that_looks_like_a_run_and_a_step(tmp_path):
    for folder, step in (("run@5", 1), ("run", 2)):
        write_atomic(layout.latest_metrics(str(tmp_path / folder)), json.dumps({"step": step}))
    assert compare_runs._load(str(tmp_path / "run@5")) == (
        str(tmp_path / "run@5"),
        {"step": 1},
    )


def test_a_storage_keeps_its_slashes_in_pathlib():
    """Else TensorFlow makes a local folder `gs:`."""
    for path in ("gs://bucket/photos", "s3://b", "/data/gs:/a", "a/b", "C:/a"):
        assert expanded(path) == expanded(pathlib.Path(path)) == path
    assert expanded("gs:/a") == "gs:/a"  # a local folder, as the text says


def test_the_home_folder_in_gin(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    experiment = tiny(
        "experiment.Experiment.data_dir = '~/records'",
        "experiment.Experiment.initial_checkpoint = '~/runs/a/ckpt-1'",
    )
    assert experiment.data_dir == f"{tmp_path}/records"
    assert experiment.initial_checkpoint == f"{tmp_path}/runs/a/ckpt-1"


def small_files_only():
    """Lets this process write no file above 64 kB, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))


@pytest.mark.slow
def test_a_training_on_a_full_disk(tiny, tmp_path):
    tiny()  # writes the gin file
    command = [sys.executable, "scripts/train.py", f"--gin_file={tmp_path}/tiny.gin"]
    command += [f"--run_dir={tmp_path}/run"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, preexec_fn=small_files_only
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"error: {tmp_path}/run/checkpoints/" in done.stderr
    assert "File too large" in done.stderr
    assert checkpoint.completed(str(tmp_path / "run")) == []


def test_an_export_that_cannot_be_written_leaves_the_old_one(exported, stub, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        pathlib.Path(arguments[1]).mkdir()
        raise tf.errors.ResourceExhaustedError(
            None, None, "saved_model.pb; No space left on device"
        )

    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "saved_model.pb").write_text("the old one")
    monkeypatch.setattr(tf.saved_model, "save", fail)
    with pytest.raises(tf.errors.ResourceExhaustedError):
        export.export(exported.experiment, stub, str(tmp_path / "export"))
    assert os.listdir(tmp_path) == ["export"]
    assert (tmp_path / "export" / "saved_model.pb").read_text() == "the old one"


def test_a_checkpoint_that_cannot_be_written_leaves_no_remains(tmp_path, monkeypatch):
    checkpoint.save(saver(1), str(tmp_path), 1, keep=2)
    before = sorted(tmp_path.rglob("*"))
    rename = tf.io.gfile.rename

    def fail(source, target, **options):
        if source.endswith(".index"):
            raise tf.errors.ResourceExhaustedError(None, None, f"{source}; No space left on device")
        rename(source, target, **options)

    monkeypatch.setattr(tf.io.gfile, "rename", fail)
    with pytest.raises(tf.errors.ResourceExhaustedError):
        checkpoint.save(saver(2), str(tmp_path), 2, keep=2)
    assert checkpoint.completed(str(tmp_path)) == [str(tmp_path / "checkpoints/ckpt-1")]
    left = sorted(set(tmp_path.rglob("*")) - set(before))
    assert [path.name for path in left] == ["ckpt-2.data-00000-of-00001"]  # goes with the next save
