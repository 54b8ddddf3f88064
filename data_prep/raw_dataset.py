"""A dataset before its conversion: the images that a form of labels lists, and what they hold."""

import collections
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from data_prep import drawing, pool, random_split, raw_images
from kmax_tf import errors
from kmax_tf.data import datasets

JOB = 8  # images of one job of a worker process


class Source(NamedTuple):
    """One image with its labels, as a form lists them."""

    image_id: str  # unique in its split
    file_name: str  # of the image, in the folder of images
    labels: Any  # what `draw` reads


class Listing(NamedTuple):
    """The labeled images of one folder."""

    images: str  # the folder
    sources: list[Source]


class RawDataset(NamedTuple):
    """A whole dataset."""

    listings: list[Listing]  # of training and validation, or one of both
    categories: tuple[datasets.Category, ...]
    background: int | None  # id of the category of pixels of nothing; None leaves them void
    draw: Callable[[Source, raw_images.Facts], drawing.Drawing]
    notes: collections.Counter[str]  # what was left out, and how often
    remarks: list[str]  # further lines to print


class Picture(NamedTuple):
    """One labeled image, and what its file holds."""

    source: Source
    facts: raw_images.Facts


def jobs(entries: list) -> list[list]:
    """Divides a list into the shares of the jobs of worker processes."""
    return [entries[start : start + JOB] for start in range(0, len(entries), JOB)]


def look_at_all(listing: Listing, workers: int | None) -> list[Picture]:
    """Reads the facts of all images of a listing; InputError if there are none, or one is wrong."""
    if not listing.sources:
        raise errors.InputError(f"{listing.images}: no image has labels; check the folders")
    names = [source.file_name for source in listing.sources]  # no labels, which may be large
    shares = [(listing.images, part) for part in jobs(names)]
    looked = pool.run(look, shares, workers, "reading images")
    facts = [fact for found in looked for fact in found]
    return list(map(Picture, listing.sources, facts))


def look(images: str, file_names: list[str]) -> list[raw_images.Facts]:
    """Reads the facts of some images in the folder `images`."""
    return [_look_at(images, name) for name in file_names]


def _look_at(images: str, file_name: str) -> raw_images.Facts:
    path = os.path.join(images, file_name)
    try:
        return raw_images.look(path)
    except errors.InputError as error:
        if tf.io.gfile.exists(path):
            raise
        raise errors.InputError(
            f'{error} ("file_name" {file_name!r:.80} starts from the folder of the images; give'
            " another folder, or correct the name)"
        ) from error


def divide(pictures: list[Picture], share: float, seed: int) -> list[list[Picture]]:
    """Divides images into those of the training and of the validation, as in random_split."""
    digests = [picture.facts.digest for picture in pictures]
    chosen = random_split.choose_validation(digests, share, seed)
    return [
        [picture for picture, is_val in zip(pictures, chosen, strict=True) if is_val == wanted]
        for wanted in (False, True)
    ]
