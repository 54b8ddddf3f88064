"""Small records with everything in them, for the tests of the input."""

import io
import os
import types

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kmax_tf.data import datasets
from kmax_tf.data.records import serialize, shards

DATASET = datasets.load("panoptic_digits")  # 10 things, 4 stuff


def _record(number, height=40, width=48, damage=None):
    """A serialized record: an image of waves and flat parts, things, stuff, crowd, void.

    `damage` changes the bytes of the image. The id of the image is its number.
    """
    random = np.random.default_rng(number)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (3 + c) + number) * np.cos(y / (5 - c)) for c in range(3)]
    image = 127 + 110 * np.stack(waves, axis=-1) + random.normal(0, 6, [height, width, 3])
    image[: height // 3] = 255
    image[:, : width // 5] = number
    png = io.BytesIO()
    Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(png, "PNG")
    classes = [0, 10, 3, 11, 10, 7]  # stuff of class 10 is there twice
    segment_map = np.zeros([height, width], np.int32)
    for k in range(1, len(classes) + 1):
        cy, cx = random.integers(0, height), random.integers(0, width)
        segment_map[(y - cy) ** 2 + (x - cx) ** 2 < random.integers(6, 20) ** 2] = k
    data = serialize.record(
        image=png.getvalue(),
        filename=f"{number}.png",
        image_id=str(number),
        segment_map=segment_map,
        segment_id=list(range(1, len(classes) + 1)),
        category_id=[DATASET.categories[c].id for c in classes],
        is_crowd=[False] * 5 + [number % 2 == 1],
    )
    if damage:
        message = tf.train.Example.FromString(data)
        encoded = message.features.feature["image/encoded"].bytes_list
        encoded.value[0] = damage(encoded.value[0])
        data = message.SerializeToString()
    return data


def _write(folder, numbers, num_shards, **arguments):
    """Writes records of these numbers as split "train", with their dataset.json."""
    os.makedirs(folder, exist_ok=True)
    for shard in range(num_shards):
        path = os.path.join(folder, shards.name("train", shard, num_shards))
        with tf.io.TFRecordWriter(path) as writer:
            for number in numbers[shard::num_shards]:
                writer.write(_record(number, **arguments))
    size = datasets.Split(len(numbers), num_shards)
    content = datasets.with_split(folder, DATASET, "train", size)
    with open(os.path.join(folder, datasets.FILE_NAME), "w") as file:
        file.write(content)
    return shards.paths(folder, "train")


@pytest.fixture(scope="session")
def made():
    """The dataset, and the functions that make a record and write many."""
    return types.SimpleNamespace(dataset=DATASET, record=_record, write=_write)
