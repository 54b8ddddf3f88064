"""Predictions and ground truth in COCO panoptic format -> panoptic quality.

Every figure is hotcoco's, which gives those of the official COCO script to the last bit; this file
brings the files to it and words the complaints.
"""

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor

import tensorflow as tf
from hotcoco.panoptic import PanopticEval

from kmax_tf.files import InputError, field, read_json


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
        "iou": sum over tp}. per_class lacks a category without any segment: it has no quality.

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
    groups = {name: dict(results[name]) for name in ("All", "Things", "Stuff")}
    for group in groups.values():
        if group["n"] == 0:
            group.update(pq=0.0, sq=0.0, rq=0.0)
    per_class = {k: v for k, v in results["per_class"].items() if v["tp"] + v["fp"] + v["fn"]}
    return {**groups, "per_class": per_class}


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
