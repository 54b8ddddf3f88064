"""Reads ADE20K (150 classes: 100 things, 50 stuff).

kmax_tf/commands/prepare/ade20k.py shows the files.
"""

import os

from data_prep import coco_format, convert
from kmax_tf.data import datasets

FOLDERS = {"train": "training", "val": "validation"}


def read(folder: str, split: str, semantic: bool) -> tuple[list[convert.Item], datasets.Dataset]:
    """Lists the images of a split; InputError if the JSON is wrong or has other classes."""
    dataset = datasets.load("ade20k")
    images = os.path.join(folder, "images", FOLDERS[split])
    if semantic:
        labels = os.path.join(folder, "annotations", FOLDERS[split])
        items = convert.list_unlabelled(images, "*.jpg", lambda stem: stem)
        annotations = [
            item.annotation._replace(png_name=f"{item.annotation.image_id}.png", segments=None)
            for item in items
        ]
        items = coco_format.from_annotations(annotations, images, images, labels)
        return [item._replace(num_classes=dataset.num_classes) for item in items], dataset
    labels = os.path.join(folder, f"ade20k_panoptic_{split}")
    panoptic = coco_format.read_labels(f"{labels}.json", dataset)
    # The script counts the area of stuff before it puts things over it, so areas are wrong.
    annotations = [
        annotation._replace(segments=tuple(s._replace(area=None) for s in annotation.segments))
        for annotation in panoptic.annotations
    ]
    return coco_format.from_annotations(annotations, f"{labels}.json", images, labels), dataset
