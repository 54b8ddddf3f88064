"""Pictures of an evaluation: the first images, and those it did best and worst on."""

import heapq
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image

from kmax_tf import visualize
from kmax_tf.data.datasets import Category
from kmax_tf.evaluation.metrics import GroundTruth, ImageMetrics
from kmax_tf.files import write_atomic
from kmax_tf.inference.predictor import ImagePrediction
from kmax_tf.model import postprocess

FIRST, BEST, WORST = 4, 3, 3  # how many pictures of each
LONGER_SIDE = 768  # pixels, at most


class EvaluatedImage(NamedTuple):
    """One image: its prediction, its label, and what the comparison gave."""

    number: int  # place in the split
    segmented: ImagePrediction
    truth: GroundTruth
    measured: ImageMetrics

    def with_cached_image(self) -> "EvaluatedImage":
        """The same with its canvas at hand, so that the batch it is a part of can go."""
        canvas = self.segmented.canvas()
        return self._replace(segmented=self.segmented._replace(canvas=lambda: canvas))


class ExampleImages:
    """Keeps the images to show, however many it is offered, and draws them at the end."""

    def __init__(self, categories: Sequence[Category]):
        self._categories = categories
        self._first, self._best, self._worst = [], [], []

    def offer(self, scored: EvaluatedImage) -> None:
        """Keeps an image if it is among the first, the best or the worst so far."""
        if len(self._first) < FIRST:
            self._first.append(scored.with_cached_image())
        elif scored.measured.counts:  # else nothing is there and nothing was found
            quality = scored.measured.quality
            _keep(self._best, BEST, (quality, -scored.number), scored)
            _keep(self._worst, WORST, (-quality, -scored.number), scored)

    def write(self, folder: str) -> list:
        """Draws the pictures into `folder`, in place of those that are there.

        Returns a list, a dict a picture: "role" ("first", "worst" or "best"), "folder" (below
        `folder`), "name", "PQ" in percent, and "missed" and "false", {class: segments}.
        """
        if tf.io.gfile.exists(folder):
            tf.io.gfile.rmtree(folder)
        entries = []
        shown = {scored.number for scored in self._first}
        worst, best = ([s for _, s in sorted(heap)[::-1]] for heap in (self._worst, self._best))
        for role, members in (("first", self._first), ("worst", worst), ("best", best)):
            for scored in members:
                if role == "best" and scored.number in shown:
                    continue
                shown.add(scored.number)
                stem = os.path.splitext(os.path.basename(scored.segmented.name))[0]
                self._draw(scored, os.path.join(folder, stem))
                entries.append({"role": role, "folder": stem, **self._facts(scored)})
        return entries

    def _facts(self, scored):
        def failures(count):
            return {
                self._categories[index].name: counts[count]
                for index, counts in scored.measured.counts.items()
                if counts[count]
            }

        return {
            "name": scored.segmented.name,
            "PQ": 100 * scored.measured.quality,
            "missed": failures("fn"),
            "false": failures("fp"),
        }

    def _draw(self, scored, folder):
        """image, label, prediction and assignment_1, 2 ... as WebP."""
        truth, prediction = scored.truth, scored.segmented
        size, canvas = truth.segment_map.shape, prediction.canvas()
        height, width = prediction.fitted_size
        fitted = Image.fromarray(canvas[:height, :width])
        image = np.asarray(fitted.resize(size[::-1], Image.Resampling.BILINEAR))
        crowd = [" (crowd)" if c else "" for c in truth.is_crowd]
        pictures = {
            "image": image,
            "label": self._overlay(image, truth.segment_map, truth.segment_class, crowd),
            "prediction": self._overlay(
                image, prediction.segment_map, prediction.segment_class, None
            ),
        }
        for number, assignment in enumerate(prediction.assignments, start=1):
            enlarged = tf.image.resize(assignment[..., None], canvas.shape[:2], "nearest")[..., 0]
            restored = postprocess.to_original_size(enlarged, prediction.fitted_size, size)
            pictures[f"assignment_{number}"] = visualize.assignment_picture(restored.numpy(), image)
        for name, picture in pictures.items():
            write_atomic(os.path.join(folder, f"{name}.webp"), visualize.webp(picture, LONGER_SIDE))

    def _overlay(self, image, segment_map, segment_class, suffixes):
        suffixes = suffixes or [""] * len(segment_class)
        labelled = [
            (k, self._categories[c].name + suffix, self._categories[c].color)
            for k, (c, suffix) in enumerate(zip(segment_class, suffixes, strict=True), start=1)
            if c >= 0
        ]
        return visualize.overlay(image, segment_map, labelled)


def _keep(heap, size, key, scored):
    """Keeps the `size` images of the largest keys; keys are unique."""
    if len(heap) == size and key < heap[0][0]:
        return
    entry = key, scored.with_cached_image()
    if len(heap) < size:
        heapq.heappush(heap, entry)
    else:
        heapq.heapreplace(heap, entry)
