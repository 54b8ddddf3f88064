"""Checks the devices, the run folder and the records of a training."""

import argparse
import collections
import dataclasses
import itertools
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from kmax_tf import config, files, host
from kmax_tf.data import datasets, segment_counts
from kmax_tf.data.records import reader
from kmax_tf.errors import InputError, first_line
from kmax_tf.experiment import Experiment
from kmax_tf.importers import own_checkpoint
from kmax_tf.run_folder import checkpoint
from kmax_tf.tools.packages import Problem

JAX_PLUGIN = re.compile(r"jax-cuda\d+-plugin")  # by which JAX sees NVIDIA GPUs


def check_devices(
    seen: Mapping[str, int],
    *,
    nvidia: bool,
    wanted: str,
    versions: Mapping[str, str],
    hidden: bool = False,
) -> list[Problem]:
    """Checks the devices that TensorFlow sees.

    Args:
        seen: Number of devices of each kind, such as {"CPU": 1}.
        nvidia: Whether the machine has an NVIDIA GPU.
        wanted: The --device of training.
        versions: The installed versions.
        hidden: Whether CUDA_VISIBLE_DEVICES hides all GPUs.
    """
    problems = []
    tpu_wheel = versions.get("tensorflow-tpu")
    if wanted.startswith("pjrt"):
        if "jax" not in versions:
            problems.append(Problem(f"--device={wanted} needs JAX", "pip install 'kmax_tf[pjrt]'"))
        elif nvidia and wanted == "pjrt" and not any(map(JAX_PLUGIN.fullmatch, versions)):
            remedy = 'pip install "jax[cuda12]", or train with --device=gpu'
            problems.append(Problem("JAX does not see the NVIDIA GPU", remedy))
    elif nvidia and not seen.get("GPU") and wanted in ("auto", "gpu"):
        remedy = f'pip install "tensorflow[and-cuda]=={versions.get("tensorflow")}"'
        if tpu_wheel:
            remedy = "tensorflow-tpu supports no GPU: make another environment, scripts/setup_venv"
        if hidden:
            remedy = "unset CUDA_VISIBLE_DEVICES"
        problems.append(Problem("TensorFlow does not see the NVIDIA GPU", remedy))
    elif wanted == "gpu" and not seen.get("GPU"):
        problems.append(Problem("there is no GPU for --device=gpu", "use --device=cpu"))
    if (wanted == "local" or wanted.startswith("tpu:")) and not tpu_wheel:
        line = "pip install --force-reinstall --no-deps tensorflow-tpu==X, X as on the workers"
        problems.append(Problem(f"--device={wanted} needs tensorflow-tpu", line))
    return problems


def check_paths(device: str, paths: Mapping[str, str]) -> list[Problem]:
    """Checks that a slice's workers can reach all paths.

    Args:
        device: The --device of training.
        paths: Path of each flag or field.
    """
    if not device.startswith("tpu:"):
        return []
    return [
        Problem(f"{name} {path} is local: a slice's workers cannot reach it", "copy it to gs://")
        for name, path in paths.items()
        if path and not path.startswith("gs://")
    ]


def check_run_dir(path: str) -> tuple[str, list[Problem]]:
    """Writes and deletes a file in a folder, or in the nearest parent that exists.

    Returns:
        The result to show, and the problem.
    """
    try:
        files.check_literal(path)
    except InputError as error:
        return "cannot hold checkpoints", [_problem(error)]
    folder = os.path.abspath(path) if "://" not in path else path
    while folder.startswith("/") and not os.path.exists(folder):
        folder = os.path.dirname(folder)
    if os.path.isfile(folder):
        return "is not a folder", [Problem(f"{folder} is a file", "choose another run_dir")]
    trial = os.path.join(folder, f"doctor-{uuid.uuid4().hex[:8]}")
    try:
        files.write_atomic(trial, "")
        tf.io.gfile.remove(trial)
    except (InputError, tf.errors.OpError) as error:
        remedy = "check the path, and this machine's access rights to the bucket"
        return "cannot be written", [Problem(_without_remedy(error), remedy)]
    return "can be written", []


def check_records(data_dir: str, dataset: Any, splits: Sequence[str]) -> tuple[str, list[Problem]]:
    """Finds the records of a dataset.

    Returns:
        The result to show, and a problem for each missing split.
    """
    shown, problems = [], []
    for split in splits:
        try:
            found = reader.find(data_dir, split, dataset)
        except (InputError, tf.errors.OpError) as error:
            problems.append(Problem(_without_remedy(error), "convert it as in docs/data.md"))
            continue
        count = "" if found.num_examples is None else f"{found.num_examples} images in "
        shown.append(f"{split}: {count}{len(found.paths)} files")
    return ", ".join(shown) or "no records", problems


def check_segments(experiment: Experiment, data_dir: str) -> tuple[list[str], list[Problem]]:
    """Starts the model of an experiment, and counts the segments that it loses of the records.

    Returns:
        The lines of `segment_counts.describe`, and the problem.
    """
    try:
        model = experiment.build_model()
        if experiment.initial_checkpoint:
            start = own_checkpoint.find(experiment.initial_checkpoint)
            build = experiment.build_weights
            own_checkpoint.start_from(model, start, experiment.dataset, build)
        records = reader.find(data_dir, experiment.train_split, experiment.dataset)
        counts = segment_counts.of_experiment(records, experiment, model)
    except InputError as error:
        return [], [_problem(error)]
    return segment_counts.describe(counts), []


def _problem(error):
    """Returns the problem of an InputError, with its own remedy."""
    return Problem(_without_remedy(error), first_line(error).rpartition("; ")[2])


def _without_remedy(error):
    """Returns the first line of an error without the remedy of an InputError."""
    line = first_line(error)
    return (line.rpartition("; ")[0] or line)[:200]


def examine_devices(wanted: str, versions: Mapping[str, str]) -> tuple[str, list[Problem]]:
    """Returns the devices that TensorFlow sees, as text, and the problems of `check_devices`."""
    seen = collections.Counter(d.device_type for d in tf.config.list_physical_devices())
    problems = check_devices(
        seen,
        nvidia=host.has_nvidia_gpu(),
        wanted=wanted,
        versions=versions,
        hidden=os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"),
    )
    return ", ".join(f"{count} {kind}" for kind, count in seen.items()), problems


def examine_folders(
    options: argparse.Namespace,
) -> tuple[list[tuple[str, str]], list[Problem]]:
    """Checks the run folder, the records and the experiment's initial checkpoint.

    Args:
        options: data_dir, gin_file, gin, run_dir and device of `kmax doctor`.

    Returns:
        Rows of folder and result, and the problems.
    """
    rows, problems = [], check_paths(options.device, {"run_dir": options.run_dir})
    has_begun = False
    if options.run_dir:
        shown, found = check_run_dir(options.run_dir)
        rows.append((options.run_dir, shown))
        problems += found
        has_begun = not found and bool(checkpoint.completed(options.run_dir))
    if not (options.gin_file or options.data_dir):
        return rows, problems
    data_dir, initial, experiment = options.data_dir, "", None
    try:
        if options.gin_file:
            experiment = config.load(Experiment, options.gin_file, options.gin)
            if has_begun:  # it goes on from its own checkpoint
                experiment = dataclasses.replace(experiment, initial_checkpoint="")
            data_dir, initial = data_dir or experiment.data_dir, experiment.initial_checkpoint
            dataset = experiment.dataset
            splits = dict.fromkeys([experiment.train_split, experiment.evaluation_split])
        else:
            dataset, splits = datasets.load(data_dir), datasets.split_names(data_dir)
    except InputError as error:
        return rows, [*problems, Problem(str(error), "correct that file, flag or binding")]
    paths = {"data_dir": data_dir, "initial_checkpoint": initial}
    shown, found = check_records(data_dir, dataset, list(splits))
    rows.append((data_dir, shown))
    problems += check_paths(options.device, paths) + found
    if experiment and not found:
        lines, found = check_segments(experiment, data_dir)
        rows += zip(itertools.chain(["lost segments"], itertools.repeat("")), lines)
        problems += found
    return rows, problems
