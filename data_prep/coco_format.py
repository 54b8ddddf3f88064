"""Reads any dataset in the COCO panoptic format.

kmax_tf/commands/prepare/coco_format.py shows the files.
"""

import itertools
import os
from collections.abc import Sequence

import tensorflow as tf

from data_prep import convert
from kmax_tf import errors
from kmax_tf.data import coco_panoptic, datasets


def read(
    images: Sequence[str],
    panoptic_json: Sequence[str],
    panoptic_dir: Sequence[str],
    name: str | None = None,
) -> tuple[list[convert.Item], datasets.Dataset]:
    """Lists the images of one split.

    Args:
        images: folders of images, one for each JSON file or one for all.
        panoptic_json: annotation files.
        panoptic_dir: folders of id PNGs, one for each JSON file or one for all.
        name: name of the dataset; the default is that of the first JSON file.

    Raises:
        InputError: a JSON file is wrong, they have different categories or an image in common.
    """
    for flag, folders in (("--images", images), ("--panoptic_dir", panoptic_dir)):
        if len(folders) not in (1, len(panoptic_json)):
            raise errors.InputError(
                f"{flag}: {len(folders)} folders for {len(panoptic_json)} JSON files; give one for"
                " each or one for all"
            )
    items, categories = {}, None
    pairs = zip(itertools.cycle(images), itertools.cycle(panoptic_dir), strict=True)
    for path, pair in zip(panoptic_json, pairs, strict=False):
        panoptic = read_labels(path)
        categories = categories or panoptic.categories
        if not datasets.same_classes(categories, panoptic.categories):
            raise errors.InputError(
                f'{path}: "categories" differ from those of {panoptic_json[0]}; make them equal'
            )
        for item in from_annotations(panoptic.annotations, path, *pair):
            if item.annotation.image_id in items:
                raise errors.InputError(
                    f'{path}: "image_id" {item.annotation.image_id} is also in another JSON file of'
                    " this split; keep one annotation, or number the images anew if they differ"
                )
            items[item.annotation.image_id] = item
    stem = os.path.splitext(os.path.basename(panoptic_json[0]))[0]
    if not items:
        raise errors.InputError(f'{path}: "annotations" is empty; add annotations to convert')
    return list(items.values()), datasets.Dataset(name or stem, categories)


def read_labels(
    path: str, dataset: datasets.Dataset | None = None
) -> coco_panoptic.PanopticDataset:
    """Reads a JSON file as `read_panoptic` does, and prints how many images are left out."""
    panoptic = coco_panoptic.read_panoptic(path, dataset)
    if count := len(panoptic.unlabelled):
        print(f"{path}: {count} images without an annotation: left out")
    return panoptic


def from_annotations(
    annotations: Sequence[coco_panoptic.Annotation], source: str, images: str, panoptic_dir: str
) -> list[convert.Item]:
    """Returns the items of the annotations of one JSON file, `source`, and its two folders.

    Raises:
        InputError: a folder does not exist.
    """
    for folder in (images, panoptic_dir):
        if not tf.io.gfile.isdir(folder):
            raise errors.InputError(
                f"{folder}: no such folder; give the folder of the files in {source}"
            )
    return [
        convert.Item(
            os.path.join(images, annotation.image_name),
            os.path.join(panoptic_dir, annotation.png_name),
            source,
            annotation,
        )
        for annotation in annotations
    ]
