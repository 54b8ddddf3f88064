"""The segments of one image, drawn from masks or label values."""

import collections
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from kmax_tf import errors
from kmax_tf.data import datasets

VOID = "void"  # as the name of the background: pixels of nothing stay void


class Segment(NamedTuple):
    """What is known of a segment."""

    category_id: int
    is_crowd: bool = False


class Drawing(NamedTuple):
    """The labels of one image."""

    segment_map: np.ndarray  # int32 [height, width], -1 void, 0 nothing, k the k-th segment
    segments: list[Segment]
    notes: collections.Counter[str]  # what was left out or changed, and how often


class Mask(NamedTuple):
    """The pixels of one object, cropped to its bounding box."""

    box: tuple[slice, slice]  # rows and columns of the image
    inside: np.ndarray  # bool, of the size of the box
    segment: Segment


def crop(mask: np.ndarray, segment: Segment) -> Mask:
    """Crops the mask of an object, bool [height, width], to its bounding box."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not rows.size:
        return Mask((slice(0), slice(0)), np.zeros((0, 0), bool), segment)
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return Mask(box, mask[box].copy(), segment)


def paint(size: tuple[int, int], masks: Iterable[Mask]) -> Drawing:
    """Paints masks over each other: crowd first, then from the largest object to the smallest.

    Args:
        size: (height, width) of the image.
        masks: those of its objects. Empty ones, and those that others hide, are left out.
    """
    segment_map, covered = np.zeros(size, np.int32), 0
    order = sorted(masks, key=lambda m: (not m.segment.is_crowd, -np.count_nonzero(m.inside)))
    for number, mask in enumerate(order, start=1):
        below = segment_map[mask.box]
        covered += int(np.count_nonzero(below[mask.inside]))
        below[mask.inside] = number
    seen = np.bincount(segment_map.ravel(), minlength=len(order) + 1) > 0
    seen[0] = False
    empty = sum(mask.inside.size == 0 for mask in order)
    notes = {
        "pixels covered by smaller objects; crowd lies below all": covered,
        "objects without a pixel: left out": empty,
        "objects hidden by smaller ones: left out": len(order) - empty - int(seen.sum()),
        "objects marked as crowd: void in training": sum(m.segment.is_crowd for m in order),
    }
    renumbered = np.where(seen, np.cumsum(seen), 0).astype(np.int32)
    segments = [mask.segment for mask, is_seen in zip(order, seen[1:], strict=True) if is_seen]
    return Drawing(renumbered[segment_map], segments, collections.Counter(notes))


def fill(drawing: Drawing, background: int | None) -> Drawing:
    """Makes the pixels of nothing one segment of the category `background`, unless it is None.

    Void pixels become 0.
    """
    nothing = drawing.segment_map == 0
    drawing = drawing._replace(segment_map=np.maximum(drawing.segment_map, 0))
    if background is None or not nothing.any():
        return drawing
    segments = [*drawing.segments, Segment(background)]
    return drawing._replace(
        segment_map=np.where(nothing, np.int32(len(segments)), drawing.segment_map),
        segments=segments,
    )


def with_background(
    entries: list[dict], name: str, source: str
) -> tuple[tuple[datasets.Category, ...], int | None]:
    """Adds the class of the background to others.

    Args:
        entries: "categories" of a JSON file.
        name: name of the new class; VOID adds none.
        source: the file or flag of the categories, for messages.

    Returns:
        All categories in class order, and the id of the new one or None.

    Raises:
        InputError: a category is wrong, or has that name already.
    """
    known = datasets.parse_categories({"categories": entries}, source)
    if name == VOID:
        return known, None
    if name in [category.name for category in known]:
        raise errors.InputError(
            f'{source}: has a class "{name}" already; give the class of the other pixels a name'
            f" with --background NAME, or leave them void with --background {VOID}"
        )
    identity = max(category.id for category in known) + 1
    entry = {"id": identity, "name": name, "isthing": 0}
    return datasets.parse_categories({"categories": [*entries, entry]}, source), identity
