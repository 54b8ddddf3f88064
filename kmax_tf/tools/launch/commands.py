"""Rents, trains and deletes, after a check of what the user asked for."""

import argparse
import re
import shlex
import shutil
import subprocess

from kmax_tf.errors import InputError
from kmax_tf.tools import tpu_chips
from kmax_tf.tools.launch import runtimes
from kmax_tf.tools.launch.gcloud import Gcloud, reason, say, show
from kmax_tf.tools.launch.jobs import Code
from kmax_tf.tools.launch.machines import EvaluatorVm, Machine, Rental, TpuSlice
from kmax_tf.tools.launch.training import Evaluation, Training


def run(options: argparse.Namespace) -> None:
    """Trains an experiment on a slice, from renting to deleting it.

    Args:
        options: The flags of scripts/launch_tpu.py.

    Raises:
        InputError: A flag is wrong, a step failed, or training ended with an error.
        SystemExit: An interruption, or a machine that may still run.
    """
    _check_names(options)
    tpu = tpu_chips.parse(options.accelerator)
    runtime = runtimes.choose(tpu, options.name, options.tensorflow, options.runtime)
    _check_paths(options)
    gcloud = Gcloud(options.zone, _project(options.dry_run), options.dry_run)
    _check_bucket(options, gcloud)
    _announce(options, tpu)
    flags = [
        f"--gin_file={options.gin_file}",
        f'--gin=experiment.Experiment.data_dir = "{options.data_dir}"',
        *(f"--gin={binding}" for binding in options.gin),
    ]
    code = Code(gcloud)
    machine = TpuSlice(gcloud, options.name, tpu, runtime.image, options.spot)
    vm = EvaluatorVm(gcloud, f"{options.name}-eval", options.evaluator)
    evaluation = None
    if options.evaluator != "none":
        evaluation = Evaluation(vm, code, runtime.tensorflow, options.run_dir)
    with Rental([machine, vm]) as rental:
        training = Training(machine, code, runtime, flags, options.run_dir)
        evaluation = training.run(rental, evaluation)
        rental.failed |= not machine.remove()
        if evaluation:
            rental.job_runs = True
            evaluation.wait()
            rental.job_runs = False
        say(f"done: {options.run_dir}")


def delete(options: argparse.Namespace) -> None:
    """Deletes what an earlier run left.

    Args:
        options: The flags of scripts/launch_tpu.py; it needs name and zone.

    Raises:
        InputError: A flag is wrong.
        SystemExit: A machine may still run.
    """
    _check_names(options)
    gcloud = Gcloud(options.zone, _project(options.dry_run), options.dry_run)
    tpu = tpu_chips.parse(options.accelerator)
    machines: list[Machine] = [
        TpuSlice(gcloud, options.name, tpu, options.runtime, options.spot),
        EvaluatorVm(gcloud, f"{options.name}-eval", options.evaluator),
    ]
    with Rental(machines) as rental:
        for machine in machines:
            machine.dry_state = machine.ready
            if machine.state() == "absent":
                say(f"no {machine.kind} {machine.name} in {options.zone}")
            rental.take(machine)


def _check_names(options):
    """Raises InputError if the name or the zone cannot be one."""
    if not re.fullmatch(r"[a-z][-a-z0-9]{0,50}", options.name):
        raise InputError(f"--name={options.name}: use a letter, then at most 50 of a-z, 0-9 and -")
    if not re.fullmatch(r"[a-z]+-[a-z0-9]+-[a-z]", options.zone):
        raise InputError(f"--zone={options.zone}: give a zone like europe-west4-a")


def _check_paths(options):
    """Raises InputError if a host cannot reach the records, the run folder or the experiment."""
    for flag in ("data_dir", "run_dir"):
        path = getattr(options, flag) or ""
        if not re.fullmatch(r"gs://[^/]+/.+", path):
            raise InputError(
                f"--{flag}={path}: the workers reach only gs://BUCKET/FOLDER; copy it there"
            )
    path = options.gin_file or ""
    text = ""
    if not path.startswith("gs://"):
        name = f"HEAD:{path.removeprefix('./')}"
        done = subprocess.run(["git", "show", name], capture_output=True, text=True)
        if done.returncode or not path:
            raise InputError(f"--gin_file={path}: not committed in this clone")
        text = done.stdout
    lines = [*text.splitlines(), *options.gin]
    line = _last_binding(lines, "initial_checkpoint")
    if not re.search(r"""gs://|= *(""|'')|^$""", line):
        raise InputError(f"{line}: workers read checkpoints only from gs://; copy it there")
    line = _last_binding(lines, "load.source")
    if "/" in line and "gs://" not in line:
        own = f"--gin=datasets.load.source = '{options.data_dir}'"
        raise InputError(f"{line}: workers read classes only from gs://; give {shlex.quote(own)}")


def _last_binding(lines, name):
    """Returns the line that binds a name last, which counts; "" without one."""
    bound = [line for line in lines if re.match(rf"[^#]*{re.escape(name)} *=", line)]
    return bound[-1] if bound else ""


def _project(dry_run):
    """Returns the user's project."""
    if dry_run:
        return "PROJECT"
    if not shutil.which("gcloud"):
        raise InputError("gcloud: not installed, cloud.google.com/sdk")
    words = ["gcloud", "config", "get-value", "project"]
    project = subprocess.run(words, capture_output=True, text=True).stdout.strip()
    if not project:
        raise InputError("no project; gcloud config set project PROJECT")
    return project


def _check_bucket(options, gcloud):
    """Before anything costs: are the records there, is the bucket near?"""
    if not gcloud.ls(options.data_dir):
        raise InputError(f"{options.data_dir}: no such records")
    bucket = "/".join(options.run_dir.split("/")[:3])
    region = options.zone.rpartition("-")[0]
    words = ["gcloud", "storage", "buckets", "describe", bucket, "--format=value(location)"]
    done = gcloud.ask(*words, dry=region)
    if done.returncode:
        remedy = "docs/train.md, 'Bucket, access, data'"
        raise InputError(f"{bucket}: cannot be used: {reason(done)}; {remedy}")
    location = done.stdout.strip()
    if location.lower() != region:
        say(f"warning: {bucket} is in {location}, the slice in {region}: egress costs")


def _announce(options, tpu):
    """Prints what will cost."""
    spot = ", spot" if options.spot else ""
    show(
        f"Rents, until it is deleted:\n    {tpu.name} slice {options.name} in {options.zone}{spot}:"
        f" hours x {tpu.chips} chips x price (cloud.google.com/tpu/pricing)"
    )
    if options.evaluator != "none":
        show(
            f"    {options.evaluator} VM {options.name}-eval:"
            " hours x price (cloud.google.com/compute/all-pricing)"
        )
