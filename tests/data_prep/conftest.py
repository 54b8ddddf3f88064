"""What tests of converters share: reading records back, and what the source says by itself."""

import functools
import itertools
import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from data_prep import pool
from kmax_tf.data import datasets
from kmax_tf.data.records import reader, shards


@pytest.fixture
def alone():
    """Runs the jobs in this process."""
    return functools.partial(pool.run, workers=1)


@pytest.fixture
def read_all():
    """A function: folder of records, split -> its examples, by image id."""

    def read(folder, split):
        found = reader.find(str(folder), split, datasets.load(str(folder)))
        records = itertools.chain.from_iterable(map(shards.read, found.paths))
        examples = map(found.parse, records)
        return {e.image_id.numpy().decode(): e for e in examples}

    return read


@pytest.fixture
def assert_equals_source():
    """A function: asserts that an example says what an image, an id PNG and a JSON entry say."""

    def check(example, image_path, png_path, segments):
        with open(image_path, "rb") as image:
            np.testing.assert_array_equal(example.image, tf.io.decode_image(image.read()))
        rgb = np.asarray(Image.open(png_path), int)
        lookup = np.array([0, *(s["id"] for s in segments)])
        ids = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
        np.testing.assert_array_equal(lookup[example.segment_map.numpy()], ids)
        assert example.segment_id.numpy().tolist() == [s["id"] for s in segments]
        assert example.category_id.numpy().tolist() == [s["category_id"] for s in segments]
        assert example.is_crowd.numpy().tolist() == [bool(s["iscrowd"]) for s in segments]

    return check


@pytest.fixture
def write_json():
    """A function: path, content -> the path, with the JSON written to it."""

    def write(path, content):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        return str(path)

    return write


@pytest.fixture
def read_labels():
    """A function: folder, split -> {image: its objects}, as the JSON and the id PNGs say.

    The objects are {(class, crowd): [bool mask, ...]}, void under (None, False).
    """

    def read(out, split):
        content = json.loads((out / f"{split}.json").read_text())
        names = {category["id"]: category["name"] for category in content["categories"]}
        images = {image["id"]: image["file_name"] for image in content["images"]}
        found = {}
        for entry in content["annotations"]:
            rgb = np.asarray(Image.open(out / f"{split}_labels" / entry["file_name"]), int)
            ids = rgb @ [1, 256, 65536]
            objects = found.setdefault(images[entry["image_id"]], {(None, False): [ids == 0]})
            for s in entry["segments_info"]:
                key = names[s["category_id"]], bool(s["iscrowd"])
                objects.setdefault(key, []).append(ids == s["id"])
        return found

    return read


@pytest.fixture
def draw_image():
    """A function: path, height, width, seed -> writes an image of random colors."""

    def draw(path, height, width, seed):
        path.parent.mkdir(parents=True, exist_ok=True)
        colors = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(colors).save(path)

    return draw
