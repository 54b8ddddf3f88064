"""Reads Cityscapes (19 training classes).

kmax_tf/commands/prepare/cityscapes.py shows the files.
"""

import os

from data_prep import coco_format, convert
from kmax_tf.data import coco_panoptic, datasets

SUFFIX = "_leftImg8bit"


def read(folder: str, split: str) -> tuple[list[convert.Item], datasets.Dataset]:
    """Lists the images of a split; InputError if the JSON is wrong or has other classes."""
    dataset = datasets.load("cityscapes")
    images = os.path.join(folder, "leftImg8bit", split)
    if split == "test":
        items = convert.list_unlabelled(
            images, f"*/*{SUFFIX}.png", lambda stem: stem.removesuffix(SUFFIX)
        )
        return items, dataset
    labels = os.path.join(folder, "gtFine", f"cityscapes_panoptic_{split}_trainId")
    # The names in "images" (aachen_0_0_gtFine_leftImg8bit.png) are not those of the files.
    panoptic = coco_panoptic.read_panoptic(
        f"{labels}.json", dataset, lambda image: f"{image.split('_')[0]}/{image}{SUFFIX}.png"
    )
    items = coco_format.from_annotations(panoptic.annotations, f"{labels}.json", images, labels)
    return items, dataset
