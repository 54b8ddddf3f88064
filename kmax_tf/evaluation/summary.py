"""The metrics of an evaluation as a dictionary, a table and TensorBoard summaries."""

import csv
import io
import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from kmax_tf import visualize
from kmax_tf.data.datasets import Category
from kmax_tf.evaluation.metrics import QUALITIES, Metrics
from kmax_tf.files import matching, read_bytes
from kmax_tf.report.quality import GROUPS, quality_text, short
from kmax_tf.run_folder import layout

THUMBNAIL = 384  # pixels of the longer side of a picture in TensorBoard, which keeps them all
CONFUSIONS = 12  # pairs of classes


def summarize(metrics: Metrics, categories: Sequence[Category], step: int) -> dict:
    """The content of metrics.json, in percent; None without ground truth of the kind.

    It has "step", "num_images", PQ, SQ, RQ and recall (also with "_things" and "_stuff"), AP, AP50,
    AP75, APs, APm, APl and mIoU. The recall is the share of all segments that are matched, tp /
    (tp + fn) at an IoU above 0.5. "classes" and "confusion" are lists of dicts: the classes in the
    order of `categories`, and the confusions that cost most pixels.
    """
    quality, precision, iou = metrics.quality(), metrics.average_precision(), metrics.mean_iou()
    summary: dict = {"step": step, "num_images": len(metrics.image_counts().image_id)}
    for group, suffix in GROUPS:
        for key in QUALITIES:
            present = quality[group]["n"] > 0
            summary[key.upper() + suffix] = 100 * quality[group][key] if present else None
    for (_, suffix), kinds in zip(GROUPS, ((True, False), (True,), (False,)), strict=True):
        members = [c.id for c in categories if c.isthing in kinds and c.id in quality["per_class"]]
        recall = _recall([quality["per_class"][i] for i in members])
        summary["recall" + suffix] = _percent(recall)
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl"):
        summary[name] = _percent(precision[name])
    summary["mIoU"] = _percent(iou["mIoU"])
    summary["classes"] = [
        {"name": c.name, "isthing": c.isthing}
        | {key.upper(): 100 * quality["per_class"][c.id][key] for key in QUALITIES}
        | {key: quality["per_class"][c.id][key] for key in ("tp", "fp", "fn")}
        | {"AP": _percent(precision["per_class"].get(c.id))}
        | {"IoU": _percent(iou["per_class"][c.id])}
        for c in categories
        if c.id in quality["per_class"]
    ]
    summary["confusion"] = _worst_confusions(metrics.confusion(), [c.name for c in categories])
    return summary


def _recall(entries):
    tp, fn = (sum(entry[name] for entry in entries) for name in ("tp", "fn"))
    return tp / (tp + fn) if tp + fn else None


def line(metrics: dict) -> str:
    """Returns the evaluator's line of a step; figures that do not exist are dashes."""
    figures = "  ".join(f"{key} {short(metrics[key])}" for key in ("recall", "AP", "mIoU"))
    return (
        f"step {metrics['step']}: {quality_text(metrics)}  {figures}"
        f"  ({metrics['num_images']} images)"
    )


def table(evaluations: Sequence[dict]) -> str:
    """Returns the metrics of several steps as CSV: a row for each step, a column for each number.

    A figure that does not exist is an empty cell.
    """
    rows = [
        {k: v for k, v in metrics.items() if not isinstance(v, list | str)}
        for metrics in evaluations
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, dict.fromkeys(name for row in rows for name in row))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _percent(fraction):
    return None if fraction is None else 100 * fraction


def _worst_confusions(confusion, names):
    """The mistakes that cost most pixels: [{"true", "predicted", "share": % of the true class}]."""
    mistakes = np.where(np.eye(len(names), dtype=bool), 0, confusion)
    total = confusion.sum(1)
    worst = np.argsort(-mistakes.ravel().astype(np.int64), kind="stable")[:CONFUSIONS]
    return [
        {
            "true": names[true],
            "predicted": names[predicted],
            "share": 100 * float(mistakes[true, predicted] / total[true]),
        }
        for true, predicted in zip(*np.unravel_index(worst, mistakes.shape), strict=True)
        if mistakes[true, predicted]
    ]


def write_tensorboard(run_dir: str, summary: dict) -> None:
    """Writes the scalars of an evaluation, and the pictures of its first images."""
    decoders = {
        f"decoder_{number}/{key}": value
        for number, figures in enumerate(summary["decoders"], start=1)
        for key, value in figures.items()
    }
    writer = tf.summary.create_file_writer(layout.evaluation(run_dir))
    with writer.as_default(summary["step"]):
        for key, value in (summary | decoders).items():
            if isinstance(value, float):
                tf.summary.scalar(key, value)
        first = [picture["folder"] for picture in summary["pictures"] if picture["role"] == "first"]
        folder = layout.pictures(run_dir)
        places = [(name, os.path.join(folder, name)) for name in first]
        for name, path in ((n, p) for n, place in places for p in matching(place, "*.webp")):
            kind = os.path.splitext(os.path.basename(path))[0]
            if kind not in ("image", "label"):  # these are the same at every step
                image = visualize.decode(read_bytes(path), THUMBNAIL)
                tf.summary.image(f"{kind}/{name}", image[None])
    writer.close()
