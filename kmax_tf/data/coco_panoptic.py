"""The COCO panoptic format: a PNG of segment ids for each image, one JSON for all of them."""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from kmax_tf import files
from kmax_tf.data import datasets


class Segment(NamedTuple):
    """One entry of segments_info. area is in pixels, None where the file does not give it."""

    id: int
    category_id: int
    is_crowd: bool
    area: int | None


class Annotation(NamedTuple):
    """One annotated image: id as text, file names as in the JSON, segments in file order."""

    image_id: str
    image_name: str
    png_name: str
    segments: tuple[Segment, ...]


class Panoptic(NamedTuple):
    """A whole panoptic JSON: categories in class order, annotations in file order."""

    categories: tuple[datasets.Category, ...]
    annotations: tuple[Annotation, ...]


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
        rgba = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))
    except Exception as error:  # Pillow raises many kinds for a broken file
        raise files.InputError(
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


def read_panoptic(path: str) -> Panoptic:
    """Reads and checks a panoptic JSON.

    Images that no annotation names are left out. area may be null or missing, iscrowd missing.

    Raises:
        InputError: a field is missing or of the wrong type, an id is there twice, a category or
            an image is unknown, or a segment has the id of void, 0.
    """
    content = files.read_json(path)
    categories = datasets.parse_categories(content, path)
    known = {category.id for category in categories}
    names = {}
    for index, image in enumerate(files.field(content, "images", list, path)):
        where = f"{path}: images[{index}]"
        identity = str(files.field(image, "id", (int, str), where))
        if identity in names:
            raise files.InputError(f'{where}: "id" {identity} is there twice; make ids unique')
        names[identity] = files.field(image, "file_name", str, where)
    annotations = {}
    for index, entry in enumerate(files.field(content, "annotations", list, path)):
        where = f"{path}: annotations[{index}]"
        identity = str(files.field(entry, "image_id", (int, str), where))
        if identity not in names:
            raise files.InputError(
                f'{where}: "image_id" {identity} is not in "images"; add the image or drop this'
            )
        if identity in annotations:
            raise files.InputError(
                f'{where}: "image_id" {identity} is annotated twice; keep one annotation an image'
            )
        png_name = files.field(entry, "file_name", str, where)
        segments = _read_segments(files.field(entry, "segments_info", list, where), known, where)
        annotations[identity] = Annotation(identity, names[identity], png_name, segments)
    return Panoptic(categories, tuple(annotations.values()))


def _read_segments(entries: list, known: set[int], where: str) -> tuple[Segment, ...]:
    """Returns the segments of one annotation; InputError as in read_panoptic."""
    segments = {}
    for index, entry in enumerate(entries):
        place = f"{where}: segments_info[{index}]"
        identity = files.field(entry, "id", int, place)
        if identity in segments or identity == 0:
            problem = "is there twice" if identity else "means void"
            raise files.InputError(f'{place}: "id" {identity} {problem}; give it one of its own')
        category = files.field(entry, "category_id", int, place)
        if category not in known:
            raise files.InputError(
                f'{place}: "category_id" {category} is not in "categories"; add it there'
            )
        area = entry.get("area")
        if area is not None:
            files.field(entry, "area", (int, float), place)
        segments[identity] = Segment(identity, category, bool(entry.get("iscrowd")), area)
    return tuple(segments.values())
