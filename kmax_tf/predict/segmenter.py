"""Runs an exported model on images, one by one or as a stream."""

import collections
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from kmax_tf import visualize
from kmax_tf.data.datasets import Category, parse_categories
from kmax_tf.errors import InputError, first_line
from kmax_tf.files import check_literal, read_json
from kmax_tf.predict import image_sources

CATEGORIES = "categories.json"  # in an export, beside the SavedModel
AHEAD = 8  # images read ahead, and batches whose files are being written


class Segment(NamedTuple):
    """One segment of a panoptic map."""

    id: int  # on the map
    category_id: int
    isthing: bool
    score: float  # probability of its class times that of its mask
    area: int  # pixels
    box: list  # left, top, width, height in pixels


class Segmentation(NamedTuple):
    """The prediction of one image, at its size; the last two fields need details=True."""

    panoptic_map: np.ndarray  # int32 [height, width], 0 void, else the id of a segment
    segments: list[Segment]
    confidence: np.ndarray | None = None  # float32 [height, width], of the pixel's likeliest mask
    assignments: np.ndarray | None = None  # int32 [decoders, height, width], the pixel's cluster


class Segmenter:
    """An exported model that maps images to `Segmentation`s; `categories` are its classes."""

    def __init__(self, signatures: Any, categories: Sequence[Category]):
        self._signatures = signatures
        self.categories = categories

    def __call__(self, image: Any, details: bool = False) -> Segmentation:
        """Predicts an image in any form that `image_sources.to_pixels` takes.

        Raises InputError if the file cannot be decoded or the image has another form.
        """
        return self.batch([image], details)[0]

    def batch(self, images: Sequence, details: bool = False) -> list[Segmentation]:
        """Predicts images of one size.

        Args:
            images: a sequence of images as `__call__` takes them, or uint8 [batch, height, width,
                1, 3 or 4].
            details: predict the optional fields of `Segmentation`.

        Raises:
            InputError: `images` have other forms or different sizes, or there is none.
        """
        if not isinstance(images, (list, tuple)) and np.ndim(images) != 4:
            raise InputError("images: give a list of images, or [batch, height, width, channels]")
        pixels = [image_sources.to_pixels(image) for image in images]
        sizes = {image.shape for image in pixels}
        if len(sizes) != 1:
            raise InputError(f"images: {len(pixels)} of {len(sizes)} sizes; give images of one")
        signature = self._signatures["uint8_details" if details else "uint8"]
        output = signature(images=tf.constant(np.stack(pixels)))
        result = {name: value.numpy() for name, value in output.items()}
        columns = [result[name].tolist() for name in ("segment_id", *Segment._fields[1:])]
        more = [result[name] for name in ("confidence", "assignments")] if details else []
        return [
            Segmentation(panoptic_map, [Segment(*s) for s in zip(*lists) if s[0]], *others)
            for panoptic_map, lists, *others in zip(result["panoptic_map"], zip(*columns), *more)
        ]


def load(export_dir: str) -> Segmenter:
    """Loads an export; raises InputError if it is missing, corrupt or of an older version."""
    check_literal(export_dir)
    path = os.path.join(export_dir, CATEGORIES)
    categories = parse_categories(read_json(path), path)
    try:
        signatures = tf.saved_model.load(export_dir).signatures
    except (OSError, tf.errors.OpError) as error:
        reason = first_line(error)
        raise InputError(f"{export_dir}: cannot be read ({reason}); export it again") from error
    if "uint8_details" not in signatures:
        raise InputError(f"{export_dir}: is from an older version; export it again")
    return Segmenter(signatures, categories)


def predict_sources(
    segmenter: Segmenter,
    sources: Sequence[image_sources.Source],
    finish: Callable,
    *,
    batch_size: int | None = None,
    details: bool = False,
) -> list:
    """Predicts images and passes each to finish(source, image uint8, `Segmentation`).

    While the device predicts, one thread reads ahead and others call `finish`.

    Args:
        batch_size: images of one size that make a batch; by default 8 on a GPU, else 1.
        details: predict the optional fields of `Segmentation`.

    Returns:
        A list of (source, reason) of the skipped images.
    """
    batch_size = batch_size or (8 if tf.config.list_physical_devices("GPU") else 1)
    skipped = []
    with (
        ThreadPoolExecutor(1) as reader,  # one thread reads the frames of a video in order
        ThreadPoolExecutor(os.cpu_count()) as workers,
        tqdm(total=len(sources), desc="predicting", unit="image") as bar,
    ):

        def skip(source, error):
            skipped.append((source, error))
            tqdm.write(f"skipped: {visualize.printable(str(error))}")
            bar.update()

        waiting = collections.deque()

        def take(most):
            while waiting and (waiting[0].done() or len(waiting) > most):
                waiting.popleft().result()
                bar.update()

        for batch in _batches(_read_ahead(reader, sources, skip), batch_size):
            predicted = _predict_batch(segmenter, batch, details, skip)
            waiting += [workers.submit(finish, *one) for one in predicted]
            take(AHEAD * batch_size)
        take(0)
    return skipped


def _predict_batch(segmenter, batch, details, skip):
    """Returns (source, image, `Segmentation`) of a batch; if it fails, skips all of its images."""
    try:
        results = segmenter.batch([image for _, image in batch], details)
    except tf.errors.OpError as error:  # for example out of memory
        for source, _ in batch:
            skip(source, InputError(f"{source.name}: {first_line(error)}"))
        return []
    return [(*one, result) for one, result in zip(batch, results, strict=True)]


def _read_ahead(reader, sources, skip):
    """Yields (source, image) in order; calls skip(source, error) for unreadable images."""
    reading = collections.deque()
    remaining = iter(sources)
    while True:
        for source in remaining:
            reading.append((source, reader.submit(source.read)))
            if len(reading) > AHEAD:
                break
        if not reading:
            return
        source, image = reading.popleft()
        try:
            yield source, image.result()
        except InputError as error:
            skip(source, error)


def _batches(read, batch_size):
    """Yields lists of (source, image) of one size; images of rare sizes do not wait long."""
    sizes = collections.defaultdict(list)
    for source, image in read:
        same = sizes[image.shape]
        same.append((source, image))
        if len(same) == batch_size:
            yield sizes.pop(image.shape)
        elif sum(map(len, sizes.values())) >= AHEAD * batch_size:
            yield sizes.pop(max(sizes, key=lambda size: len(sizes[size])))
    yield from sizes.values()
