"""Writes records of the schema in example.py."""

import io
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image

from kmax_tf import errors
from kmax_tf.data import label_png, orientation, pillow

MOST_SEGMENTS = 2**16 - 1  # of an image: their numbers are 16 bits of a PNG


def record(
    *,
    image: bytes,
    filename: str,
    image_id: str,
    segment_map: np.ndarray | None,
    segment_id: list[int],
    category_id: list[int],
    is_crowd: list[bool],
) -> bytes:
    """Serializes one image with its segments.

    Args:
        image: content of a JPEG or PNG file, which EXIF may turn.
        filename: name of that file.
        image_id: id of the image.
        segment_map: integers [height, width], upright: 0 void, k the k-th segment, 1 to s. None:
            the image has no labels, and is stored as all void.
        segment_id, category_id, is_crowd: one value for each of the s segments.

    Returns:
        A serialized tf.train.Example.

    Raises:
        InputError: the image is corrupt, neither JPEG nor PNG of 8 bits, or not of the size of
            segment_map; or it has more than MOST_SEGMENTS segments.
    """
    if len(segment_id) > MOST_SEGMENTS:
        raise errors.InputError(
            f"{filename}: has {len(segment_id):,} segments, over {MOST_SEGMENTS:,}; cut the image,"
            " or join small segments"
        )
    stored = check_image(image, filename)
    if segment_map is None:
        segment_map = np.zeros(stored.size[::-1], np.uint8)
    height, width = segment_map.shape
    check_label_size(image, stored.size, (width, height), filename)
    segment_map = segment_map.astype(np.uint8 if len(segment_id) <= 255 else np.uint16)
    number, length = label_png.find_runs(segment_map)
    area = np.bincount(number, length, len(segment_id) + 1)[1:]
    feature = {
        "image/encoded": _bytes(image),
        "image/format": _bytes(stored.format.encode()),
        "image/filename": _bytes(filename.encode()),
        "image/id": _bytes(image_id.encode()),
        "image/height": _int64([height]),
        "image/width": _int64([width]),
        "panoptic/encoded": _bytes(label_png.encode_labels(segment_map)),
        "segment/id": _int64(segment_id),
        "segment/category_id": _int64(category_id),
        "segment/is_crowd": _int64(is_crowd),
        "segment/area": _int64(area),
    }
    if stored.orientation != orientation.UPRIGHT:
        feature["image/orientation"] = _int64([stored.orientation])
    message = tf.train.Example(features=tf.train.Features(feature=feature))
    return message.SerializeToString(deterministic=True)


class Stored(NamedTuple):
    """How a file holds an image."""

    format: str  # "jpeg" or "png"
    size: tuple[int, int]  # (width, height) in pixels of the upright image
    orientation: int  # of EXIF, see `orientation.read`


def check_image(image: bytes, filename: str) -> Stored:
    """Checks that an image file is whole, with the decoder that will read the record.

    Args:
        image: content of the file.
        filename: its name, for messages.

    Raises:
        InputError: the image is corrupt, or has another format or more than 8 bits.
    """
    with pillow.errors_as(filename, "broken or truncated image; download or save it again"):
        with Image.open(io.BytesIO(image)) as opened:
            kind, size, bits = opened.format, opened.size, pillow.bits(opened, image)
        if kind in ("JPEG", "MPO"):  # MPO is a JPEG with more pictures after it
            # Decoding to an eighth of the size is quick and still reads all the data.
            tf.io.decode_jpeg(image, channels=3, ratio=8)
        elif kind == "PNG":
            tf.io.decode_png(image, channels=3)
    if kind not in ("JPEG", "MPO", "PNG"):
        raise errors.InputError(f"{filename}: is {kind}; convert it to JPEG or PNG")
    if bits > 8:  # of which TensorFlow would keep the upper 8
        raise errors.InputError(
            f"{filename}: is a PNG of {bits} bits; scale it as you want it seen, and save it as PNG"
            " of 8 bits"
        )
    turn = orientation.read(image)
    size = size[::-1] if orientation.swaps_sides(turn) else size
    return Stored("png" if kind == "PNG" else "jpeg", size, turn)


def check_label_size(
    image: bytes, size: tuple[int, int], label_size: tuple[int, int], filename: str
) -> None:
    """Checks that a label map fits its image.

    Args:
        image: content of the image file.
        size: (width, height) of the upright image, see `Stored`.
        label_size: (width, height) of the label map.
        filename: name of the image, for messages.

    Raises:
        InputError: the sizes differ.
    """
    if size != label_size:
        is_turned = orientation.swaps_sides(orientation.read(image))
        raise errors.InputError(
            f"{filename}: the image is {size[0]} x {size[1]}"
            f"{' (upright, as its EXIF orientation shows it)' if is_turned else ''} but its label"
            f" map {label_size[0]} x {label_size[1]}; make the label map as large as the"
            f" {'upright ' if is_turned else ''}image"
        )


def _bytes(value: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def _int64(values: Iterable[int]) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=map(int, values)))
