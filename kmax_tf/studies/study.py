"""A study: trains and evaluates variants of an experiment with several seeds each.

All runs start from one pixel encoder, which is trained first; the paper's comes from ImageNet.
Every variant gets the same search: its first seed trains at each of a few learning rates. The
other seeds train at the rate with the best mean PQ over the schedule.
"""

import dataclasses
import functools
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from kmax_tf import config, host, runtime
from kmax_tf.errors import InputError
from kmax_tf.experiment import Experiment
from kmax_tf.files import check_literal, matching, read_json, write_atomic
from kmax_tf.run_folder import checkpoint, layout, results

RATE = "optimizer.AdamW.learning_rate"
SEED = "experiment.Experiment.seed"
INITIAL = "experiment.Experiment.initial_checkpoint"
KEEP_ALL = "experiment.Experiment.checkpoints_kept = 1000000"
STUDY = "study.json"
RESULT = "result.json"
LOG = "log.txt"
ENCODER = "encoder"  # folder in the encoder's run, with the weights that all others start from


@dataclasses.dataclass(frozen=True)
class Study:
    """The variants of a study; each differs from the base experiment only by its bindings.

    Args:
        question: of the study.
        paper: what the paper found.
        variants: name -> bindings on top of `base`. The others are compared to the first one.
        coco: name -> further bindings of the variant at full size.
        base: gin file for the built-in dataset.
        encoder: gin file of the run that trains the pixel encoder; "" starts as `base` does.
        full_size: gin file for COCO.
        learning_rates: for the search on the built-in dataset.
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
            raise InputError(f"Study.coco: {sorted(unknown)} are not in Study.variants; add them")


class Job(NamedTuple):
    """One training run of a study."""

    variant: str
    learning_rate: float
    seed: int
    gin_file: str
    bindings: tuple[str, ...]
    schedule: tuple[int, ...]  # the steps that are evaluated
    digest: str  # of all that is bound; studies share runs by it


def load(name: str) -> Study:
    """Loads gin/studies/NAME.gin, or a gin file; InputError as `config.load` raises it."""
    return config.load(Study, name if name.endswith(".gin") else f"gin/studies/{name}.gin")


def search(study: Study) -> list[Job]:
    """The runs of the search: the first seed of every variant at every learning rate.

    Raises InputError if two variants are the same experiment: they would share a run folder.
    """
    jobs = [_job(study, v, rate, 0) for v in study.variants for rate in study.learning_rates]
    by_digest = {job.digest: job for job in jobs}
    for job in jobs:
        if job is not (other := by_digest[job.digest]):
            raise InputError(
                f"Study: {job.variant!r} at {job.learning_rate:g} and {other.variant!r} at"
                f" {other.learning_rate:g} are the same experiment; remove one"
            )
    return jobs


def other_seeds(study: Study, rates: dict[str, float], seeds: int) -> list[Job]:
    """The runs of seeds 1 to `seeds` - 1 of some variants, {name: learning rate}.

    They go seed by seed, so that the variants grow evenly.
    """
    return [_job(study, v, rate, seed) for seed in range(1, seeds) for v, rate in rates.items()]


def commands(name: str, study: Study, seeds: int) -> list[str]:
    """The command lines that train and evaluate a study at full size, on a TPU v3-32."""
    lines = []
    for variant, bindings in study.variants.items():
        both = (*bindings, *study.coco.get(variant, ()))
        bindings = {b.partition("=")[0].strip(): b for b in both}.values()  # the last one counts
        config.load(Experiment, study.full_size, [*bindings])  # finds mistakes here, not on the TPU
        folder = "_".join(re.findall(r"[\w-]+", variant))
        for seed in range(seeds):
            run_dir = f"gs://BUCKET/{name}/{folder}/seed{seed}"
            train = _train_command(study.full_size, (*bindings, f"{SEED} = {seed}"), run_dir)
            lines.append(shlex.join(["kmax", *train, "--device=tpu:NAME"]))
            lines.append(shlex.join(["kmax", *_evaluate_command(run_dir)]))
    return lines


def run(name: str, study: Study, out: str, seeds: int, jobs: int) -> dict:
    """Trains the missing runs of a study, and writes OUT/NAME/study.json after each.

    Args:
        name: of the study.
        study: what to run.
        out: folder of all studies. Runs lie in OUT/runs. A finished run is never repeated; an
            interrupted one resumes.
        seeds: runs of each variant at its best learning rate. A study.json with more keeps them.
        jobs: runs at the same time.

    Returns:
        The content of study.json: name, question, paper, and "variants", a list of name, bindings
        and "runs". Each run has
          - learning_rate, seed, digest, and minutes (since its last start);
          - origin: revision of the code, version of TensorFlow, digest of the encoder's weights;
          - lists with a value an evaluated step: steps, PQ, PQ_things, PQ_stuff (percent);
          - the list decoders, see `clusters.summarize`.
        Runs of older versions have no origin and no decoders.

    Raises:
        InputError: a run fails.
    """
    check_literal(out)
    path, first = os.path.join(out, name, STUDY), search(study)
    known, done = finished(out), _stored(path, study)
    total = max(len(done), len(study.variants) * (len(study.learning_rates) + seeds - 1))

    def run_missing(wanted):
        there = {job for job, _ in done}
        missing = [job for job in wanted if job not in there]
        for job, entry in _run_all(missing, study.encoder, out, jobs, known):
            done.append((job, known.setdefault(job.digest, entry)))
            write_atomic(path, json.dumps(_describe(name, study, done), indent=1))
            bar.update()
        return _describe(name, study, done)

    with tqdm(total=total, initial=len(done), desc=name, unit="run") as bar:
        searched = run_missing(first)
        best = {v["name"]: best_rate(v["runs"]) for v in searched["variants"]}
        return run_missing(other_seeds(study, best, seeds))


def finished(out: str) -> dict[str, dict]:
    """The finished runs, {digest: run}, from result.json in run folders and from any study.json.

    A study.json alone is enough, so run folders may be deleted.
    """
    places = [os.path.join(folder, STUDY) for folder in matching(out, "*")]
    places += [os.path.join(folder, RESULT) for folder in matching(run_dir_of(out, ""), "*")]
    found = [read_json(path) for path in places if tf.io.gfile.exists(path)]
    runs = [run for s in found for variant in s.get("variants", ()) for run in variant["runs"]]
    return {run["digest"]: run for run in [*runs, *(run for run in found if "digest" in run)]}


def run_dir_of(out: str, digest: str) -> str:
    """The run folder of a digest. A finished run keeps only its best checkpoint."""
    return os.path.join(out, "runs", digest)


def mean_over_schedule(run: dict) -> float:
    """The mean PQ of a run over its evaluated steps."""
    return float(np.mean(run["PQ"]))


def best_rate(runs: Sequence[dict]) -> float:
    """The learning rate at which the first seed has the best mean PQ over the schedule."""
    return max((r for r in runs if r["seed"] == 0), key=mean_over_schedule)["learning_rate"]


def _job(study, variant, rate, seed):
    bindings = (*study.variants[variant], f"{RATE} = {rate}", f"{SEED} = {seed}")
    # The encoder's digest, not its path: the same study in another folder is the same run.
    initial = _resolve(study.encoder)[0] if study.encoder else ""
    digest, schedule = _resolve(study.base, (*bindings, *_starting_from(initial)))
    return Job(variant, rate, seed, study.base, bindings, schedule, digest)


def _starting_from(initial):
    """The binding of the initial checkpoint; none for ""."""
    return (f"{INITIAL} = {initial!r}",) if initial else ()


@functools.cache
def _resolve(gin_file, bindings=()):
    """Returns the digest of all that is bound, and the steps that are evaluated."""
    experiment = config.load(Experiment, gin_file, bindings)
    schedule = (*range(0, experiment.steps, experiment.checkpoint_interval), experiment.steps)[1:]
    # Not of the text: a gin file may import one more module, and trains the same model.
    bound = sorted(config.bindings(config.resolved()).items())
    text = "\n".join(f"{name} = {value}" for name, value in bound)
    return hashlib.sha256(text.encode()).hexdigest()[:12], schedule


def _stored(path, study):
    """Returns the [(job, run)] of a study.json that are of today's configuration.

    It prints how many are not; these are left out, trained again, and kept in a copy.
    """
    if not tf.io.gfile.exists(path):
        return []
    runs = [(v["name"], run) for v in read_json(path)["variants"] for run in v["runs"]]
    stored = [
        (_job(study, name, run["learning_rate"], run["seed"]), run)
        for name, run in runs
        if name in study.variants and run["learning_rate"] in study.learning_rates
    ]
    stored = [(job, run) for job, run in stored if job.digest == run["digest"]]
    if others := len(runs) - len(stored):
        tf.io.gfile.copy(path, f"{path}.old", overwrite=True)
        print(
            f"{path}: {others} runs have another configuration, and stay in {STUDY}.old;"
            " what is missing is trained again"
        )
    return stored


def _describe(name, study, done):
    def entries(variant):
        return [
            {**entry, "learning_rate": job.learning_rate, "seed": job.seed}
            for job, entry in sorted(done, key=lambda d: d[0].seed)
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
    """Yields (job, entry of study.json), first the known ones; trains others, `jobs` at a time."""
    with ThreadPoolExecutor(jobs) as pool:
        todo = [job for job in wanted if job.digest not in known]
        yield from ((job, known[job.digest]) for job in wanted if job.digest in known)
        initial = _trained_encoder(encoder, out, len(known)) if todo and encoder else ""
        # With a thread a core in every run, runs at the same time slow each other down by a third.
        threads = max(1, host.cores() // jobs)
        results = pool.map(lambda job: _run_one(job, initial, out, threads), todo)
        yield from zip(todo, results, strict=True)


def _run_one(job, initial, out, threads):
    """Trains from the checkpoint `initial`, and evaluates; returns the entry of study.json."""
    run_dir = run_dir_of(out, job.digest)
    bindings = (*job.bindings, *_starting_from(initial), KEEP_ALL)
    begin = time.monotonic()
    name = f"{job.variant}, learning rate {job.learning_rate:g}, seed {job.seed}"
    _run_verb(name, _train_command(job.gin_file, bindings, run_dir), run_dir, threads)
    _run_verb(name, [*_evaluate_command(run_dir), "--wait=0"], run_dir, threads)
    evaluations = {e["step"]: e for e in results.read_evaluations(run_dir)}
    if missing := [step for step in job.schedule if step not in evaluations]:
        raise InputError(f"{name}: {run_dir} has no figures of the steps {missing}; start it again")
    evaluations = [evaluations[step] for step in job.schedule]  # an interruption saves one more
    curves = {key: [e[key] for e in evaluations] for key in ("PQ", "PQ_things", "PQ_stuff")}
    result = {
        "digest": job.digest,
        "origin": _origin(run_dir, initial),
        "minutes": round((time.monotonic() - begin) / 60, 2),
        "steps": [*job.schedule],
        **curves,
        "decoders": [e.get("decoders", []) for e in evaluations],
    }
    write_atomic(os.path.join(run_dir, RESULT), json.dumps(result))  # marks the run as finished
    tf.io.gfile.rmtree(layout.checkpoints(run_dir))
    return result


def _origin(run_dir, initial):
    """What runs of one configuration may still differ by, beside their luck."""
    made = read_json(layout.provenance(run_dir))
    return {
        "revision": made["revision"],
        "tensorflow": made["tensorflow"],
        "encoder": _weights_digest(initial) if initial else None,
    }


@functools.cache
def _weights_digest(path):
    """A digest of the values in a checkpoint; its files also name objects, each time anew."""
    reader, digest = tf.train.load_checkpoint(path), hashlib.sha256()
    for name in sorted(reader.get_variable_to_shape_map()):
        if name.endswith("VARIABLE_VALUE"):
            digest.update(reader.get_tensor(name).tobytes())
    return digest.hexdigest()[:12]


def _trained_encoder(gin_file, out, stored):
    """The checkpoint of the pixel encoder that all runs start from; trains it if it is missing.

    Then it says how many `stored` runs did not start from it: another machine rounds differently.
    """
    run_dir = run_dir_of(out, _resolve(gin_file)[0])
    path = checkpoint.path_of(os.path.join(run_dir, ENCODER), 0)
    if path not in checkpoint.complete(os.path.dirname(path)):
        others = f"; {stored} stored runs started from one that is not here" if stored else ""
        tqdm.write(f"training the pixel encoder that all runs start from{others}")
        words = _train_command(gin_file, (), run_dir)
        _run_verb("pixel encoder", words, run_dir, host.cores())
        with runtime.strategy("cpu").scope():  # the GPUs are for the runs
            model = config.load(Experiment, gin_file).build_model()
        checkpoint.restore_model(model, checkpoint.newest(run_dir))
        checkpoint.write(tf.train.Checkpoint(pixel_encoder=model.pixel_encoder), path)
        tf.io.gfile.rmtree(layout.checkpoints(run_dir))
    # An interrupted run resumes with the same path from wherever the study is called.
    return path if "://" in path else os.path.abspath(path)


def _train_command(gin_file, bindings, run_dir):
    gin = [f"--gin={binding}" for binding in bindings]
    return ["train", f"--gin_file={gin_file}", *gin, f"--run_dir={run_dir}"]


def _evaluate_command(run_dir):
    return ["evaluate", f"--run_dir={run_dir}"]


def _run_verb(name, words, run_dir, threads):
    """Runs a verb of `kmax` with so many threads; its output becomes log.txt if it fails."""
    # The kernel kills the program with this process; it would disturb the study's next start.
    tie = ["setpriv", "--pdeathsig=KILL"] if shutil.which("setpriv") else []
    command = [*tie, sys.executable, "-m", "kmax_tf.commands"]
    limits = {"TF_NUM_INTRAOP_THREADS": str(threads), "TF_NUM_INTEROP_THREADS": str(threads)}
    done = subprocess.run(
        [*command, *words],
        env=os.environ | limits,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        write_atomic(os.path.join(run_dir, LOG), done.stdout)
        errors = re.findall("^error: (.*)", done.stdout.decode(errors="replace"), re.MULTILINE)
        reason = errors[-1] if errors else f"kmax {words[0]} ended with status {done.returncode}"
        raise InputError(f"{name}: {reason}; see {run_dir}/{LOG}")
