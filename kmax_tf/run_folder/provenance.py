"""What a run is made with: its code, packages and data, in run.json beside its config.gin."""

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
from kmax_tf.files import read_bytes, read_json, write_atomic
from kmax_tf.run_folder import checkpoint, layout

# What may differ when a run goes on: where the same records are now, how often the host looks, and
# the code and packages, which another machine brings along. The training is meant to be the same.
_FREE = {"data_dir", "steps_per_loop", "checkpoint_interval", "checkpoints_kept"}
_FREE |= {"revision", "python", "tensorflow", "tf_keras", "tf-models-official", "numpy"}


def describe(dataset: Dataset, records: Records) -> dict:
    """What a run is made with, as JSON takes it.

    Arguments:
      dataset: the `Dataset`; records: the `Records` that it trains on.
    Returns the git "revision" (with "-dirty" where files differ from it; None outside a checkout),
    the versions of Python and of the packages, and of the "dataset" the number of files, their
    bytes, and a fingerprint of its classes and of the files' names and sizes.
    """
    with ThreadPoolExecutor(32) as pool:  # on gs:// each answer takes its time
        sizes = list(pool.map(lambda path: tf.io.gfile.stat(path).length, records.paths))
    names = map(os.path.basename, records.paths)
    labels = [c[:3] for c in dataset.categories], dataset.label_divisor, dataset.ignore_label
    content = json.dumps([labels, list(zip(names, sizes, strict=True))])
    return {
        "revision": _revision(),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "tf_keras": tf_keras.__version__,
        "tf-models-official": importlib.metadata.version("tf-models-official"),
        "numpy": np.__version__,
        "dataset": {
            "files": len(sizes),
            "bytes": sum(sizes),
            "fingerprint": hashlib.sha256(content.encode()).hexdigest()[:16],
        },
    }


def write(run_dir: str, description: dict) -> None:
    """Writes config.gin, the configuration loaded last, and run.json."""
    write_atomic(layout.config(run_dir), config.resolved())
    write_atomic(layout.provenance(run_dir), json.dumps(description, indent=1))


def check(run_dir: str, description: dict, *, allow_changes: bool) -> None:
    """Compares with what the checkpoints of a run were made with; prints a line a difference.

    Raises InputError where the training would not be the same any more (see `_FREE`), unless
    changes are allowed.
    """
    if not checkpoint.completed(run_dir):
        return
    text = read_bytes(layout.config(run_dir)).decode()
    path = layout.provenance(run_dir)
    old = config.bindings(text) | (read_json(path) if tf.io.gfile.exists(path) else description)
    new = config.bindings(config.resolved()) | description
    changed = [name for name in sorted(old | new) if old.get(name) != new.get(name)]
    for name in changed:
        print(f"changed: {name}: {old.get(name, 'default')} -> {new.get(name, 'default')}")
    if not allow_changes and not _FREE.issuperset(name.split(".")[-1] for name in changed):
        raise InputError(
            f"{run_dir}: was trained otherwise so far (see the lines above); undo that, give"
            " another --run_dir, or go on all the same with --allow_changes"
        )


def _revision():
    """The git revision of the checkout that this runs from, None outside of one."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if not os.path.exists(os.path.join(root, ".git")):
        return None
    command = ["git", "-C", root, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git here, or the checkout is another's
        return None
