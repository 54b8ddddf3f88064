"""The COCO panoptic format: a PNG of segment ids for each image, one JSON for all of them."""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image

from kmax_tf import errors, files
from kmax_tf.data import datasets
from kmax_tf.data.records import serialize


class LabelSegment(NamedTuple):
    """One entry of segments_info. area is in pixels, None where the file does not give it."""

    id: int
    category_id: int
    is_crowd: bool
    area: int | None


class Annotation(NamedTuple):
    """One annotated image: id as text, file names as in the JSON, segments in file order.

    segments is None where the PNG is a semantic map, which needs no list.
    """

    image_id: str
    image_name: str
    png_name: str
    segments: tuple[LabelSegment, ...] | None


class PanopticDataset(NamedTuple):
    """A whole panoptic JSON: categories in class order, annotations in file order."""

    categories: tuple[datasets.Category, ...]
    annotations: tuple[Annotation, ...]
    unlabelled: tuple[str, ...]  # names of the images that no annotation names


GREY = 0x010101  # what divides an id of which R, G and B are the same

Report = Callable[[errors.InputError], None]  # what is done with a problem


def stop(problem: errors.InputError) -> None:
    """Raises the problem: the first one is the last."""
    raise problem


def decode_ids(png: bytes, name: str) -> np.ndarray:
    """Decodes an id PNG.

    Args:
        png: content of the file; id = R + 256 G + 65536 B.
        name: the file it came from, for messages.

    Returns:
        int32 [h, w], 0 to 2**24 - 1, where 0 is void.

    Raises:
        InputError: this is no image, or a broken one.
    """
    try:
        # RGBA puts a pixel in four bytes, so that they are one integer without arithmetic.
        rgba = np.asarray(tf.io.decode_png(png, channels=4))
    except tf.errors.OpError as error:
        raise errors.InputError(
            f"{name}: not a readable PNG of segment ids; get it again"
        ) from error
    return rgba.view("<i4")[..., 0] & 0xFFFFFF


def encode_ids(ids: np.ndarray) -> bytes:
    """Encodes segment ids, any integer type [h, w], 0 to 2**24 - 1, as the PNG of the format.

    Raises:
        ValueError: an id is out of range.
    """
    if ids.min() < 0 or ids.max() >= 1 << 24:
        raise ValueError(f"segment ids must be 0 to 2**24 - 1, found {ids.min()} to {ids.max()}")
    rgb = np.ascontiguousarray(ids, "<u4").view(np.uint8).reshape(*ids.shape, 4)[..., :3]
    png = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb)).save(png, "PNG", compress_level=1)
    return png.getvalue()


def number_segments(
    ids: np.ndarray, segments: Sequence[LabelSegment], report: Report = stop
) -> tuple[np.ndarray, np.ndarray]:
    """Replaces the ids of a map by positions in the list of its segments.

    Args:
        ids: int32 [h, w], 0 for void.
        segments: s segments.
        report: gets an InputError for each id that is in no segment (its pixels become void) and
            for each segment whose area is given and is not the number of its pixels.

    Returns:
        int32 [h, w], 0 void, k the k-th segment, from 1; and int64 [s], the pixels of each segment.
    """
    run, length = serialize.runs(ids)
    known = np.array([0, *(segment.id for segment in segments)])
    order = np.argsort(known)
    place = np.searchsorted(known, run, sorter=order)
    number = order.astype(np.int32)[np.minimum(place, len(segments))]
    unknown = known[number] != run
    for identity in np.unique(run[unknown]):
        remedy = "save the PNG as RGB, not grey" if identity % GREY == 0 else "add it"
        report(errors.InputError(f"segment id {identity} is not in segments_info; {remedy}"))
    number[unknown] = 0
    pixels = np.bincount(number, length, len(known)).astype(np.int64)[1:]
    for segment, count in zip(segments, pixels.tolist(), strict=True):
        if segment.area not in (None, count):
            found = f"{count} pixels" if count else "no pixels"
            report(
                errors.InputError(
                    f'segment id {segment.id}: "area" is {segment.area} but the PNG has {found};'
                    " correct one of them"
                )
            )
    return np.repeat(number, length).reshape(ids.shape), pixels


def read_panoptic(
    path: str,
    dataset: datasets.Dataset | None = None,
    image_name: Callable[[str], str] | None = None,
    report: Report = stop,
) -> PanopticDataset:
    """Reads and checks a panoptic JSON.

    Images that no annotation names are left out. area may be null or missing, iscrowd missing.

    Args:
        path: the JSON file.
        dataset: gives the categories, where the names in the file (if any) do not matter.
        image_name: gives the file of an image id, where "images" does not.
        report: gets an InputError for each entry that is wrong: a field is missing or of the wrong
            type, an id is there twice, a category or an image is unknown, or a segment has the id
            of void, 0. If it returns, the entry is left out.

    Raises:
        InputError: this is no such JSON at all, or its categories are wrong.
    """
    content = files.read_json(path)
    categories = _read_categories(content, path, dataset)
    names = {} if image_name else _read_images(content, path, report)
    known = {category.id for category in categories}
    entries = files.field(content, "annotations", list, path)
    if entries and isinstance(entries[0], dict) and "segmentation" in entries[0]:
        raise errors.InputError(
            f"{path}: single objects (COCO's instance format); make the panoptic format of them,"
            " as docs/own_dataset.md says"
        )
    annotations = {}
    for index, entry in enumerate(entries):
        where = f"{path}: annotations[{index}]"
        with _reported(report):
            identity = str(files.field(entry, "image_id", (int, str), where))
            if not image_name and identity not in names:
                raise errors.InputError(
                    f'{where}: "image_id" {identity} is not in "images"; add the image or drop this'
                )
            if identity in annotations:
                raise errors.InputError(
                    f'{where}: "image_id" {identity} is annotated twice; keep one annotation'
                )
            annotations[identity] = Annotation(
                identity,
                image_name(identity) if image_name else names[identity],
                _file_name(entry, where),
                _read_segments(entry, known, where, report),
            )
    unlabelled = tuple(name for identity, name in names.items() if identity not in annotations)
    return PanopticDataset(categories, tuple(annotations.values()), unlabelled)


@contextlib.contextmanager
def _reported(report: Report) -> Iterator[None]:
    """Hands an InputError inside to `report`."""
    try:
        yield
    except errors.InputError as problem:
        report(problem)


def _read_categories(content, path, dataset):
    if dataset is None:
        return datasets.parse_categories(content, path)
    if "categories" in content:
        theirs = {c.id: c.isthing for c in datasets.parse_categories(content, path)}
        if theirs != {c.id: c.isthing for c in dataset.categories}:
            raise errors.InputError(
                f'{path}: the ids of "categories", or which of them are things, are not those of'
                f" {dataset.name}; use data_prep.coco_format for a dataset of your own"
            )
    return dataset.categories


def _read_images(content: Any, path: str, report: Report) -> dict[str, str]:
    """Returns the file name of each image id."""
    names = {}
    for index, image in enumerate(files.field(content, "images", list, path)):
        where = f"{path}: images[{index}]"
        with _reported(report):
            identity = str(files.field(image, "id", (int, str), where))
            if identity in names:
                raise errors.InputError(f'{where}: "id" {identity} is there twice; make ids unique')
            names[identity] = _file_name(image, where)
    return names


def _file_name(entry: Any, where: str) -> str:
    """Returns "file_name" of an entry; a folder may be part of it."""
    name = files.field(entry, "file_name", str, where)
    if not name or not name.isprintable():
        raise errors.InputError(
            f'{where}: "file_name" is {name!a:.40}, which names no file; fix it'
        )
    return name


def _read_segments(
    entry: Any, known: set[int], where: str, report: Report
) -> tuple[LabelSegment, ...]:
    """Returns the segments of one annotation."""
    segments = {}
    for index, segment in enumerate(files.field(entry, "segments_info", list, where)):
        place = f"{where}: segments_info[{index}]"
        with _reported(report):
            identity = files.field(segment, "id", int, place)
            if identity in segments or identity == 0:
                problem = "is there twice" if identity else "means void"
                raise errors.InputError(
                    f'{place}: "id" {identity} {problem}; give it one of its own'
                )
            if not 0 < identity < 1 << 24:
                raise errors.InputError(f'{place}: "id" {identity} is not 1 to 2^24 - 1; change it')
            category = files.field(segment, "category_id", int, place)
            if category not in known:
                raise errors.InputError(
                    f'{place}: "category_id" {category} is not in "categories"; add it there'
                )
            area = segment.get("area")
            if area is not None:
                files.field(segment, "area", (int, float), place)
            segments[identity] = LabelSegment(
                identity, category, bool(segment.get("iscrowd")), area
            )
    return tuple(segments.values())
