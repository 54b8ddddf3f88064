"""Finds and reads the images that a user names: files, folders, globs, videos, also on gs://."""

import collections
import glob
import io
import itertools
import math
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

from kmax_tf import visualize
from kmax_tf.data import orientation, pillow
from kmax_tf.errors import InputError, first_line
from kmax_tf.files import expanded, read_bytes
from kmax_tf.predict import result_names

RECORDED = (".jpg", ".jpeg", ".png")  # what records hold
VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm")
# The first bytes of GIF, TIFF, BigTIFF, WebP and BMP. TensorFlow decodes all frames, of any size,
# or none; and takes the indices of a palette for gray.
BY_PILLOW = (b"GIF8", b"II*\0", b"MM\0*", b"II+\0", b"RIFF", b"BM")
LARGEST = 100_000_000  # pixels; the results of a larger image would not fit into memory


class Source(NamedTuple):
    """An image that is not read yet."""

    name: str  # file name below the folder that all sources share
    stem: str  # unique; the stem of the output files
    image_id: str  # unique; the file name without folder and extension if possible
    read: Callable  # () -> uint8 [height, width, 3]; InputError if it cannot be decoded


def find(paths: list[str], without: Sequence[str] = ()) -> tuple[str, list[Source]]:
    """Finds the images that `paths` name, each once: files, videos, globs, folders of images.

    For a folder without images it takes all images in the folders below, but no pictures of other
    predictions. The frames of a video are consecutive; read them in that order. A video that cannot
    be decoded is a source that cannot be read. A line is printed for one whose end is missing. For
    each folder, one counts what is in it and below and is left out, such as videos or hidden files.

    Args:
        paths: what the user names.
        without: files that no folder and no glob gives, such as those of an earlier prediction.

    Returns:
        The deepest folder that contains all of them, "" for local and remote ones together, and the
        sources.

    Raises:
        InputError: a path is missing or has no image.
    """
    without = set(map(_place, without))
    files = list(dict.fromkeys(file for path in paths for file in _files(path, without)))
    root, names = _shared(files)
    reads = {}  # name -> function that reads the image
    for file, name in zip(files, names, strict=True):
        if name.lower().endswith(VIDEOS):
            reads |= _frames(file, name)
        else:
            reads[name] = lambda file=file: read_image(file)
    stems = _unique([os.path.splitext(name)[0] for name in reads], list(reads))
    ids = _unique([os.path.basename(stem) for stem in stems], stems)
    return root, list(map(Source, reads, stems, ids, reads.values()))


def check_recordable(root: str, sources: Sequence[Source]) -> None:
    """Raises InputError if records cannot hold what `find` found, such as a video's frame."""
    if not root:
        raise InputError("pseudo labels: predict local and remote images separately")
    for name in (source.name for source in sources):
        path = os.path.join(root, name)
        if os.path.dirname(name).lower().endswith(VIDEOS) or not name.lower().endswith(RECORDED):
            raise InputError(
                f"{name}: pseudo labels need {', '.join(RECORDED)} files, which records hold; save"
                " frames and other formats as PNG"
            )
        if name.lower().endswith(".png") and _header_bits(path) > 8:
            raise InputError(f"{path}: pseudo labels need images of 8 bits; save it as such")


def _header_bits(path):
    """Returns the bits of a PNG, 8 of a file that is none."""
    with tf.io.gfile.GFile(path, "rb") as file:
        header = file.read(pillow.PNG_BITS + 1)
    return header[-1] if header.startswith(b"\x89PNG") else 8


def read_image(path: str, largest: int = LARGEST) -> np.ndarray:
    """Reads an image file of at most `largest` pixels as uint8 [height, width, 3], upright.

    It drops alpha, turns CMYK and palettes into RGB, and takes the first frame of an animation. Of
    12 or 16 bits it takes the upper 8, and says so. Raises InputError if the file cannot be
    decoded, is too large, or is a TIFF of several pages or of other numbers.
    """
    _check_name(path)
    image, lost = decode_image(read_bytes(path), path, largest)
    if lost:
        _say(f"{path}: {lost}")
    return image


def decode_image(content: bytes, name: str, largest: int) -> tuple[np.ndarray, str]:
    """Decodes the content of an image file as `read_image` does.

    Args:
        content: of the file.
        name: of the file, for the errors.
        largest: pixels.

    Returns:
        The image, and what of its bits is lost, as text; "" if nothing is.
    """
    pixels, bits = _look(content)
    if pixels > largest:
        raise InputError(f"{name}: more than {largest // 10**6} million pixels; scale it down")
    pages = 1
    with pillow.errors_as(name, "not an image that can be decoded; save it as PNG of 8 bits"):
        if content.startswith(BY_PILLOW):
            picture = Image.open(io.BytesIO(content))
            pages = getattr(picture, "n_frames", 1) if picture.format == "TIFF" else 1
            image, turn = to_pixels(_from_pillow(picture)), orientation.UPRIGHT
        else:  # the decoder of the training records, for equal bits
            image = tf.io.decode_image(content, channels=3, expand_animations=False).numpy()
            turn = orientation.read(content)
    if pages > 1:
        raise InputError(f"{name}: has {pages} pages; save each as a file of its own")
    if turn != orientation.UPRIGHT:
        image = orientation.turn_upright(image, turn).numpy()
    return image, _lost(bits) if bits > 8 else ""


def _lost(bits):
    return f"has {bits} bits, of which the upper 8 are read"


def _say(line):
    print(visualize.printable(line), flush=True)


def _look(content):
    """Returns the pixels of an image and the bits of a channel; 0 and 8 without a header."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(content))
            return math.prod(picture.size), pillow.bits(picture, content)
    except Image.DecompressionBombError:  # much more than LARGEST
        return math.inf, 8
    except Exception:  # Pillow raises many classes for broken files
        return 0, 8


def to_pixels(image: Any) -> np.ndarray:
    """Turns an image in any usual form into uint8 [height, width, 3].

    Args:
        image: path of a file, an image of Pillow, or uint8 [height, width] or [height, width, 1, 3
            or 4]. Files and images of Pillow are read as by `read_image`; arrays have values 0 to
            255, in the order red, green, blue, alpha. Alpha is dropped.

    Raises:
        InputError: the file cannot be decoded, or the image has another form.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(expanded(image))
    if isinstance(image, Image.Image):
        if image.mode.startswith("I;16"):
            _say(f"image: {_lost(_gray_bits(image))}")
        image = _from_pillow(image)
    array = np.asarray(image)
    if array.dtype != np.uint8:
        numeric = array.size and array.dtype.kind in "iuf"
        values = f" with values {array.min():.3g} to {array.max():.3g}" if numeric else ""
        raise InputError(
            f"image: is {array.dtype}{values}; give a path, an image of Pillow, or uint8 with"
            " values 0 to 255"
        )
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not array.size:
        raise InputError(
            f"image: has shape {list(np.shape(image))}; give [height, width] or [height, width,"
            " channels] with 1, 3 or 4 channels"
        )
    return array.repeat(3, axis=2) if array.shape[2] == 1 else array[..., :3]


def _from_pillow(picture):
    """Turns an image of Pillow into an array: uint8 as `read_image` does, else as it is."""
    bits = _gray_bits(picture)
    try:
        picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I;16"):
            return (np.asarray(picture) >> bits - 8).astype(np.uint8)
        return np.asarray(picture if picture.mode in ("I", "F") else picture.convert("RGB"))
    except (OSError, SyntaxError) as error:  # it is decoded only now
        raise InputError(f"image: cannot be decoded ({error}); save it again") from error


def _gray_bits(picture):
    """Returns the bits of a picture of Pillow whose mode is I;16: a TIFF may have 12."""
    return pillow.bits(picture, b"") if picture.format == "TIFF" else 16


def _check_name(path):
    """Raises InputError for a name that TensorFlow cannot open."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{ascii(path)[1:-1]}: the name is not UTF-8; rename it") from error


def _place(path):
    """Returns the one path of a file that has several, such as relative ones."""
    return path if "://" in path else os.path.realpath(path)


def _files(path, without):
    """Returns the files that one path names; a folder or a glob gives none of `without`."""
    remote = "://" in path
    # TensorFlow takes no name that is not UTF-8.
    isdir = tf.io.gfile.isdir if remote else os.path.isdir
    matches = [path]
    if not isdir(path):
        if tf.io.gfile.exists(path):
            return [path]
        # As a shell's, which gives each match as a path of its own.
        matches = sorted(tf.io.gfile.glob(path) if remote else _glob(path))
    kept = (match for match in matches if _place(match) not in without)
    parts = (_images_in(match, without) if isdir(match) else [match] for match in kept)
    if not (found := list(itertools.chain.from_iterable(parts))):
        raise InputError(f"{path}: no such image; check the path")
    return found


def _images_in(folder, without):
    """Returns the images directly in a folder, or those below; a line counts what is left out.

    Raises InputError if there is none, and no result of a prediction.
    """
    own, below, results, left = [], [], [], collections.Counter()
    for place, name in _walk(folder, left, set()):
        path = os.path.join(place, name)
        if name.lower().endswith(VIDEOS):
            left["videos"] += 1
        elif not name.lower().endswith(pillow.EXTENSIONS):
            left["other files"] += 1
        elif _place(path) in without:
            results.append(path)
        else:
            (own if place == folder else below).append(path)
    if own:
        left["images in folders below"] = len(below)
    if counts := ", ".join(f"{count} {what}" for what, count in left.items() if count):
        _say(f"{folder}: {counts} are left out; name them, or give a glob")
    if not (own or below or results or left["results of other predictions"]):
        known = ", ".join(pillow.EXTENSIONS)
        raise InputError(f"{folder}: has no {known} file; give a glob for other names")
    return sorted(own or below)


def _walk(folder, left, seen):
    """Yields (folder, name) of each file in a folder and below, but no hidden one or result.

    `left` counts the results of predictions, and the hidden files and folders. `seen` holds the
    folders that are done. A link may lead back to one.
    """
    seen.add(_place(folder))
    try:
        # TensorFlow lists no folder in which one name is not UTF-8.
        names = sorted((tf.io.gfile.listdir if "://" in folder else os.listdir)(folder))
    except (OSError, tf.errors.OpError) as error:
        _say(f"{folder}: cannot be listed, and is left out ({first_line(error)})")
        return
    results = result_names.among({name.rstrip("/") for name in names})
    left["results of other predictions"] += len(results)
    hidden = {name for name in names if name.startswith(".")}
    left["other files"] += len(hidden)
    for name in names:
        path = os.path.join(folder, name)
        if name in hidden or name.rstrip("/") in results:
            continue
        if not _is_folder(path):
            yield folder, name
        elif _place(path) not in seen:
            yield from _walk(path, left, seen)


def _is_folder(path):
    if path.startswith("gs://"):  # where a folder's name is listed with "/"; each question is slow
        return path.endswith("/")
    return tf.io.gfile.isdir(path) if "://" in path else os.path.isdir(path)


def _glob(path):
    """Returns the local files that match; signs such as [ in a folder that exists are literal."""
    parts = path.split("/")
    depth = max(k for k in range(len(parts)) if k == 0 or os.path.isdir("/".join(parts[:k]) + "/"))
    escaped = "/".join([*map(glob.escape, parts[:depth]), *parts[depth:]])
    return glob.glob(escaped, recursive=True)  # ** is any depth


def _shared(files):
    """Returns the deepest folder that contains all files, and their names below it."""
    parts = [(f if "://" in f else os.path.abspath(f)).split("/") for f in files]
    depth = len(os.path.commonprefix([p[:-1] for p in parts]))
    names = ["/".join(p[depth:]).replace("://", "/") for p in parts]
    root = "/".join(parts[0][:depth])
    if depth and not parts[0][depth - 1]:  # "/" and "gs://"
        root += "/"
    # Where local and remote files share no folder, an absolute name would leave the output folder.
    return root, [name.lstrip("/") for name in names]


def _unique(values, otherwise):
    """Returns the values, but the other list's where two meet, or everywhere if these meet too."""
    counts = collections.Counter(values)
    chosen = [v if counts[v] == 1 else other for v, other in zip(values, otherwise, strict=True)]
    return chosen if len(set(chosen)) == len(chosen) else otherwise


def _frames(path, name):
    """Returns {name of a frame: function that reads it} of a video, in order."""
    import cv2  # slow to import

    # OpenCV takes what is before a colon for a protocol, unless a folder is before it.
    place = path if "://" in path else os.path.abspath(path)

    def decode():
        capture = cv2.VideoCapture(place)
        for left in reversed(range(count)):
            frame = capture.read()
            if not left:
                capture.release()  # or as many files stay open as there are videos
            yield frame

    def read():
        ok, frame = next(decoded)
        if not ok:
            raise InputError(f"{path}: a frame cannot be decoded; convert the video")
        return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)

    def refuse():
        _check_name(path)
        raise InputError(f"{path}: not a video that can be decoded; give a local video file")

    # A header may give no number of frames, or that of frames which are not there.
    count, capture = 0, cv2.VideoCapture(os.fsencode(place).decode(errors="replace"))
    while capture.grab():
        count += 1
    if not count:
        return {name: refuse}
    given = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    if given > count:
        _say(f"{path}: has {count} of the {given:.0f} frames in its header")
    capture.release()
    decoded = decode()
    return {f"{name}/{k:06}.png": read for k in range(1, count + 1)}
