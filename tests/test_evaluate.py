"""The evaluator job: beside training, each checkpoint once; its glue loses nothing on the way."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from kmax_tf import checkpoint, evaluate, runtime, train
from kmax_tf.data import example
from kmax_tf.data.targets import class_indices
from kmax_tf.files import InputError
from kmax_tf.postprocess import Panoptic

ROOT = pathlib.Path(__file__).parents[1]


def perfect_predictor(experiment):
    """Answers each batch with the labels, crowd left out, in the order of the records."""
    paths = example.shard_paths(experiment.data_dir, experiment.evaluation_split)
    labels = [example.parse(r) for path in paths for r in example.read_records(path)]

    def predict(image):
        maps, classes = [], []
        for _ in range(image.shape[0]):
            item = labels.pop(0)
            crowd = np.concatenate([[False], item.is_crowd.numpy()])
            maps.append(np.where(crowd[item.segment_map], 0, item.segment_map))
            row = np.full(20, -1)
            row[: len(crowd) - 1] = class_indices(experiment.dataset, item.category_id)
            classes.append(row)
        scores = tf.ones([image.shape[0], 20])
        maps, classes = tf.constant(maps, tf.int32), tf.constant(classes)
        return Panoptic(maps, classes, scores, scores, maps), []

    return predict


def test_labels_as_predictions_are_perfect(tiny, tmp_path):
    experiment = tiny()
    truth = evaluate.write_ground_truth(experiment, str(tmp_path))
    predict = perfect_predictor(experiment)
    metrics = evaluate.evaluate(experiment, predict, str(tmp_path), truth, step=7)
    assert metrics["num_images"] == 3 and metrics["step"] == 7
    assert metrics["PQ"] == metrics["PQ_things"] == metrics["PQ_stuff"] == 100
    assert all(c["PQ"] == 100 for c in metrics["classes"])


def test_follows_a_training_beside_it(tiny, tmp_path):
    tiny()  # writes the gin file
    run_dir = tmp_path / "run"

    def start(script, *flags):
        command = [sys.executable, ROOT / "scripts" / script, f"--run_dir={run_dir}", *flags]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    evaluator = start("evaluate.py", "--wait=300")
    assert start("train.py", f"--gin_file={tmp_path / 'tiny.gin'}").wait() == 0
    output, _ = evaluator.communicate(timeout=300)
    assert evaluator.returncode == 0
    steps = [line.split(":")[0] for line in output.splitlines() if line.startswith("step")]
    assert steps == sorted(set(steps)) and steps[-1] == "step 4"
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert metrics["step"] == 4 and metrics["num_images"] == 3
    assert (run_dir / "report.html").stat().st_size > 10_000
    [pictures, *_] = (run_dir / "eval" / "pictures").iterdir()
    names = {p.name for p in pictures.iterdir()}
    assert names == {"image.png", "label.png", "prediction.png", "assignment_1.png"}
    for folder in ("train", "eval"):
        assert list((run_dir / folder).glob("events.out.tfevents.*"))

    # Started again, it does nothing twice.
    again = start("evaluate.py", "--wait=300")
    assert again.communicate(timeout=300)[0] == "" and again.returncode == 0


def test_damaged_checkpoint_is_skipped(tiny, tmp_path, capsys):
    experiment = tiny("experiment.Experiment.steps = 2")
    run_dir = str(tmp_path / "run")
    train.train(experiment, run_dir, runtime.strategy("cpu"))
    data = pathlib.Path(checkpoint.completed(run_dir)[0] + ".data-00000-of-00001")
    data.write_bytes(data.read_bytes()[:-1000])
    assert evaluate.evaluate_run(experiment, run_dir)["step"] == 2
    output = capsys.readouterr().out
    assert "skipped: " in output and "ckpt-1: cannot be read" in output


def test_without_a_run_there_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match="config.gin: missing; start scripts/train.py"):
        evaluate.wait_for_config(str(tmp_path), seconds=0)
