"""Image files as people have them: which there are, what they hold, PNG copies of other formats."""

import collections
import hashlib
import io
import os
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageOps

from kmax_tf import errors, files
from kmax_tf.data import orientation, pillow

RECORDED = ("JPEG", "MPO", "PNG")  # formats of Pillow that records hold as they are
EXACT = ("1", "L", "LA", "P", "RGB", "RGBA")  # modes of Pillow that a PNG of 8 bits holds


class Facts(NamedTuple):
    """What an image file holds."""

    digest: str  # SHA-1 of the file
    size: tuple[int, int]  # (width, height) of the upright image
    stored_size: tuple[int, int]  # the same before EXIF turns it
    is_recorded: bool  # whether records hold the format


def list_images(folder: str, notes: collections.Counter, kind: str) -> list[str]:
    """Lists the names of the image files in a folder.

    Args:
        folder: the folder; not the folders in it.
        notes: counts the other entries, and hidden files.
        kind: which files are listed, for the notes, such as "image".
    """
    found = files.names(folder)
    images = [n for n in found if n.lower().endswith(pillow.EXTENSIONS) and not n.startswith(".")]
    notes[f"files and folders that are no {kind}: left out"] += len(found) - len(images)
    return images


def by_stem(folder: str, found: Sequence[str]) -> dict[str, str]:
    """Maps the name without extension to the name; InputError if two files share one."""
    stems = {}
    for name in found:
        stem = os.path.splitext(name)[0]
        if stem in stems:
            raise errors.InputError(
                f"{folder}: {stems[stem]} and {name} differ only in extension; keep one"
            )
        stems[stem] = name
    return stems


def look(path: str) -> Facts:
    """Reads the facts of an image file; InputError if it is none, or not of 8 bits."""
    content = files.read_bytes(path)
    digest = hashlib.sha1(content).hexdigest()
    picture = _open(content, path)
    stored = picture.size
    if picture.format not in RECORDED:
        return Facts(digest, _upright(picture, path).size, stored, False)
    turned = orientation.swaps_sides(orientation.read(content))
    return Facts(digest, stored[::-1] if turned else stored, stored, True)


def to_png(content: bytes, path: str) -> bytes:
    """Returns an image of another format as an upright PNG with the same pixels."""
    png = io.BytesIO()
    _upright(_open(content, path), path).save(png, "PNG", compress_level=1)
    return png.getvalue()


def _open(content: bytes, path: str) -> Image.Image:
    """Opens an image; InputError if Pillow cannot, or if it has more than 8 bits or one page."""
    with pillow.errors_as(path, "broken, or no image that can be read; save it as PNG of 8 bits"):
        picture = Image.open(io.BytesIO(content))
        pages = getattr(picture, "n_frames", 1) if picture.format not in RECORDED else 1
    if pages > 1:
        raise errors.InputError(f"{path}: has {pages} pages; save each as a file of its own")
    is_exact = picture.mode in EXACT or (picture.format == "JPEG" and picture.mode == "CMYK")
    bits = pillow.bits(picture, content)
    if not is_exact or bits > 8:
        raise errors.InputError(
            f"{path}: has {bits} bits in Pillow's mode {picture.mode}, not 8-bit gray or RGB; scale"
            " its values to 8 bits, and save it as PNG"
        )
    return picture


def _upright(picture: Image.Image, path: str) -> Image.Image:
    """Returns the decoded image, turned as EXIF says."""
    try:
        picture.load()
        return ImageOps.exif_transpose(picture)
    except Exception as error:  # Pillow raises many kinds for a broken file
        raise errors.InputError(
            f"{path}: broken or truncated image; download or save it again"
        ) from error
