"""Makes records of the schema that example.py describes."""

import io
import struct
import zlib
from collections.abc import Iterable

import numpy as np
import tensorflow as tf
from PIL import Image

from kmax_tf import errors


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
    """Makes a record.

    Args:
        image: content of a JPEG or PNG file. EXIF orientation is ignored, here and by parse.
        filename: name of that file.
        image_id: id of the image.
        segment_map: any integer type [h, w], 0 void, k the k-th segment, 1 to s. None for an image
            without labels, which is an image that is all void.
        segment_id, category_id, is_crowd: one value for each of the s segments.

    Returns:
        A serialized tf.train.Example.

    Raises:
        InputError: the image is broken, no JPEG or PNG, or not of the size of segment_map.
    """
    image_format, size = check_image(image, filename)
    if segment_map is None:
        segment_map = np.zeros(size[::-1], np.uint8)
    height, width = segment_map.shape
    if size != (width, height):
        raise errors.InputError(
            f"{filename}: the image is {size[0]} x {size[1]} but its label map {width} x {height};"
            " give a label map of the stored (unrotated) image size"
        )
    segment_map = segment_map.astype(np.uint8 if len(segment_id) <= 255 else np.uint16)
    number, length = runs(segment_map)
    area = np.bincount(number, length, len(segment_id) + 1)[1:]
    feature = {
        "image/encoded": _bytes(image),
        "image/format": _bytes(image_format.encode()),
        "image/filename": _bytes(filename.encode()),
        "image/id": _bytes(image_id.encode()),
        "image/height": _int64([height]),
        "image/width": _int64([width]),
        "panoptic/encoded": _bytes(encode_labels(segment_map)),
        "segment/id": _int64(segment_id),
        "segment/category_id": _int64(category_id),
        "segment/is_crowd": _int64(is_crowd),
        "segment/area": _int64(area),
    }
    made = tf.train.Example(features=tf.train.Features(feature=feature))
    return made.SerializeToString(deterministic=True)


def check_image(image: bytes, filename: str) -> tuple[str, tuple[int, int]]:
    """Reads an image file to its end, with what will decode the record.

    Returns:
        "jpeg" or "png", and (width, height).

    Raises:
        InputError: it is broken, or of another format.
    """
    try:
        with Image.open(io.BytesIO(image)) as opened:
            kind, size = opened.format, opened.size
        if kind in ("JPEG", "MPO"):  # MPO is a JPEG with more pictures after it
            # At an eighth of its size a JPEG still shows whether its data is whole.
            tf.io.decode_jpeg(image, channels=3, ratio=8)
        elif kind == "PNG":
            tf.io.decode_png(image, channels=3)
    except Exception as error:  # Pillow raises many kinds for a broken file
        raise errors.InputError(f"{filename}: broken or truncated image; get it again") from error
    if kind not in ("JPEG", "MPO", "PNG"):
        raise errors.InputError(f"{filename}: is {kind}; convert it to JPEG or PNG")
    return "png" if kind == "PNG" else "jpeg", size


def runs(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Splits a label map [h, w], row by row, into runs of equal values, of which it has few.

    Returns:
        The value of each run, of the map's type; and its length in pixels, int64.
    """
    flat = labels.ravel()
    start = np.append(0, np.flatnonzero(flat[1:] != flat[:-1]) + 1)
    return flat[start], np.diff(start, append=flat.size)


def encode_labels(labels: np.ndarray) -> bytes:
    """Encodes uint8 or uint16 [h, w] as a PNG of one channel.

    Every row as its difference from the one above, mostly 0 in labels. Pillow tries all filters on
    every row, which takes twice as long and makes more bytes.
    """
    height, width = labels.shape
    rows = labels.astype(labels.dtype.newbyteorder(">")).view(np.uint8)
    above = np.diff(rows, axis=0, prepend=np.uint8(0))
    filtered = np.pad(above, [(0, 0), (1, 0)], constant_values=2)  # the number of this filter
    compressor = zlib.compressobj(level=1, strategy=zlib.Z_RLE)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8 * labels.itemsize, 0, 0, 0, 0),
        b"IDAT": compressor.compress(filtered) + compressor.flush(),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )


def _bytes(value: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def _int64(values: Iterable[int]) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=map(int, values)))
