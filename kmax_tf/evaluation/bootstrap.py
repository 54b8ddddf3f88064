"""The paired bootstrap: by how much a PQ difference of two runs could vary with the images.

Each resample draws the images with replacement, the same ones for both runs.
"""

import io
import zipfile
from typing import NamedTuple

import numpy as np
from scipy import stats

from kmax_tf.errors import InputError
from kmax_tf.files import read_bytes, write_atomic

COUNTS = ("iou_sum", "tp", "fp", "fn")


class ImageCounts(NamedTuple):
    """The counts that PQ is computed from; one row for each class in an image."""

    image_id: np.ndarray  # text [images]
    image: np.ndarray  # int32 [rows], index of the image
    segment_class: np.ndarray  # int32 [rows], class index
    counts: np.ndarray  # float64 [rows, 4], iou_sum, tp, fp, fn
    isthing: np.ndarray  # bool [classes]

    def sum(self) -> np.ndarray:
        """The sums over the images, float64 [classes, 4]."""
        total = np.zeros([len(self.isthing), len(COUNTS)])
        np.add.at(total, self.segment_class, self.counts)
        return total

    def dense(self) -> np.ndarray:
        """The counts with 0 for absent classes, float64 [images, classes, 4]."""
        counts = np.zeros([len(self.image_id), len(self.isthing), len(COUNTS)])
        counts[self.image, self.segment_class] = self.counts
        return counts


def write(path: str, image_counts: ImageCounts) -> None:
    """Writes the counts as a NumPy file (.npz), a few hundred bytes an image."""
    content = io.BytesIO()
    np.savez_compressed(content, **image_counts._asdict())
    write_atomic(path, content.getvalue())


def read(path: str) -> ImageCounts:
    """Reads what `write` wrote; InputError if the file is missing or corrupt."""
    try:
        with np.load(io.BytesIO(read_bytes(path))) as arrays:
            return ImageCounts(*(arrays[name] for name in ImageCounts._fields))
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read ({error}); evaluate again") from error


class Difference(NamedTuple):
    """PQ of b minus PQ of a, with its bootstrap interval; all fractions."""

    value: float
    low: float
    high: float


def compare(
    a: ImageCounts, b: ImageCounts, *, resamples: int = 2000, confidence: float = 0.95
) -> dict:
    """Compares two evaluations by the paired bootstrap over images (percentile method).

    Args:
        a, b: the counts of two evaluations of the same images.
        resamples: number of random draws of the images.
        confidence: of the interval, a fraction.

    Returns:
        {"All": `Difference`, "Things": ..., "Stuff": ...}, without the groups that have no class.

    Raises:
        InputError: the images or the classes differ.
    """
    if not np.array_equal(a.isthing, b.isthing):
        raise InputError("the runs have different classes; compare runs on one dataset")
    order_a, order_b = np.argsort(a.image_id), np.argsort(b.image_id)
    if not np.array_equal(a.image_id[order_a], b.image_id[order_b]):
        raise InputError("the runs have different images; evaluate both on one split")
    images, classes = len(a.image_id), len(a.isthing)
    flat = [x.dense()[order].reshape(images, -1) for x, order in ((a, order_a), (b, order_b))]
    groups = {"All": np.ones(classes, bool), "Things": a.isthing}
    groups["Stuff"] = ~groups["Things"]
    present = (flat[0] + flat[1]).sum(0).reshape(classes, -1).any(1)
    groups = {name: chosen for name, chosen in groups.items() if (chosen & present).any()}

    def differences(drawn, axis=-1):
        drawn = drawn.reshape(-1, images)
        times = np.stack([np.bincount(row, minlength=images) for row in drawn]).astype(np.float64)
        qualities = [_quality((times @ f).reshape(-1, classes, len(COUNTS))) for f in flat]
        return np.stack(
            [
                _mean(qualities[1][:, chosen]) - _mean(qualities[0][:, chosen])
                for chosen in groups.values()
            ]
        )

    if images < 2:
        raise InputError("the runs have one image; an interval needs at least 2")
    values = differences(np.arange(images))[:, 0]
    interval = stats.bootstrap(
        [np.arange(images)],
        differences,
        n_resamples=resamples,
        batch=100,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(0),
        vectorized=True,
    ).confidence_interval
    return {
        name: Difference(*map(float, numbers))
        for name, *numbers in zip(groups, values, interval.low, interval.high)
    }


def _quality(counts):
    """PQ [draws, classes] of counts [draws, classes, 4]; NaN for an absent class."""
    iou_sum, tp, fp, fn = np.moveaxis(counts, -1, 0)
    size = tp + fp / 2 + fn / 2
    return np.divide(iou_sum, size, out=np.full_like(size, np.nan), where=size > 0)


def _mean(quality):
    """The mean over the classes of a draw; 0 without classes."""
    number = np.isfinite(quality).sum(1)
    return np.nansum(quality, axis=1) / np.maximum(number, 1)
