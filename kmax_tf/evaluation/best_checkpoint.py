"""The best checkpoint of a run by PQ: its weights are kept, and at the end exported."""

import json
import os

import tensorflow as tf
import tf_keras

from kmax_tf.experiment import Experiment
from kmax_tf.files import read_json, write_atomic
from kmax_tf.inference import export as saved_model
from kmax_tf.run_folder import checkpoint

FOLDER = "best"


def keep(run_dir: str, model: tf_keras.Model, metrics: dict) -> None:
    """Keeps the weights of the model if no evaluated step had a better PQ."""
    folder, step = os.path.join(run_dir, FOLDER), metrics["step"]
    before = _noted(folder)
    if metrics["PQ"] is None or (before and before["PQ"] >= metrics["PQ"]):
        return
    path = checkpoint.write(tf.train.Checkpoint(model=model), folder, step)
    note = {"step": step, "PQ": metrics["PQ"]}
    write_atomic(os.path.join(folder, "best.json"), json.dumps(note))
    checkpoint.prune(folder, [path])  # the one before goes last: what is noted is always there


def export(run_dir: str, experiment: Experiment, model: tf_keras.Model) -> None:
    """Exports the weights that are kept into RUN_DIR/best/export, unless they are there already.

    The model has other weights afterwards.
    """
    folder = os.path.join(run_dir, FOLDER)
    best, target = _noted(folder), os.path.join(folder, "export")
    if best is None or best == _noted(target):
        return
    checkpoint.restore_model(model, checkpoint.path_of(folder, best["step"]))
    saved_model.export(experiment, model, target)
    write_atomic(os.path.join(target, "best.json"), json.dumps(best))


def _noted(folder):
    path = os.path.join(folder, "best.json")
    return read_json(path) if tf.io.gfile.exists(path) else None
