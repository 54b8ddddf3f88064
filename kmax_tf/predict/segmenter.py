"""Prediction with an exported model, without any of the model's code.

from kmax_tf import predict
segmenter = predict.load("runs/demo/export")
result = segmenter("photo.jpg")
"""

import collections
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from kmax_tf.data.datasets import Category, parse_categories
from kmax_tf.errors import InputError, first_line
from kmax_tf.files import read_json
from kmax_tf.predict import image_sources

CATEGORIES = "categories.json"  # in an export, beside the SavedModel
AHEAD = 8  # images read before the device needs them, and batches that wait for their pictures


class Segment(NamedTuple):
    """One segment of a panoptic map."""

    id: int  # on the map
    category_id: int
    isthing: bool
    score: float  # probability of its class times that of its mask
    area: int  # pixels
    box: list  # left, top, width, height in pixels


class Segmentation(NamedTuple):
    """The prediction of one image, at its size; the last two only where details are asked for."""

    panoptic_map: np.ndarray  # int32 [height, width], 0 void, else the id of a segment
    segments: list  # of `Segment`
    confidence: np.ndarray | None = None  # float32 [height, width], of the pixel's likeliest mask
    assignments: np.ndarray | None = None  # int32 [decoders, height, width], the pixel's cluster


class Segmenter:
    """An exported model: images in, `Segmentation`s out; it knows its `categories`."""

    def __init__(self, signatures: Any, categories: Sequence[Category]):
        self._signatures = signatures
        self.categories = categories

    def __call__(self, image: str | np.ndarray, details: bool = False) -> Segmentation:
        """The `Segmentation` of a path, or of uint8 [height, width, 3].

        Raises InputError for a file that cannot be decoded.
        """
        image = image_sources.read_image(image) if isinstance(image, str) else image
        return self.batch(image[None], details)[0]

    def batch(self, stacked: np.ndarray, details: bool = False) -> list[Segmentation]:
        """The `Segmentation`s of images of one size, uint8 [batch, height, width, 3]."""
        signature = self._signatures["uint8_details" if details else "uint8"]
        result = {k: v.numpy() for k, v in signature(images=tf.constant(stacked, tf.uint8)).items()}
        columns = [result[name].tolist() for name in ("segment_id", *Segment._fields[1:])]
        more = [result[name] for name in ("confidence", "assignments")] if details else []
        return [
            Segmentation(panoptic_map, [Segment(*s) for s in zip(*lists) if s[0]], *others)
            for panoptic_map, lists, *others in zip(result["panoptic_map"], zip(*columns), *more)
        ]


def load(export_dir: str) -> Segmenter:
    """The `Segmenter` of an export; InputError if there is none, or a corrupt or older one."""
    path = os.path.join(export_dir, CATEGORIES)
    categories = parse_categories(read_json(path), path)
    try:
        signatures = tf.saved_model.load(export_dir).signatures
    except (OSError, tf.errors.OpError) as error:
        reason = first_line(error)
        raise InputError(f"{export_dir}: cannot be read ({reason}); export again") from error
    if "uint8_details" not in signatures:
        raise InputError(f"{export_dir}: of an older version; export again")
    return Segmenter(signatures, categories)


def predict(
    segmenter: Segmenter,
    sources: Sequence[image_sources.Source],
    finish: Callable,
    *,
    batch_size: int | None = None,
    details: bool = False,
) -> list:
    """Predicts images and hands each to finish(source, image uint8, `Segmentation`).

    While the device predicts, one thread reads what comes after, and others call `finish`. Images
    of one size make a batch, of 8 on a GPU and of 1 without if `batch_size` is not given. A
    progress bar shows where it is.
    Returns (source, reason) of the images that were skipped.
    """
    batch_size = batch_size or (8 if tf.config.list_physical_devices("GPU") else 1)
    skipped = []
    with (
        ThreadPoolExecutor(1) as reader,  # one, so that frames of a video are read in their order
        ThreadPoolExecutor(os.cpu_count()) as workers,
        tqdm(total=len(sources), desc="predicting", unit="image") as bar,
    ):

        def skip(source, error):
            skipped.append((source, error))
            tqdm.write(f"skipped: {error}")
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
    """(source, image, `Segmentation`) of a batch of (source, image), or none, and all skipped."""
    try:
        results = segmenter.batch(np.stack([image for _, image in batch]), details)
    except tf.errors.OpError as error:  # such as of memory
        for source, _ in batch:
            skip(source, InputError(f"{source.name}: {first_line(error)}"))
        return []
    return [(*one, result) for one, result in zip(batch, results, strict=True)]


def _read_ahead(reader, sources, skip):
    """Yields (source, image), in order; calls skip(source, error) for those that are no image."""
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
    """Lists of (source, image) of one size; images of rare sizes do not wait for long."""
    sizes = collections.defaultdict(list)
    for source, image in read:
        same = sizes[image.shape]
        same.append((source, image))
        if len(same) == batch_size:
            yield sizes.pop(image.shape)
        elif sum(map(len, sizes.values())) >= AHEAD * batch_size:
            yield sizes.pop(max(sizes, key=lambda size: len(sizes[size])))
    yield from sizes.values()
