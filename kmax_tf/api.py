"""The calls of Python: train, evaluate, load. Each runs what the command `kmax` runs."""

import inspect
import logging
import os
from typing import Any

import tensorflow as tf

from kmax_tf import config, predict
from kmax_tf.errors import InputError, nearest
from kmax_tf.experiment import Experiment
from kmax_tf.files import expanded, read_json
from kmax_tf.predict import Segmenter
from kmax_tf.predict.segmenter import CATEGORIES
from kmax_tf.run_folder import checkpoint, layout, watch

Path = str | os.PathLike
MINUTES = 20.0  # of a planned training
logging.getLogger("tensorflow").setLevel(logging.ERROR)  # deprecated operations are intended


def train(
    data: Path,
    run_dir: Path,
    *,
    gin_file: Path | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    allow_changes: bool = False,
    **bindings: Any,
) -> None:
    """Trains a model on a folder of records, as `kmax plan` and `kmax train` do.

    Without `gin_file`, the numbers of the dataset choose the training. `run_dir/plan.gin` holds the
    choice, and `run_dir/plan.html` explains it. The same call resumes a run, with its plan.

    Args:
        data: folder of records, which `kmax prepare` makes, with the splits "train" and "val".
        run_dir: folder of the run. It gets checkpoints, summaries and the configuration.
        gin_file: file of an experiment, such as "gin/experiments/coco_resnet50.gin". `data` is
            then the place of its records.
        minutes: of training on this machine. A plan takes 20 by default, and a `gin_file` has its
            own length.
        steps: number of steps, instead of that of the plan or the file. The warm-up keeps its
            share.
        epochs: passes over the training images, instead of `steps`.
        batch_size: images a step, of all replicas together. Learning rate, warm-up and `steps`
            of the plan or the file scale linearly.
        device: "auto" (all GPUs, else the CPU), "cpu", "gpu", "tpu:NAME" or "local" (this host's
            TPU); with a `gin_file` also "pjrt" (all devices of JAX).
        allow_changes: resume even if the settings or the records of the run changed.
        bindings: settings that override the plan or the file. A name is a field of `Experiment`,
            such as `precision="mixed_bfloat16"`, or a full name of gin in a dictionary, such as
            `**{"criterion.Criterion.pq_weight": 2.0}`. A text that starts with "@" refers to a
            class or function.

    Raises:
        InputError: a file, folder, name or value is missing or wrong. For a misspelled name, the
            message has the nearest valid one.
        SystemExit: after SIGTERM or Ctrl-C, once the step that was reached is saved.
    """
    from kmax_tf.planning import timing
    from kmax_tf.training import train as training

    data, run_dir = expanded(data), expanded(run_dir)
    lines = [f"experiment.Experiment.data_dir = {data!r}", *_lines(bindings)]
    if gin_file:
        path = expanded(gin_file)
    else:
        lines.insert(0, f"datasets.load.source = {data!r}")  # as a plan binds it
        path, minutes = _plan(data, run_dir, device, MINUTES if minutes is None else minutes), None
    strategy = training.make_strategy(device)
    experiment = timing.load(
        path,
        lines,
        strategy,
        run_dir,
        batch_size=batch_size,
        steps=steps,
        epochs=epochs,
        minutes=minutes,
    )
    training.train(experiment, run_dir, strategy, allow_changes=allow_changes)


def evaluate(run_dir: Path) -> dict[str, Any]:
    """Evaluates the newest checkpoint of a run, as `kmax evaluate --once` does.

    It writes `run_dir/report.html`, and exports the checkpoint with the best PQ so far to
    `run_dir/best/export`.

    Args:
        run_dir: folder of the run.

    Returns:
        The metrics, as in `run_dir/metrics.json`: PQ, PQ_things, PQ_stuff, AP, mIoU, step,
        num_images, and those of each class. Scores are 0 to 100, or None where the split has no
        such class.

    Raises:
        InputError: the run has no checkpoint, or its records are missing or corrupt.
    """
    from kmax_tf import runtime
    from kmax_tf.evaluation.evaluate import evaluate_run

    run_dir = expanded(run_dir)
    gin_file = watch.wait_for_config(run_dir, 0)
    with runtime.strategy("auto").scope():
        return evaluate_run(config.load(Experiment, gin_file), run_dir, once=True)


def load(path: Path) -> Segmenter:
    """Loads a model that segments images.

    Of a run it takes the weights with the best PQ, and exports them unless the evaluator has. If
    none are evaluated, it exports the newest checkpoint to `export` in the run's folder. A line
    says which one it takes.

    Args:
        path: folder of an export, or of a run.

    Returns:
        A `Segmenter`.

    Raises:
        InputError: the folder is neither, the run has no checkpoint, or the export is corrupt or of
            an older version.
    """
    path = expanded(path)
    if tf.io.gfile.exists(os.path.join(path, CATEGORIES)):
        return predict.load(path)
    if not tf.io.gfile.exists(layout.config(path)):
        raise InputError(f"{path}: is neither an export nor a run; train first, or check the path")
    from kmax_tf.evaluation import best_checkpoint

    folder = layout.best_export(path)
    if not best_checkpoint.is_exported(path):  # the evaluator was stopped before
        experiment = config.load(Experiment, layout.config(path))
        best_checkpoint.export(path, experiment, experiment.build_evaluation_model())
    if not tf.io.gfile.exists(os.path.join(folder, CATEGORIES)):
        folder = _newest_export(path)
    print(f"loading {folder}", flush=True)
    return predict.load(folder)


def _lines(bindings):
    """Returns the lines of gin; they are checked here, before a plan takes its time."""
    known = [*inspect.signature(Experiment).parameters, *inspect.signature(train).parameters]
    lines = []
    for name, value in bindings.items():
        if "." not in name and name not in known:
            raise InputError(f"train has no {name!r}{nearest(name, known)}")
        name = name if "." in name else f"experiment.Experiment.{name}"
        lines.append(config.binding(name, value))
    return lines


def _plan(data, run_dir, device, minutes):
    """Returns the gin file of a run, which a new run gets from the numbers of its data."""
    from kmax_tf.planning import planner

    plan = layout.plan(run_dir)
    for path in (plan, layout.config(run_dir)):
        if tf.io.gfile.exists(path):
            print(f"with {path}; for another plan, give another run_dir", flush=True)
            return path
    planner.run(data, plan, device, minutes, weights="")
    return plan


def _newest_export(run_dir):
    """Returns the export of a run's newest checkpoint, and makes it unless it is there."""
    from kmax_tf.inference.export import export_checkpoint

    newest, folder = checkpoint.newest(run_dir), layout.export(run_dir)
    path = os.path.join(folder, CATEGORIES)
    exported = read_json(path).get("checkpoint") if tf.io.gfile.exists(path) else None
    if exported is None or exported != checkpoint.fingerprint(newest):
        export_checkpoint(run_dir, newest, folder)
    return folder
