"""A study: variants of an experiment times seeds, each trained and evaluated as any other run.

All runs start from one pixel encoder, trained by itself before, as the paper's from ImageNet. Every
variant gets the same search: the first seed trains at each of a few learning rates, and the one
with the best PQ over the whole schedule is that of the other seeds.
"""

import dataclasses
import hashlib
import json
import multiprocessing
import os
import re
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import connection
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from kmax_tf import config, runtime
from kmax_tf.errors import InputError
from kmax_tf.evaluation import evaluate
from kmax_tf.experiment import Experiment
from kmax_tf.files import read_json, write_atomic
from kmax_tf.report import report
from kmax_tf.run_folder import checkpoint
from kmax_tf.training import train

RATE = "optimizer.AdamW.learning_rate"
SEED = "experiment.Experiment.seed"
INITIAL = "experiment.Experiment.initial_checkpoint"
STUDY = "study.json"
RESULT = "result.json"
ENCODER = "encoder"  # folder in the encoder's run, of what the others start from


@dataclasses.dataclass(frozen=True)
class Study:
    """What is compared, and why; each variant is its bindings and nothing else.

    Fields:
      question: what the study asks.
      paper: what the paper found.
      variants: name -> bindings on top of `base`; the first one is what the others are compared to.
      coco: name -> bindings that the variant has at full size besides.
      base: the gin file of the embedded dataset.
      encoder: that of the run whose pixel encoder all others start from; "": they start as `base`.
      full_size: the one of COCO.
      learning_rates: what the search tries for each variant, on the embedded dataset.
    """

    question: str
    paper: str
    variants: dict
    coco: dict = dataclasses.field(default_factory=dict)
    base: str = "gin/studies/digits.gin"
    encoder: str = "gin/studies/encoder.gin"
    full_size: str = "gin/experiments/coco_resnet50.gin"
    learning_rates: tuple[float, ...] = (5e-3, 1e-2, 2e-2)

    def __post_init__(self):
        unknown = self.coco.keys() - self.variants.keys()
        if unknown:
            raise InputError(f"Study.coco: {sorted(unknown)} are no variants; name them alike")


class Job(NamedTuple):
    """One training run of a study."""

    variant: str
    learning_rate: float
    seed: int
    gin_file: str
    bindings: tuple[str, ...]
    digest: str  # of the resolved configuration, so that studies share what they have in common


def load(name: str) -> Study:
    """The study gin/studies/NAME.gin, or that of a gin file; InputError as of `config.load`."""
    return config.load(Study, name if name.endswith(".gin") else f"gin/studies/{name}.gin")


def search(study: Study) -> list[Job]:
    """The first seed of every variant at every learning rate."""
    return [_job(study, v, rate, 0) for v in study.variants for rate in study.learning_rates]


def commands(name: str, study: Study, seeds: int) -> list[str]:
    """The lines that train and evaluate a study at full size, on a TPU v3-32."""
    lines = []
    for variant, bindings in study.variants.items():
        both = (*bindings, *study.coco.get(variant, ()))
        bindings = {b.partition("=")[0].strip(): b for b in both}.values()  # the last one counts
        # Else a mistake would be found on the slice.
        config.load(Experiment, study.full_size, [*bindings])
        folder = "_".join(re.findall(r"[\w-]+", variant))
        for seed in range(seeds):
            run_dir = f"--run_dir=gs://BUCKET/{name}/{folder}/seed{seed}"
            gin = [f"--gin={binding}" for binding in (*bindings, f"{SEED} = {seed}")]
            start = ["scripts/train.py", f"--gin_file={study.full_size}", *gin, run_dir]
            lines.append(shlex.join([*start, "--device=tpu:NAME"]))
            lines.append(shlex.join(["scripts/evaluate.py", run_dir]))
    return lines


def run(name: str, study: Study, out: str, seeds: int, jobs: int) -> dict:
    """Runs what is missing of a study; after each run OUT/NAME/study.json is up to date.

    Arguments:
      out: folder of all studies. Runs lie in OUT/runs; one that is `finished` is never repeated,
        and one that was cut off goes on where it stopped.
      seeds: runs of each variant at its best learning rate.
      jobs: runs at the same time.
    Returns what study.json holds: name, question, paper, and "variants", a list of name, bindings
    and "runs", each with learning_rate, seed, digest, minutes (since it was last started), and
    lists over the evaluated steps: steps, PQ, PQ_things and PQ_stuff in percent.
    Raises InputError where a run fails.
    """
    known, done = finished(out), []
    searched = search(study)

    def record(job, entry):
        done.append((job, known.setdefault(job.digest, entry)))
        result = _describe(name, study, done)
        write_atomic(os.path.join(out, name, STUDY), json.dumps(result, indent=1))
        return result

    with tqdm(
        total=len(searched) + len(study.variants) * (seeds - 1), desc=name, unit="run"
    ) as bar:
        for job, entry in _run_all(searched, study.encoder, out, jobs, known):
            result = record(job, entry)
            bar.update()
        best = {v["name"]: best_rate(v["runs"]) for v in result["variants"]}
        for seed in range(1, seeds):  # so that a study that is cut off has as many of each
            wanted = [_job(study, variant, rate, seed) for variant, rate in best.items()]
            for job, entry in _run_all(wanted, study.encoder, out, jobs, known):
                result = record(job, entry)
                bar.update()
    return result


def finished(out: str) -> dict[str, dict]:
    """The runs that result.json in their folders, or a study.json beside them, tells of, by digest.

    A study.json alone will do, so that studies outlive the folders of their runs.
    """
    studies = [read_json(path) for path in tf.io.gfile.glob(os.path.join(out, "*", STUDY))]
    results = [read_json(path) for path in tf.io.gfile.glob(run_dir_of(out, f"*/{RESULT}"))]
    told = [run for study in studies for variant in study["variants"] for run in variant["runs"]]
    return {run["digest"]: run for run in [*told, *results]}


def run_dir_of(out: str, digest: str) -> str:
    """The run folder of a digest, without checkpoints once it is finished."""
    return os.path.join(out, "runs", digest)


def mean_over_schedule(run: dict) -> float:
    """The mean PQ of the evaluated steps of a run."""
    return float(np.mean(run["PQ"]))


def best_rate(runs: Sequence[dict]) -> float:
    """The learning rate at which the first seed has the best PQ over the whole schedule."""
    return max((r for r in runs if r["seed"] == 0), key=mean_over_schedule)["learning_rate"]


def _job(study, variant, rate, seed):
    bindings = (*study.variants[variant], f"{RATE} = {rate}", f"{SEED} = {seed}")
    # The path of the encoder's weights depends on the folder, what they are does not.
    initial = _digest(study.encoder) if study.encoder else ""
    digest = _digest(study.base, (*bindings, *_starting_from(initial)))
    return Job(variant, rate, seed, study.base, bindings, digest)


def _starting_from(initial):
    """The binding of what a run starts from; none for ""."""
    return (f"{INITIAL} = {initial!r}",) if initial else ()


def _digest(gin_file, bindings=()):
    config.load(Experiment, gin_file, bindings)
    return hashlib.sha256(config.resolved().encode()).hexdigest()[:12]


def _describe(name, study, done):
    def entries(variant):
        return [
            {**entry, "learning_rate": job.learning_rate, "seed": job.seed}
            for job, entry in done
            if job.variant == variant
        ]

    return {
        "name": name,
        "question": study.question,
        "paper": study.paper,
        "variants": [
            {"name": variant, "bindings": list(bindings), "runs": entries(variant)}
            for variant, bindings in study.variants.items()
        ],
    }


def _run_all(wanted, encoder, out, jobs, known):
    """Yields (job, what is known of it) of all, running what is unknown, `jobs` at a time.

    `encoder`: gin file of the encoder's run, or "".
    """
    with ThreadPoolExecutor(jobs) as pool:
        todo = [job for job in wanted if job.digest not in known]
        yield from ((job, known[job.digest]) for job in wanted if job.digest in known)
        initial = _trained_encoder(encoder, out) if todo and encoder else ""
        threads = max(1, (os.cpu_count() or 1) // jobs)
        results = pool.map(lambda job: _run_one(job, initial, out, threads), todo)
        yield from zip(todo, results, strict=True)


def _run_one(job, initial, out, threads):
    """Trains and evaluates, starting from the checkpoint `initial`; returns what is known of it."""
    run_dir = run_dir_of(out, job.digest)
    bindings = (*job.bindings, *_starting_from(initial))
    begin = time.monotonic()
    name = f"{job.variant}, seed {job.seed}"
    _apart(_evaluated_run, name, job.gin_file, bindings, run_dir, threads)
    evaluations = report.read_evaluations(run_dir)
    curves = {key: [e[key] or 0.0 for e in evaluations] for key in ("PQ", "PQ_things", "PQ_stuff")}
    minutes = round((time.monotonic() - begin) / 60, 2)
    steps = [e["step"] for e in evaluations]
    result = {"digest": job.digest, "minutes": minutes, "steps": steps, **curves}
    write_atomic(os.path.join(run_dir, RESULT), json.dumps(result))  # from here on it is finished
    tf.io.gfile.rmtree(os.path.join(run_dir, "checkpoints"))  # the best one stays, in best/
    return result


def _trained_encoder(gin_file, out):
    """The checkpoint of the pixel encoder that all runs start from, trained unless it is there."""
    run_dir = run_dir_of(out, _digest(gin_file))
    path = checkpoint.path_of(os.path.join(run_dir, ENCODER), 0)
    if path not in checkpoint.complete(os.path.dirname(path)):
        tqdm.write("training the pixel encoder that all runs start from")
        _apart(_encoder_run, "pixel encoder", gin_file, (), run_dir, os.cpu_count() or 1)
    return path


def _apart(function, name, gin_file, bindings, run_dir, threads):
    """Calls function(experiment, run_dir, strategy) in another process: one has one global seed."""
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        process = multiprocessing.get_context("spawn").Process(
            target=_child, args=(function, gin_file, bindings, run_dir, log.name, threads)
        )
        process.start()
        process.join()
        if process.exitcode:
            text = log.read().decode(errors="replace")
            write_atomic(os.path.join(run_dir, "log.txt"), text)
            last = (text.strip().splitlines() or [f"exit status {process.exitcode}"])[-1]
            raise InputError(f"{name}: {last} ({run_dir}/log.txt)")


def _child(function, gin_file, bindings, run_dir, log, threads):
    """All that the process prints goes to the file `log`, an error to its last line."""
    # Else every run would have as many threads as there are cores, which cost each other a third.
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        strategy = runtime.strategy("auto")
        function(config.load(Experiment, gin_file, bindings), run_dir, strategy)
    except InputError as error:
        sys.exit(f"error: {error}")


def _evaluated_run(experiment, run_dir, strategy):
    train.train(experiment, run_dir, strategy)
    with strategy.scope():
        evaluate.evaluate_run(experiment, run_dir, export_best=False)


def _encoder_run(experiment, run_dir, strategy):
    encoder = train.train(experiment, run_dir, strategy).pixel_encoder
    saver = tf.train.Checkpoint(pixel_encoder=encoder)
    checkpoint.write(saver, os.path.join(run_dir, ENCODER), 0)
    tf.io.gfile.rmtree(os.path.join(run_dir, "checkpoints"))


def _end_with_parent():
    """Else a run would go on beside the one that takes its place when the study starts again."""
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
