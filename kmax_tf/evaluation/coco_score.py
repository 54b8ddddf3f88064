"""Panoptic quality of any system's predictions, from files in COCO panoptic format."""

import collections
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from kmax_tf import host
from kmax_tf.data import json_fields
from kmax_tf.data.coco_panoptic import LabelSegment, number_segments, read_segments
from kmax_tf.data.datasets import Category, parse_categories
from kmax_tf.data.label_png import decode_ids
from kmax_tf.errors import InputError
from kmax_tf.evaluation.bootstrap import COUNTS
from kmax_tf.evaluation.metrics import coco_annotations, match_segments, quality_of_counts
from kmax_tf.files import field, read_bytes, read_json


def panoptic_quality(gt_json: str, gt_folder: str, pred_json: str, pred_folder: str) -> dict:
    """Scores the predictions for every image of the ground truth.

    Images are paired by id; 7 and "7" are the same id, "007" is another. If the ids do not meet, or
    meet for other file names, the file names in "images" pair them. A line on stderr says so. Areas
    are counted from the pixels; a line on stderr counts those that differ from "area".

    Args:
        gt_json: path of the ground truth in COCO panoptic format ("annotations", "categories").
        gt_folder: folder of its PNG files, id = r + 256 g + 256 * 256 b, 0 for void.
        pred_json: path of the predictions in the same format; its "categories" may be missing.
        pred_folder: folder of the predictions' PNG files.

    Returns:
        {"All": group, "Things": group, "Stuff": group, "per_class": {category id: entry}}.
        group: {"pq", "sq", "rq", "n"}, the means over its n categories with a segment; 0 without.
        entry: {"pq", "sq", "rq", "tp", "fp", "fn", "iou_sum"}, iou_sum over the tp segments.
        Categories without a segment have no entry. pq, sq and rq are fractions in [0, 1].

    Raises:
        InputError: a file, field or prediction is missing, a JSON file and its PNG files have other
            segments or sizes, or an id of the predictions has the name of another class.
    """
    content = read_json(gt_json)
    categories = parse_categories(content, gt_json)
    predicted = read_json(pred_json)
    truth, predictions = _read(content, gt_json), _read(predicted, pred_json)
    _check_names(categories, predicted, gt_json, pred_json)
    if not truth:
        raise InputError(f"{gt_json}: annotations: empty; give ground truth of at least one image")
    pairs = zip(truth, _pair(truth, predictions, gt_json, pred_json))
    known = {category.id for category in categories}
    counts = np.zeros([len(categories), len(COUNTS)])
    tally = np.zeros([2, 2], int)  # of each file: segments, and those with another "area"

    def work(pair):
        labels = map(_read_label, pair, (gt_folder, pred_folder), (known, known))
        return _score(categories, *labels)

    with ThreadPoolExecutor(host.cores()) as workers:
        bar = dict(desc="scoring", total=len(truth), unit="image", leave=False, disable=None)
        for matches, numbers in tqdm(workers.map(work, pairs), **bar):
            for index, found in matches.items():
                counts[index] += [found[name] for name in COUNTS]
            tally += numbers
    for path, (number, different) in zip((gt_json, pred_json), tally):
        if different:
            _say(
                f'{path}: "area" differs from the pixel count in {different} of {number} segments;'
                " the pixels are used"
            )
    return quality_of_counts(counts, categories)


def _say(line):
    print(line, file=sys.stderr, flush=True)


def _check_names(
    categories: Sequence[Category], predicted: Any, gt_json: str, pred_json: str
) -> None:
    """Checks that the "categories" of the predictions, if given, are those of the ground truth."""
    if "categories" not in predicted:
        return
    names = {category.id: category.name for category in categories}
    for index, entry in enumerate(field(predicted, "categories", list, pred_json)):
        where = f"{pred_json}: categories[{index}]"
        identity, name = json_fields.integer(entry, "id", where), entry.get("name")
        if name is not None and names.get(identity, name) != name:
            raise InputError(
                f'{where}: "name" of id {identity} is {name!r:.40} but {names[identity]!r:.40} in'
                f" {gt_json}; score predictions of the same classes, or correct the name"
            )


class _Image(NamedTuple):
    """An annotation, and the entry of its image in "images"."""

    where: str  # for messages
    image_id: str
    annotation: dict
    entry: dict  # empty if the file has no such entry

    @property
    def name(self) -> str | None:
        """File name of the image."""
        return self.entry.get("file_name")

    @property
    def stem(self) -> str | None:
        """File name without folder and extension."""
        return self.name and os.path.splitext(os.path.basename(self.name))[0]


def _read(content: Any, path: str) -> list[_Image]:
    """Reads the images of a COCO panoptic JSON, whose "images" may be missing."""
    annotations = field(content, "annotations", list, path)
    listed = {}
    for i, entry in enumerate(field(content, "images", list, path) if "images" in content else ()):
        where = f"{path}: images[{i}]"
        listed[json_fields.identity(entry, "id", where)] = entry
        if "file_name" in entry:
            json_fields.text(entry, "file_name", where)
    images: dict[str, _Image] = {}
    for i, entry in enumerate(annotations):
        where = f"{path}: annotations[{i}]"
        identity = json_fields.identity(entry, "image_id", where)
        json_fields.text(entry, "file_name", where)
        field(entry, "segments_info", list, where)
        if identity in images:
            raise InputError(
                f'{where}: "image_id" {identity} is annotated twice; keep one annotation'
            )
        images[identity] = _Image(where, identity, entry, listed.get(identity, {}))
    return [*images.values()]


def _pair(
    truth: Sequence[_Image], predictions: Sequence[_Image], gt_json: str, pred_json: str
) -> Sequence[_Image]:
    """Returns the prediction of each image of the ground truth."""
    by_id = _match(truth, predictions, lambda image: image.image_id)
    by_name = _match(truth, predictions, lambda image: image.name)
    by_stem = _match(truth, predictions, lambda image: image.stem)
    named = by_stem if None in by_name else by_name
    if None not in named and named != by_id:
        met = sum(one is other for one, other in zip(by_id, named))
        _say(
            f"{pred_json}: {len(truth) - met} of {len(truth)} image ids differ from {gt_json}; all"
            " are paired by file name"
        )
        return named
    best = min((by_id, by_name, by_stem), key=lambda found: found.count(None))
    if None in best:
        missing = truth[best.index(None)]
        raise InputError(
            f"{pred_json}: annotations: no prediction for {best.count(None)} of {len(truth)}"
            f" images, the first is {missing.image_id}; predict every image of {gt_json}"
        )
    return by_id


def _match(
    truth: Sequence[_Image], predictions: Sequence[_Image], key: Callable[[_Image], str | None]
) -> list[_Image | None]:
    """Returns the only prediction with the key of each image; None where that is not unique."""
    number = collections.Counter(map(key, (*truth, *predictions)))
    found = {key(prediction): prediction for prediction in predictions if key(prediction)}
    # One image and one prediction have the key.
    return [found.get(key(image)) if number[key(image)] == 2 else None for image in truth]


class _Label(NamedTuple):
    where: str  # for messages
    segments: Sequence[LabelSegment]
    segment_map: np.ndarray  # int32 [height, width], 0 void, k the k-th segment
    different: int  # segments whose "area" is not the number of their pixels


def _read_label(image: _Image, folder: str, known: set[int]) -> _Label:
    """Reads the segments of an image, whose categories must be `known` ids, and its PNG."""
    path = os.path.join(folder, image.annotation["file_name"])
    segments = read_segments(image.annotation, range(1 << 31), image.where)
    unknown = [s.category_id for s in segments if s.category_id not in known]
    if unknown:
        raise InputError(
            f'{image.where}: "category_id" {unknown[0]} is not in "categories" of the ground truth;'
            " both need the same classes"
        )
    try:
        ids = decode_ids(read_bytes(path), path)
        # Without the areas, for another area is no mistake here.
        segment_map, pixels = number_segments(ids, [s._replace(area=None) for s in segments])
    except InputError as error:
        raise InputError(f"{image.where}: {error}") from error
    empty = [segment.id for segment, count in zip(segments, pixels) if not count]
    if empty:
        raise InputError(
            f"{image.where}: {path} has no pixel of segment id {empty[0]}; correct one of them"
        )
    for side, length in zip(("height", "width"), ids.shape):
        if image.entry.get(side) not in (None, length):
            raise InputError(
                f'{image.where}: {path} has {_size(ids)} pixels but "{side}" in "images" is'
                f" {image.entry[side]!r:.40}; correct one of them"
            )
    different = sum(s.area not in (None, count) for s, count in zip(segments, pixels.tolist()))
    return _Label(image.where, segments, segment_map, different)


def _score(
    categories: Sequence[Category], truth: _Label, prediction: _Label
) -> tuple[dict, list[list[int]]]:
    """Scores one image.

    Returns:
        The counts of `match_segments`, and for each label [segments, those with another area].
    """
    if truth.segment_map.shape != prediction.segment_map.shape:
        raise InputError(
            f"{prediction.where}: the PNG has {_size(prediction.segment_map)} pixels but the ground"
            f" truth {_size(truth.segment_map)}; predict the image at its own size"
        )
    class_of = {category.id: index for index, category in enumerate(categories)}
    classes = [
        np.array([class_of[segment.category_id] for segment in label.segments], int)
        for label in (truth, prediction)
    ]
    _, counts = match_segments(
        categories,
        truth.segment_map.shape,
        coco_annotations(truth.segment_map, classes[0], [s.is_crowd for s in truth.segments]),
        coco_annotations(prediction.segment_map, classes[1]),
    )
    return counts, [[len(label.segments), label.different] for label in (truth, prediction)]


def _size(array):
    return f"{array.shape[1]} x {array.shape[0]}"
