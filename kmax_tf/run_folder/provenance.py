"""Records the code, packages and data of a run in run.json, and compares them at a restart."""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf
import tf_keras

from kmax_tf import config
from kmax_tf.data.datasets import Dataset
from kmax_tf.data.records.reader import Records
from kmax_tf.errors import InputError
from kmax_tf.files import ROOT, read_bytes, read_json, write_atomic
from kmax_tf.run_folder import checkpoint, layout

# These may differ at a restart, since the training stays the same. They are the place of the
# records (whose classes have a fingerprint) and of the weights that the run began with. They are
# also how often the host acts, and the code and packages of another machine.
_FREE = {"data_dir", "source", "initial_checkpoint"}
_FREE |= {"steps_per_loop", "checkpoint_interval", "checkpoints_kept"}
_FREE |= {"revision", "python", "tensorflow", "tf_keras", "tf-models-official", "numpy"}
# In an evaluation, these may differ, too.
_FREE_IN_EVALUATION = _FREE | {"evaluation_batch_size", "steps"}


def describe(dataset: Dataset, records: Records) -> dict:
    """Describes the code, packages and data of a run, as a dict for JSON.

    Args:
        dataset: the `Dataset`.
        records: the `Records` of its training split.

    Returns:
        The git "revision" ("-dirty" with uncommitted changes, None outside a checkout); the
        versions of Python and the packages; and "dataset", as `describe_records` gives it.
    """
    return {
        "revision": _revision(),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "tf_keras": tf_keras.__version__,
        "tf-models-official": importlib.metadata.version("tf-models-official"),
        "numpy": np.__version__,
        "dataset": describe_records(dataset, records),
    }


def describe_records(dataset: Dataset, records: Records) -> dict:
    """Describes the records of a split, as a dict for JSON.

    Returns:
        The number of "files", their "bytes", and a "fingerprint". This is of the classes, of the
        files' names and sizes and, if the records have one, of their fingerprint.
    """
    with ThreadPoolExecutor(32) as pool:  # on gs:// each answer takes its time
        sizes = list(pool.map(lambda path: tf.io.gfile.stat(path).length, records.paths))
    names = map(os.path.basename, records.paths)
    labels = [c[:3] for c in dataset.categories], dataset.label_divisor, dataset.ignore_label
    stored = [records.fingerprint] if records.fingerprint else []  # older records have none
    content = json.dumps([labels, list(zip(names, sizes, strict=True)), *stored])
    fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]
    return {"files": len(sizes), "bytes": sum(sizes), "fingerprint": fingerprint}


def write(run_dir: str, description: dict) -> None:
    """Writes run.json, and the configuration loaded last as config.gin."""
    write_atomic(layout.config(run_dir), config.resolved())
    write_atomic(layout.provenance(run_dir), json.dumps(description, indent=1))


def check(run_dir: str, description: dict, *, allow_changes: bool) -> None:
    """Compares a run's stored description with a new one, and prints each difference.

    Raises InputError if a difference changes the training (see `_FREE`) and `allow_changes` is
    False. A run without a checkpoint is not compared.
    """
    if not checkpoint.completed(run_dir):
        return
    path = layout.provenance(run_dir)
    old = _bindings(run_dir) | (read_json(path) if tf.io.gfile.exists(path) else description)
    new = config.bindings(config.resolved()) | description
    for name in _changed(old, new):
        print(f"changed: {name}: {old.get(name, 'default')} -> {new.get(name, 'default')}")
    if not allow_changes and _changed(old, new, _FREE):
        raise InputError(
            f"{run_dir}: was trained with other settings (see above); undo the change, use another"
            " run_dir, or pass --allow_changes (Python: allow_changes=True)"
        )


def other_settings(run_dir: str) -> list[str]:
    """Lists the parameters of the last `config.load` by which a run evaluates otherwise."""
    if not tf.io.gfile.exists(layout.config(run_dir)):
        return []
    return _changed(_bindings(run_dir), config.bindings(config.resolved()), _FREE_IN_EVALUATION)


def steps(run_dir: str) -> int | None:
    """Returns the number of steps that a run began with; None before its first checkpoint."""
    if not checkpoint.completed(run_dir):
        return None
    return int(_bindings(run_dir)["experiment.Experiment.steps"])


def _bindings(run_dir):
    return config.bindings(read_bytes(layout.config(run_dir)).decode())


def _changed(old, new, free=()):
    """Lists the names whose values differ, but for those that end with one of `free`."""
    changed = (name for name in sorted(old | new) if old.get(name) != new.get(name))
    return [name for name in changed if name.split(".")[-1] not in free]


def _revision():
    """Returns the git revision of the checkout of this code, None outside a checkout."""
    if not os.path.exists(os.path.join(ROOT, ".git")):
        return None
    command = ["git", "-C", ROOT, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (
        OSError,
        subprocess.CalledProcessError,
    ):  # no git, or the checkout belongs to another user
        return None
