"""The best checkpoint of a run by PQ: keeps a copy of its weights, and exports them at the end."""

import json
from collections.abc import Callable

import tensorflow as tf
import tf_keras

from kmax_tf.data.datasets import Dataset
from kmax_tf.experiment import Experiment
from kmax_tf.files import read_json, write_atomic
from kmax_tf.inference import export as saved_model
from kmax_tf.inference import model_card
from kmax_tf.run_folder import checkpoint, layout, results


def update(run_dir: str, model: tf_keras.Model, dataset: Dataset, metrics: dict) -> None:
    """Keeps the weights of a model of `dataset` if no evaluated step had a better PQ."""
    folder, step = layout.best(run_dir), metrics["step"]
    best = _read_note(folder)
    if metrics["PQ"] is None or (best and best["PQ"] >= metrics["PQ"]):
        return
    path = checkpoint.path_of(folder, step)
    saver = tf.train.Checkpoint(model=model, classes=checkpoint.Description(model, dataset))
    checkpoint.write(saver, path)
    note = {key: metrics.get(key) for key in ("step", "PQ", "checkpoint", "records")}
    write_atomic(layout.best_note(folder), json.dumps(note))
    checkpoint.prune(folder, [path])  # after the note, which must always name a checkpoint


def notes(run_dir: str) -> list[dict]:
    """Returns what is noted of the best checkpoint, as a list of at most one.

    It has "step" and "PQ", and since some version the fingerprints "checkpoint" and "records".
    """
    note = _read_note(layout.best(run_dir))
    return [note] if note else []


def forget(run_dir: str, is_other: Callable[[dict], bool]) -> None:
    """Forgets the best checkpoint if `is_other` says so of its note; the next one replaces it."""
    if any(map(is_other, notes(run_dir))):
        tf.io.gfile.remove(layout.best_note(layout.best(run_dir)))


def is_exported(run_dir: str) -> bool:
    """Returns whether the export is of the best weights of now; True if a run has neither."""
    return _read_note(layout.best(run_dir)) == _read_note(layout.best_export(run_dir))


def export(run_dir: str, experiment: Experiment, model: tf_keras.Model) -> None:
    """Exports the best weights into RUN_DIR/best/export, unless they are there already.

    This loads the best weights into `model`.
    """
    folder, target = layout.best(run_dir), layout.best_export(run_dir)
    best = _read_note(folder)
    if best is None or is_exported(run_dir):
        return
    path = checkpoint.path_of(folder, best["step"])
    print(f"exporting {path} to {target}; this can take minutes", flush=True)
    checkpoint.restore_model(model, path, experiment.dataset)
    facts = model_card.weights_facts(path, _read(layout.metrics(run_dir, best["step"])))
    facts += [("in training", line.strip()) for line in results.read_lost_segments(run_dir)]
    saved_model.export(experiment, model, target, facts)
    write_atomic(layout.best_note(target), json.dumps(best))


def _read_note(folder):
    return _read(layout.best_note(folder))


def _read(path):
    return read_json(path) if tf.io.gfile.exists(path) else None
