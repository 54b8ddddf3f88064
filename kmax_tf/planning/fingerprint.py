"""The fingerprint of a dataset: the numbers that decide how to train on it.

As in nnU-Net (arXiv 1904.08128), the fingerprint of the training images plans the training.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf
from scipy import ndimage
from tqdm import tqdm

from kmax_tf.data.datasets import Dataset
from kmax_tf.data.records import reader
from kmax_tf.data.records.reader import Records

IMAGES = 400  # read for a fingerprint, evenly spread over the records
CROPS = 8  # random crops of each image, to count the segments of a crop


class Fingerprint(NamedTuple):
    """Statistics of a split; n images are read, with s segments that are not crowd."""

    num_images: int  # of the split
    num_things: int  # classes
    num_classes: int
    size: np.ndarray  # int64 [n, 2], height and width in pixels
    void: np.ndarray  # float64 [n], share of the pixels that are void or crowd
    record_bytes: int  # of the largest record that was read
    image: np.ndarray  # int64 [s], position of the segment's image among the n
    segment_class: np.ndarray  # int64 [s], class index
    area: np.ndarray  # int64 [s], pixels
    box: np.ndarray  # int64 [s, 4], top, left, bottom, right in pixels; the last two are outside

    @property
    def is_thing(self) -> np.ndarray:
        """Which segments are things: bool [s]."""
        return self.segment_class < self.num_things

    @property
    def longer_side(self) -> np.ndarray:
        """The longer side of each segment's box, in pixels: int64 [s]."""
        return (self.box[:, 2:] - self.box[:, :2]).max(axis=1)

    def segments_of_crops(self, side: float | None) -> np.ndarray:
        """Counts the segments of random crops, by their boxes; stuff of one class counts once.

        Args:
            side: of the crops, in pixels of the images; None: whole images.

        Returns:
            int64 [crops].
        """
        random = np.random.default_rng(0)
        counts = []
        for number, size in enumerate(self.size):
            mine = self.image == number
            box, classes, thing = self.box[mine], self.segment_class[mine], self.is_thing[mine]
            for _ in range(1 if side is None else CROPS):
                shown = np.ones(len(box), bool)
                if side is not None:
                    low = random.uniform(size=2) * np.maximum(size - side, 0)
                    shown = ((box[:, :2] < low + side) & (box[:, 2:] > low)).all(axis=1)
                stuff = len(np.unique(classes[shown & ~thing]))
                counts.append(int((shown & thing).sum()) + stuff)
        return np.array(counts)


def take(records: Records, dataset: Dataset) -> Fingerprint:
    """Reads the labels of up to `IMAGES` records.

    Raises InputError if a record is corrupt.
    """
    count = reader.count(records)
    every = -(-count // IMAGES)
    chosen = reader.serialized(records).shard(every, 0)

    @tf.autograph.experimental.do_not_convert
    def labels(record):
        example = records.parse(record)
        parts = example.segment_map, example.category_id, example.is_crowd
        return *parts, tf.strings.length(record)

    rows, sizes, largest = [], [], 0
    with reader.named_errors(records, "the records"):
        items = reader.decode_each(chosen, labels, large=True).as_numpy_iterator()
        bar = dict(total=-(-count // every), unit="image", leave=False, disable=None)
        for number, item in enumerate(tqdm(items, "labels", **bar)):
            segment_map, categories, crowd, length = item
            largest = max(largest, int(length))
            sizes.append(segment_map.shape)
            classes = [dataset.class_of_category[c] for c in categories.tolist()]
            rows += [(number, *row) for row in _segments(segment_map, classes, crowd)]
    table = np.array(rows, np.int64).reshape(-1, 7)
    learnt = np.bincount(table[:, 0], table[:, 2], len(sizes))
    return Fingerprint(
        num_images=count,
        num_things=dataset.num_things,
        num_classes=dataset.num_classes,
        size=np.array(sizes),
        void=1 - learnt / np.prod(sizes, axis=1),
        record_bytes=largest,
        image=table[:, 0],
        segment_class=table[:, 1],
        area=table[:, 2],
        box=table[:, 3:],
    )


def _segments(segment_map, classes, crowd):
    """Yields class index, area and box of each segment that has pixels and is not crowd."""
    areas = np.bincount(segment_map.ravel(), minlength=len(classes) + 1)[1:]
    places = ndimage.find_objects(segment_map, len(classes))
    for index, is_crowd, area, place in zip(classes, crowd, areas, places, strict=True):
        if place and not is_crowd:
            yield index, area, *(p.start for p in place), *(p.stop for p in place)
