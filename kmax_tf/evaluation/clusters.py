"""What the clusters of each decoder do (paper, section 4.2), in the first images of a split."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kmax_tf.data.datasets import Category
from kmax_tf.evaluation.bootstrap import COUNTS
from kmax_tf.evaluation.metrics import (
    GroundTruth,
    coco_annotations,
    match_segments,
    quality_of_counts,
)
from kmax_tf.inference.predictor import ImagePrediction

LIMIT = 500  # images, because each costs several times what its metrics cost


class ClusterCounts(NamedTuple):
    """The counts of one image; a row or an entry for each decoder, in order."""

    matches: np.ndarray  # float64 [decoders, classes, 4], COUNTS of the assignment
    label_matches: np.ndarray  # float64 [decoders, classes, 4], COUNTS of the label, as coarse
    in_use: np.ndarray  # int64 [decoders], clusters with a pixel
    changed: np.ndarray  # int64 [decoders], pixels of another cluster than in the decoder before
    compared: np.ndarray  # int64 [decoders], pixels of the decoder before, 0 for the first one


def count(
    categories: Sequence[Category],
    ground_truth: GroundTruth,
    prediction: ImagePrediction,
    size: Sequence[int],
) -> ClusterCounts:
    """Counts what the clusters do in one image, without its padding; several threads may call it.

    Pixels are compared on the grid of the decoder before, which the grid of a decoder contains.

    Args:
        categories: of the dataset, in class order.
        ground_truth, prediction: of the image.
        size: evaluation size, (height, width) in pixels.
    """
    label, label_class, _ = ground_truth
    true_segments, total = coco_annotations(*ground_truth), len(prediction.merged_clusters)

    def match(grid, classes, end):
        """Matches segments on a grid, enlarged, with the label: float64 [classes, 4]."""
        segments = coco_annotations(_sample(grid, end, label.shape), classes)
        _, counts = match_segments(categories, label.shape, true_segments, segments)
        rows = np.zeros([len(categories), len(COUNTS)])
        for index, entry in counts.items():
            rows[index] = [entry[name] for name in COUNTS]
        return rows

    matches, label_matches = np.zeros([2, total, len(categories), len(COUNTS)])
    in_use, changed, compared = np.zeros([3, total], np.int64)
    before = stride_before = None
    for i, merged in enumerate(prediction.merged_clusters):
        stride = (size[0] - 1) // (merged.segment_map.shape[0] - 1)
        end = (prediction.fitted_size - 1) / stride  # the image's last corner on the grid
        rows, columns = end.astype(int) + 1
        shown = prediction.assignments[i][:rows, :columns]
        in_use[i] = len(np.unique(shown))
        if before is not None:
            step = stride_before // stride
            changed[i] = np.count_nonzero(shown[::step, ::step] != before)
            compared[i] = before.size
        matches[i] = match(merged.segment_map[:rows, :columns], merged.segment_class, end)
        if stride == stride_before:
            label_matches[i] = label_matches[i - 1]
        else:
            label_end = np.floor(end) * (np.array(label.shape) - 1) / np.maximum(end, 1)
            coarse = _sample(label, label_end, shown.shape)
            label_matches[i] = match(coarse, label_class, end)
        before, stride_before = shown, stride
    return ClusterCounts(matches, label_matches, in_use, changed, compared)


def _sample(values, end, size):
    """Takes the nearest values of a map at `size` even points from its first corner to `end`."""
    index = [
        np.minimum(np.floor(np.linspace(0, last, number) + 0.5).astype(int), length - 1)
        for last, number, length in zip(end, size, values.shape, strict=True)
    ]
    return values[np.ix_(*index)]


def summarize(images: Sequence[ClusterCounts], categories: Sequence[Category]) -> list[dict]:
    """Returns for each decoder {"PQ", "label_PQ", "changed", "in_use", "num_images"}.

    PQ is that of the assignment taken as a prediction, label_PQ that of the label on the same grid;
    both in percent, None without segments. "changed" is the percentage of pixels of another cluster
    than in the decoder before, None for the first one. "in_use" is the mean number of clusters with
    a pixel.
    """
    sums = [sum(counts) for counts in zip(*images, strict=True)]
    return [
        {
            "PQ": _quality(matches, categories),
            "label_PQ": _quality(label_matches, categories),
            "changed": 100 * float(changed / compared) if compared else None,
            "in_use": float(in_use / len(images)),
            "num_images": len(images),
        }
        for matches, label_matches, in_use, changed, compared in zip(*sums, strict=True)
    ]


def _quality(counts, categories):
    quality = quality_of_counts(counts, categories)["All"]
    return 100 * quality["pq"] if quality["n"] else None
