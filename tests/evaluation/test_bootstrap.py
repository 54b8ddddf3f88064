"""The paired bootstrap, against drawing the images one by one and evaluating each draw."""

import numpy as np
import pytest

from kmax_tf.data.datasets import Category
from kmax_tf.errors import InputError
from kmax_tf.evaluation import bootstrap
from kmax_tf.evaluation.bootstrap import ImageCounts
from kmax_tf.evaluation.metrics import quality_of_counts

ISTHING = [True, True, False]
CATEGORIES = tuple(Category(i, str(i), t, (i, 0, 0)) for i, t in enumerate(ISTHING))


def random_counts(seed, images=60, better=0.0):
    rng = np.random.default_rng(seed)
    rows = [(i, c) for i in range(images) for c in range(3) if rng.random() < 0.7]
    image, segment_class = np.array(rows, np.int32).T
    tp, fp, fn = rng.integers(0, 4, [3, len(rows)])
    iou_sum = tp * np.minimum(rng.uniform(0.6, 0.9, len(rows)) + better, 1)
    ids = np.array([f"image {i}" for i in range(images)])
    return ImageCounts(
        ids, image, segment_class, np.stack([iou_sum, tp, fp, fn], -1), np.array(ISTHING)
    )


def test_written_and_read_back(tmp_path):
    path, ours = str(tmp_path / "images.npz"), random_counts(0)
    bootstrap.write(path, ours)
    for written, read in zip(ours, bootstrap.read(path), strict=True):
        np.testing.assert_array_equal(written, read)
    (tmp_path / "images.npz").write_bytes((tmp_path / "images.npz").read_bytes()[:-40])
    with pytest.raises(InputError, match="images.npz: cannot be read.*evaluate again"):
        bootstrap.read(path)
    with pytest.raises(InputError, match="none.npz: cannot be read"):
        bootstrap.read(str(tmp_path / "none.npz"))


def test_a_run_against_itself_differs_by_nothing():
    a = random_counts(0)
    for difference in bootstrap.compare(a, a, resamples=50).values():
        assert difference == (0, 0, 0)


def test_interval_is_that_of_drawing_one_by_one():
    a, b = random_counts(0), random_counts(0, better=0.05)
    differences = bootstrap.compare(a, b, resamples=4000)
    rng = np.random.default_rng(2)

    def quality(dense, drawn):
        return quality_of_counts(dense[drawn].sum(0), CATEGORIES)

    dense = a.dense(), b.dense()
    draws = [np.arange(60)] + [rng.integers(0, 60, 60) for _ in range(4000)]
    for group in ("All", "Things", "Stuff"):
        values = [
            quality(dense[1], d)[group]["pq"] - quality(dense[0], d)[group]["pq"] for d in draws
        ]
        assert differences[group].value == pytest.approx(values[0], abs=1e-12)
        low, high = np.percentile(values[1:], [2.5, 97.5])
        # Of a 90 % interval, the ends are 0.3 standard deviations nearer.
        close = 0.2 * np.std(values[1:])
        assert differences[group].low == pytest.approx(low, abs=close)
        assert differences[group].high == pytest.approx(high, abs=close)
        assert 0 < differences[group].low < differences[group].value < differences[group].high


def test_images_are_paired_by_id():
    a = random_counts(0)
    order = np.random.default_rng(0).permutation(60)
    place = np.argsort(order).astype(np.int32)
    shuffled = a._replace(image_id=a.image_id[order], image=place[a.image])
    for difference in bootstrap.compare(a, shuffled, resamples=50).values():
        assert difference == pytest.approx((0, 0, 0), abs=1e-12)
    with pytest.raises(InputError, match="different images"):
        bootstrap.compare(a, random_counts(0, images=59))
    with pytest.raises(InputError, match="have one image; an interval needs at least 2"):
        bootstrap.compare(random_counts(0, images=1), random_counts(1, images=1))
    with pytest.raises(InputError, match="different classes"):
        bootstrap.compare(a, a._replace(isthing=np.array([True] * 3)))


def test_a_group_without_segments_is_left_out():
    a = random_counts(0)
    things = a.segment_class < 2
    a = a._replace(
        image=a.image[things], segment_class=a.segment_class[things], counts=a.counts[things]
    )
    assert set(bootstrap.compare(a, a, resamples=10)) == {"All", "Things"}
