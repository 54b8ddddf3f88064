"""The example pictures of an evaluation: the first, the best and the worst images."""

import heapq
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image

from kmax_tf import visualize
from kmax_tf.data.datasets import Category
from kmax_tf.data.transforms import host
from kmax_tf.evaluation.metrics import GroundTruth, ImageMetrics
from kmax_tf.files import flat_name, write_atomic
from kmax_tf.inference.predictor import ImagePrediction

FIRST, BEST, WORST = 4, 3, 3  # images of each role
LONGER_SIDE = 768  # pixels, at most
KEPT_SIDE = 2048  # pixels, about; a larger image is kept until the end with fewer


class EvaluatedImage(NamedTuple):
    """One image: its prediction, its ground truth and its metrics."""

    number: int  # place in the split
    prediction: ImagePrediction
    ground_truth: GroundTruth
    metrics: ImageMetrics

    def with_cached_image(self) -> "EvaluatedImage":
        """A copy that holds its canvas, so that the memory of its batch can be freed.

        Large maps and canvases lose rows and columns.
        """
        canvas, prediction = self.prediction.canvas(), self.prediction
        small, step = _fewer(canvas), _step(canvas)
        fitted = prediction.fitted_size if step == 1 else -(-prediction.fitted_size // step)
        maps = dict(
            segment_map=_fewer(prediction.segment_map), semantic_map=_fewer(prediction.semantic_map)
        )
        return self._replace(
            prediction=prediction._replace(canvas=lambda: small, fitted_size=fitted, **maps),
            ground_truth=self.ground_truth._replace(
                segment_map=_fewer(self.ground_truth.segment_map)
            ),
        )


class ExampleImages:
    """Selects example images while it is offered all of them, and draws them at the end.

    Args:
        categories: of the dataset, in class order.
    """

    def __init__(self, categories: Sequence[Category]):
        self._categories = categories
        self._first, self._best, self._worst = [], [], []

    def offer(self, image: EvaluatedImage) -> None:
        """Keeps an image if it is among the first, the best or the worst so far."""
        if len(self._first) < FIRST:
            self._first.append(image.with_cached_image())
        elif (quality := image.metrics.quality) is not None:
            _keep(self._best, BEST, (quality, -image.number), image)
            _keep(self._worst, WORST, (-quality, -image.number), image)

    def write(self, folder: str) -> list:
        """Draws the pictures into `folder`, and removes those of the previous evaluation.

        Returns:
            A dict for each image: "role" ("first", "worst" or "best"), "folder" (below `folder`),
            "name", "PQ" in percent or None, and "missed" and "false", {class name: segments}.
        """
        if tf.io.gfile.exists(folder):
            tf.io.gfile.rmtree(folder)
        entries = []
        shown = {image.number for image in self._first}
        worst, best = ([i for _, i in sorted(heap)[::-1]] for heap in (self._worst, self._best))
        for role, images in (("first", self._first), ("worst", worst), ("best", best)):
            for image in images:
                if role == "best" and image.number in shown:
                    continue
                shown.add(image.number)
                name = flat_name(image.prediction.image_id)
                self._draw(image, os.path.join(folder, name))
                entries.append({"role": role, "folder": name, **self._facts(image)})
        return entries

    def _facts(self, image):
        def failures(count):
            return {
                self._categories[index].name: counts[count]
                for index, counts in image.metrics.counts.items()
                if counts[count]
            }

        quality = image.metrics.quality
        return {
            "name": image.prediction.name,
            "PQ": None if quality is None else 100 * quality,
            "missed": failures("fn"),
            "false": failures("fp"),
        }

    def _draw(self, evaluated, folder):
        """Writes image, label, prediction and assignment_1, assignment_2 ... as WebP."""
        ground_truth, prediction = evaluated.ground_truth, evaluated.prediction
        size, canvas = ground_truth.segment_map.shape, prediction.canvas()
        height, width = prediction.fitted_size
        fitted = Image.fromarray(canvas[:height, :width])
        image = np.asarray(fitted.resize(size[::-1], Image.Resampling.BILINEAR))
        pictures = {
            "image": image,
            "label": self._overlay(image, ground_truth, ground_truth.is_crowd),
            "prediction": self._overlay(image, prediction),
        }
        for number, assignment in enumerate(prediction.assignments, start=1):
            enlarged = tf.image.resize(assignment[..., None], canvas.shape[:2], "nearest")[..., 0]
            restored = host.to_original_size(enlarged, prediction.fitted_size, size)
            pictures[f"assignment_{number}"] = visualize.assignment_picture(restored.numpy(), image)
        for name, picture in pictures.items():
            write_atomic(os.path.join(folder, f"{name}.webp"), visualize.webp(picture, LONGER_SIDE))

    def _overlay(self, image, segmented, is_crowd=()):
        """The segments of a `GroundTruth` or an `ImagePrediction` over the image."""
        crowd = np.flatnonzero(is_crowd) + 1
        segments = [
            (k, self._categories[c].name + " (crowd)" * (k in crowd), self._categories[c].color)
            for k, c in enumerate(segmented.segment_class, start=1)
            if c >= 0
        ]
        return visualize.overlay(image, segmented.segment_map, segments)


def _step(values):
    return max(1, round(max(values.shape[:2]) / KEPT_SIDE))


def _fewer(values):
    """Returns an image or a map of about KEPT_SIDE pixels, with every second, third ... one."""
    step = _step(values)
    return values if step == 1 else values[::step, ::step].copy()


def _keep(heap, size, key, image):
    """Keeps the `size` images with the largest keys; keys are unique."""
    if len(heap) == size and key < heap[0][0]:
        return
    entry = key, image.with_cached_image()
    if len(heap) < size:
        heapq.heappush(heap, entry)
    else:
        heapq.heapreplace(heap, entry)
