"""PNG files of labels: segment ids as RGB (COCO panoptic), classes, and label maps of records."""

import io
import struct
import zlib
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image

from kmax_tf import errors
from kmax_tf.data import orientation, pillow

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLORS = {0: "gray", 2: "RGB", 3: "palette", 4: "gray and alpha", 6: "RGBA"}  # types of PNG


class Header(NamedTuple):
    """How a PNG stores its pixels."""

    bits: int  # of a sample: 1, 2, 4, 8 or 16
    color: str  # a value of COLORS


def read_header(png: bytes, name: str) -> Header:
    """Reads how a PNG of labels stores its pixels.

    Args:
        png: content of the file.
        name: the file it came from, for messages.

    Raises:
        InputError: the content is not a PNG, or its EXIF orientation turns it.
    """
    bits, color = png[24:26].ljust(2, b"\0")
    if png[:8] != SIGNATURE or png[12:16] != b"IHDR" or color not in COLORS:
        raise errors.InputError(
            f"{name}: not a readable PNG of labels; download it again or save it as PNG"
        )
    turn = orientation.read(png)
    if turn != orientation.UPRIGHT:
        raise errors.InputError(
            f"{name}: labels with EXIF orientation {turn}; save them upright and without EXIF"
        )
    return Header(bits, COLORS[color])


def decode_ids(png: bytes, name: str) -> np.ndarray:
    """Decodes an id PNG of the COCO panoptic format.

    Gray and palettes are the colors that they show, as in files that an optimizer made smaller.

    Args:
        png: content of the file; id = R + 256 G + 65536 B.
        name: the file it came from, for messages.

    Returns:
        int32 [height, width], 0 to 2**24 - 1, where 0 is void.

    Raises:
        InputError: the content is not a PNG, is corrupt, has more than 8 bits for a sample, or is
            turned by EXIF.
    """
    header = read_header(png, name)
    if header.bits > 8:
        raise errors.InputError(
            f"{name}: is a PNG of {header.bits} bits, {header.color}, but segment ids are 8-bit"
            " RGB; save red, green, blue = id % 256, id // 256 % 256, id // 65536"
        )
    try:
        # RGBA puts a pixel in four bytes, so that they are one integer without arithmetic.
        rgba = np.asarray(tf.io.decode_png(png, channels=4))
    except tf.errors.OpError as error:
        raise errors.InputError(
            f"{name}: not a readable PNG of segment ids; download or save it again"
        ) from error
    return rgba.view("<i4")[..., 0] & 0xFFFFFF


def decode_classes(png: bytes, name: str) -> np.ndarray:
    """Decodes a map of classes: gray values of any depth, or the indices of a palette.

    RGB of 8 bits counts as gray if red, green and blue are equal in all pixels.

    Args:
        png: content of the file.
        name: the file it came from, for messages.

    Returns:
        int32 [height, width], 0 to 2**16 - 1, as stored.

    Raises:
        InputError: the content is not a PNG, is corrupt, has colors or alpha, or is turned by EXIF.
    """
    header = read_header(png, name)
    with pillow.errors_as(name, "not a readable PNG of classes; download or save it again"):
        picture = Image.open(io.BytesIO(png))
        tf.io.decode_png(png)  # checks more than Pillow
        values = np.asarray(picture, np.int32)
    if header == Header(8, "RGB") and (values == values[..., :1]).all():
        return values[..., 0]
    if header.color not in ("gray", "palette"):
        raise errors.InputError(
            f"{name}: is a PNG of {header.bits} bits, {header.color}, but a class map has one"
            " channel; save class ids as a gray PNG"
        )
    # Pillow stretches gray of 2 and 4 bits to 0 to 255.
    stretched = header.color == "gray" and header.bits in (2, 4)
    return values // (255 // (2**header.bits - 1)) if stretched else values


def encode_ids(ids: np.ndarray) -> bytes:
    """Encodes segment ids, integers [height, width], 0 to 2**24 - 1, as `decode_ids` reads them.

    Raises:
        ValueError: an id is out of range.
    """
    if ids.min() < 0 or ids.max() >= 1 << 24:
        raise ValueError(f"segment ids must be 0 to 2**24 - 1, found {ids.min()} to {ids.max()}")
    rgb = np.ascontiguousarray(ids, "<u4").view(np.uint8).reshape(*ids.shape, 4)[..., :3]
    png = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb)).save(png, "PNG", compress_level=1)
    return png.getvalue()


def encode_labels(labels: np.ndarray) -> bytes:
    """Encodes a label map, uint8 or uint16 [height, width], as a PNG of one channel.

    Each row is stored as its difference from the one above, which is mostly 0. Pillow tries all
    filters on every row, which takes twice as long and makes a larger file.
    """
    height, width = labels.shape
    rows = labels.astype(labels.dtype.newbyteorder(">")).view(np.uint8)
    filtered = np.full((height, 1 + rows.shape[1]), 2, np.uint8)  # starts with the filter's number
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    compressor = zlib.compressobj(level=1, strategy=zlib.Z_RLE)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8 * labels.itemsize, 0, 0, 0, 0),
        b"IDAT": compressor.compress(filtered) + compressor.flush(),
        b"IEND": b"",
    }
    return SIGNATURE + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )


def find_runs(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Splits a label map, integers [height, width], row by row into its few runs of equal values.

    Returns:
        The value of each run, of the map's dtype, and its length in pixels, int64.
    """
    flat = labels.ravel()
    start = np.append(0, np.flatnonzero(flat[1:] != flat[:-1]) + 1)
    return flat[start], np.diff(start, append=flat.size)
