"""Runs an exported model on images, one by one or as a stream."""

import collections
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from scipy import ndimage
from tqdm import tqdm

from kmax_tf import visualize
from kmax_tf.data.datasets import Category, parse_categories
from kmax_tf.errors import InputError, first_line
from kmax_tf.files import check_literal, field, read_json
from kmax_tf.predict import image_sources, tiles

CATEGORIES = "categories.json"  # in an export, next to the SavedModel
AHEAD = 8  # images read ahead, and batches whose files are being written
TILES = 8  # of a batch; one at a time takes several times as long
MOST_PIXELS = 2**25  # of the images that wait, if there are several


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
    # int32 [decoders, height, width], the pixel's cluster; without a decoder for an image in tiles
    assignments: np.ndarray | None = None


class Segmenter:
    """An exported model that maps images to `Segmentation`s.

    Args:
        model: the loaded SavedModel.
        categories: its classes.
        cut: the size of its input (height, width) and the `Tiles` of larger images, or None.
    """

    def __init__(
        self,
        model: Any,
        categories: Sequence[Category],
        cut: tuple[Sequence[int], tiles.Tiles] | None = None,
    ):
        self._model, self._cut = model, cut
        self.categories = categories

    def __call__(self, image: Any, details: bool = False) -> Segmentation:
        """Predicts an image in any form that `image_sources.to_pixels` takes.

        Raises InputError if the file cannot be decoded or the image has another form.
        """
        return self.batch([image], details)[0]

    def in_tiles(self, image: np.ndarray) -> bool:
        """Returns whether an image, uint8 [height, width, 3], is predicted in several tiles."""
        if self._cut is None:
            return False
        size, options = self._cut
        return bool((options.scaled_size(image.shape[:2]).numpy() > size).any())

    def batch(
        self, images: Sequence, details: bool = False, tile_batch: int = TILES
    ) -> list[Segmentation]:
        """Predicts images of one size.

        Args:
            images: a sequence of images as `__call__` takes them, or uint8 [batch, height, width,
                1, 3 or 4].
            details: predict the optional fields of `Segmentation`.
            tile_batch: tiles that make a batch.

        Raises:
            InputError: `images` have other forms or different sizes, or there is none.
        """
        if not isinstance(images, (list, tuple)) and np.ndim(images) != 4:
            raise InputError("images: give a list of images, or [batch, height, width, channels]")
        pixels = [image_sources.to_pixels(image) for image in images]
        sizes = {image.shape for image in pixels}
        if len(sizes) != 1:
            raise InputError(f"images: {len(pixels)} of {len(sizes)} sizes; give images of one")
        if self.in_tiles(pixels[0]):
            return self._predict_tiles(pixels, details, tile_batch)
        signature = self._model.signatures["uint8_details" if details else "uint8"]
        output = signature(images=tf.constant(np.stack(pixels)))
        result = {name: value.numpy() for name, value in output.items()}
        columns = [result[name].tolist() for name in ("segment_id", *Segment._fields[1:])]
        more = [result[name] for name in ("confidence", "assignments")] if details else []
        return [
            Segmentation(panoptic_map, [Segment(*s) for s in zip(*lists) if s[0]], *others)
            for panoptic_map, lists, *others in zip(result["panoptic_map"], zip(*columns), *more)
        ]

    def _predict_tiles(self, images, details, batch_size):
        """Returns the `Segmentation` of each image, in batches of tiles."""

        def predict(canvases):
            panoptic, probability, *_ = self._model.predict(tf.constant(canvases))
            names = ("segment_map", "segment_class", "segment_score", "semantic_map")
            maps = {name: getattr(panoptic, name) for name in names}
            maps |= {"confidence": probability} if details else {}
            return lambda place: tiles.Segmented(**{k: m[place].numpy() for k, m in maps.items()})

        num_things = sum(category.isthing for category in self.categories)
        with ThreadPoolExecutor(1) as worker:
            rest = batch_size, num_things, worker
            return [
                self._listed(finish())
                for finish in tiles.segment(images, predict, *self._cut, *rest)
            ]

    def _listed(self, segmented):
        """Returns the `Segmentation` of a `Segmented`."""
        segments = []
        for i, (area, box) in measure(segmented.segment_map).items():
            category = self.categories[segmented.segment_class[i - 1]]
            score = float(segmented.segment_score[i - 1])
            segments.append(Segment(i, category.id, category.isthing, score, area, box))
        if segmented.confidence is None:
            return Segmentation(segmented.segment_map, segments)
        nothing = np.zeros([0, *segmented.segment_map.shape], np.int32)
        return Segmentation(segmented.segment_map, segments, segmented.confidence, nothing)


def measure(panoptic_map: np.ndarray) -> dict[int, tuple[int, list]]:
    """Returns {id: (area in pixels, box)} of a map, int32 [height, width], whose 0 is void.

    A box is left, top, width and height in pixels.
    """
    areas = np.bincount(panoptic_map.ravel()).tolist()
    places = enumerate(ndimage.find_objects(panoptic_map), start=1)
    return {
        i: (areas[i], [x.start, y.start, x.stop - x.start, y.stop - y.start])
        for i, (y, x) in ((i, place) for i, place in places if place)
    }


def _default_batch():
    return 8 if tf.config.list_physical_devices("GPU") else 1


def load(export_dir: str) -> Segmenter:
    """Loads an export; raises InputError if it is missing, corrupt or of an older version."""
    check_literal(export_dir)
    path = os.path.join(export_dir, CATEGORIES)
    content = read_json(path)
    categories, cut = parse_categories(content, path), _parse_tiles(content, path)
    try:
        model = tf.saved_model.load(export_dir)
    except (OSError, tf.errors.OpError) as error:
        reason = first_line(error)
        raise InputError(f"{export_dir}: cannot be read ({reason}); export it again") from error
    if "uint8_details" not in model.signatures:
        raise InputError(f"{export_dir}: is from an older version; export it again")
    return Segmenter(model, categories, cut)


def _parse_tiles(content, path):
    """Returns the size of a tile and the `Tiles` that a JSON file names; None if it names none."""
    if "tiles" not in content:
        return None
    entry, where = field(content, "tiles", dict, path), f"{path}: tiles"
    scale, overlap = field(entry, "scale", (int, float), where), field(entry, "overlap", int, where)
    return field(entry, "size", list, where), tiles.Tiles(scale, overlap)


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
        batch_size: images of one size, or tiles, that make a batch; by default 8 tiles, and 8
            images on a GPU, else 1.
        details: predict the optional fields of `Segmentation`.

    Returns:
        A list of (source, reason) of the skipped images.
    """
    tile_batch, batch_size = batch_size or TILES, batch_size or _default_batch()
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

        for batch in _batches(_read_ahead(reader, sources, skip), batch_size, segmenter.in_tiles):
            predicted = _predict_batch(segmenter, batch, details, tile_batch, skip)
            waiting += [workers.submit(finish, *one) for one in predicted]
            take(_most(AHEAD * batch_size, batch[0][1]))
        take(0)
    return skipped


def _most(most, image):
    """Returns how many images of this size may wait, at most `most`."""
    return max(1, min(most, MOST_PIXELS // (image.shape[0] * image.shape[1])))


def _predict_batch(segmenter, batch, details, tile_batch, skip):
    """Returns (source, image, `Segmentation`) of a batch; if it fails, skips all of its images."""
    try:
        results = segmenter.batch([image for _, image in batch], details, tile_batch)
    except tf.errors.OpError as error:  # for example out of memory
        for source, _ in batch:
            skip(source, InputError(f"{source.name}: {first_line(error)}"))
        return []
    return [(*one, result) for one, result in zip(batch, results, strict=True)]


def _read_ahead(reader, sources, skip):
    """Yields (source, image) in order; calls skip(source, error) for unreadable images."""
    reading = collections.deque()
    remaining, ahead = iter(sources), 1  # until the size of an image is known
    while True:
        for source in remaining:
            reading.append((source, reader.submit(source.read)))
            if len(reading) > ahead:
                break
        if not reading:
            return
        source, image = reading.popleft()
        try:
            pixels = image.result()
        except InputError as error:
            skip(source, error)
            continue
        ahead = _most(AHEAD, pixels)
        yield source, pixels


def _batches(read, batch_size, alone):
    """Yields lists of (source, image) of one size; images of rare sizes do not wait long.

    An image with alone(image) makes a list of its own.
    """
    sizes = collections.defaultdict(list)
    for source, image in read:
        if alone(image):
            yield [(source, image)]
            continue
        same = sizes[image.shape]
        same.append((source, image))
        if len(same) == batch_size:
            yield sizes.pop(image.shape)
        elif sum(map(len, sizes.values())) >= AHEAD * batch_size:
            yield sizes.pop(max(sizes, key=lambda size: len(sizes[size])))
    yield from sizes.values()
