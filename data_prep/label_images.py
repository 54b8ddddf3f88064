"""Converts images with label images, whose pixels are numbers of objects, to TFRecord.

    own/images/NAME.png    an image
    own/labels/NAME.png    or NAME_label.tif ...: gray, 0 no object, 1 to n the objects

kmax prepare label_images --images own/images --labels own/labels --out data/own --thing cell

PNG of 8 or 16 bits, or TIFF of 8, 16 or 32. In a PNG with a palette, 255 is void, as VOC and
labelme write it. All objects are of one class. The validation is a random share of the images, or
--val_images and --val_labels.

OUT gets the labels in COCO panoptic format, validation/ and records/; data_prep/own_dataset.py
lists them.
"""

import collections
from typing import Any

import numpy as np

from data_prep import drawing, label_pairs, own_dataset, raw_dataset

THING = 1  # id of the category of all objects
VOID = 255  # in a palette


def read(flags: Any) -> raw_dataset.RawDataset:
    """Lists the images and label images in the folders of the flags."""
    entries = [{"id": THING, "name": flags.thing, "isthing": 1}]
    categories, background = drawing.with_background(entries, flags.background, "--thing")
    notes = collections.Counter()
    listings, remarks = label_pairs.read(flags, notes)
    return raw_dataset.RawDataset(listings, categories, background, draw, notes, remarks)


def draw(source: raw_dataset.Source, size: tuple[int, int]) -> drawing.Drawing:
    """Numbers the objects of a label image; its size may differ from `size`."""
    values = label_pairs.read_values(source.labels)
    void = values == VOID
    if void.any():
        void &= label_pairs.has_palette(source.labels)
    found = np.union1d(values[~void], 0)  # sorted, 0 first
    segment_map = np.where(void, -1, np.searchsorted(found, values)).astype(np.int32)
    segments = [drawing.Segment(THING)] * (len(found) - 1)
    notes = collections.Counter({"pixels of value 255 of a palette: void": int(void.sum())})
    notes["images without an object"] = int(not segments)
    return drawing.Drawing(segment_map, segments, notes)


def main(argv: list[str] | None = None) -> None:
    made = own_dataset.parser(__doc__)
    inputs = label_pairs.add_flags(made)
    made.add_argument("--thing", default="object", help="name of the class of the objects")
    own_dataset.main(made, argv, inputs, read)


if __name__ == "__main__":
    main()
