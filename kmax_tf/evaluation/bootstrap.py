"""What each image adds to panoptic quality, kept so that two evaluations can be compared.

A difference of two runs is a number with noise: other images would give another one. Drawing the
images anew with replacement, the same for both runs, shows by how much (the paired bootstrap).
"""

import io
import zipfile
from typing import NamedTuple

import numpy as np
from scipy import stats

from kmax_tf.errors import InputError
from kmax_tf.files import read_bytes, write_atomic

COUNTS = ("iou_sum", "tp", "fp", "fn")


class Statistics(NamedTuple):
    """The counts of every class in every image; a row is a class that occurs in an image."""

    image_id: np.ndarray  # text [images]
    image: np.ndarray  # int32 [rows], index of the image
    segment_class: np.ndarray  # int32 [rows], class index
    counts: np.ndarray  # float64 [rows, 4], iou_sum, tp, fp, fn
    isthing: np.ndarray  # bool [classes]

    def sum(self) -> np.ndarray:
        """The counts of the dataset, float64 [classes, 4]."""
        total = np.zeros([len(self.isthing), len(COUNTS)])
        np.add.at(total, self.segment_class, self.counts)
        return total

    def dense(self) -> np.ndarray:
        """float64 [images, classes, 4]."""
        counts = np.zeros([len(self.image_id), len(self.isthing), len(COUNTS)])
        counts[self.image, self.segment_class] = self.counts
        return counts


def write(path: str, statistics: Statistics) -> None:
    """Writes them as a NumPy file, a few hundred bytes an image."""
    content = io.BytesIO()
    np.savez_compressed(content, **statistics._asdict())
    write_atomic(path, content.getvalue())


def read(path: str) -> Statistics:
    """Reads them back; InputError if the file is missing or corrupt."""
    try:
        with np.load(io.BytesIO(read_bytes(path))) as arrays:
            return Statistics(*(arrays[name] for name in Statistics._fields))
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read ({error}); evaluate again") from error


class Difference(NamedTuple):
    """PQ of b less PQ of a, and the interval that holds it for other images; fractions."""

    value: float
    low: float
    high: float


def compare(
    a: Statistics, b: Statistics, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> dict:
    """The paired bootstrap over images, percentile method.

    Args:
        a, b: two evaluations of the same images.

    Returns:
        {"All": `Difference`, "Things": ..., "Stuff": ...}; without a class in it a group is left
        out.

    Raises:
        InputError: the images or the classes differ.
    """
    if not np.array_equal(a.isthing, b.isthing):
        raise InputError("the two evaluations are of different classes; compare runs of a dataset")
    order_a, order_b = np.argsort(a.image_id), np.argsort(b.image_id)
    if not np.array_equal(a.image_id[order_a], b.image_id[order_b]):
        raise InputError("the two evaluations are of different images; evaluate both on one split")
    images, classes = len(a.image_id), len(a.isthing)
    flat = [
        statistics.dense()[order].reshape(images, -1)
        for statistics, order in ((a, order_a), (b, order_b))
    ]
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

    values = differences(np.arange(images))[:, 0]
    interval = stats.bootstrap(
        [np.arange(images)],
        differences,
        n_resamples=resamples,
        batch=100,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
        vectorized=True,
    ).confidence_interval
    return {
        name: Difference(*map(float, numbers))
        for name, *numbers in zip(groups, values, interval.low, interval.high)
    }


def _quality(counts):
    """PQ [draws, classes] of counts [draws, classes, 4]; not a number where nothing is."""
    iou_sum, tp, fp, fn = np.moveaxis(counts, -1, 0)
    size = tp + fp / 2 + fn / 2
    return np.divide(iou_sum, size, out=np.full_like(size, np.nan), where=size > 0)


def _mean(quality):
    """The mean over the classes that a draw holds; 0 where it holds none."""
    number = np.isfinite(quality).sum(1)
    return np.nansum(quality, axis=1) / np.maximum(number, 1)
