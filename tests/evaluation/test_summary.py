"""The figures of an evaluation, by hand."""

import numpy as np
import pytest

from kmax_tf.data.datasets import Category
from kmax_tf.evaluation import summary
from kmax_tf.evaluation.metrics import ImageMetrics, Metrics

CATEGORIES = tuple(Category(i, f"class {i}", i < 2, (i, 0, 0)) for i in range(4))


def summarize(*images, confusion=((0,) * 4,) * 4):
    """The summary of images, each {class: (tp, fp, fn)}, and of the confusion in every one."""
    metrics = Metrics(CATEGORIES)
    for number, image in enumerate(images):
        counts = {
            index: {"iou_sum": 0.75 * tp, "tp": tp, "fp": fp, "fn": fn}
            for index, (tp, fp, fn) in image.items()
        }
        pixels = np.array(confusion, np.uint64)
        metrics.add(str(number), ImageMetrics((8, 8), 0.0, counts, [], [], pixels))
    return summary.summarize(metrics, CATEGORIES, step=600)


def test_recall_is_the_share_of_all_segments():
    found = summarize({0: (3, 9, 1), 2: (1, 0, 0)}, {0: (0, 0, 5), 1: (1, 0, 0), 2: (0, 4, 1)})
    assert found["recall_things"] == pytest.approx(100 * 4 / 10)
    assert found["recall_stuff"] == pytest.approx(100 * 1 / 2)
    assert found["recall"] == pytest.approx(100 * 5 / 12)


def test_confusions_name_the_true_class_and_are_shares_of_its_pixels():
    confusion = [[6, 0, 2, 0], [0, 0, 0, 0], [30, 0, 10, 0], [0, 1, 0, 9]]
    expected = [("class 2", "class 0", 75), ("class 0", "class 2", 25), ("class 3", "class 1", 10)]
    found = summarize({}, {}, confusion=confusion)["confusion"]
    assert [tuple(mistake.values()) for mistake in found] == expected
    assert all(list(mistake) == ["true", "predicted", "share"] for mistake in found)


def test_line_of_a_step():
    # Of two things one is found, with an IoU of 0.75: PQ = 0.75 / (1 + 0.5).
    line = summary.line(summarize({0: (1, 0, 1)}))
    figures = "PQ 50.0 (things 50.0, stuff -)  recall 50.0  AP -  mIoU -"
    assert line == f"step 600: {figures}  (1 images)"
