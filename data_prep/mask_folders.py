"""Reads images with a folder of masks each, as of the Data Science Bowl 2018.

kmax_tf/commands/prepare/mask_folders.py shows the files.
"""

import collections
import io
import os
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from data_prep import drawing, raw_dataset, raw_images
from kmax_tf import errors, files
from kmax_tf.data import label_png, pillow

THING = 1  # id of the category of all objects
BLURRED = "JPEG", "MPO", "WEBP"  # formats of Pillow that do not keep the colors of pixels


def read(flags: Any) -> raw_dataset.RawDataset:
    """Lists the images and masks of the folders --source and, if given, --val_source."""
    entries = [{"id": THING, "name": flags.thing, "isthing": 1}]
    categories, background = drawing.with_background(entries, flags.background, "--thing")
    notes = collections.Counter()
    listings = [list_folder(f, notes) for f in (flags.source, flags.val_source) if f]
    return raw_dataset.RawDataset(listings, categories, background, draw, notes, [])


def list_folder(folder: str, notes: collections.Counter) -> raw_dataset.Listing:
    """Lists the images of a folder whose folders have images/ and masks/.

    Args:
        folder: the folder.
        notes: counts what is left out.

    Raises:
        InputError: nothing is in it, or a folder has several images.
    """
    sources = []
    for name in files.names(folder):
        inside = {kind: os.path.join(folder, name, kind) for kind in ("images", "masks")}
        if not tf.io.gfile.isdir(inside["images"]):
            notes["files, and folders without a folder images/: left out"] += 1
            continue
        found = raw_images.list_images(inside["images"], notes, "image")
        if len(found) > 1:
            raise errors.InputError(f"{inside['images']}: has {len(found)} images; keep one")
        masks = []
        if tf.io.gfile.isdir(inside["masks"]):
            masks = raw_images.list_images(inside["masks"], notes, "mask")
        if found and masks:
            paths = [os.path.join(inside["masks"], mask) for mask in masks]
            sources.append(raw_dataset.Source(name, f"{name}/images/{found[0]}", paths))
        else:
            missing = "images without masks" if found else "folders images/ without an image"
            notes[f"{missing}: left out"] += 1
    if not sources:
        raise errors.InputError(
            f"{folder}: no folder in it has an image in images/ and masks in masks/; give the"
            " folder above such folders"
        )
    return raw_dataset.Listing(folder, sources)


def draw(source: raw_dataset.Source, facts: raw_images.Facts) -> drawing.Drawing:
    """Draws the masks of an image; InputError if one is wrong, or of another size."""
    segment, size = drawing.Segment(THING), facts.size[::-1]
    return drawing.paint(size, [drawing.crop(read_mask(p, size), segment) for p in source.labels])


def read_mask(path: str, size: tuple[int, int]) -> np.ndarray:
    """Reads a mask, bool (height, width) = `size`: pixels neither black nor fully transparent.

    Raises:
        InputError: the file is broken, blurred by its format, turned by EXIF, of more than 8 bits
            and colors, or has another size.
    """
    content = files.read_bytes(path)
    if content.startswith(label_png.SIGNATURE):
        label_png.read_header(content, path)
    with pillow.errors_as(path, "not a readable mask; save it again as PNG"):
        picture = Image.open(io.BytesIO(content))
        kind, pages = picture.format, getattr(picture, "n_frames", 1)
        bits, mode = pillow.bits(picture, content), picture.mode
        if picture.mode in ("P", "PA", "LA", "RGBA") or "transparency" in picture.info:
            picture = picture.convert("RGBA")
        values = np.asarray(picture)
    if bits > 8 and mode in raw_images.EXACT:  # which keeps 8 of them
        raise errors.InputError(
            f"{path}: is a {kind} of {bits} bits, {mode}; save masks as gray PNG of 8 bits"
        )
    if kind in BLURRED:
        raise errors.InputError(f"{path}: {kind} is lossy; save masks as PNG")
    if pages > 1:
        raise errors.InputError(f"{path}: has {pages} pages; save each mask as a file of its own")
    if values.shape[:2] != size:
        raise errors.InputError(
            f"{path}: the mask is {values.shape[1]} x {values.shape[0]} but its upright image"
            f" {size[1]} x {size[0]}; make them the same size"
        )
    if picture.mode == "RGBA":
        return np.any(values[..., :3], axis=-1) & (values[..., 3] > 0)
    return np.any(values.reshape(*size, -1), axis=-1)
