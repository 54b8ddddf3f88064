"""What this machine has, and what of it does not fit together.

First what can be told without TensorFlow, whose import aborts the process beside a wrong libtpu;
so nothing that imports it is imported before that.
"""

import argparse
import configparser
import glob
import importlib.metadata
import importlib.util
import os
import platform
import sys
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SHOWN = ("tensorflow", "tensorflow-tpu", "tf_keras", "tf-models-official", "numpy", "hotcoco")
SAME_MINOR = ("tf_keras", "tf-models-official")  # as TensorFlow
# The newest libtpu that a TPU wheel was seen to import with, where its own requirement allows more.
NEWEST_LIBTPU = {"2.20": "0.0.30"}
# Where those are that the wheels before 2.19 ask for.
LIBTPU_PAGE = " -f https://storage.googleapis.com/libtpu-tf-releases/index.html"


class Problem(NamedTuple):
    """What does not fit, and what to do about it, each a line."""

    what: str
    remedy: str


def supported() -> tuple[str, list[str]]:
    """Returns what setup.cfg asks for: of Python, and the requirements."""
    setup = configparser.ConfigParser()
    setup.read(os.path.join(ROOT, "setup.cfg"))
    options = setup["options"]
    return options["python_requires"], options["install_requires"].split()


def installed() -> dict[str, str]:
    """Returns the versions of all installed distributions, by their canonical names."""
    return {
        canonical(distribution.metadata["Name"]): distribution.version
        for distribution in importlib.metadata.distributions()
    }


def canonical(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def check_python(version: str, wanted: str) -> list[Problem]:
    """Checks a version of Python, as "3.11.7", against a specifier, as ">=3.10,<3.13"."""
    if SpecifierSet(wanted).contains(version):
        return []
    return [Problem(f"Python {version} is not {wanted}", "install one that is; scripts/setup_venv")]


def check_versions(versions: Mapping[str, str], requirements: Sequence[str]) -> list[Problem]:
    """Checks what is installed (`installed`) against requirements (`supported`)."""
    problems = []
    versions = {"tensorflow": versions.get("tensorflow-tpu", ""), **versions}
    for requirement in map(Requirement, requirements):
        version = versions.get(canonical(requirement.name))
        if not version:
            what = f"{requirement.name} is not installed"
        elif not requirement.specifier.contains(version):
            what = f"{requirement.name} {version} is not {requirement.specifier}"
        else:
            continue
        problems.append(Problem(what, f'pip install "{requirement}", or scripts/setup_venv'))
    tensorflow = versions.get("tensorflow-tpu") or versions["tensorflow"]
    for name in SAME_MINOR:
        version = versions.get(canonical(name))
        if tensorflow and version and minor(version) != minor(tensorflow):
            what = f"{name} {version} beside TensorFlow {tensorflow}, of another minor version"
            problems.append(Problem(what, f'pip install "{name}=={minor(tensorflow)}.*"'))
    return problems


def minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def check_conflicts(
    versions: Mapping[str, str], asks: Mapping[str, Iterable[str]]
) -> list[Problem]:
    """Checks what installed packages ask of each other: `asks` are their requirements."""
    problems = []
    for name, requirements in asks.items():
        for requirement in map(Requirement, requirements):
            version = versions.get(canonical(requirement.name))
            applies = not requirement.marker or requirement.marker.evaluate({"extra": ""})
            if version and applies and not requirement.specifier.contains(version):
                what = f"{name} asks for {requirement}, installed is {version}"
                line = f'pip install "{requirement.name}{requirement.specifier}"'
                line += LIBTPU_PAGE if requirement.name == "libtpu" else ""
                problems.append(Problem(what, line))
    return problems


def check_tpu_wheel(versions: Mapping[str, str], changed: Sequence[str]) -> list[Problem]:
    """Checks tensorflow-tpu, if it is installed.

    Args:
        versions: what is installed.
        changed: files of tensorflow-tpu that are not as it brought them (`changed_files`).
    """
    wheel, libtpu = versions.get("tensorflow-tpu"), versions.get("libtpu")
    if not wheel:
        return []
    problems = []
    if changed:
        what = f"the stock wheel lies over tensorflow-tpu {wheel} ({os.path.basename(changed[0])})"
        line = f"pip install --force-reinstall --no-deps tensorflow-tpu=={wheel}, after all else"
        problems.append(Problem(what, line))
    newest = NEWEST_LIBTPU.get(minor(wheel))
    if libtpu and newest and not SpecifierSet(f"<={newest}").contains(libtpu):
        what = f"libtpu {libtpu} is newer than tensorflow-tpu {wheel} stands: importing it aborts"
        problems.append(Problem(what, f"pip install libtpu=={newest}"))
    return problems


def changed_files(name: str) -> list[str]:
    """Returns the libraries of a distribution whose size is not the one that its RECORD states."""
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    libraries = [file for file in files if ".so" in file.name and file.size]
    return [
        str(file)
        for file in libraries
        if not os.path.exists(file.locate()) or os.path.getsize(file.locate()) != file.size
    ]


def check_devices(
    seen: Mapping[str, int],
    *,
    nvidia: bool,
    wanted: str,
    versions: Mapping[str, str],
    hidden: bool = False,
) -> list[Problem]:
    """Checks the devices of TensorFlow.

    Args:
        seen: how many TensorFlow sees of each kind, as {"CPU": 1}.
        nvidia: whether the machine has an NVIDIA GPU.
        wanted: the --device of training.
        versions: what is installed.
        hidden: whether CUDA_VISIBLE_DEVICES hides all GPUs.
    """
    problems = []
    tpu_wheel = versions.get("tensorflow-tpu")
    if nvidia and not seen.get("GPU"):
        remedy = f'pip install "tensorflow[and-cuda]=={versions.get("tensorflow")}"'
        if tpu_wheel:
            remedy = "tensorflow-tpu knows no GPU: make another environment, scripts/setup_venv"
        if hidden:
            remedy = "unset CUDA_VISIBLE_DEVICES"
        problems.append(Problem("there is an NVIDIA GPU, and TensorFlow sees none", remedy))
    elif wanted == "gpu" and not seen.get("GPU"):
        problems.append(Problem("there is no GPU for --device=gpu", "use --device=cpu"))
    if is_tpu(wanted) and not tpu_wheel:
        line = "pip install --force-reinstall --no-deps tensorflow-tpu==X, X as on the workers"
        problems.append(Problem(f"--device={wanted} with the stock TensorFlow", line))
    return problems


def is_tpu(device: str) -> bool:
    return device == "local" or device.startswith("tpu:")


def check_environment(
    device: str, environment: Mapping[str, str], versions: Mapping[str, str]
) -> list[Problem]:
    """Checks the variables that TensorFlow reads when it is imported.

    Args:
        device: the --device of training.
        environment: os.environ.
        versions: what is installed.
    """
    wanted = {}
    if device.startswith("tpu:") or (device != "local" and versions.get("tensorflow-tpu")):
        reason = "TensorFlow looks for chips, which the server of a slice's worker holds"
        wanted["TPU_LOAD_LIBRARY"] = "0", reason
    if device.startswith("tpu:"):
        reason = "tf.keras is Keras 3, which trains no tf_keras layer"
        wanted["TF_USE_LEGACY_KERAS"] = "1", reason
        wanted["TPU_NAME"] = device.removeprefix("tpu:"), "the slice is not found"
    return [
        Problem(f"{name} is not {value}: {reason}", f"export {name}={value}")
        for name, (value, reason) in wanted.items()
        if environment.get(name) != value
    ]


def check_paths(device: str, paths: Mapping[str, str]) -> list[Problem]:
    """Checks that what a slice's workers read and write is where they reach it.

    Args:
        device: the --device of training.
        paths: flag or field -> path.
    """
    if not device.startswith("tpu:"):
        return []
    return [
        Problem(f"{name} {path} is local: a slice's workers cannot reach it", "copy it to gs://")
        for name, path in paths.items()
        if path and not path.startswith("gs://")
    ]


def check_run_dir(path: str) -> tuple[str, list[Problem]]:
    """Writes a file and deletes it, in a folder or, where there is none yet, above it.

    Returns:
        What to show, and the problem.
    """
    import tensorflow as tf

    from kmax_tf import errors, files

    folder = os.path.abspath(path) if "://" not in path else path
    while folder.startswith("/") and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    trial = os.path.join(folder, f"doctor-{uuid.uuid4().hex[:8]}")
    try:
        files.write_atomic(trial, "")
        tf.io.gfile.remove(trial)
    except (errors.InputError, tf.errors.OpError) as error:
        remedy = "check the path, and the rights of this machine's service account on the bucket"
        return "cannot be written", [Problem(_first_line(error), remedy)]
    return "can be written", []


def check_records(data_dir: str, dataset: Any, splits: Sequence[str]) -> tuple[str, list[Problem]]:
    """Looks for the records of a dataset; returns what to show, and a problem for each split."""
    import tensorflow as tf

    from kmax_tf import errors
    from kmax_tf.data.records import reader

    shown, problems = [], []
    for split in splits:
        try:
            found = reader.find(data_dir, split, dataset)
        except (errors.InputError, tf.errors.OpError) as error:
            problems.append(Problem(_first_line(error), "docs/data.md tells how to convert"))
            continue
        count = "" if found.num_examples is None else f"{found.num_examples} images in "
        shown.append(f"{split}: {count}{len(found.paths)} files")
    return ", ".join(shown) or "no records", problems


def _first_line(error: Exception) -> str:
    """What is wrong, without the remedy that an InputError ends with."""
    return str(error).splitlines()[0].rpartition("; ")[0][:200] or str(error).splitlines()[0][:200]


def look(options: argparse.Namespace) -> tuple[list[tuple[str, str]], list[Problem]]:
    """Examines the machine.

    Args:
        options: data_dir, gin_file, gin, run_dir and device of scripts/doctor.py.

    Returns:
        Rows of a table, and what does not fit.
    """
    versions = installed()
    python, requirements = supported()
    asks = {
        name: importlib.metadata.requires(name) or []
        for name in ("tensorflow", "tensorflow-tpu", *SAME_MINOR)
        if canonical(name) in versions
    }
    tpu_problems = [
        *check_tpu_wheel(versions, changed_files("tensorflow-tpu")),
        *check_environment(options.device, os.environ, versions),
    ]
    problems = [
        *check_python(platform.python_version(), python),
        *check_versions(versions, requirements),
        *check_conflicts(versions, asks),
        *tpu_problems,
        *check_paths(options.device, {"run_dir": options.run_dir}),
    ]
    rows = [("Python", f"{platform.python_version()} ({sys.executable})")]
    rows += [(name, versions.get(canonical(name), "-")) for name in (*SHOWN, "libtpu")]
    legacy = os.environ.get("TF_USE_LEGACY_KERAS") in ("1", "true", "True")
    rows += [
        ("orbit", "of tf-models-official" if importlib.util.find_spec("orbit") else "-"),
        (
            "tf.keras",
            "tf_keras" if legacy else f"Keras {versions.get('keras', '-')}; not used here",
        ),
        ("cores, memory", _cores_and_memory()),
    ]
    if tpu_problems or not ({"tensorflow", "tensorflow-tpu"} & versions.keys()):
        return rows, problems  # importing TensorFlow would fail, abort or wait for minutes
    for row, found in (_devices(options.device, versions), *_folders(options)):
        rows += row
        problems += found
    return rows, problems


def _cores_and_memory() -> str:
    gibibytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return f"{len(os.sched_getaffinity(0))}, {gibibytes:.0f} GiB"


def _devices(wanted, versions):
    import tensorflow as tf

    seen = {}
    for device in tf.config.list_physical_devices():
        seen[device.device_type] = seen.get(device.device_type, 0) + 1
    problems = check_devices(
        seen,
        nvidia=bool(glob.glob("/proc/driver/nvidia/gpus/*")),
        wanted=wanted,
        versions=versions,
        hidden=os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"),
    )
    return [("devices", ", ".join(f"{count} {kind}" for kind, count in seen.items()))], problems


def _folders(options):
    """Yields rows and problems of the run folder, the records and the experiment's checkpoint."""
    from kmax_tf import config
    from kmax_tf.data import datasets
    from kmax_tf.errors import InputError
    from kmax_tf.experiment import Experiment

    if options.run_dir:
        shown, problems = check_run_dir(options.run_dir)
        yield [(options.run_dir, shown)], problems
    try:
        if options.gin_file:
            found = config.load(Experiment, options.gin_file, options.gin)
            data_dir, dataset = options.data_dir or found.data_dir, found.dataset
            splits = dict.fromkeys([found.train_split, found.evaluation_split])
            paths = {"data_dir": data_dir, "initial_checkpoint": found.initial_checkpoint}
            yield [], check_paths(options.device, paths)
        elif options.data_dir:
            data_dir = options.data_dir
            dataset, splits = datasets.load(data_dir), datasets.split_names(data_dir)
            yield [], check_paths(options.device, {"data_dir": data_dir})
        else:
            return
    except InputError as error:
        yield [], [Problem(str(error), "correct the file, the flag or the binding that it names")]
        return
    shown, problems = check_records(data_dir, dataset, list(splits))
    yield [(data_dir, shown)], problems


def text(rows: Sequence[tuple[str, str]], problems: Sequence[Problem]) -> str:
    """Returns the table and, below it, what does not fit."""
    width = max(len(name) for name, _ in rows) + 2
    lines = [f"{name:{width}}{value}" for name, value in rows]
    if not problems:
        return "\n".join([*lines, "", "Everything fits."])
    lines += ["", "Does not fit:"]
    lines += [f"  {problem.what}\n      -> {problem.remedy}" for problem in problems]
    return "\n".join(lines)
