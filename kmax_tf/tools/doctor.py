"""Examines a machine before a training: packages, devices, folders."""

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Sequence

from kmax_tf import host
from kmax_tf.tools import packages
from kmax_tf.tools.packages import Problem

SHOWN = (
    *("tensorflow", "tensorflow-tpu", "libtpu"),
    *("tf_keras", "tf-models-official", "numpy", "hotcoco"),
)


def examine(options: argparse.Namespace) -> tuple[list[tuple[str, str]], list[Problem]]:
    """Examines this machine.

    Args:
        options: data_dir, gin_file, gin, run_dir and device of `kmax doctor`.

    Returns:
        Rows of a table, and the problems.
    """
    versions = packages.installed()
    report = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    blocking = [
        *packages.check_tpu_wheel(versions, packages.changed_files("tensorflow-tpu")),
        *packages.check_environment(options.device, os.environ, versions),
    ]
    problems = [
        *packages.check_requirements(report.stdout),
        *packages.check_same_minor(versions),
        *blocking,
    ]
    rows = [
        ("Python", f"{platform.python_version()} ({sys.executable})"),
        *((name, versions.get(packages.canonical(name), "-")) for name in SHOWN),
        ("cores, memory", f"{host.cores()}, {host.memory() / 2**30:.0f} GiB"),
    ]
    if blocking or not ({"tensorflow", "tensorflow-tpu"} & versions.keys()):
        return rows, problems  # the import of TensorFlow would fail, abort or wait for minutes
    from kmax_tf.tools import machine

    devices, device_problems = machine.examine_devices(options.device, versions)
    folders, folder_problems = machine.examine_folders(options)
    rows += [("devices", devices), *folders]
    return rows, problems + device_problems + folder_problems


def text(rows: Sequence[tuple[str, str]], problems: Sequence[Problem]) -> str:
    """Returns the table and, below it, the problems."""
    width = max(len(name) for name, _ in rows) + 2
    lines = [f"{name:{width}}{value}" for name, value in rows]
    if not problems:
        return "\n".join([*lines, "", "No problems found."])
    lines += ["", "Problems:"]
    lines += [f"  {problem.what}\n      -> {problem.remedy}" for problem in problems]
    return "\n".join(lines)
