"""Comparison of two evaluations, from the files in their run folders."""

import dataclasses
import json
import pathlib
import runpy
import shutil
import sys

import numpy as np
import pytest
import tensorflow as tf

from kmax_tf import config
from kmax_tf.errors import InputError
from kmax_tf.evaluation import compare_runs, evaluate, metrics
from kmax_tf.experiment import Experiment
from kmax_tf.inference import predictor
from kmax_tf.model.postprocess import Panoptic
from kmax_tf.run_folder import layout


class Shifted(tf.Module):
    """Stands for a model: the weights say how far its prediction is off."""

    def __init__(self, num_classes):
        super().__init__()
        self.shift = tf.Variable(0)

    def create_variables(self, height, width):
        return self


def shifted_predictor(experiment, labels, model):
    def predict(image):
        maps = np.stack([np.roll(m, int(model.shift), (0, 1)) for m, _ in labels[: image.shape[0]]])
        classes = np.stack([np.pad(c, (0, 30 - len(c)), constant_values=-1) for _, c in labels])
        maps, classes = tf.constant(maps, tf.int32), tf.constant(classes, tf.int32)
        scores = tf.ones(classes.shape)
        return Panoptic(maps, classes, scores, scores, tf.zeros_like(maps)), []

    return predict


@pytest.fixture(scope="module")
def evaluated(records, tiny_text, tmp_path_factory):
    """The folder of `runs`, for all tests: evaluating them takes its time."""
    root = tmp_path_factory.mktemp("runs")
    (root / "tiny.gin").write_text(tiny_text.format(records=records))
    experiment = config.load(Experiment, str(root / "tiny.gin"))
    experiment = dataclasses.replace(experiment, model=Shifted, steps=2, evaluation_batch_size=3)
    records = predictor.evaluation_records(experiment)
    read = evaluate._labels(experiment, records)
    labels = [metrics.ground_truth(experiment.dataset, label) for label in read]
    labels = [(label.segment_map, label.segment_class) for label in labels]

    def build_predictor(model, experiment):
        return shifted_predictor(experiment, labels, model)

    for name, shifts in (("first", (4, 2)), ("second", (4, 0))):
        model = Shifted(0)
        folder = str(root / name)
        manager = tf.train.CheckpointManager(
            tf.train.Checkpoint(model=model), layout.checkpoints(folder), max_to_keep=None
        )
        for step, shift in enumerate(shifts, start=1):
            model.shift.assign(shift)
            manager.save(checkpoint_number=step)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(evaluate.predictor, "build_predictor", build_predictor)
            patch.setattr(evaluate.best_checkpoint, "export", lambda *_: None)
            evaluate.evaluate_run(experiment, folder)
    return root


@pytest.fixture
def runs(evaluated, tmp_path):
    """Two run folders: the first is off by 4 pixels at step 1, 2 at step 2; the second by 0."""
    names = ("first", "second")
    return [str(shutil.copytree(evaluated / name, tmp_path / name)) for name in names]


def test_two_runs(runs, tmp_path):
    page = tmp_path / "page.html"
    differences = compare_runs.write_comparison(*runs, str(page))
    pq = [json.loads(pathlib.Path(run, "metrics.json").read_text())["PQ"] for run in runs]
    assert 100 * differences["All"].value == pytest.approx(pq[1] - pq[0], abs=1e-9)
    assert pq[1] > pq[0] and compare_runs.verdict(differences["All"]) == "better"
    text = page.read_text()
    assert "second against first" in text and f"{pq[1] - pq[0]:+.2f}" in text
    assert text.count('alt="first"') == text.count('alt="second"') == 3  # images
    backwards, _ = compare_runs.compare_runs(*runs[::-1])
    assert compare_runs.verdict(backwards["All"]) == "worse"


def test_two_steps_of_a_run_and_a_step_that_is_not_there(runs, tmp_path, capsys):
    page = tmp_path / "page.html"
    differences = compare_runs.write_comparison(f"{runs[0]}@1", f"{runs[0]}@2", str(page))
    assert differences["All"].value > 0
    assert '<img alt="image"' not in page.read_text()  # step 1 has no pictures any more
    same, _ = compare_runs.compare_runs(f"{runs[0]}@1", f"{runs[1]}@1")
    assert same["All"] == (0, 0, 0) and compare_runs.verdict(same["All"]) == "within the noise"
    assert "different records" not in capsys.readouterr().out
    latest = pathlib.Path(runs[1], "metrics.json")
    latest.write_text(json.dumps(json.loads(latest.read_text()) | {"records": "others"}))
    compare_runs.compare_runs(*runs)
    assert f"{runs[1]} were evaluated on different records" in capsys.readouterr().out
    with pytest.raises(InputError, match="metrics-00000007.json: cannot be read"):
        compare_runs.compare_runs(f"{runs[0]}@7", runs[1])


def test_script(runs, tmp_path, monkeypatch, capsys):
    script = ["scripts/report.py"]
    monkeypatch.setattr(sys, "argv", [*script, *runs, f"--out={tmp_path}/c.html"])
    runpy.run_path(*script, run_name="__main__")
    output = capsys.readouterr().out
    assert "95 % interval" in output and "better" in output
    assert (tmp_path / "c.html").stat().st_size > 10_000
    monkeypatch.setattr(sys, "argv", [*script, str(tmp_path / "no")])
    with pytest.raises(SystemExit, match="^error: .*metrics.json: missing; evaluate"):
        runpy.run_path(*script, run_name="__main__")
