"""Reads images with label images, whose pixels are numbers of objects.

kmax_tf/commands/prepare/label_images.py shows the files.
"""

import collections
from typing import Any

import numpy as np

from data_prep import drawing, label_pairs, raw_dataset, raw_images

THING = 1  # id of the category of all objects
VOID = 255  # in a palette


def read(flags: Any) -> raw_dataset.RawDataset:
    """Lists the images and label images in the folders of the flags."""
    entries = [{"id": THING, "name": flags.thing, "isthing": 1}]
    categories, background = drawing.with_background(entries, flags.background, "--thing")
    notes = collections.Counter()
    listings, remarks = label_pairs.read(flags, notes)
    return raw_dataset.RawDataset(listings, categories, background, draw, notes, remarks)


def draw(source: raw_dataset.Source, facts: raw_images.Facts) -> drawing.Drawing:
    """Numbers the objects of a label image; its size may differ from that of `facts`."""
    values = label_pairs.read_values(source.labels)
    void = values == VOID
    if void.any():
        void &= label_pairs.has_palette(source.labels)
    found = np.union1d(values[~void], 0)  # sorted, 0 first
    segment_map = np.where(void, -1, np.searchsorted(found, values)).astype(np.int32)
    segments = [drawing.Segment(THING)] * (len(found) - 1)
    notes = collections.Counter({"pixels of value 255 of a palette: void": int(void.sum())})
    notes["images without an object"] = int(not segments)
    notes["labels of 0 and 255 alone: one object each"] = int(np.array_equal(found, (0, 255)))
    return drawing.Drawing(segment_map, segments, notes)
