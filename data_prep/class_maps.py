"""Reads images with class maps, whose pixels are numbers of classes.

kmax_tf/commands/prepare/class_maps.py shows the files.
"""

import collections
import functools
from typing import Any

import numpy as np
import scipy.ndimage

from data_prep import class_table, drawing, label_pairs, pool, raw_dataset, raw_images
from kmax_tf import errors
from kmax_tf.data import datasets

IGNORE = 255  # the usual value of void
SHOWN = 8  # unknown values in a message


def read(flags: Any) -> raw_dataset.RawDataset:
    """Lists the images and class maps in the folders of the flags, and their classes."""
    entries = class_table.read(flags.classes) if flags.classes else []
    listed = {entry["id"] for entry in entries}
    if both := listed & set(flags.void):
        raise errors.InputError(f"--void {min(both)}: is a class of {flags.classes}; choose one")
    notes = collections.Counter()
    listings, remarks = label_pairs.read(flags, notes)
    pixels = _count(listings, flags.workers)
    void = {*flags.void, IGNORE} - listed
    for value in sorted(void & pixels.keys()):
        notes[f"pixels of value {value}: void"] += pixels[value]
    others = sorted(pixels.keys() - void - listed)
    if flags.classes and others:
        found = ", ".join(f"{value} ({pixels[value]} pixels)" for value in others[:SHOWN])
        raise errors.InputError(
            f"{flags.classes}: lacks values of the labels: {found}; add them, or make them void"
            f" with --void {' '.join(map(str, sorted({*flags.void, *others})))}"
        )
    if not entries and not others:
        raise errors.InputError(f"{flags.labels}: all pixels are void; check --void")
    if not entries:
        entries = [{"id": value, "name": f"class {value}", "isthing": 0} for value in others]
        remarks.append("names are guessed, all are stuff: give --classes TABLE.csv, such as")
        remarks.append(f"    value,name,isthing,color\n    {others[0]},road,0,#804080")
    categories = datasets.parse_categories({"categories": entries}, flags.classes or flags.labels)
    remarks += [
        f"{category.name}: each part whose pixels touch at a side is a segment"
        for category in categories
        if category.isthing
    ]
    drawn = functools.partial(draw, {category.id: category.isthing for category in categories})
    return raw_dataset.RawDataset(listings, categories, None, drawn, notes, remarks)


def _count(listings: list[raw_dataset.Listing], workers: int | None) -> collections.Counter[int]:
    """Counts the pixels of each value in all class maps."""
    paths = [source.labels for listing in listings for source in listing.sources]
    jobs = [(part,) for part in raw_dataset.jobs(paths)]
    counted = pool.run(label_pairs.count_values, jobs, workers, "counting classes")
    return sum(counted, collections.Counter())


def draw(
    isthing: dict[int, bool], source: raw_dataset.Source, facts: raw_images.Facts
) -> drawing.Drawing:
    """Draws the classes of a class map, whose size may differ from that of `facts`.

    Args:
        isthing: value of each class -> whether its parts are segments of their own.
        source: the image.
        facts: of its file.
    """
    values = label_pairs.read_values(source.labels)
    segment_map, segments = np.zeros(values.shape, np.int32), []
    for value in np.unique(values).tolist():
        if value in isthing:
            mask = values == value
            parts, count = scipy.ndimage.label(mask) if isthing[value] else (mask, 1)
            segment_map[mask] = parts[mask] + len(segments)
            segments += [drawing.Segment(value)] * count
    return drawing.Drawing(segment_map, segments, collections.Counter())
