"""The metrics of an evaluation as a dictionary, and as TensorBoard summaries."""

import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from kmax_tf import visualize
from kmax_tf.data.datasets import Category
from kmax_tf.evaluation.metrics import QUALITIES, Metrics
from kmax_tf.files import matching, read_bytes
from kmax_tf.report.report import GROUPS
from kmax_tf.run_folder import layout

THUMBNAIL = 384  # pixels of the longer side of a picture in TensorBoard, which keeps them all
CONFUSIONS = 12  # pairs of classes


def summarize(metrics: Metrics, categories: Sequence[Category], step: int) -> dict:
    """The content of metrics.json, in percent; None without ground truth of the kind.

    It has "step", "num_images", PQ, SQ and RQ (also with "_things" and "_stuff"), AP, AP50, AP75,
    APs, APm, APl and mIoU. "classes" and "confusion" are lists of dicts: the classes in the order
    of `categories`, and the confusions that cost most pixels.
    """
    quality, precision, iou = metrics.quality(), metrics.average_precision(), metrics.mean_iou()
    summary: dict = {"step": step, "num_images": len(metrics.image_counts().image_id)}
    for group, suffix in GROUPS:
        for key in QUALITIES:
            present = quality[group]["n"] > 0
            summary[key.upper() + suffix] = 100 * quality[group][key] if present else None
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
    writer = tf.summary.create_file_writer(layout.evaluation(run_dir))
    with writer.as_default(summary["step"]):
        for key, value in summary.items():
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
