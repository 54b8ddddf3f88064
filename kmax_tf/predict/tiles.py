"""Cuts large images into tiles of the model's size, and stitches the segments of the tiles.

Neighboring tiles share a strip. Things of both tiles that cover each other there become one. A
thing that crosses the strip is split in its middle. Any other thing in the strip is seen whole by
the tile that it is nearer to, and is taken from that tile.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from scipy import ndimage

from kmax_tf.data.transforms import geometry, host
from kmax_tf.errors import InputError

BAND = 256  # rows that are numbered together, for their memory


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How an image that is larger than the model's input is predicted: at its own scale, in tiles.

    Args:
        scale: of the image before it is cut.
        overlap: least pixels of the scaled image that neighboring tiles share. A thing that is
            smaller is whole in one tile.

    Raises:
        InputError: a value is out of its range.
    """

    scale: float = 1.0
    overlap: int = 32

    def __post_init__(self):
        if not 0 < self.scale < math.inf:
            raise InputError(f"Tiles.scale {self.scale} is not above 0; bind it to 1.0 or 2.0")
        if not (isinstance(self.overlap, int) and self.overlap >= 1):
            raise InputError(
                f"Tiles.overlap {self.overlap} is not a positive integer; bind it to 32"
            )

    def check(self, size: Sequence[int]) -> None:
        """Raises InputError if tiles of `size` (height, width) are not larger than the overlap."""
        if self.overlap >= min(size):
            raise InputError(
                f"Tiles.overlap {self.overlap} is not smaller than the tile, {size[0]} x {size[1]}"
                " pixels of Experiment.evaluation_size; bind it to less"
            )

    def scaled_size(self, size: tf.Tensor) -> tf.Tensor:
        """Computes the size of the scaled image; both are int32 [2], (height, width) in pixels."""
        scaled = tf.round(tf.cast(size, tf.float32) * self.scale)
        return tf.maximum(tf.cast(scaled, tf.int32), 1)


class Segmented(NamedTuple):
    """The segments of one tile or one image, as NumPy arrays."""

    segment_map: np.ndarray  # int32 [height, width], 0 void, k the k-th segment
    segment_class: np.ndarray  # int32 [segments], class index, -1 for no segment
    segment_score: np.ndarray  # float32 [segments], 0 to 1
    semantic_map: np.ndarray  # integers [height, width], class index, without void
    confidence: np.ndarray | None = None  # float32 [height, width], of the pixel's likeliest mask
    assignments: Sequence = ()  # int32 [height, width] of each decoder; () for several tiles


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Places tiles evenly along a side, from its first pixel to its last.

    Args:
        length, tile: of the side and of a tile, in pixels.
        overlap: least pixels that neighbors share.

    Returns:
        The first pixel of each tile, ascending; [0] if one tile holds the side.
    """
    last = max(length - tile, 0)
    steps = max(-(-last // (tile - overlap)), 1)
    return sorted({i * last // steps for i in range(steps + 1)})


class Stitcher:
    """Stitches the tiles of one image: first to rows, then the rows to the image.

    Its memory is that of the maps of the scaled image and of a row. A tile adds a few numbers for
    each of its segments. A single tile stays as it is.

    Args:
        image_size: height and width of the scaled image, in pixels.
        tile_size: height and width of a tile.
        overlap: least pixels that neighboring tiles share.
        num_things: classes below it are things.
    """

    def __init__(
        self, image_size: Sequence[int], tile_size: Sequence[int], overlap: int, num_things: int
    ):
        self._size, self._num_things = tuple(image_size), num_things
        self._shape = tuple(map(min, image_size, tile_size))  # of a tile, without its padding
        sides = [starts(*side, overlap) for side in zip(image_size, tile_size, strict=True)]
        self.corners = list(itertools.product(*sides))
        self._waiting = iter(self.corners)
        self._shared = [  # by a tile's start, the pixels that it shares with the one before
            dict(zip(side[1:], (a + tile - b for a, b in itertools.pairwise(side)), strict=True))
            for side, tile in zip(sides, tile_size, strict=True)
        ]
        self._single: Segmented | None = None
        self._image = self._row = _Maps()
        # Every segment of every tile has a label, and each label a root: one for a whole segment.
        self._root, self._class = np.zeros(1, np.int32), np.full(1, -1, np.int32)
        self._score = np.zeros(1, np.float32)
        self._stuff: dict[int, int] = {}  # class -> root

    def add(self, tile: Segmented) -> None:
        """Adds the next tile; tiles come in the order of `corners`, row by row."""
        (top, left), (height, width) = next(self._waiting), self._shape
        if len(self.corners) == 1:
            self._single = tile
            return
        segment_map, semantic, confidence = (
            m if m is None else m[:height, :width]
            for m in (tile.segment_map, tile.semantic_map, tile.confidence)
        )
        maps = _Maps(self._label(tile)[segment_map], semantic, confidence)
        if left == 0:
            self._row = maps.empty((height, self._size[1]))
        self._paste(self._row, maps, left, axis=1)
        if left + width == self._size[1]:
            if top == 0:
                self._image = maps.empty(self._size)
            self._paste(self._image, self._row, top, axis=0)

    def finish(self, original_size: Sequence[int]) -> Segmented:
        """Returns the segments of the whole image at its original size (height, width).

        Segments of several tiles are numbered from 1 without gaps. Their scores are means over
        their pixels.
        """
        maps = self._image
        if single := self._single:
            maps = _Maps(single.segment_map, single.semantic_map, single.confidence)
        labels, semantic, confidence = maps.restored(self._size, original_size)
        if single:
            restored = dict(segment_map=labels, semantic_map=semantic, confidence=confidence)
            return single._replace(**restored)
        self._image = self._row = _Maps()  # frees their memory
        bands = [labels[start : start + BAND] for start in range(0, len(labels), BAND)]
        area = np.sum([np.bincount(b.ravel(), minlength=len(self._root)) for b in bands], axis=0)
        area[0] = 0
        roots = np.unique(self._root[area > 0])
        number = np.zeros(len(self._root), np.int32)
        number[roots] = np.arange(1, len(roots) + 1)
        for band in bands:
            band[:] = number[self._root[band]]
        total, score = (np.bincount(self._root, w)[roots] for w in (area, area * self._score))
        score = (score / total).astype(np.float32)
        return Segmented(labels, self._class[roots], score, semantic, confidence)

    def _label(self, tile):
        """Makes a label for each segment of a tile; returns int32 [segments + 1], 0 for void."""
        classes = np.asarray(tile.segment_class)
        segments = np.flatnonzero(classes >= 0)
        labels = np.arange(len(self._root), len(self._root) + len(segments), dtype=np.int32)
        roots = labels.copy()
        for i, c in enumerate(classes[segments].tolist()):
            if c >= self._num_things:
                roots[i] = self._stuff.setdefault(c, roots[i])
        self._root = np.append(self._root, roots)
        self._class = np.append(self._class, classes[segments])
        self._score = np.append(self._score, np.asarray(tile.segment_score)[segments])
        table = np.zeros(len(classes) + 1, np.int32)
        table[segments + 1] = labels
        return table

    def _paste(self, canvas, part, start, axis):
        """Pastes a part into the canvas, from `start` along `axis`, and joins what they share."""

        def cut(values, *ends):
            return values[(slice(None),) * axis + (slice(*ends),)]

        there = [
            values if values is None else cut(values, start, start + self._shape[axis])
            for values in canvas
        ]
        labels, taken = part.labels, np.ones(part.labels.shape, bool)
        if shared := self._shared[axis].get(start):
            strips = cut(there[0], shared), cut(labels, shared)
            cut(labels, shared)[:], cut(taken, shared)[:] = self._join(*strips, axis)
        there[0][:] = labels
        for values, own in zip(there[1:], part[1:], strict=True):
            if values is not None:
                np.copyto(values, own, "unsafe", taken)

    def _join(self, old, new, axis):
        """Joins the strip that a tile shares with what is there.

        Args:
            old, new: labels, int32 [height, width], of what is there and of the tile.
            axis: across the strip, from what is there to the tile.

        Returns:
            The labels of the strip, and bool [height, width], the pixels that come from the tile.
        """
        width = old.shape[axis]
        sides = [self._things(labels, axis) for labels in (old, new)]
        self._unite(*sides, width)
        first, last = np.full(len(self._root), width), np.zeros(len(self._root), int)
        for side in sides:
            np.minimum.at(first, self._root[side.roots], side.first)
            np.maximum.at(last, self._root[side.roots], side.last)
        near = np.expand_dims(2 * np.arange(width) < width, 1 - axis)  # nearer to what is there
        crosses = (first == 0) & (last == width)
        ranks = []  # of a pixel's segment: 0 a thing of the other tile, 1 stuff or void, 2 a thing
        for side, half, own in zip(
            sides, (near, ~near), (first + last < width, first + last >= width), strict=True
        ):
            roots = self._root[side.roots]
            whole = np.append(1, 2 * own[roots]).astype(np.uint8)[side.numbers]
            split = np.append(False, crosses[roots])[side.numbers]
            ranks.append(np.where(split, 2 * half.astype(np.uint8), whole))
        taken = np.where(ranks[0] == ranks[1], ~near, ranks[1] > ranks[0])
        labels = np.where(taken, new, old)
        labels[np.maximum(*ranks) == 0] = 0
        return labels, taken

    def _things(self, labels, axis):
        """Lists the things in a strip of labels as `_Things`."""
        labels = self._root[labels]
        there = np.flatnonzero(np.bincount(labels.ravel(), minlength=len(self._root)))
        roots = there[(self._class[there] >= 0) & (self._class[there] < self._num_things)]
        table = np.zeros(len(self._root), np.int32)
        table[roots] = np.arange(1, len(roots) + 1)
        numbers = table[labels]
        sides = [place[axis] for place in ndimage.find_objects(numbers, len(roots))]
        extent = np.array([(side.start, side.stop) for side in sides], int).reshape(-1, 2)
        return _Things(roots, numbers, *extent.T)

    def _unite(self, old, new, width):
        """Gives one root to things of both sides that cover each other.

        Two things are one if they share more than half of their union, or of a part that the border
        of its tile cuts off.
        """
        n, m = len(old.roots) + 1, len(new.roots) + 1
        pixels = np.bincount((old.numbers * m + new.numbers).ravel(), minlength=n * m).reshape(n, m)
        common, area, other = pixels[1:, 1:], pixels[1:].sum(1)[:, None], pixels[:, 1:].sum(0)
        cut = np.where(old.last == width, area[:, 0], np.inf)[:, None]
        other_cut = np.where(new.first == 0, other, np.inf)
        whole = np.minimum(area + other - common, np.minimum(cut, other_cut))
        same_class = self._class[old.roots][:, None] == self._class[new.roots]
        for i, j in np.argwhere(same_class & (2 * common > whole)):
            kept, gone = sorted(self._root[[old.roots[i], new.roots[j]]])
            self._root[self._root == gone] = kept


class _Maps(NamedTuple):
    """The maps of a tile, a row or an image."""

    labels: np.ndarray | None = None  # int32 [height, width], 0 void
    semantic: np.ndarray | None = None  # integers [height, width], class index
    confidence: np.ndarray | None = None  # float32 [height, width]

    def empty(self, size):
        """Maps of another size, with few bytes a pixel; those that are None stay so."""
        types = (np.int32, np.uint16, np.float32)
        return _Maps(*(m if m is None else np.zeros(size, t) for m, t in zip(self, types)))

    def restored(self, size, original_size):
        """The maps without padding, of `size`, at the original size as by `to_original_size`."""
        if self.labels.shape == tuple(size) == tuple(original_size):
            return self
        with tf.device("/cpu:0"):  # of the indices, as a copy of a map may be large
            rows, columns = (
                host.to_original_size(np.arange(side)[None], [1, side], [1, original])[0].numpy()
                for side, original in zip(size, original_size, strict=True)
            )
        return _Maps(*(m if m is None else m[np.ix_(rows, columns)] for m in self))


class _Things(NamedTuple):
    """The things on one side of a strip."""

    roots: np.ndarray  # integers [things]
    numbers: np.ndarray  # int32 [height, width], 0 no thing, k the k-th
    first: np.ndarray  # integers [things], the first place of each across the strip
    last: np.ndarray  # integers [things], the place after its last


def segment(
    images: Iterable[np.ndarray],
    predict: Callable,
    size: Sequence[int],
    tiles: Tiles,
    batch_size: int,
    num_things: int,
    workers: Executor,
) -> Iterator[Callable[[], Segmented]]:
    """Segments images of any sizes in tiles, which share batches.

    Args:
        images: uint8 [height, width, 3] each.
        predict: a function of canvases, float32 [batch_size, *size, 3], 0 to 255; the last ones
            may be padding. It returns a function: place of a canvas in the batch -> `Segmented`.
        size: height and width of a tile.
        num_things: classes below it are things.
        workers: stitch while the device predicts.

    Yields:
        For each image in order a function that waits for its `Segmented`.
    """
    pieces, stitching = _cut_all(images, size, tiles, num_things), None
    while batch := list(itertools.islice(pieces, batch_size)):
        canvases = np.zeros([batch_size, *size, 3], np.float32)
        canvases[: len(batch)] = [canvas for _, canvas, _ in batch]
        output = predict(canvases)
        if stitching:
            stitching.result()  # few outputs wait in memory
        stitching = workers.submit(_stitch, [stitcher for stitcher, *_ in batch], output)
        for stitcher, _, finished in batch:
            if finished:
                yield functools.partial(_finish, stitching, stitcher, finished)


def _cut_all(images, size, tiles, num_things):
    """Yields (stitcher, canvas, original size with the last tile) of each tile of each image."""
    for image in images:
        shape = image.shape[:2]
        scaled = tiles.scaled_size(shape).numpy().tolist()
        stitcher = Stitcher(scaled, size, tiles.overlap, num_things)
        for corner in stitcher.corners:
            last = corner == stitcher.corners[-1]
            yield stitcher, cut(image, scaled, corner, size), shape if last else None


def _stitch(stitchers, output):
    for place, stitcher in enumerate(stitchers):
        stitcher.add(output(place))


def _finish(stitching, stitcher, original_size):
    stitching.result()
    return stitcher.finish(original_size)


def cut(
    image: np.ndarray, scaled: Sequence[int], corner: Sequence[int], size: Sequence[int]
) -> np.ndarray:
    """Cuts a tile out of a scaled image, without the rest of that image.

    Args:
        image: uint8 [height, width, 3].
        scaled: its scaled size (height, width), as by `host.resize_image`.
        corner: row and column of the tile's first pixel in the scaled image.
        size: height and width of the tile.

    Returns:
        float32 [*size, 3], padded at the bottom and the right as by `host.pad`.
    """
    sides = zip(corner, size, scaled, image.shape[:2], strict=True)
    (top, bottom, down), (left, right, across) = (_neighbors(*side) for side in sides)
    rows = image[top[0] : bottom[-1] + 1]
    part, other = (rows[:, side].astype(np.float32) for side in (left, right))
    part += (other - part) * across[:, None]
    part, other = part[top - top[0]], part[bottom - top[0]]
    part += (other - part) * down[:, None, None]
    canvas = np.full([*size, 3], geometry.GRAY, np.float32)
    canvas[: part.shape[0], : part.shape[1]] = part
    return canvas


def _neighbors(first, length, scaled, original):
    """Finds, for the pixels of a tile's side, their two neighbors in the image.

    Returns integers [n], the pixels before and after, and float32 [n], the weight of the latter.
    """
    step = np.float32(original - 1) / np.float32(max(scaled - 1, 1))
    place = np.arange(first, min(first + length, scaled), dtype=np.float32) * step
    before = place.astype(int)
    return before, np.minimum(before + 1, original - 1), place - before.astype(np.float32)
