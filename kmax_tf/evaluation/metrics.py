"""Panoptic quality, mask AP and mIoU of predictions, one image at a time.

hotcoco computes every metric, with the bits of panopticapi and pycocotools. This file converts
images to its format and sums their counts.
"""

import contextlib
import copy
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from hotcoco import StreamingEval, mask
from hotcoco import metrics as formulas
from hotcoco.panoptic import PanopticEval

from kmax_tf.data import label_png
from kmax_tf.data.datasets import Category, Dataset
from kmax_tf.data.records.example import Example
from kmax_tf.evaluation.bootstrap import COUNTS, ImageCounts
from kmax_tf.inference.predictor import ImagePrediction

GROUPS = ("All", "Things", "Stuff")
QUALITIES = ("pq", "sq", "rq")


class GroundTruth(NamedTuple):
    """The annotated segments of one image."""

    segment_map: np.ndarray  # int32 [height, width], 0 void, k the k-th segment
    segment_class: np.ndarray  # int32 [segments], class index
    is_crowd: np.ndarray  # bool [segments]


def ground_truth(dataset: Dataset, example: Example) -> GroundTruth:
    """Returns the `GroundTruth` of an `Example`."""
    classes = [dataset.class_of_category[c] for c in example.category_id.numpy().tolist()]
    return GroundTruth(
        example.segment_map.numpy(), np.array(classes, np.int32), example.is_crowd.numpy()
    )


class ImageMetrics(NamedTuple):
    """The contribution of one image to the metrics of a dataset."""

    size: tuple[int, int]  # height, width in pixels
    quality: float | None  # PQ of this image alone, a fraction; None without counts
    counts: dict  # class index -> {"iou_sum", "tp", "fp", "fn"}
    true_things: list  # COCO annotations
    predicted_things: list  # COCO annotations with a score
    confusion: np.ndarray  # uint64 [classes, classes], pixels of (true, predicted) class


def evaluate_image(
    categories: Sequence[Category], ground_truth: GroundTruth, prediction: ImagePrediction
) -> ImageMetrics:
    """Compares the prediction of one image with its ground truth; several threads may call it.

    Args:
        categories: of the dataset, in class order.
        ground_truth: of the image.
        prediction: of the image. Segments without a pixel do not count; the scores rank the
            things for mask AP.
    """
    true_segments = coco_annotations(*ground_truth)
    predicted = coco_annotations(prediction.segment_map, prediction.segment_class)
    for k, entry in predicted.items():
        entry["score"] = float(prediction.segment_score[k - 1])

    size = ground_truth.segment_map.shape
    quality, counts = match_segments(categories, size, true_segments, predicted)
    num_classes = len(categories)
    table = np.array([num_classes, *ground_truth.segment_class], np.min_scalar_type(num_classes))
    confusion = formulas.pixel_confusion(
        table.take(ground_truth.segment_map),
        prediction.semantic_map.astype(table.dtype),
        num_classes,
        ignore_index=num_classes,
    )
    return ImageMetrics(
        size,
        quality,
        counts,
        [entry for entry in true_segments.values() if categories[entry["category_id"]].isthing],
        [entry for entry in predicted.values() if categories[entry["category_id"]].isthing],
        confusion,
    )


def coco_annotations(
    segment_map: np.ndarray,
    segment_class: np.ndarray,
    is_crowd: Sequence[bool] | np.ndarray | None = None,
) -> dict[int, dict]:
    """Returns {k: COCO annotation of segment k}, with class indices as category ids.

    A segment without a class (-1) or without a pixel has no annotation.

    Args:
        segment_map: int32 [height, width], 0 void, k the k-th segment.
        segment_class: int32 [segments], class index.
        is_crowd: bool [segments]; None: no segment is.
    """
    narrow = segment_map.astype(np.min_scalar_type(len(segment_class)))  # only for speed
    size = [*segment_map.shape]
    entries = {}
    for k, start, length in _runs_of_segments(narrow.T):
        if k and segment_class[k - 1] >= 0:
            # Pixels before the segment's first run, in the run, to the next run, and so on.
            ends = np.stack([start, start + length], axis=1).ravel()
            counts = np.diff(ends, prepend=0, append=narrow.size)
            counts = counts if counts[-1] else counts[:-1]
            rle = mask.frPyObjects({"size": size, "counts": counts.tolist()}, *size)
            entries[k] = {
                "id": k,
                "image_id": 0,
                "category_id": int(segment_class[k - 1]),
                "segmentation": rle,
                "area": int(length.sum()),
                "iscrowd": 0 if is_crowd is None else int(is_crowd[k - 1]),
            }
    return entries


def _runs_of_segments(segment_map):
    """Yields each value of a map with the starts and the lengths of its runs, row by row."""
    values, length = label_png.find_runs(segment_map)
    start = np.cumsum(length) - length
    order = np.argsort(values, kind="stable")
    ends = np.flatnonzero(np.diff(values[order], append=-1)) + 1
    for runs in np.split(order, ends[:-1]):
        yield int(values[runs[0]]), start[runs], length[runs]


def match_segments(
    categories: Sequence[Category], size: tuple, true: dict[int, dict], predicted: dict[int, dict]
) -> tuple[float | None, dict]:
    """Matches the segments of one image.

    Args:
        categories: of the dataset, in class order.
        size: height and width in pixels.
        true, predicted: of `coco_annotations`.

    Returns:
        `quality` and `counts` of `ImageMetrics`.
    """
    image = [{"id": 0, "height": size[0], "width": size[1]}]
    segments = [[*true.values()], [*predicted.values()]]
    present = sorted({entry["category_id"] for entry in (*segments[0], *segments[1])})
    named = [{"id": c, "name": str(c), "isthing": int(categories[c].isthing)} for c in present]
    evaluation = PanopticEval(
        *({"images": image, "annotations": entries, "categories": named} for entries in segments)
    )
    evaluation.evaluate()
    results = evaluation.results()
    counts = {
        index: {name: entry[name.removesuffix("_sum")] for name in COUNTS}
        for index, entry in results["per_class"].items()
        if entry["tp"] + entry["fp"] + entry["fn"]
    }
    return results["All"]["pq"] if counts else None, counts


class Metrics:
    """The metrics of a dataset, summed image by image; an image takes a few hundred bytes.

    Args:
        categories: of the dataset, in class order.
    """

    def __init__(self, categories: Sequence[Category]):
        self._categories = categories
        things = [{"id": i, "name": str(i)} for i, c in enumerate(categories) if c.isthing]
        self._precision = StreamingEval(things, "segm")
        self._confusion = np.zeros([len(categories)] * 2, np.uint64)
        self._image_ids = []
        self._rows = []  # (image, class, iou_sum, tp, fp, fn)

    def add(self, image_id: str, image: ImageMetrics) -> None:
        """Adds one image. The order decides between equal scores in AP, so keep it fixed."""
        number = len(self._image_ids)
        self._image_ids.append(image_id)
        for index, counts in image.counts.items():
            self._rows.append((number, index, *(counts[name] for name in COUNTS)))
        self._confusion += image.confusion
        height, width = image.size
        own = {"image_id": number}
        self._precision.update(
            [{"id": number, "height": height, "width": width}],
            # Annotation ids must be unique over all images.
            [{**e, **own, "id": (number << 20) + e["id"]} for e in image.true_things],
            [{**e, **own} for e in image.predicted_things],
        )

    def image_counts(self) -> ImageCounts:
        """The counts that panoptic quality is computed from, image by image."""
        rows = np.array(self._rows, np.float64).reshape(-1, 2 + len(COUNTS))
        index = rows[:, :2].astype(np.int32)
        isthing = np.array([category.isthing for category in self._categories])
        ids = np.array(self._image_ids, str)
        return ImageCounts(ids, index[:, 0], index[:, 1], rows[:, 2:], isthing)

    def quality(self) -> dict:
        """Panoptic quality, as `coco_score.panoptic_quality` returns it."""
        return quality_of_counts(self.image_counts().sum(), self._categories)

    def average_precision(self) -> dict:
        """{"AP", "AP50", "AP75", "APs", "APm", "APl", "AR1" ..., "per_class": {category id: AP}}.

        Values are fractions, None without ground truth of the kind. Small things are below
        32 x 32 pixels, large ones at least 96 x 96.
        """
        evaluation = copy.copy(self._precision).finalize()  # consumes what it is called on
        evaluation.accumulate()
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            evaluation.summarize()  # prints its results
        results = evaluation.results(per_class=True)
        per_class = {
            self._categories[int(name)].id: _computed(value)
            for name, value in results.get("per_class", {}).items()
        }
        figures = {name: _computed(value) for name, value in results["metrics"].items()}
        return {**figures, "per_class": per_class}

    def mean_iou(self) -> dict:
        """{"mIoU": fraction, "per_class": {category id: IoU, None for an absent class}}."""
        results = formulas.mean_iou(self._confusion)
        per_class = zip(self._categories, results["IoU"], strict=True)
        return {
            "mIoU": _computed(results["mIoU"]),
            "per_class": {category.id: _computed(value) for category, value in per_class},
        }

    def confusion(self) -> np.ndarray:
        """uint64 [classes, classes], the pixels of each (true, predicted) class."""
        return self._confusion


def quality_of_counts(counts: np.ndarray, categories: Sequence[Category]) -> dict:
    """Panoptic quality, as `coco_score.panoptic_quality` returns it.

    Args:
        counts: float64 [classes, 4], sums over images of iou_sum, tp, fp, fn.
        categories: of the dataset, in class order.
    """
    per_class = {}
    for category, (iou_sum, *whole) in zip(categories, counts.tolist(), strict=True):
        tp, fp, fn = map(int, whole)
        if tp + fp + fn:
            pq, sq, rq = formulas.panoptic_quality(iou_sum, tp, fp, fn)
            entry = {"pq": pq, "sq": sq, "rq": rq, "iou_sum": iou_sum, "tp": tp, "fp": fp, "fn": fn}
            per_class[category.id] = entry

    def group(*kinds):
        members = [c.id for c in categories if c.id in per_class and c.isthing in kinds]
        count = len(members)
        means = {k: sum(per_class[i][k] for i in members) / max(count, 1) for k in QUALITIES}
        return {**means, "n": count}

    groups = zip(GROUPS, (group(True, False), group(True), group(False)), strict=True)
    return {**dict(groups), "per_class": per_class}


def _computed(value):
    return value if formulas.is_computed(value) else None
