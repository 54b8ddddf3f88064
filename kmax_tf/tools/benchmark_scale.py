"""Makes a dataset of COCO's size from a few pictures, and measures the programs on it.

Every image is a hard link to one of the pictures, so that the dataset takes little disk.
"""

import contextlib
import dataclasses
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import psutil
from PIL import Image

from kmax_tf import config, files, runtime
from kmax_tf.data import coco_panoptic, coco_writer, datasets, training_input
from kmax_tf.errors import InputError
from kmax_tf.experiment import Experiment
from kmax_tf.tools import benchmark_input, benchmark_metrics
from kmax_tf.training import train

TRAIN, VAL = 118_287, 5_000  # images of COCO
PICTURES = 8  # files that the images are links to; ext4 allows 65,000 links to a file
LABELS = "annotations/panoptic_{}2017"  # of a split, in COCO's layout
RECIPE = "gin/experiments/coco_resnet50.gin"  # of the training input
INTERVAL = 0.5  # seconds between two looks at the memory


class Stage(NamedTuple):
    """A program to measure, which runs in the folder of the dataset, coco/."""

    name: str
    command: str
    output: str  # name of the file or folder that it writes; "" for none
    grows_with: str


OWN = "python -c \"from kmax_tf.tools import benchmark_scale as own; print('seconds', own.{})\""
STAGES = (
    Stage(
        "validation",
        "kmax validate --images=coco/train2017 --panoptic_json=coco/annotations/panoptic_train2017"
        ".json --panoptic_dir=coco/annotations/panoptic_train2017 --out=validation",
        "validation",
        "images, segments",
    ),
    Stage(
        "conversion",
        "kmax prepare coco --source=coco --out=records",
        "records",
        "images, segments",
    ),
    Stage("first batch", OWN.format("first_batch(0)"), "", "batch size"),
    Stage("first batch from step 100,000", OWN.format("first_batch(100_000)"), "", "batch size"),
    Stage("an epoch of records", OWN.format("epoch()"), "", "images"),
    Stage("PQ, AP and mIoU", OWN.format("metrics()"), "", "val images, segments, classes"),
    # The demo's small model. It is hardly trained, so no threshold drops its segments.
    Stage(
        "training, 300 steps",
        "kmax train --gin_file=gin/experiments/demo.gin --run_dir=run"
        ' --gin="datasets.load.source = \'coco\'" --gin="experiment.Experiment.steps = 300"'
        " --gin=\"experiment.Experiment.data_dir = 'records'\""
        ' --gin="experiment.Experiment.checkpoint_interval = 300"'
        ' --gin="postprocess.PostProcess.thing_threshold = 0.0"'
        ' --gin="postprocess.PostProcess.stuff_threshold = 0.0"',
        "run/checkpoints",
        "steps",
    ),
    Stage("evaluation", "kmax evaluate --run_dir=run --once", "run/eval", "val images"),
    Stage("report", "kmax report run", "run/report.html", "classes, evaluations"),
    Stage(
        "prediction into files",
        "kmax predict run/best/export coco/val2017 --out=predictions",
        "predictions",
        "val images",
    ),
    Stage("submission", "kmax submit --run_dir=run --out=test.zip", "test.zip", "val images"),
)


class Cost(NamedTuple):
    """What a program takes."""

    seconds: float  # of the program, or of what it times itself
    cpu_seconds: float  # of all its processes, with their start
    memory: int  # bytes at the highest, of all its processes; pages that they share count once
    disk: int  # bytes of its output


def run(out: str, source: str | None, images: int) -> Iterator[str]:
    """Yields the lines of a table, each as its program ends.

    Args:
        out: folder on a local disk; a folder in it is made, and removed at the end.
        source: folder in COCO's layout, whose first validation images are the pictures; None draws
            pictures.
        images: number of training images; the validation images are in proportion.

    Raises:
        InputError: the source is wrong, or a program fails.
    """
    files.make_folder(out)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        coco = os.path.join(folder, "coco")
        yield make(coco, source or draw(os.path.join(folder, "source")), images)
        yield "\n| stage | time | CPU | memory | disk | grows with |\n|---|---|---|---|---|---|"
        for stage in STAGES:
            yield _row(stage.name, measure(stage, folder), stage.grows_with)


def draw(folder: str) -> str:
    """Draws pictures with as many segments as COCO's, in its layout, and returns the folder."""
    random, dataset = np.random.default_rng(0), datasets.load("coco")
    labels = os.path.join(folder, LABELS.format("val"))
    writer = coco_writer.PanopticWriter(f"{labels}.json", labels, dataset.categories)
    files.make_folder(os.path.join(folder, "val2017"))
    for number in range(PICTURES):
        segment_map, classes = benchmark_input.draw_segments(random, dataset)
        picture = Image.fromarray(benchmark_input.draw_picture(random, segment_map))
        picture.save(os.path.join(folder, "val2017", f"{number}.jpg"), quality=90)
        ids = np.append(0, random.integers(1, 1 << 24, len(classes)))
        box = [0, 0, *segment_map.shape[::-1]]
        segments = [
            {"id": i, "category_id": dataset.categories[c].id, "iscrowd": 0, "bbox": box}
            for i, c in zip(ids[1:].tolist(), classes, strict=True)
        ]
        writer.add(number, f"{number}.jpg", ids[segment_map], segments)
    writer.finish()
    return folder


def make(folder: str, source: str, number: int) -> str:
    """Makes the dataset in COCO's layout, and returns a line about it; see `run`."""
    labels = os.path.join(source, LABELS.format("val"))
    coco_panoptic.read_panoptic(f"{labels}.json", datasets.load("coco"))  # checks the source
    content = files.read_json(f"{labels}.json")
    named = {str(image["id"]): image for image in content["images"]}
    annotations = (content["annotations"] * PICTURES)[:PICTURES]
    images = [named[str(annotation["image_id"])] for annotation in annotations]
    for split, count in (("val", max(1, number * VAL // TRAIN)), ("train", number)):
        made = os.path.join(folder, LABELS.format(split))
        listed = {
            "images": [
                {**images[k % PICTURES], "id": k, "file_name": f"{k:012}.jpg"} for k in range(count)
            ],
            "annotations": [
                {**annotations[k % PICTURES], "image_id": k, "file_name": f"{k:012}.png"}
                for k in range(count)
            ],
        }
        files.write_atomic(f"{made}.json", json.dumps({**content, **listed}))
        place = os.path.join(source, "val2017")
        _link(images, place, listed["images"], os.path.join(folder, f"{split}2017"))
        _link(annotations, labels, listed["annotations"], made)
    segments = sum(len(annotation["segments_info"]) for annotation in listed["annotations"])
    classes, megabytes = len(content["categories"]), os.path.getsize(f"{made}.json") / 1e6
    return f"{number} images, {segments} segments, {classes} classes, JSON of {megabytes:.0f} MB"


def _link(originals: list[dict], source: str, entries: list[dict], folder: str) -> None:
    """Makes the files of JSON entries: copies of the originals, then links to the copies."""
    files.make_folder(folder)
    paths = [os.path.join(folder, entry["file_name"]) for entry in entries]
    for path, original in zip(paths, originals):
        shutil.copyfile(os.path.join(source, original["file_name"]), path)
    for number, path in enumerate(paths[PICTURES:]):
        os.link(paths[number % PICTURES], path)


def measure(stage: Stage, folder: str) -> Cost:
    """Runs a program in the folder, and looks at its memory all the time."""
    words = shlex.split(stage.command)
    program = {"kmax": [sys.executable, "-m", "kmax_tf.commands"], "python": [sys.executable]}
    start, memory, cpu_seconds = time.perf_counter(), 0, {}
    with tempfile.TemporaryFile("w+") as printed:
        process = psutil.Popen([*program[words[0]], *words[1:]], cwd=folder, stdout=printed)
        while process.poll() is None:
            memory = max(memory, _look(process, cpu_seconds))
            time.sleep(INTERVAL)
        seconds = time.perf_counter() - start
        if process.returncode:
            raise InputError(f"{stage.command}: ended with {process.returncode}; see above")
        printed.seek(0)
        own = re.search("^seconds (.*)", printed.read(), re.MULTILINE)
    path = os.path.join(folder, stage.output)
    seconds, disk = float(own[1]) if own else seconds, size(path) if stage.output else 0
    return Cost(seconds, sum(cpu_seconds.values()), memory, disk)


def _look(process: psutil.Popen, cpu_seconds: dict[int, float]) -> int:
    """Returns the bytes of a process and all that it started, and notes the CPU time of each."""
    memory = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in (process, *process.children(recursive=True)):
            memory += one.memory_full_info().pss
            cpu_seconds[one.pid] = sum(one.cpu_times()[:2])
    return memory


def size(path: str) -> int:
    """Returns the bytes of a file, or of all files below a folder; links count once."""
    below = [os.path.join(place, name) for place, _, names in os.walk(path) for name in names]
    facts = [os.stat(one) for one in below or [path]]
    return sum({fact.st_ino: fact.st_size for fact in facts}.values())


def _row(name: str, cost: Cost, grows_with: str) -> str:
    """Formats a line of the table."""
    times = (
        f"{n:.1f} s" if n < 100 else f"{n / 60:.1f} min" for n in (cost.seconds, cost.cpu_seconds)
    )
    sizes = (
        "" if not n else f"{n / 1e9:.2f} GB" if n > 1e8 else f"{n / 1e6:.1f} MB"
        for n in (cost.memory, cost.disk)
    )
    return f"| {' | '.join([name, *times, *sizes, grows_with])} |"


def _experiment() -> Experiment:
    return dataclasses.replace(config.load(Experiment, RECIPE, []), data_dir="records")


def first_batch(step: int) -> float:
    """Returns the seconds from the records to the first batch of a training that is at `step`."""
    experiment, strategy = _experiment(), runtime.strategy("cpu")
    start = time.perf_counter()
    records = train.training_records(experiment)
    stride = benchmark_input.STRIDE
    next(iter(train.training_dataset(experiment, records, strategy, stride, step)))
    return time.perf_counter() - start


def epoch() -> float:
    """Returns the seconds that reading each record once, in the order of a training, takes."""
    experiment = _experiment()
    start = time.perf_counter()
    records = train.training_records(experiment)
    ordered = training_input.ordered_records(records, experiment.training_input, seed=0)
    ordered.take(records.num_examples).reduce(np.int64(0), lambda count, *_: count + 1)
    return time.perf_counter() - start


def metrics() -> float:
    """Returns the seconds that the metrics of as many predictions as COCO's validation take."""
    categories = datasets.load("coco").categories
    images = benchmark_metrics.make_images(categories)
    start = time.perf_counter()
    benchmark_metrics.run(categories, images, VAL)
    return time.perf_counter() - start
