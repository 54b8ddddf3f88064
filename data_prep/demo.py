"""Draws *panoptic digits*; kmax_tf/commands/prepare/demo.py says what the images show."""

import io
import json
import os

import numpy as np
import sklearn.datasets
import tensorflow as tf
from PIL import Image

from data_prep import coco_format, convert, digit_scenes, pool
from kmax_tf import errors, files
from kmax_tf.data import datasets, label_png

SPLITS = ("train", "val", "holdout")
DRAWN = "drawn.json"  # the options on which the digits of all splits depend
IMAGES_A_JOB = 100


def make(
    out: str,
    num_train: int = 6000,
    num_val: int = 200,
    num_holdout: int = 0,
    level: str = "cards",
    seed: int = 0,
    workers: int | None = None,
) -> None:
    """Writes out/{split}/*.jpg, out/panoptic_{split}/*.png and, last, out/panoptic_{split}.json.

    An image depends only on seed, split and its number, not on the number of workers.

    Args:
        out: folder to write into.
        num_train, num_val, num_holdout: images of each split. A split of 0 is not written. The
            digits of holdout are training digits, which train then does not use.
        level: "cards" or "strokes".
        seed: any integer from 0.
        workers: number of processes; the default is one per core.

    Raises:
        InputError: a number is negative, all are 0, the level is unknown, or `out` has a split that
            is not drawn now and was drawn otherwise.
    """
    counts = dict(zip(SPLITS, (num_train, num_val, num_holdout), strict=True))
    for number in (seed, *counts.values()):
        if number < 0:
            raise errors.InputError(f"{number}: numbers of images and the seed must be 0 or more")
    if not any(counts.values()):
        raise errors.InputError("num_train, num_val and num_holdout are all 0; raise one of them")
    if level not in digit_scenes.LEVELS:
        raise errors.InputError(f'level "{level}": choose one of {", ".join(digit_scenes.LEVELS)}')
    drawn = {"level": level, "seed": seed, "holdout": num_holdout > 0}
    _check_other_splits(out, [split for split in SPLITS if not counts[split]], drawn)
    files.write_atomic(os.path.join(out, DRAWN), json.dumps(drawn))
    for split, count in counts.items():
        for folder in (split, f"panoptic_{split}") if count else ():
            files.make_folder(os.path.join(out, folder))
        if count and tf.io.gfile.exists(path := os.path.join(out, f"panoptic_{split}.json")):
            tf.io.gfile.remove(path)  # an interruption leaves no JSON of other images
    jobs = [
        (out, split, range(start, min(start + IMAGES_A_JOB, count)), level, seed, num_holdout)
        for split, count in counts.items()
        for start in range(0, count, IMAGES_A_JOB)
    ]
    segments = {split: [] for split in counts}
    drawn = pool.run(make_images, jobs, workers, "drawing images")
    for (_, split, *_), entries in zip(jobs, drawn, strict=True):
        segments[split] += entries
    for split, entries in segments.items():
        if entries:
            path = os.path.join(out, f"panoptic_{split}.json")
            files.write_atomic(path, json.dumps(_coco_json(entries)))


def _check_other_splits(out, others, drawn):
    """Raises InputError if other splits of a folder were drawn otherwise, and may share digits."""
    path = os.path.join(out, DRAWN)
    if tf.io.gfile.exists(path) and files.read_json(path) == drawn:
        return
    for split in others:
        if tf.io.gfile.exists(os.path.join(out, f"panoptic_{split}.json")):
            raise errors.InputError(
                f"{out}: the split {split} was drawn with another level, seed or holdout and may"
                " share digits; draw it again too, or choose another --out"
            )


def convert_splits(out: str, workers: int | None = None) -> None:
    """Converts the splits that `make` wrote into a folder to records in `out`/records."""
    items = {}
    for split in SPLITS:
        images, labels = os.path.join(out, split), os.path.join(out, f"panoptic_{split}")
        if tf.io.gfile.exists(f"{labels}.json"):
            items[split], _ = coco_format.read([images], [f"{labels}.json"], [labels])
    dataset = datasets.load("panoptic_digits")
    convert.convert_together(items, dataset, os.path.join(out, "records"), workers)


def make_images(
    out: str, split: str, indices: range, level: str, seed: int, num_holdout: int
) -> list[list[dict]]:
    """Writes the images and id PNGs of `indices`; returns the segments_info of each."""
    digits = split_digits(seed, holdout=num_holdout > 0)[split]
    segments = []
    for index in indices:
        rng = np.random.default_rng([seed, SPLITS.index(split), index])
        scene = digit_scenes.compose(rng, digits, level)
        jpeg = io.BytesIO()
        Image.fromarray(scene.image).save(jpeg, "JPEG", quality=95, subsampling=0)
        files.write_atomic(os.path.join(out, split, f"{index + 1:06d}.jpg"), jpeg.getvalue())
        files.write_atomic(
            os.path.join(out, f"panoptic_{split}", f"{index + 1:06d}.png"),
            label_png.encode_ids(scene.ids),
        )
        segments.append(scene.segments)
    return segments


def split_digits(seed: int, holdout: bool) -> dict[str, digit_scenes.Digits]:
    """Divides the digits: 20 % val; of the rest 10 % holdout, if wanted; the others train."""
    source = sklearn.datasets.load_digits()
    ink = np.round(source.images * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(seed).permutation(len(ink))
    num_val = len(ink) // 5
    num_holdout = (len(ink) - num_val) // 10 if holdout else 0
    parts = np.split(order, [num_val, num_val + num_holdout])
    return {
        split: digit_scenes.Digits(ink[part], source.target[part])
        for split, part in zip(("val", "holdout", "train"), parts, strict=True)
    }


def _coco_json(segments: list[list[dict]]) -> dict:
    """Returns the panoptic JSON of one split from the segments_info of its images."""
    categories = [
        {**category._asdict(), "isthing": int(category.isthing)}
        for category in digit_scenes.load_categories()
    ]
    return {
        "info": {"description": "panoptic digits"},
        "images": [
            {
                "id": k,
                "file_name": f"{k:06d}.jpg",
                "height": digit_scenes.SIZE,
                "width": digit_scenes.SIZE,
            }
            for k in range(1, len(segments) + 1)
        ],
        "annotations": [
            {"image_id": k, "file_name": f"{k:06d}.png", "segments_info": entries}
            for k, entries in enumerate(segments, 1)
        ],
        "categories": categories,
    }
