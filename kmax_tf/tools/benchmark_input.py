"""Measures the speed of an experiment's training input on this host, stage by stage."""

import io
import os
import resource
import tempfile
import time
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image

from kmax_tf.data import datasets, training_input
from kmax_tf.data.datasets import Dataset
from kmax_tf.data.records import reader, serialize, shards
from kmax_tf.experiment import Experiment

IMAGES, SHARDS, SIZE = 64, 4, (480, 640)  # synthetic records; height, width
THINGS, STUFF = 8, 4  # segments of a synthetic image, about as many as in a COCO image
STRIDE = 4  # of the targets, as in most models


class Stage(NamedTuple):
    """The speed of the input up to one stage."""

    images_per_second: float  # wall time
    cpu_seconds: float  # per image, all threads together


class Benchmark(NamedTuple):
    """The measurements."""

    stages: dict[str, Stage]  # read, decode, augment, batch: each includes the earlier ones
    peak_memory_mb: float  # of the process
    threads: int
    placement: str

    def host_cores(self, images_per_second: float) -> float:
        """Returns the number of cores that feed an accelerator of this speed."""
        return self.stages["batch"].cpu_seconds * images_per_second

    def as_json(self) -> dict:
        """Returns the measurements for json.dumps."""
        whole = self.stages["batch"]
        return {
            "images_per_second": whole.images_per_second,
            "by_stage": {name: s.images_per_second for name, s in self.stages.items()},
            "cpu_ms_per_image": {name: 1e3 * s.cpu_seconds for name, s in self.stages.items()},
            "peak_memory_mb": self.peak_memory_mb,
            "threads": self.threads,
            "placement": self.placement,
        }


def run(experiment: Experiment, threads: int, batch_size: int, seconds: float) -> Benchmark:
    """Measures each stage for `seconds`, with batches of `batch_size` images.

    Without the experiment's folder of records it measures synthetic ones: JPEGs of 480 x 640
    pixels with as many segments as in COCO.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = experiment.data_dir
        if not tf.io.gfile.isdir(folder):
            folder = temporary
            make_records(folder, experiment.dataset, experiment.train_split)
        stages = {
            name: _measure(dataset, images, threads, seconds)
            for name, (dataset, images) in _stages(experiment, folder, batch_size).items()
        }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Benchmark(stages, peak, threads, experiment.training_input.placement)


def _stages(experiment, folder, batch_size):
    """Returns the input up to each stage, and the number of images per element."""
    records = reader.find(folder, experiment.train_split, experiment.dataset)
    options = experiment.training_input
    ordered = training_input.ordered_records(records, options, seed=experiment.seed)

    @tf.autograph.experimental.do_not_convert
    def decoded(_, *serialized):
        return [records.parse(record).image for record in serialized]

    @tf.autograph.experimental.do_not_convert
    def augmented(index, *serialized):
        return training_input.training_example(
            serialized,
            records.parse,
            experiment.dataset,
            options,
            stride=STRIDE,
            seed=tf.stack([experiment.seed, index]),
        )

    batches = training_input.training_input(
        records,
        experiment.dataset,
        options,
        stride=STRIDE,
        batch_size=batch_size,
        seed=experiment.seed,
    )
    return {
        "read": (ordered, 1),
        "decode": (ordered.map(decoded, tf.data.AUTOTUNE), 1),
        "augment": (ordered.map(augmented, tf.data.AUTOTUNE), 1),
        "batch": (batches, batch_size),
    }


def _measure(dataset, images, threads, seconds):
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    elements = iter(dataset.with_options(options))
    for _ in range(8):  # fills the buffers and traces the functions
        next(elements)
    count, wall, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds:
        next(elements)
        count += images
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Stage(count / wall, cpu / count)


def make_records(folder: str, dataset: Dataset, split: str) -> None:
    """Writes synthetic records, as expensive as photographs, and their dataset.json."""
    random = np.random.default_rng(0)
    size = datasets.Split(IMAGES, SHARDS)
    content = datasets.with_split(folder, dataset, split, size)
    for shard in range(SHARDS):
        path = os.path.join(folder, shards.name(split, shard, SHARDS))
        with tf.io.TFRecordWriter(path) as writer:
            for _ in range(IMAGES // SHARDS):
                writer.write(_record(random, dataset))
    tf.io.gfile.GFile(os.path.join(folder, datasets.FILE_NAME), "w").write(content)


def _record(random, dataset):
    segment_map, classes = draw_segments(random, dataset)
    jpeg = io.BytesIO()
    Image.fromarray(draw_picture(random, segment_map)).save(jpeg, "JPEG", quality=90)
    count = len(classes)
    return serialize.record(
        image=jpeg.getvalue(),
        filename="synthetic.jpg",
        image_id="0",
        segment_map=segment_map,
        segment_id=list(range(1, count + 1)),
        category_id=[dataset.categories[c].id for c in classes],
        is_crowd=[False] * count,
    )


def draw_segments(random: np.random.Generator, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Draws ellipses of things over wavy bands of stuff.

    Returns:
        int [480, 640], k the k-th segment, from 1; and the class index of each segment.
    """
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    things = random.integers(0, dataset.num_things, THINGS)
    stuff = random.choice(np.arange(dataset.num_things, dataset.num_classes), STUFF, replace=False)
    waves = 20 * np.sin(x / 30 + random.uniform(0, 6)) + 10 * np.sin(x / 7)
    segment_map = np.clip((y + waves) * STUFF // SIZE[0], 0, STUFF - 1).astype(np.int32) + 1
    for k in range(THINGS):
        center, axes = random.uniform([0, 0], SIZE), random.uniform(10, 120, 2)
        angle = np.arctan2(y - center[0], x - center[1])
        distance = np.hypot((y - center[0]) / axes[0], (x - center[1]) / axes[1])
        segment_map[distance < 1 + 0.1 * np.sin(9 * angle)] = STUFF + 1 + k
    present = np.unique(segment_map)
    return np.searchsorted(present, segment_map) + 1, np.append(stuff, things)[present - 1]


def draw_picture(random: np.random.Generator, segment_map: np.ndarray) -> np.ndarray:
    """Draws segments of different colors with texture of all scales: about 150 kB as a JPEG.

    Args:
        random: the generator.
        segment_map: integers [height, width] from 0.

    Returns:
        uint8 [height, width, 3].
    """
    picture = random.uniform(60, 200, [segment_map.max() + 1, 3])[segment_map]
    for cell in (64, 16, 4, 2, 1):
        shape = [-(-side // cell) for side in segment_map.shape]
        noise = random.normal(0, 9, [*shape, 1]) + random.normal(0, 3, [*shape, 3])
        noise = noise.repeat(cell, axis=0).repeat(cell, axis=1)
        picture += noise[: segment_map.shape[0], : segment_map.shape[1]]
    return np.clip(picture, 0, 255).astype(np.uint8)


def text(benchmark: Benchmark, accelerator: float) -> str:
    """Returns the measurements as text; `accelerator` is its images/s per host."""
    lines = [f"placement {benchmark.placement}, {benchmark.threads} threads"]
    lines += [f"{'up to':10}{'images/s':>10}{'CPU ms/image':>15}"]
    lines += [
        f"{name:10}{stage.images_per_second:10.1f}{1e3 * stage.cpu_seconds:15.1f}"
        for name, stage in benchmark.stages.items()
    ]
    cores = benchmark.host_cores(accelerator)
    lines += [f"peak memory {benchmark.peak_memory_mb:.0f} MB"]
    lines += [f"an accelerator that takes {accelerator:g} images/s a host needs {cores:.1f} cores"]
    return "\n".join(lines)
