"""The calls of Python do what the commands do, from records to the same files."""

import json
import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import kmax_tf
from kmax_tf import visualize
from kmax_tf.data import label_png
from kmax_tf.errors import InputError
from kmax_tf.inference.export import export_checkpoint
from kmax_tf.planning import timing
from kmax_tf.run_folder import checkpoint
from kmax_tf.training import train

DEMO = {"gin_file": "gin/experiments/demo.gin"}
# An untrained model is sure of nothing.
NAMES = ("thing_threshold", "stuff_threshold", "overlap_threshold")
ANYTHING = {f"postprocess.PostProcess.{name}": 0.0 for name in NAMES}
ANYTHING |= {"optimizer.AdamW.learning_rate": 1e-6}


def files_below(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
@pytest.mark.usefixtures("forget_models")
def test_from_records_to_a_picture(exported, records, tiny_text, tmp_path, capsys):
    (tmp_path / "tiny.gin").write_text(tiny_text.format(records="elsewhere"))
    run_dir, photos = tmp_path / "run", pathlib.Path(records).parent / "val"
    with pytest.raises(InputError, match="run: is neither an export nor a run; train first"):
        kmax_tf.load(run_dir)
    classes = checkpoint.Description(exported.model, exported.experiment.dataset)
    weights = tf.train.Checkpoint(model=exported.model, classes=classes)  # of sharp masks
    checkpoint.write(weights, str(tmp_path / "weights-0"))
    settings = {**ANYTHING, "initial_checkpoint": tmp_path / "weights-0"}
    kmax_tf.train(records, run_dir, gin_file=tmp_path / "tiny.gin", steps=2, **settings)
    assert kmax_tf.load(run_dir).categories == kmax_tf.load(run_dir / "export").categories
    printed = capsys.readouterr().out
    assert printed.count(f"exported {run_dir}/checkpoints/ckpt-2 to {run_dir}/export") == 1
    assert f"loading {run_dir}/export" in printed
    others = tf.train.Checkpoint(model=exported.model, classes=classes)
    checkpoint.write(others, f"{run_dir}/checkpoints/ckpt-3")
    export_checkpoint(str(run_dir), f"{run_dir}/checkpoints/ckpt-2", f"{run_dir}/export")
    capsys.readouterr()
    kmax_tf.load(run_dir)  # the export is younger than ckpt-3, but not of it
    assert f"exported {run_dir}/checkpoints/ckpt-3" in capsys.readouterr().out
    for path in (run_dir / "checkpoints").glob("ckpt-3.*"):
        path.unlink()

    metrics = kmax_tf.evaluate(run_dir)
    assert metrics["step"] == 2 and metrics["num_images"] == 3
    assert metrics == json.loads((run_dir / "metrics.json").read_text())
    model = kmax_tf.load(str(run_dir))
    assert f"loading {run_dir}/best/export" in capsys.readouterr().out
    # An evaluator that is stopped has not exported its best weights of later.
    (run_dir / "best/best.json").write_text(json.dumps({"step": 3, "PQ": 99.0}))
    with pytest.raises(InputError, match=f"{run_dir}/best/ckpt-3: cannot be read"):
        kmax_tf.load(run_dir)

    model.predict_to_coco(photos, tmp_path / "called")
    words = ["predict", f"{run_dir}/best/export", str(photos), f"--out={tmp_path}/written"]
    subprocess.run([sys.executable, "-m", "kmax_tf.commands", *words], check=True)
    assert files_below(tmp_path / "called") == files_below(tmp_path / "written")
    content = json.loads((tmp_path / "written/predictions.json").read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    results = model.predict([photos / names[a["image_id"]] for a in content["annotations"]])
    assert len(results) == 3 and sum(len(result.segments) for result in results) > 3
    for result, annotation in zip(results, content["annotations"], strict=True):
        path = tmp_path / "written/predictions" / annotation["file_name"]
        ids = label_png.decode_ids(path.read_bytes(), "png")
        np.testing.assert_array_equal(result.panoptic_map, ids)
        listed = [(s["id"], s["category_id"], s["bbox"]) for s in annotation["segments_info"]]
        assert [(s.id, s.category_id, s.box) for s in result.segments] == listed
        picture = Image.open(tmp_path / "written/overlays" / annotation["file_name"])
        np.testing.assert_array_equal(result.overlay(), picture)
        np.testing.assert_array_equal(visualize.decode(result._repr_png_()), picture)


def test_a_path_pathlib_pillow_and_numpy_give_one_map(exported, segmenter, tmp_path):
    photo = next((pathlib.Path(exported.experiment.data_dir).parent / "val").iterdir())
    path = tmp_path / "photo.png"  # decoders agree on every bit of a PNG
    Image.open(photo).save(path)
    expected = segmenter.predict(str(path))
    assert len(expected.segments) > 1
    for image in (path, Image.open(path), np.asarray(Image.open(path))):
        np.testing.assert_array_equal(segmenter.predict(image).panoptic_map, expected.panoptic_map)
    with pytest.raises(InputError, match="images: give paths of images, videos or folders"):
        segmenter.predict_to_coco([np.asarray(Image.open(path))], tmp_path / "out")


@pytest.mark.parametrize(
    "words, message",
    [
        ({"step": 2}, "train has no 'step'; did you mean 'steps'?"),
        ({"minute": 2}, "train has no 'minute'; did you mean 'minutes'?"),
        ({**DEMO, "criterion.Criterion.pq_weigth": 2.0}, "did you mean 'pq_weight'?"),
        ({**DEMO, "seed": ...}, "cannot read Ellipsis"),
        ({"seed": math.inf}, "experiment.Experiment.seed: cannot read inf; give a finite number"),
        ({"a.B.c": np.zeros(2)}, "a.B.c: cannot read array([0., 0.]); give a finite number"),
    ],
)
def test_a_mistake_names_the_nearest_name_and_leaves_nothing(words, message, records, tmp_path):
    with pytest.raises(InputError) as refused:
        kmax_tf.train(records, tmp_path / "run", **words)
    assert message in str(refused.value) and not (tmp_path / "run").exists()


def test_numbers_of_numpy_are_settings_as_those_of_python(
    records, tiny_text, tmp_path, monkeypatch
):
    (tmp_path / "tiny.gin").write_text(tiny_text.format(records=records))
    trained = []
    monkeypatch.setattr(train, "train", lambda experiment, *_, **__: trained.append(experiment))
    settings = {
        "seed": np.int64(7),
        "ema_decay": np.float64(0.5),
        "postprocess.PostProcess.thing_threshold": np.float32(0.25),
        "postprocess.PostProcess.at_image_size": np.bool_(True),
    }
    kmax_tf.train(records, tmp_path / "run", gin_file=tmp_path / "tiny.gin", **settings)
    [experiment] = trained
    merging = experiment.postprocess
    assert (experiment.seed, experiment.ema_decay) == (7, 0.5)
    assert (merging.thing_threshold, merging.at_image_size) == (0.25, True)


@pytest.mark.slow
@pytest.mark.usefixtures("forget_models")
def test_the_numbers_of_the_data_plan_a_run_once(records, tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "time_steps", lambda *arguments: (30.0, 0.5))
    trained, allowed = [], []

    def record(experiment, run_dir, strategy, *, allow_changes):
        trained.append(experiment)
        allowed.append(allow_changes)

    monkeypatch.setattr(train, "train", record)
    kmax_tf.train(data=records, run_dir=tmp_path / "run", minutes=5.5)
    monkeypatch.delattr(timing, "time_steps")
    settings = dict(steps=7, precision="mixed_bfloat16", allow_changes=True)
    kmax_tf.train(data=records, run_dir=tmp_path / "run", **settings)
    first, again = trained
    assert allowed == [False, True]
    assert (first.steps, again.steps) == (600, 7) and again.precision == "mixed_bfloat16"
    assert first.training_input == again.training_input and first.data_dir == records
    assert "6 images" in (tmp_path / "run/plan.html").read_text()


def test_names_are_listed_before_tensorflow_is_imported():
    program = """
import sys
sys.modules["tensorflow"] = None
import kmax_tf
assert {"train", "evaluate", "load"} <= {*dir(kmax_tf)}
from kmax_tf import errors
try:
    kmax_tf.trian
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "module 'kmax_tf' has no attribute 'trian'\n", done.stderr
