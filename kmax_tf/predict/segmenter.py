"""Runs an exported model on images, one by one or as a stream."""

import collections
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, overload

import numpy as np
import tensorflow as tf
from PIL import Image
from tqdm import tqdm

from kmax_tf import host, visualize
from kmax_tf.data.datasets import Category, parse_categories
from kmax_tf.errors import InputError, first_line
from kmax_tf.files import check_literal, expanded, field, read_json
from kmax_tf.predict import image_sources, output_files, tiles
from kmax_tf.predict.segmentation import Segment, Segmentation, measure

CATEGORIES = "categories.json"  # in an export, next to the SavedModel
AHEAD = 8  # images read ahead, and batches whose files are being written
TILES = 8  # of a batch; one at a time takes several times as long
MOST_PIXELS = 2**25  # of the images that wait, if there are several
MERGING = 13  # bytes of a pixel and a mask at the peak of merging, measured: 3.3 float32 tensors
ASSIGNING = 12  # bytes of a pixel and a decoder at the peak of the details, measured: 3 int32 maps
AnImage = str | os.PathLike | Image.Image | np.ndarray  # as `image_sources.to_pixels` takes it


class Segmenter:
    """An exported model that maps images to `Segmentation`s.

    Attributes:
        categories: the classes, each with id, name, isthing and color (r, g, b).
    """

    def __init__(
        self,
        model: Any,
        categories: Sequence[Category],
        cut: tuple[Sequence[int], tiles.Tiles] | None = None,
        merged_clusters: int = 0,
    ):
        """Wraps a loaded SavedModel.

        Args:
            model: the SavedModel.
            categories: its classes.
            cut: the size of its input (height, width) and the `Tiles` of larger images, or None.
            merged_clusters: how many it merges at the size of the image, 0 if at another.
        """
        self._model, self._cut, self._merged_clusters = model, cut, merged_clusters
        self._most = sys.maxsize  # images or tiles that fit into memory together
        self.categories = categories

    @overload
    def predict(self, images: AnImage, details: bool = False) -> Segmentation: ...

    @overload
    def predict(
        self, images: list | tuple | Iterator, details: bool = False
    ) -> list[Segmentation]: ...

    def predict(self, images: Any, details: bool = False) -> Segmentation | list[Segmentation]:
        """Segments one image, or each image of a list.

        Args:
            images: an image, or a list, tuple or iterator of images of any sizes. An image is
              - the path of a file, as a string or of pathlib, on a disk or on gs://;
              - an image of Pillow;
              - uint8 [height, width] or [height, width, 1, 3 or 4], in the order red, green, blue,
                alpha. Alpha is dropped.
            details: also predict `confidence` and `assignments`.

        Returns:
            A `Segmentation`, or a list of them in the order of `images`.

        Raises:
            InputError: a file cannot be decoded, an image has another form, or its masks would
                not fit into memory.
        """
        if not isinstance(images, (list, tuple, Iterator)):
            return self.batch([image_sources.to_pixels(images)], details)[0]
        results: dict[int, Segmentation] = {}
        pixels = enumerate(map(image_sources.to_pixels, images))
        for batch in _batches(pixels, _default_batch(), self.in_tiles):
            numbers, same_size = zip(*batch)
            results |= zip(numbers, self.batch(same_size, details))
        return [results[number] for number in sorted(results)]

    __call__ = predict

    def predict_to_coco(self, images: Any, out: str | os.PathLike) -> None:
        """Segments files and writes the results, as `kmax predict` does.

        It writes `predictions.json` and `predictions/` in COCO panoptic format, `overlays/` and
        `contact_sheet.png`. It prints how many images were done, and names each that was skipped.

        Args:
            images: an image, a video, a folder of images or a glob; or a list of them. Paths are
                strings or of pathlib.
            out: folder for the results. What an earlier call wrote there is removed first.

        Raises:
            InputError: a path is missing, or an entry is no path. A file of yours is at the place
                of a result. No image can be predicted.
        """
        paths = images if isinstance(images, (list, tuple)) else [images]
        if not all(isinstance(path, (str, os.PathLike)) for path in paths):
            raise InputError("images: give paths of images, videos or folders, or globs")
        out, given = expanded(out), list(map(expanded, paths))
        _, sources = image_sources.find(given, output_files.earlier(out))
        write_predictions(self, sources, out)

    def in_tiles(self, image: np.ndarray) -> bool:
        """Returns whether an image, uint8 [height, width, 3], is predicted in several tiles."""
        if self._cut is None:
            return False
        size, options = self._cut
        return bool((options.scaled_size(image.shape[:2]).numpy() > size).any())

    def batch(
        self, images: Sequence[np.ndarray], details: bool = False, tile_batch: int = TILES
    ) -> list[Segmentation]:
        """Predicts uint8 images of one size [height, width, 3]; `tile_batch` tiles make a batch.

        What does not fit into memory together is predicted in halves, now and later.
        """
        in_tiles = self.in_tiles(images[0])
        together = min(self._most, tile_batch if in_tiles else len(images))
        try:
            if in_tiles:
                return self._predict_tiles(images, details, together)
            parts = [images[i : i + together] for i in range(0, len(images), together)]
            return [result for part in parts for result in self._predict_whole(part, details)]
        except tf.errors.ResourceExhaustedError as error:
            if together == 1:
                raise
            self._most = together // 2
            what = f"{together} {'tiles' if in_tiles else 'images'} at once do not fit into memory"
            remedy = f"{self._most} at once from now on; --batch_size={self._most} begins so"
            tqdm.write(f"{what} ({reason(error)}): {remedy}")
        return self.batch(images, details, tile_batch)

    def _predict_whole(self, images, details):
        """Returns the `Segmentation` of each image, in one batch."""
        self._check_memory(images[0], details)
        signature = self._model.signatures["uint8_details" if details else "uint8"]
        output = signature(images=tf.constant(np.stack(images)))
        result = {name: value.numpy() for name, value in output.items()}
        columns = [result[name].tolist() for name in ("segment_id", *Segment._fields[1:])]
        more = [result[name] for name in ("confidence", "assignments")] if details else []
        segments = [[Segment(*s) for s in zip(*lists) if s[0]] for lists in zip(*columns)]
        return [
            Segmentation(panoptic_map, listed, image, self.categories, *others)
            for panoptic_map, listed, image, *others in zip(
                result["panoptic_map"], segments, images, *more
            )
        ]

    def _check_memory(self, image, details):
        """Raises InputError if the system would end this process for the memory of an image."""
        (height, width, _), of_pixel = image.shape, self._merged_clusters * MERGING
        if details:
            outputs = self._model.signatures["uint8_details"].structured_outputs
            of_pixel += outputs["assignments"].shape[1] * ASSIGNING
        needed, free = height * width * of_pixel, host.free_memory()
        if needed > free and not tf.config.list_physical_devices("GPU"):
            raise InputError(
                f"{width} x {height} pixels need {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are"
                " free; scale it down"
            )

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
            found = tiles.segment(images, predict, *self._cut, *rest)
            return [self._listed(finish(), image) for finish, image in zip(found, images)]

    def _listed(self, segmented, image):
        """Returns the `Segmentation` of an image's `Segmented`."""
        segments = []
        for i, (area, box) in measure(segmented.segment_map).items():
            category = self.categories[segmented.segment_class[i - 1]]
            score = float(segmented.segment_score[i - 1])
            segments.append(Segment(i, category.id, category.isthing, score, area, box))
        result = Segmentation(segmented.segment_map, segments, image, self.categories)
        if segmented.confidence is None:
            return result
        nothing = np.zeros([0, *segmented.segment_map.shape], np.int32)
        return result._replace(confidence=segmented.confidence, assignments=nothing)


def _default_batch():
    return 8 if tf.config.list_physical_devices("GPU") else 1


def reason(error: Exception) -> str:
    """Returns the line of an error that says what failed; TensorFlow may put a trace before it."""
    trace = r"Graph execution error:|Detected at node |<stack traces|  File |    |\d+ root error|$"
    lines = str(error).split("\n")
    return next((line.strip() for line in lines if not re.match(trace, line)), lines[0])


def load(export_dir: str) -> Segmenter:
    """Loads an export; raises InputError if it is missing, corrupt or of an older version."""
    check_literal(export_dir)
    path = os.path.join(export_dir, CATEGORIES)
    if tf.io.gfile.exists(os.path.join(export_dir, "config.gin")) and not tf.io.gfile.exists(path):
        raise InputError(
            f"{export_dir}: is a run, no export; give {os.path.join(export_dir, 'best/export')}, or"
            " export it with kmax export"
        )
    content = read_json(path)
    categories, cut = parse_categories(content, path), _parse_tiles(content, path)
    try:
        model = tf.saved_model.load(export_dir)
    except (OSError, tf.errors.OpError) as error:
        reason = first_line(error)
        raise InputError(f"{export_dir}: cannot be read ({reason}); export it again") from error
    if "uint8_details" not in model.signatures:
        raise InputError(f"{export_dir}: is from an older version; export it again")
    merged_clusters = field({"merged_clusters": 0} | content, "merged_clusters", int, path)
    return Segmenter(model, categories, cut, merged_clusters)


def _parse_tiles(content, path):
    """Returns the size of a tile and the `Tiles` that a JSON file names; None if it names none."""
    if "tiles" not in content:
        return None
    entry, where = field(content, "tiles", dict, path), f"{path}: tiles"
    scale, overlap = field(entry, "scale", (int, float), where), field(entry, "overlap", int, where)
    return field(entry, "size", list, where), tiles.Tiles(scale, overlap)


def write_predictions(
    segmenter: Segmenter,
    sources: Sequence[image_sources.Source],
    out: str,
    *,
    batch_size: int | None = None,
    **options: Any,
) -> None:
    """Predicts images, writes the files of `OutputFiles` into a folder, and prints the count.

    Args:
        batch_size: as in `predict_sources`.
        options: the optional arguments of `OutputFiles`.

    Raises:
        InputError: no image can be predicted, or as `OutputFiles` does.
    """
    files = output_files.OutputFiles(out, segmenter.categories, sources, **options)
    skipped = predict_sources(
        segmenter, sources, files.add, batch_size=batch_size, details=files.needs_details
    )
    if len(skipped) == len(sources):
        raise InputError(f"none of {len(sources)} images could be predicted")
    files.finish()
    print(f"{len(sources) - len(skipped)} images, {len(skipped)} skipped: see {out}")


def predict_sources(
    segmenter: Segmenter,
    sources: Sequence[image_sources.Source],
    finish: Callable,
    *,
    batch_size: int | None = None,
    details: bool = False,
) -> list:
    """Predicts images and passes each to finish(source, `Segmentation`).

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
        ThreadPoolExecutor(host.cores()) as workers,
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
    """Returns (source, `Segmentation`) of a batch; if it fails, skips all of its images."""
    sources, images = zip(*batch)
    try:
        results = segmenter.batch(images, details, tile_batch)
    except (InputError, tf.errors.OpError) as error:  # for example out of memory
        for source in sources:
            skip(source, InputError(f"{source.name}: {reason(error)}"))
        return []
    return list(zip(sources, results, strict=True))


def _read_ahead(reader, sources, skip):
    """Yields (source, image) in order; calls skip(source, error) for unreadable images."""
    reading = collections.deque()
    remaining, ahead = iter(sources), 1  # until the size of an image is known
    while True:
        while len(reading) <= ahead and (source := next(remaining, None)):
            reading.append((source, reader.submit(source.read)))
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
            continue
        while _are_too_many(sizes, AHEAD * batch_size):
            yield sizes.pop(max(sizes, key=lambda size: len(sizes[size])))
    yield from sizes.values()


def _are_too_many(sizes, most):
    """Returns whether the waiting images, {size: images}, are `most`, or over `MOST_PIXELS`."""
    pixels = sum(len(images) * size[0] * size[1] for size, images in sizes.items())
    return pixels > MOST_PIXELS or sum(map(len, sizes.values())) >= most
