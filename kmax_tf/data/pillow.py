"""Pillow's errors as one line: it raises many kinds for a broken file."""

import contextlib
from collections.abc import Iterator

from PIL import Image, TiffImagePlugin

from kmax_tf.errors import InputError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif")  # of images
PNG_BITS = 24  # the byte of a PNG file that holds the bits of a channel
TIFF_BITS = 258  # the tag BitsPerSample


def bits(picture: Image.Image, content: bytes) -> int:
    """Returns the bits of a channel in a file: Pillow opens colors of 16 bits as 8."""
    if picture.format == "PNG":
        return content[PNG_BITS]
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        return max(picture.tag_v2.get(TIFF_BITS, (1,)))
    return 8


@contextlib.contextmanager
def errors_as(path: str, reason: str) -> Iterator[None]:
    """Turns errors of the block into an InputError that names a file.

    Args:
        path: the file.
        reason: what is wrong with it, and the remedy. An image that is too large is told as such.
    """
    try:
        yield
    except Image.DecompressionBombError as error:
        largest = 2 * Image.MAX_IMAGE_PIXELS // 10**6
        raise InputError(f"{path}: more than {largest} million pixels; cut the image") from error
    except Exception as error:
        raise InputError(f"{path}: {reason}") from error
