"""Checks packages and environment variables; imports no TensorFlow.

The import of TensorFlow aborts the process if libtpu is wrong.
"""

import importlib.metadata
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from packaging.version import Version

SAME_MINOR = ("tf_keras", "tf-models-official")  # as TensorFlow
CHECKED = ("kmax_tf", "tensorflow", "tensorflow-tpu", *SAME_MINOR)  # of what pip check reports
# The newest libtpu that imports with a TPU wheel whose own requirement allows newer ones.
NEWEST_LIBTPU = {"2.20": "0.0.30"}
# The package index of the libtpu that TPU wheels before 2.19 require.
LIBTPU_PAGE = " -f https://storage.googleapis.com/libtpu-tf-releases/index.html"


class Problem(NamedTuple):
    """A problem and its remedy, one line each."""

    what: str
    remedy: str


def installed() -> dict[str, str]:
    """Returns the versions of all installed distributions by their canonical names."""
    return {
        canonical(distribution.metadata["Name"]): distribution.version
        for distribution in importlib.metadata.distributions()
        if distribution.metadata["Name"]  # an interrupted pip leaves folders without metadata
    }


def canonical(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def check_same_minor(versions: Mapping[str, str]) -> list[Problem]:
    """Checks that TensorFlow's companions have its minor version, which pip does not require.

    Args:
        versions: The installed versions, see `installed`.
    """
    tensorflow = versions.get("tensorflow-tpu") or versions.get("tensorflow")
    problems = []
    for name in SAME_MINOR:
        version = versions.get(canonical(name))
        if tensorflow and version and minor(version) != minor(tensorflow):
            what = f"{name} {version} and TensorFlow {tensorflow} differ in their minor version"
            problems.append(Problem(what, f'pip install "{name}=={minor(tensorflow)}.*"'))
    return problems


def check_requirements(report: str) -> list[Problem]:
    """Reads the output of `pip check`; conflicts of unrelated packages are left out."""
    if not report.strip():  # it says something where all is well, too
        what = "pip check does not run here, so requirements are not checked"
        return [Problem(what, f"{sys.executable} -m ensurepip")]
    problems = []
    for line in report.splitlines():
        if line.split(" ")[0] in map(canonical, CHECKED):
            wanted = re.search("has requirement (.*), but you have", line)
            remedy = f'pip install "{wanted[1]}"' if wanted else "run scripts/setup_venv"
            page = LIBTPU_PAGE if wanted and wanted[1].startswith("libtpu") else ""
            problems.append(Problem(line.rstrip("."), remedy + page))
    return problems


def check_tpu_wheel(versions: Mapping[str, str], changed: Sequence[str]) -> list[Problem]:
    """Checks tensorflow-tpu, if it is installed.

    Args:
        versions: The installed versions.
        changed: Overwritten files of tensorflow-tpu, see `changed_files`.
    """
    wheel, libtpu = versions.get("tensorflow-tpu"), versions.get("libtpu")
    if not wheel:
        return []
    problems = []
    if changed:
        what = f"the stock wheel overwrote tensorflow-tpu {wheel} ({os.path.basename(changed[0])})"
        line = f"pip install --force-reinstall --no-deps tensorflow-tpu=={wheel}, after all else"
        problems.append(Problem(what, line))
    newest = NEWEST_LIBTPU.get(minor(wheel))
    if libtpu and newest and Version(libtpu) > Version(newest):
        what = f"libtpu {libtpu} is too new for tensorflow-tpu {wheel}: its import aborts"
        problems.append(Problem(what, f"pip install libtpu=={newest}"))
    return problems


def changed_files(name: str) -> list[str]:
    """Returns the libraries of a distribution whose size differs from its RECORD."""
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


def check_environment(
    device: str, environment: Mapping[str, str], versions: Mapping[str, str]
) -> list[Problem]:
    """Checks the variables that TensorFlow reads when it is imported.

    Args:
        device: The --device of training.
        environment: os.environ.
        versions: The installed versions.
    """
    wanted = {}
    if device.startswith("tpu:") or (device != "local" and versions.get("tensorflow-tpu")):
        reason = "TensorFlow would wait for chips, which the slice's own server holds"
        wanted["TPU_LOAD_LIBRARY"] = "0", reason
    if device.startswith("tpu:"):
        reason = "tf.keras would be Keras 3, which does not train tf_keras layers"
        wanted["TF_USE_LEGACY_KERAS"] = "1", reason
        wanted["TPU_NAME"] = device.removeprefix("tpu:"), "the slice would not be found"
    return [
        Problem(f"{name} is not {value}: {reason}", f"export {name}={value}")
        for name, (value, reason) in wanted.items()
        if environment.get(name) != value
    ]
