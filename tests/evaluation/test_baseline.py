"""Predictions without a model, by hand."""

import cv2
import numpy as np
import pytest
import tensorflow as tf

from kmax_tf.data import datasets
from kmax_tf.data.datasets import Category, Dataset
from kmax_tf.data.records import example, reader, serialize, shards
from kmax_tf.data.records.reader import Records
from kmax_tf.evaluation import baseline


def test_otsu_by_hand():
    # Between-class variances: 0.16 * 148.75^2 = 3540, 0.24 * 190^2 = 8664, 0.21 * 115.7^2 = 2811.
    gray = np.repeat(np.array([10, 20, 200, 210], np.uint8), [2, 2, 3, 3])[None]
    assert baseline.otsu(gray) == 20
    assert baseline.otsu(np.full([2, 2], 7, np.uint8)) in range(256)


@pytest.mark.parametrize("seed", range(5))
def test_otsu_is_that_of_opencv(seed):
    random = np.random.default_rng(seed)
    gray = random.normal(random.choice([60, 90, 170], [64, 64]), 12).clip(0, 255).astype(np.uint8)
    expected, _ = cv2.threshold(gray, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    assert baseline.otsu(gray) == expected


def blobs():
    """A gray image with an object of 12 and one of 9 pixels, and its map."""
    gray, segment_map = np.full([12, 14], 40, np.uint8), np.full([12, 14], 2, np.int32)
    gray[1:4, 1:5], segment_map[1:4, 1:5] = 200, 1
    gray[7:10, 8:11] = 210  # too small
    return np.repeat(gray[..., None], 3, axis=2), segment_map


@pytest.mark.parametrize("dark", [False, True])
def test_components_are_on_the_smaller_side(dark):
    image, expected = blobs()
    segment_map, classes = baseline.components(255 - image if dark else image)
    np.testing.assert_array_equal(segment_map, expected)
    assert classes.tolist() == [0, 1]


def test_the_better_one_counts(tmp_path):
    image, segment_map = blobs()
    path = str(tmp_path / shards.name("val", 0, 1))
    with tf.io.TFRecordWriter(path) as writer:
        writer.write(
            serialize.record(
                image=tf.io.encode_png(image).numpy(),
                filename="a.png",
                image_id="a",
                segment_map=segment_map,
                segment_id=[1, 2],
                category_id=[5, 6],
                is_crowd=[False, False],
            )
        )
    cell, ground = (Category(k, "ab"[k - 5], k == 5, (k, 0, 0)) for k in (5, 6))
    records = Records([path], example.parse, 1)
    found = baseline.measure(records, Dataset("cells", (cell, ground)), large=False)
    assert found == {
        **{"name": "Otsu's threshold", "num_images": 1},
        **{"PQ": 100, "PQ_things": 100, "PQ_stuff": 100},
    }
    assert baseline.measure(records, Dataset("cells", (cell,)), large=False) is None


def test_the_most_frequent_stuff_of_several(records):
    dataset = datasets.load(records)
    found = baseline.measure(reader.find(records, "val", dataset), dataset, large=False)
    pixels = dict.fromkeys((c.name for c in dataset.categories if not c.isthing), 0)
    names = {c.id: c.name for c in dataset.categories}
    for path in shards.paths(records, "val"):
        for item in map(example.parse, shards.read(path)):
            for k, category in enumerate(item.category_id.numpy().tolist(), start=1):
                if names[category] in pixels:
                    pixels[names[category]] += int((item.segment_map.numpy() == k).sum())
    assert found["name"] == f"all pixels {max(pixels, key=pixels.get)}"
    assert found["num_images"] == 3 and found["PQ_things"] == 0
