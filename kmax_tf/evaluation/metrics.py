"""Predictions and labels -> panoptic quality, mask AP and mIoU.

Every figure is hotcoco's, which gives those of panopticapi and pycocotools to the last bit; this
file brings images or files to it, adds up counts over images, and words the complaints.
"""

import contextlib
import copy
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from hotcoco import StreamingEval, mask
from hotcoco import metrics as formulas
from hotcoco.panoptic import PanopticEval

from kmax_tf.data.datasets import Category
from kmax_tf.errors import InputError
from kmax_tf.evaluation.bootstrap import COUNTS, Statistics
from kmax_tf.files import field, read_json
from kmax_tf.inference.predictor import ImagePrediction

GROUPS = ("All", "Things", "Stuff")
_QUALITIES = ("pq", "sq", "rq")


class GroundTruth(NamedTuple):
    """The labelled segments of one image."""

    segment_map: np.ndarray  # int32 [height, width], 0 void, k the k-th segment
    segment_class: np.ndarray  # int32 [segments], class index
    is_crowd: np.ndarray  # bool [segments]


class ImageMetrics(NamedTuple):
    """What one image says; the figures of a dataset are made of these."""

    size: tuple[int, int]  # height, width in pixels
    quality: float  # PQ of this image alone, a fraction; 0 where there is no segment
    counts: dict  # class index -> {"iou_sum", "tp", "fp", "fn"}
    truth: list  # COCO annotations of the true things
    prediction: list  # and of the predicted ones
    confusion: np.ndarray  # uint64 [classes, classes], pixels of (true, predicted) class


def evaluate_image(
    categories: Sequence[Category], truth: GroundTruth, prediction: ImagePrediction
) -> ImageMetrics:
    """Compares the prediction of one image with its label; safe to call in many threads.

    Args:
        categories: sequence of `Category` in class order.
        truth: the label.
        prediction: its segments that are not on the map do not count; the scores rank the things
            for mask AP.
    """
    true_segments = _annotations(truth.segment_map, truth.segment_class)
    for k, entry in true_segments.items():
        entry["iscrowd"] = int(truth.is_crowd[k - 1])
    predicted = _annotations(prediction.segment_map, prediction.segment_class)
    for k, entry in predicted.items():
        entry["score"] = float(prediction.segment_score[k - 1])

    size = truth.segment_map.shape
    quality = _panoptic(categories, size, [*true_segments.values()], [*predicted.values()])
    num_classes = len(categories)
    table = np.array([num_classes, *truth.segment_class], np.min_scalar_type(num_classes))
    confusion = formulas.pixel_confusion(
        table.take(truth.segment_map),
        prediction.semantic_map.astype(table.dtype),
        num_classes,
        ignore_index=num_classes,
    )
    return ImageMetrics(
        size,
        max(quality["All"]["pq"], 0.0),
        {
            index: _counts(counts)
            for index, counts in quality["per_class"].items()
            if counts["tp"] + counts["fp"] + counts["fn"]
        },
        [entry for entry in true_segments.values() if categories[entry["category_id"]].isthing],
        [entry for entry in predicted.values() if categories[entry["category_id"]].isthing],
        confusion,
    )


def _annotations(segment_map, segment_class):
    """{k: COCO annotation of segment k} of the segments on a map; category ids are class indices.

    `segment_class` is -1 where there is no such segment.
    """
    narrow = segment_map.astype(np.min_scalar_type(len(segment_class)))  # for speed alone
    columns = np.asfortranarray(narrow)
    entries = {}
    for k in (np.flatnonzero(np.asarray(segment_class) >= 0) + 1).tolist():
        rle = mask.encode(columns == k)
        area = int(mask.area(rle))
        if area:
            entries[k] = {
                "id": k,
                "image_id": 0,
                "category_id": int(segment_class[k - 1]),
                "segmentation": rle,
                "area": area,
                "iscrowd": 0,
            }
    return entries


def _panoptic(categories, size, truth, prediction):
    """hotcoco's results for one image, of the classes that occur in it."""
    image = [{"id": 0, "height": size[0], "width": size[1]}]
    present = sorted({entry["category_id"] for entry in (*truth, *prediction)})
    named = [{"id": c, "name": str(c), "isthing": int(categories[c].isthing)} for c in present]
    evaluation = PanopticEval(
        {"images": image, "annotations": truth, "categories": named},
        {"images": image, "annotations": prediction, "categories": named},
    )
    evaluation.evaluate()
    return evaluation.results()


class Metrics:
    """Adds up images: a few hundred bytes are kept of each, so the memory stays flat.

    Args:
        categories: sequence of `Category` in class order.
    """

    def __init__(self, categories: Sequence[Category]):
        self._categories = categories
        things = [{"id": i, "name": str(i)} for i, c in enumerate(categories) if c.isthing]
        self._precision = StreamingEval(things, "segm")
        self._confusion = np.zeros([len(categories)] * 2, np.uint64)
        self._image_ids = []
        self._rows = []  # (image, class, iou_sum, tp, fp, fn)

    def add(self, image_id: str, measured: ImageMetrics) -> None:
        """Adds one image; call it in the same order every time, for ties of AP go by it."""
        number = len(self._image_ids)
        self._image_ids.append(image_id)
        for index, counts in measured.counts.items():
            self._rows.append((number, index, *(counts[name] for name in COUNTS)))
        self._confusion += measured.confusion
        height, width = measured.size
        place = {"image_id": number}
        self._precision.update(
            [{"id": number, "height": height, "width": width}],
            # Ids are unique over all images.
            [{**e, **place, "id": (number << 20) + e["id"]} for e in measured.truth],
            [{**e, **place} for e in measured.prediction],
        )

    def statistics(self) -> Statistics:
        """What `panoptic_quality` is made of, image by image."""
        rows = np.array(self._rows, np.float64).reshape(-1, 2 + len(COUNTS))
        place = rows[:, :2].astype(np.int32)
        isthing = np.array([category.isthing for category in self._categories])
        ids = np.array(self._image_ids, str)
        return Statistics(ids, place[:, 0], place[:, 1], rows[:, 2:], isthing)

    def quality(self) -> dict:
        """Panoptic quality, as `panoptic_quality` gives it."""
        return summarize(self.statistics().sum(), self._categories)

    def average_precision(self) -> dict:
        """{"AP", "AP50", "AP75", "APs", "APm", "APl", "AR1" ..., "per_class": {category id: AP}}.

        Fractions, None where the labels hold nothing of the kind. Small is below 32 x 32 pixels,
        large from 96 x 96 on.
        """
        evaluation = copy.copy(self._precision).finalize()  # which spends it
        evaluation.accumulate()
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            evaluation.summarize()  # prints what it computes
        results = evaluation.results(per_class=True)
        per_class = {
            self._categories[int(name)].id: _computed(value)
            for name, value in results.get("per_class", {}).items()
        }
        figures = {name: _computed(value) for name, value in results["metrics"].items()}
        return {**figures, "per_class": per_class}

    def mean_iou(self) -> dict:
        """{"mIoU": fraction, "per_class": {category id: IoU, None where nobody has it}}."""
        results = formulas.mean_iou(self._confusion)
        per_class = zip(self._categories, results["IoU"], strict=True)
        return {
            "mIoU": _computed(results["mIoU"]),
            "per_class": {category.id: _computed(value) for category, value in per_class},
        }

    def confusion(self) -> np.ndarray:
        """uint64 [classes, classes]: pixels of each (true, predicted) class."""
        return self._confusion


def summarize(counts: np.ndarray, categories: Sequence[Category]) -> dict:
    """Panoptic quality from counts, as `panoptic_quality` gives it.

    Args:
        counts: float64 [classes, 4], sums over images of iou_sum, tp, fp, fn.
        categories: sequence of `Category` in class order.
    """
    per_class = {}
    for category, (iou_sum, *whole) in zip(categories, counts.tolist(), strict=True):
        tp, fp, fn = map(int, whole)
        if tp + fp + fn:
            pq, sq, rq = formulas.panoptic_quality(iou_sum, tp, fp, fn)
            entry = {"pq": pq, "sq": sq, "rq": rq, "iou_sum": iou_sum, "tp": tp, "fp": fp, "fn": fn}
            per_class[category.id] = entry
    isthing = {category.id: category.isthing for category in categories}
    members = (
        list(per_class.values()),
        [entry for i, entry in per_class.items() if isthing[i]],
        [entry for i, entry in per_class.items() if not isthing[i]],
    )
    groups = {
        group: {
            **{key: sum(e[key] for e in entries) / max(len(entries), 1) for key in _QUALITIES},
            "n": len(entries),
        }
        for group, entries in zip(GROUPS, members, strict=True)
    }
    return {**groups, "per_class": per_class}


def _computed(value):
    return value if formulas.is_computed(value) else None


def panoptic_quality(gt_json: str, gt_folder: str, pred_json: str, pred_folder: str) -> dict:
    """Scores the predictions of every image of the ground truth.

    Images are paired by id, where 7 and "7" are the same.

    Args:
        gt_json: path of the ground truth in COCO panoptic format ("annotations", "categories").
        gt_folder: folder of its PNG files, id = r + 256 g + 256 * 256 b, 0 = void.
        pred_json: path of the predictions in the same format; its "categories" are not read.
        pred_folder: folder of the predictions' PNG files.

    Returns:
        {"All": g, "Things": g, "Stuff": g, "per_class": {category id (int): c}} where
        g = {"pq", "sq", "rq": fractions in [0, 1], "n": number of categories averaged}, all 0 for a
        group without categories, and c = {"pq", "sq", "rq": fractions, "tp", "fp", "fn": segments,
        "iou_sum": sum over tp}. per_class lacks a category without any segment: it has no quality.

    Raises:
        InputError: a file or field is missing, an image has no prediction, or the segments of a
            JSON file and of its PNG files differ.
    """
    truth, prediction = _read(gt_json), _read(pred_json)
    categories = field(truth, "categories", list, gt_json)
    if not truth["annotations"]:
        raise InputError(f"{gt_json}: annotations: empty; give ground truth of at least one image")
    ids = [str(entry["image_id"]) for entry in truth["annotations"]]
    predicted = {str(entry["image_id"]): entry for entry in prediction["annotations"]}
    missing = [i for i in ids if i not in predicted]
    if missing:
        raise InputError(
            f"{pred_json}: annotations: no prediction for {len(missing)} of {len(ids)} images, "
            f"the first is {missing[0]}; predict every image of {gt_json}"
        )
    # hotcoco takes whole numbers only, Cityscapes names its images.
    numbers = [int(i) for i in ids] if all(i.isdigit() for i in ids) else range(len(ids))
    truth_annotations = [
        {**entry, "image_id": number} for entry, number in zip(truth["annotations"], numbers)
    ]
    pred_annotations = [{**predicted[i], "image_id": number} for i, number in zip(ids, numbers)]
    with tempfile.TemporaryDirectory() as scratch:
        try:
            evaluation = PanopticEval(
                {"annotations": truth_annotations, "categories": categories},
                {"annotations": pred_annotations},
                gt_folder=_local(gt_folder, truth_annotations, os.path.join(scratch, "gt")),
                pred_folder=_local(pred_folder, pred_annotations, os.path.join(scratch, "pred")),
            )
            evaluation.evaluate()
        except (KeyError, ValueError, OSError, tf.errors.OpError) as error:
            raise InputError(
                f"{pred_json} against {gt_json}: {error}; write both anew in COCO panoptic format"
            ) from error
    results = evaluation.results()
    groups = {name: dict(results[name]) for name in GROUPS}
    for group in groups.values():
        if group["n"] == 0:
            group.update(pq=0.0, sq=0.0, rq=0.0)
    per_class = {
        category: {**{key: v[key] for key in _QUALITIES}, **_counts(v)}
        for category, v in results["per_class"].items()
        if v["tp"] + v["fp"] + v["fn"]
    }
    return {**groups, "per_class": per_class}


def _counts(entry):
    """hotcoco's counts of one class under our names."""
    return {name: entry[name.removesuffix("_sum")] for name in COUNTS}


def _read(path):
    """The content of a COCO panoptic JSON file, its annotations checked for the fields needed."""
    content = read_json(path)
    for i, annotation in enumerate(field(content, "annotations", list, path)):
        for name, kind in (("image_id", object), ("file_name", str), ("segments_info", list)):
            field(annotation, name, kind, f"{path}: annotations[{i}]")
    return content


def _local(folder, annotations, scratch):
    """The folder itself, or where it is remote (gs://) a copy of its PNG files in scratch."""
    if "://" not in str(folder):
        return str(folder)

    def copy(annotation):
        target = os.path.join(scratch, annotation["file_name"])
        tf.io.gfile.makedirs(os.path.dirname(target))
        tf.io.gfile.copy(tf.io.gfile.join(folder, annotation["file_name"]), target)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(copy, annotations))
    return scratch
