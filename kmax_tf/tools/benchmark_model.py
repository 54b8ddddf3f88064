"""Measures the inference speed of a model, from the padded image to the panoptic map.

The image is already on the device, and the map is fetched, as in an evaluation. Decoding and
drawing are not counted; they overlap with the device's work.
"""

import platform
import resource
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from kmax_tf import host
from kmax_tf.errors import InputError
from kmax_tf.experiment import Experiment
from kmax_tf.tools import tpu_compile
from kmax_tf.training import replica_program

WARM_UP = 3  # runs that are not counted
FEWEST = 10  # counted runs, however long they take
TPU = "v3-8"  # one of its cores predicts


class Benchmark(NamedTuple):
    """The measurements."""

    device: str
    input_size: tuple[int, int]  # height, width
    batch_size: int  # images
    compile_seconds: float  # the first run, with tracing and compilation
    run_seconds: np.ndarray  # float64 [runs], each run after the warm-up
    peak_memory_bytes: int  # of the GPU, or of the process on a CPU

    @property
    def images_per_second(self) -> float:
        """The speed of the median run."""
        return self.batch_size / float(np.median(self.run_seconds))

    def as_json(self) -> dict:
        """Returns the measurements for json.dumps."""
        p50, p90, p99 = (1e3 * float(np.percentile(self.run_seconds, p)) for p in (50, 90, 99))
        return {
            **self._asdict(),
            "input_size": list(self.input_size),
            "run_seconds": self.run_seconds.tolist(),
            "images_per_second": self.images_per_second,
            "latency_ms": {"p50": p50, "p90": p90, "p99": p99},
        }


def of_experiment(experiment: Experiment) -> tuple[Callable, tuple[int, int]]:
    """Returns the prediction function of an experiment with random weights, and its input size."""
    segment = tf.function(_segmenter(experiment), autograph=False)
    return lambda image: segment(image).segment_map, experiment.evaluation_size


def _segmenter(experiment):
    """Returns the function from the padded image to the panoptic map."""
    model = experiment.build_evaluation_model()
    return lambda image: experiment.segment(model(image, training=False).final)


def of_export(export_dir: str) -> tuple[Callable, tuple[int, int]]:
    """Returns the prediction function of an export, and its input size; raises InputError."""
    try:
        loaded = tf.saved_model.load(export_dir)
        [function] = loaded.predict.concrete_functions
    except (AttributeError, OSError, ValueError) as error:
        raise InputError(f"{export_dir}: not a readable export; run kmax export") from error
    size = function.structured_input_signature[0][0].shape[1:3]
    return lambda image: loaded.predict(image)[0].segment_map, tuple(size)


def run(predict: Callable, size: tuple[int, int], batch_size: int, seconds: float) -> Benchmark:
    """Runs `predict`, float32 [batch, *size, 3] -> tensor, repeatedly for `seconds`."""
    rng = np.random.default_rng(0)
    image = tf.constant(rng.uniform(0, 255, (batch_size, *size, 3)), tf.float32)
    gpus = tf.config.list_physical_devices("GPU")

    def timed():
        start = time.perf_counter()
        predict(image).numpy()
        return time.perf_counter() - start

    compile_seconds = timed()
    for _ in range(WARM_UP):
        timed()
    runs, end = [], time.perf_counter() + seconds
    while len(runs) < FEWEST or time.perf_counter() < end:
        runs.append(timed())
    if gpus:
        device = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
        peak = tf.config.experimental.get_memory_info("GPU:0")["peak"]
    else:
        device = f"a CPU ({platform.machine()}, {host.cores()} cores)"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Benchmark(device, (size[0], size[1]), batch_size, compile_seconds, np.array(runs), peak)


def tpu_estimate(experiment: Experiment, batch_size: int) -> tpu_compile.Compiled:
    """Compiles the prediction for one TPU core; raises InputError as `tpu_compile` does."""
    predict = tf.function(_segmenter(experiment), jit_compile=True, autograph=False)
    spec = tf.TensorSpec([batch_size, *experiment.evaluation_size, 3])
    return tpu_compile.compile_for_tpu(replica_program.lower(predict, [spec]), TPU, 1)


def text(benchmark: Benchmark, estimate: tpu_compile.Compiled | None = None) -> str:
    """Returns the measurements as text."""
    latency, runs = benchmark.as_json()["latency_ms"], len(benchmark.run_seconds)
    height, width = benchmark.input_size
    lines = [
        f"{height} x {width}, batches of {benchmark.batch_size}, on {benchmark.device}:",
        f"{benchmark.images_per_second:.2f} images/s, the median of {runs} runs"
        f" after {benchmark.compile_seconds:.1f} s of compilation",
        "latency "
        + ", ".join(f"{name} {value:.0f} ms" for name, value in latency.items())
        + f"; peak memory {benchmark.peak_memory_bytes / 1e9:.2f} GB",
    ]
    if estimate:
        lines.append(
            f"one core of a {TPU}, estimated by its compiler: {estimate.estimated_seconds:.3f} s,"
            f" {estimate.flops / 1e12:.2f} TFLOP, {estimate.bytes_accessed / 1e9:.1f} GB accessed,"
            f" {estimate.needed / 1e9:.2f} GB needed"
        )
    return "\n".join(lines)
