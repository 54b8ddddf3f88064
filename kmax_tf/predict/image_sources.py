"""The images that a user names: files, folders, globs, videos, here or on gs://."""

import io
import math
import os
import re
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

from kmax_tf.errors import InputError
from kmax_tf.files import read_bytes

IMAGES = (".jpg", ".jpeg", ".png")
VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm")
LARGEST = 100_000_000  # pixels: what is made of more would not fit into memory
ORIENTATION = 0x0112  # EXIF


class Source(NamedTuple):
    """One image, not read yet."""

    name: str  # of the file, below the folder that all of them share
    stem: str  # of the files that are made of it; no other source has it
    image_id: int | str  # no other source has it; as COCO numbers its images, where it can be
    read: Callable  # () -> uint8 [height, width, 3]; InputError if it cannot be decoded


def find(paths: list[str]) -> tuple[str, list[Source]]:
    """The images that `paths` name, each once: files, videos, globs, and folders of images.

    A folder without an image of its own stands for all that are in folders below it.
    Frames of a video follow each other and are to be read in that order.
    Returns the folder that all of them are below of, and the sources.
    Raises InputError for a path that is not there or holds no image.
    """
    files = list(dict.fromkeys(file for path in paths for file in _files(path)))
    root, names = _shared(files)
    reads = {}  # name -> how the image is read
    for file, name in zip(files, names, strict=True):
        if name.lower().endswith(VIDEOS):
            reads |= {f"{name}/{k:06}.png": read for k, read in enumerate(_frames(file), 1)}
        else:
            reads[name] = lambda file=file: read_image(file)
    stems = _unique([os.path.splitext(name)[0] for name in reads], list(reads))
    numbers = [os.path.basename(stem) for stem in stems]
    numbers = [int(n) if re.fullmatch("[0-9]{1,18}", n) else n for n in numbers]
    return root, list(map(Source, reads, stems, _unique(numbers, stems), reads.values()))


def read_image(path: str, largest: int = LARGEST) -> np.ndarray:
    """An image file of at most so many pixels as uint8 [height, width, 3], upright.

    Alpha is dropped, 16 bits become 8, CMYK and palettes RGB; an animation is its first frame.
    Raises InputError if it cannot be decoded or is too large.
    """
    content = read_bytes(path)
    orientation, pixels = _header(content)
    if pixels > largest:
        raise InputError(f"{path}: more than {largest // 10**6} million pixels; scale it down")
    try:
        # As the records of a training are decoded, to the last bit.
        image = tf.io.decode_image(content, channels=3, expand_animations=False).numpy()
    except tf.errors.OpError as error:
        raise InputError(f"{path}: not a JPEG or PNG that can be decoded; convert it") from error
    if orientation == 1:
        return image
    picture = Image.fromarray(image)
    picture.getexif()[ORIENTATION] = orientation
    return np.asarray(ImageOps.exif_transpose(picture))


def _header(content):
    """EXIF orientation and number of pixels; 1 and 0 where there is no header to read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(content))
            # Else Pillow looks for EXIF behind the pixels, and decodes them all.
            exif = picture.getexif() if "exif" in picture.info else {}
        return exif.get(ORIENTATION, 1), math.prod(picture.size)
    except Image.DecompressionBombError:  # much more than LARGEST
        return 1, math.inf
    except Exception:  # Pillow has no one kind of error for files that are not in order
        return 1, 0


def _files(path):
    """The files that one path names."""
    if tf.io.gfile.isdir(path):
        for names in (tf.io.gfile.listdir(path), _below(path)):
            found = sorted(name for name in names if name.lower().endswith(IMAGES))
            if found:
                return [os.path.join(path, name) for name in found]
        raise InputError(f"{path}: holds no {', '.join(IMAGES)} file; give a glob of others")
    if tf.io.gfile.exists(path):
        return [path]
    found = sorted(tf.io.gfile.glob(path)) if re.search(r"[*?[]", path) else []
    if not found:
        raise InputError(f"{path}: no such image")
    return [file for file in found if not tf.io.gfile.isdir(file)]


def _below(folder):
    """Yields the files of the folders in a folder, named from there."""
    for inner, _, names in tf.io.gfile.walk(folder):
        yield from (os.path.relpath(os.path.join(inner, name), folder) for name in names)


def _shared(files):
    """The deepest folder that holds all files, and their names below it."""
    parts = [(f if "://" in f else os.path.abspath(f)).split("/") for f in files]
    depth = len(os.path.commonprefix([p[:-1] for p in parts]))
    return "/".join(parts[0][:depth]), ["/".join(p[depth:]).replace("://", "/") for p in parts]


def _unique(values, otherwise):
    """The values, or if one is there twice the others."""
    return values if len(set(values)) == len(values) else otherwise


def _frames(path):
    """How each frame of a video is read, in order."""
    import cv2  # slow to import

    capture = cv2.VideoCapture(path)
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    if count < 1:
        raise InputError(f"{path}: no video that can be decoded; it must be a file of this machine")

    def read():
        ok, frame = capture.read()
        if not ok:
            raise InputError(f"{path}: a frame cannot be decoded; convert the video")
        return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)

    return [read] * count
