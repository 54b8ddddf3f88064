"""Times the metrics on synthetic predictions: python -m kmax_tf.tools.benchmark_metrics

The 500 images have 640 x 480 pixels, COCO's classes and 15 segments, most of them predicted.
"""

import collections
import resource
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from kmax_tf import host
from kmax_tf.data import datasets
from kmax_tf.evaluation.metrics import GroundTruth, Metrics, evaluate_image
from kmax_tf.inference.predictor import ImagePrediction

IMAGES, DISTINCT, SEGMENTS, SIZE = 500, 50, 15, (480, 640)


def make_image(rng: np.random.Generator, num_classes: int) -> tuple[GroundTruth, ImagePrediction]:
    """Draws cells around random points under a void strip; the prediction is shifted."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    points = rng.integers(0, SIZE, [SEGMENTS, 2])
    distance = [(rows - y) ** 2 + (columns - x) ** 2 for y, x in points]
    segment_map = np.argmin(distance, axis=0).astype(np.int32) + 1
    segment_map[:20] = 0
    classes = rng.integers(0, num_classes, SEGMENTS)
    shifted = np.roll(segment_map, rng.integers(-8, 9, 2), (0, 1))
    found = np.where(rng.random(SEGMENTS) < 0.1, 0, classes)
    semantic = np.append(found, 0)[shifted - 1].astype(np.int32)
    score = rng.random(SEGMENTS)
    prediction = ImagePrediction("", "", shifted, semantic, found, score, None, None, ())
    return GroundTruth(segment_map, classes, np.zeros(SEGMENTS, bool)), prediction


def make_images(
    categories: Sequence[datasets.Category],
) -> list[tuple[GroundTruth, ImagePrediction]]:
    """Draws the distinct images."""
    rng = np.random.default_rng(0)
    return [make_image(rng, len(categories)) for _ in range(DISTINCT)]


def run(
    categories: Sequence[datasets.Category],
    images: Sequence[tuple[GroundTruth, ImagePrediction]],
    count: int,
) -> tuple[float, float, dict]:
    """Computes all metrics of `count` images as the evaluator does: PQ, AP and mean IoU."""
    metrics, waiting, workers = Metrics(categories), collections.deque(), host.cores()
    with ThreadPoolExecutor(workers) as pool:
        for number in range(count + 4 * workers):
            if number < count:
                image = images[number % DISTINCT]
                waiting.append(pool.submit(evaluate_image, categories, *image))
            if number >= 4 * workers:
                metrics.add(str(number), waiting.popleft().result())
    return metrics.quality()["All"]["pq"], metrics.average_precision()["AP"], metrics.mean_iou()


def main() -> None:
    categories = datasets.load("coco").categories
    images = make_images(categories)
    for _ in range(3):
        wall, cpu = time.perf_counter(), time.process_time()
        run(categories, images, IMAGES)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{1000 * wall / IMAGES:.2f} ms per image on {host.cores()} cores "
            f"({1000 * cpu / IMAGES:.2f} ms of CPU time), peak memory {memory:.0f} MB"
        )


if __name__ == "__main__":
    main()
