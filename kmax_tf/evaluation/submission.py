"""Writes predictions in the formats of the test servers of COCO and Cityscapes."""

import importlib
import io
import os
import shutil
import tempfile
import unittest.mock
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from PIL import Image
from tqdm import tqdm

from kmax_tf.data.coco_writer import PanopticWriter
from kmax_tf.errors import InputError
from kmax_tf.experiment import Experiment
from kmax_tf.files import flat_name, names, write_atomic
from kmax_tf.inference import predictor

LABELS = "_gtFine_instanceIds.png"  # how Cityscapes' names of them end


def write_coco(experiment: Experiment, predict: Callable, path: str) -> None:
    """Writes NAME.zip with NAME.json and NAME/*.png for COCO's panoptic test server.

    Args:
        predict: the function from `predictor.build_predictor`.
        path: of the zip. The server asks for names like panoptic_test-dev2017_kmax_results.zip.

    Raises:
        InputError: the path does not end in .zip, or cannot be written. It is tried first, as
            predictions may take hours.
    """
    name, ending = os.path.splitext(os.path.basename(path))
    if ending != ".zip":
        raise InputError(f"{path}: the submission is a zip file; give a name that ends in .zip")
    write_atomic(f"{path}.tmp", "")
    tf.io.gfile.remove(f"{path}.tmp")
    beside = None if "://" in path else os.path.dirname(path) or "."  # where the zip has room, too
    with tempfile.TemporaryDirectory(dir=beside) as scratch:
        content = os.path.join(scratch, "content")
        target = os.path.join(content, name)
        _write_panoptic(experiment, predict, target, experiment.dataset.categories)
        packed = shutil.make_archive(os.path.join(scratch, "packed"), "zip", content)
        tf.io.gfile.copy(packed, f"{path}.tmp", overwrite=True)
        tf.io.gfile.rename(f"{path}.tmp", path, overwrite=True)


def write_cityscapes(experiment: Experiment, predict: Callable, folder: str) -> None:
    """Writes the three submissions of Cityscapes; `predict` is as in `write_coco`.

    - panoptic/ has predictions.json and its PNG files.
    - semantic/ has a PNG of label ids for each image.
    - instance/ has a text for each image. A line names a mask, a label id and a score.

    Raises InputError if the extra `cityscapes` is not installed, or the folder has a submission.
    """
    for kind in ("panoptic", "semantic", "instance"):
        if count := len(names(os.path.join(folder, kind), required=False)):
            raise InputError(
                f"{folder}: {kind}/ has {count} files, maybe of another split or checkpoint; delete"
                " it, or choose another --out"
            )
    labels = _cityscapes("helpers.labels").name2label
    ids = [labels[category.name].id for category in experiment.dataset.categories]

    def write_image(image):
        stem = os.path.join(folder, "semantic", image.image_id)
        write_atomic(f"{stem}.png", _png(np.array(ids, np.uint8)[image.semantic_map]))
        lines = ""
        for k in np.unique(image.segment_map[image.segment_map > 0]).tolist():
            index = image.segment_class[k - 1]
            if experiment.dataset.categories[index].isthing:
                name = f"masks/{image.image_id}_{k}.png"
                mask = np.where(image.segment_map == k, np.uint8(255), np.uint8(0))
                write_atomic(os.path.join(folder, "instance", name), _png(mask))
                lines += f"{name} {ids[index]} {image.segment_score[k - 1]:.6f}\n"
        write_atomic(os.path.join(folder, "instance", f"{image.image_id}.txt"), lines)

    dataset = experiment.dataset
    categories = tuple(c._replace(id=i) for c, i in zip(dataset.categories, ids, strict=True))
    target = os.path.join(folder, "panoptic", "predictions")
    _write_panoptic(experiment, predict, target, categories, write_image)


def _write_panoptic(experiment, predict, target, categories, write_image=lambda image: None):
    """Writes `target`.json and `target`/*.png; worker threads call `write_image` for each image."""
    writer = PanopticWriter(f"{target}.json", target, categories)

    def work(_, image):
        write_image(image)
        return image

    images, taken = predictor.predict_split(experiment, predict, work), set()
    total = predictor.evaluation_records(experiment).num_examples
    bar = dict(desc="predicting", unit="image", leave=False, disable=None)
    for image in tqdm(images, total=total, **bar):
        segments = [
            {"id": k, "category_id": categories[image.segment_class[k - 1]].id}
            for k in np.unique(image.segment_map[image.segment_map > 0]).tolist()
        ]
        stem = os.path.splitext(os.path.basename(image.name))[0]
        # Folders may have images of one name. No stem has a "/", so no two names are the same.
        name = f"{stem}/{image.image_id}" if stem in taken else stem
        taken.add(stem)
        png = f"{flat_name(name)}.png"
        writer.add(image.image_id, image.name, image.segment_map, segments, png)
    writer.finish()


def _png(image):
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return content.getvalue()


def find_labels(folder: str, out: str, split: str, count: int) -> list[str]:
    """Lists the labels of a split of Cityscapes, which the official script reads.

    Args:
        folder: a folder of cities, with *_gtFine_instanceIds.png files.
        out: where the predictions will be.
        split: name of the split, for messages.
        count: number of its images.

    Returns:
        The paths of the labels, sorted.

    Raises:
        InputError: there are not as many labels as images; or one of both places is remote.
    """
    if "://" in folder + out:
        raise InputError("--labels: the official script reads local files only; use local paths")
    below = ((place, name) for place, _, names in tf.io.gfile.walk(folder) for name in names)
    found = sorted(os.path.join(*path) for path in below if path[1].endswith(LABELS))
    if len(found) != count:
        raise InputError(
            f"{folder}: has {len(found)} *{LABELS} for the {count} images of split {split!r}; give"
            " the folder of this split in gtFine"
        )
    return found


def cityscapes_average_precision(folder: str, labels: Sequence[str]) -> dict:
    """Scores instance/ of a Cityscapes submission with the official script.

    This AP differs from COCO's: it handles void, groups and a minimum size.

    Args:
        folder: the one that `write_cityscapes` wrote.
        labels: from `find_labels`.

    Returns:
        {"AP", "AP50", "per_class": {class name: AP}}, fractions, NaN for an absent class.

    Raises:
        InputError: a prediction is missing.
    """
    script = _cityscapes("evaluation.evalInstanceLevelSemanticLabeling")
    instances_dir = os.path.abspath(os.path.join(folder, "instance"))
    stems = [os.path.basename(path).removesuffix(LABELS) for path in labels]
    predicted = [os.path.join(instances_dir, f"{stem}.txt") for stem in stems]
    missing = [path for path in predicted if not os.path.exists(path)]
    if missing:
        raise InputError(f"{missing[0]}: missing; predict the split of {labels[0]}")
    script.args.quiet, script.args.predictionPath = True, instances_dir
    script.setInstanceLabels(script.args)
    # cityscapesscripts 2.3 calls in1d, which NumPy 2.4 removed.
    with unittest.mock.patch.object(np, "in1d", np.isin, create=True):
        instances = script.instances2dict(labels)
        matches = script.matchGtWithPreds(predicted, labels, instances, script.args)
        averages = script.computeAverages(script.evaluateMatches(matches, script.args), script.args)
    per_class = {name: float(entry["ap"]) for name, entry in averages["classes"].items()}
    return {"AP": averages["allAp"], "AP50": averages["allAp50%"], "per_class": per_class}


def _cityscapes(module):
    """Imports a module of cityscapesscripts; InputError if it is not installed."""
    try:
        return importlib.import_module(f"cityscapesscripts.{module}")
    except ImportError as error:
        raise InputError(
            f'cityscapesscripts cannot be imported ({error}): pip install "kmax_tf[cityscapes]"'
        ) from error
