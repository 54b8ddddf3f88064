"""Reads COCO panoptic 2017.

kmax_tf/commands/prepare/coco.py shows the files.
"""

import os

from data_prep import coco_format, convert
from kmax_tf.data import datasets


def read(folder: str, split: str) -> tuple[list[convert.Item], datasets.Dataset]:
    """Lists the images of a split; InputError if the JSON is wrong or has other classes."""
    dataset = datasets.load("coco")
    images = os.path.join(folder, f"{split}2017")
    if split == "test":
        return convert.list_unlabelled(images, "*.jpg", lambda stem: stem.lstrip("0")), dataset
    labels = os.path.join(folder, "annotations", f"panoptic_{split}2017")
    panoptic = coco_format.read_labels(f"{labels}.json", dataset)
    items = coco_format.from_annotations(panoptic.annotations, f"{labels}.json", images, labels)
    return items, dataset
