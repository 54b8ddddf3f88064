"""Images and label files in two folders: which belong together, and the values of a label file."""

import collections
import io
import os
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from data_prep import raw_dataset, raw_images
from kmax_tf import errors, files
from kmax_tf.data import label_png, pillow

MOST = 2**31 - 1  # the greatest value of a label
WHITE_IS_ZERO = 0  # a value of the tag PhotometricInterpretation


def read(flags: Any, notes: collections.Counter) -> tuple[list[raw_dataset.Listing], list[str]]:
    """Pairs the files in the folders of the flags.

    Args:
        flags: with images and labels, val_images and val_labels.
        notes: counts the files that are left out.

    Returns:
        The listings, whose labels are paths of label files; and remarks on the rule.

    Raises:
        InputError: a folder is missing, or no files belong together.
    """
    if bool(flags.val_images) != bool(flags.val_labels):
        raise errors.InputError("--val_images and --val_labels: give both or none of them")
    pairs = [(flags.images, flags.labels), (flags.val_images, flags.val_labels)]
    found = [pair(images, labels, notes) for images, labels in pairs if images]
    return [listing for listing, _ in found], [remark for _, remark in found]


def pair(images: str, labels: str, notes: collections.Counter) -> tuple[raw_dataset.Listing, str]:
    """Pairs the images of a folder with label files by name.

    The name of a label is that of its image and an ending, such as "" or "_mask", which is the
    same for all. The ending that pairs the most files is taken.

    Args:
        images: folder of the images.
        labels: folder of the label files.
        notes: counts the files that are left out.

    Returns:
        The listing, whose labels are paths of label files; and a line that tells the rule.

    Raises:
        InputError: the folders are one, no files belong together, or an image has several labels.
    """
    if os.path.normpath(images) == os.path.normpath(labels):
        raise errors.InputError(f"{images}: mixes images and labels; move labels elsewhere")
    image_of = raw_images.by_stem(images, raw_images.list_images(images, notes, "image"))
    label_of = raw_images.by_stem(labels, raw_images.list_images(labels, notes, "label"))
    endings = collections.Counter(
        stem[cut:] for stem in label_of for cut in range(1, len(stem) + 1) if stem[:cut] in image_of
    )
    if not endings:
        raise errors.InputError(
            f"{labels}: no label has the name of an image in {images}; rename the labels, such as"
            " a.png or a_mask.png for a.jpg"
        )
    ending = max(endings, key=lambda end: (endings[end], -len(end)))
    _check_single(labels, image_of, label_of, ending)
    both = [stem for stem in image_of if stem + ending in label_of]
    notes["images without a label: left out"] += len(image_of) - len(both)
    notes["labels without an image: left out"] += len(label_of) - len(both)
    sources = [
        raw_dataset.Source(stem, image_of[stem], os.path.join(labels, label_of[stem + ending]))
        for stem in both
    ]
    remark = f"{labels}: the label of image NAME is NAME{ending} ({len(both)} pairs)"
    return raw_dataset.Listing(images, sources), remark


def _check_single(
    labels: str, image_of: dict[str, str], label_of: dict[str, str], ending: str
) -> None:
    """Raises InputError if an image has a label with the ending, and one with another.

    A label is of the image with the longest name that starts its own; 10_mask is not of image 1.
    """
    several = {}
    for stem in sorted(label_of.keys() - {image + ending for image in image_of}):
        starts = [
            stem[:cut]
            for cut in range(1, len(stem) + 1)
            if stem[:cut] in image_of and not re.match(r"\d\d", stem[cut - 1 :])
        ]
        if starts and starts[-1] + ending in label_of:
            several.setdefault(starts[-1], stem)
    if several:
        image, other = min(several.items())
        raise errors.InputError(
            f"{labels}: {label_of[image + ending]} and {label_of[other]} both label the image"
            f" {image_of[image]} ({len(several)} images have several labels); keep one each, or"
            " use kmax prepare mask_folders for a mask per object"
        )


def read_values(path: str) -> np.ndarray:
    """Reads a label file: a PNG of gray values or of a palette's indices, or a gray TIFF.

    The values of a TIFF are those stored, also where white is 0. Of 1 bit, white is 1.

    Returns:
        int32 [height, width], 0 to MOST.

    Raises:
        InputError: the file is broken or has another format, colors, several pages, or values
            that are no whole numbers from 0 to MOST.
    """
    content = files.read_bytes(path)
    if content.startswith(label_png.SIGNATURE):
        return label_png.decode_classes(content, path)
    with pillow.errors_as(path, "not a readable label; save it as gray PNG"):
        picture = Image.open(io.BytesIO(content))
        pages = getattr(picture, "n_frames", 1)
        values, bits = np.asarray(picture), pillow.bits(picture, content)
    if not isinstance(picture, TiffImagePlugin.TiffImageFile):
        raise errors.InputError(f"{path}: is {picture.format}; save labels as gray PNG or TIFF")
    if pages > 1 or values.ndim > 2:
        found = f"{pages} pages" if pages > 1 else "colors"
        raise errors.InputError(f"{path}: has {found}; save one gray page of label values")
    if picture.mode == "L":  # Pillow stretches 2 and 4 bits to 8, and inverts where white is 0
        values = values // (255 // (2**bits - 1))
        if picture.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO:
            values = 2**bits - 1 - values
    is_whole = np.isfinite(values) & (values >= 0) & (values <= MOST) & (values % 1 == 0)
    if not is_whole.all():
        raise errors.InputError(
            f"{path}: has the value {values[~is_whole][0]}; labels are whole numbers from 0 to"
            f" {MOST}: correct them"
        )
    return values.astype(np.int32)


def has_palette(path: str) -> bool:
    """Returns whether a label file, which `read_values` can read, is a PNG with a palette."""
    content = files.read_bytes(path)
    is_png = content.startswith(label_png.SIGNATURE)
    return is_png and label_png.read_header(content, path).color == "palette"


def count_values(paths: Iterable[str]) -> collections.Counter[int]:
    """Counts the pixels of each value of label files."""
    total = collections.Counter()
    for path in paths:
        values, lengths = label_png.find_runs(read_values(path))
        found, place = np.unique(values, return_inverse=True)
        total.update(dict(zip(found.tolist(), np.bincount(place, lengths).astype(int).tolist())))
    return total
