"""The masks of COCO's instance format: polygons and run lengths (RLE)."""

import collections
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from data_prep import drawing, raw_dataset, raw_images
from kmax_tf import errors, files

CORNERS = 3  # of the smallest polygon


class Object(NamedTuple):
    """One entry of "annotations"."""

    where: str  # file and place, for messages
    segment: drawing.Segment
    segmentation: Any  # as in the JSON


class Objects(NamedTuple):
    """The objects of an image."""

    size: tuple[int, int] | None  # (height, width) as the JSON gives it
    objects: list[Object]


def draw(source: raw_dataset.Source, facts: raw_images.Facts) -> drawing.Drawing:
    """Draws the objects of an image.

    Raises InputError if the JSON gives it another size, or if a mask is wrong.
    """
    size, given = facts.size[::-1], source.labels.size
    if given not in (None, size):
        problem = (
            f"{source.file_name}: the upright image is {size[1]} x {size[0]}, but {given[1]} x"
            f" {given[0]} in the JSON"
        )
        if given != facts.stored_size[::-1]:
            raise errors.InputError(f"{problem}; export its annotations again")
        raise errors.InputError(
            f"{problem}, its size before the EXIF turn; if the masks fit the upright image, delete"
            ' "width" and "height" from the JSON, else save the image upright and label it again'
        )
    notes, masks = collections.Counter(), []
    for where, segment, segmentation in source.labels.objects:
        if isinstance(segmentation, dict):
            mask = decode_rle(segmentation, size, where)
        else:
            mask = fill_polygons(segmentation, size, where, notes)
        masks.append(drawing.crop(mask, segment))
    drawn = drawing.paint(size, masks)
    return drawn._replace(notes=drawn.notes + notes)


def fill_polygons(
    polygons: Any, size: tuple[int, int], where: str, notes: collections.Counter
) -> np.ndarray:
    """Fills polygons, whose union is one object.

    Args:
        polygons: lists [x, y, x, y, ...] in pixels.
        size: (height, width) of the image.
        where: file and place, for messages.
        notes: counts the polygons that are left out.

    Returns:
        bool [height, width].

    Raises:
        InputError: they are no such lists, or leave the image by more than its size.
    """
    height, width = size
    if not isinstance(polygons, list) or not all(map(_is_polygon, polygons)):
        raise errors.InputError(
            f'{where}: "segmentation" is {polygons!r:.60}; make it a list of polygons'
            " [x, y, x, y, ...], or RLE"
        )
    areas = [polygon for polygon in polygons if len(polygon) >= 2 * CORNERS]
    notes["polygons of fewer than 3 corners: left out"] += len(polygons) - len(areas)
    for polygon in areas:
        for axis, side in zip("xy", (width, height)):
            for value in polygon[axis == "y" :: 2]:
                if not -side <= value <= 2 * side:  # also NaN
                    raise errors.InputError(
                        f'{where}: "segmentation" has {axis} {value} in an image of {width} x'
                        f" {height} pixels; correct it"
                    )
    if not areas:
        return np.zeros(size, bool)
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(areas, *size))).astype(bool)


def _is_polygon(value: Any) -> bool:
    numbers = isinstance(value, list) and all(type(v) in (int, float) for v in value)
    return numbers and len(value) % 2 == 0


def decode_rle(rle: dict, size: tuple[int, int], where: str) -> np.ndarray:
    """Decodes run lengths, which may leave holes.

    pycocotools reads beyond runs that do not fill the image, so this does not use it.

    Args:
        rle: "size" and "counts", a list of numbers or the text that pycocotools makes of it. The
            runs, of pixels outside and inside in turn, go down the columns.
        size: (height, width) of the image.
        where: file and place, for messages.

    Returns:
        bool [height, width].

    Raises:
        InputError: the RLE has another size than the image, or its runs do not fill it.
    """
    given = files.field(rle, "size", list, f"{where}: segmentation")
    counts = files.field(rle, "counts", (list, str), f"{where}: segmentation")
    if given != list(size):
        raise errors.InputError(
            f'{where}: "segmentation" has size {given!r:.40} but its image {list(size)} (height,'
            " width); correct one of them"
        )
    runs = _read_text(counts) if isinstance(counts, str) else counts
    is_whole = all(type(run) is int and run >= 0 for run in runs)
    if not is_whole or sum(runs) != size[0] * size[1]:
        raise errors.InputError(
            f'{where}: "counts" of the segmentation is no RLE of {size[0] * size[1]} pixels;'
            " export it again"
        )
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(size[::-1]).T


def _read_text(text: str) -> Sequence[int]:
    """Reads the run lengths in a text: five bits a sign, low first, as differences from run 3 on.

    Source: rleFrString of pycocotools (common/maskApi.c).
    """
    runs, value, shift = [], 0, 0
    for sign in text:
        code = ord(sign) - 48
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:  # the last sign of this number
            value -= (code & 16) << (shift - 4)  # its top bit is the minus
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    return runs
