"""Mutated input gives a named error or what the source says, never a crash or a wrong label.

Every mutation is drawn from its seed alone. The quick run has 12 of each of seven kinds of input,
the slow one 188 more.
"""

import io
import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from data_prep import coco_format, convert, demo, validate
from kmax_tf import errors
from kmax_tf.data import datasets
from kmax_tf.data.records import deeplab2, example, reader, serialize, shards, tfds

FRAME, HEADER = 16, 12  # bytes around each record of a TFRecord file, and before it

FEW, MANY = range(12), range(12, 200)
both = pytest.mark.parametrize(
    "seeds", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"]
)


def mutate(data: bytes, seed: int) -> bytes:
    """Flips bits, overwrites, removes, repeats or cuts off bytes, one to four times."""
    rng, data = np.random.default_rng(seed), bytearray(data)
    for _ in range(rng.integers(1, 5)):
        kind, at = rng.integers(6), int(rng.integers(len(data)))
        length = int(rng.integers(1, 1 + max(1, len(data) // 8)))
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at : at + 4] = rng.bytes(4)
        elif kind == 2:
            data[at : at + length] = b""
        elif kind == 3:
            data[at:at] = data[at : at + length]
        elif kind == 4:
            data = data[: max(1, at)]
        else:
            data[at : at + length] = bytes(length)
        data = data or bytearray(b"\0")
    return bytes(data)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """One image of the built-in dataset: its folder and its item, with areas that are null."""
    folder = tmp_path_factory.mktemp("source")
    demo.make(str(folder), num_train=1, num_val=0, workers=1)
    path = folder / "panoptic_train.json"
    content = json.loads(path.read_text())
    for segment in content["annotations"][0]["segments_info"]:
        segment["area"] = None
    path.write_text(json.dumps(content, indent=0))
    return folder


def read(folder, json_path=None):
    labels = str(folder / "panoptic_train")
    items, _ = coco_format.read([str(folder / "train")], [json_path or f"{labels}.json"], [labels])
    return items[0]


def write_mutated(path, folder, seed):
    made = folder / f"{seed}{path.suffix}"
    made.write_bytes(mutate(path.read_bytes(), seed))
    return str(made)


def converted(item):
    """The example of an item, or None if its conversion is refused in one line."""
    validate.look_at_items([item])  # must not raise
    try:
        record = convert.convert_item(item, *convert.read_files(item))
    except errors.InputError as error:
        assert "\n" not in str(error) and str(error)
        return None
    return example.parse(tf.constant(record))


@both
@pytest.mark.parametrize("mutated", ["image_path", "label_path"])
def test_images_and_label_files(source, tmp_path, seeds, mutated):
    item, refused = read(source), 0
    truth = converted(item).segment_map
    for seed in seeds:
        path = write_mutated(pathlib.Path(getattr(item, mutated)), tmp_path, seed)
        found = converted(item._replace(**{mutated: path}))
        refused += found is None
        if found is not None:
            np.testing.assert_array_equal(found.segment_map, truth)
            assert found.image.shape == (97, 97, 3)
    assert refused > len(seeds) // 3


@both
def test_json(source, tmp_path, seeds):
    item, refused = read(source), 0
    parsed = converted(item)
    truth = np.array([0, *parsed.segment_id])[parsed.segment_map.numpy()]
    for seed in seeds:
        path = write_mutated(source / "panoptic_train.json", tmp_path, seed)
        try:
            found = converted(read(source, path))
        except errors.InputError as error:
            assert "\n" not in str(error) and str(error).startswith(path)
            found = None
        refused += found is None
        if found is not None:
            ids = np.array([0, *found.segment_id])[found.segment_map.numpy()]
            np.testing.assert_array_equal(ids, truth)
    assert refused > len(seeds) // 3


@both
def test_files_of_records(records, tmp_path, seeds):
    path = pathlib.Path(shards.paths(records, "train")[0])
    whole, refused = list(shards.read(str(path))), 0
    for seed in seeds:
        found, mutated = [], write_mutated(path, tmp_path, seed)
        try:
            found.extend(shards.read(mutated))
        except errors.InputError as error:
            refused += 1
            assert "convert again" in str(error) and "\n" not in str(error)
            assert all(record in whole for record in found)
        else:  # whole, or cut before the next record's header ended, which `reader` counts
            assert found == whole[: len(found)]
            length = sum(FRAME + len(record) for record in found)
            assert 0 <= len(pathlib.Path(mutated).read_bytes()) - length < HEADER
    assert refused > len(seeds) // 3


def serialized(schema):
    """A record of each schema, and what parses it."""
    png, label = io.BytesIO(), np.repeat([1, 2], 12).reshape(4, 6).astype(np.uint8)
    Image.fromarray(np.repeat(label[..., None] * 90, 3, -1)).save(png, "PNG")
    ids = tf.io.encode_png(np.stack([label, 0 * label, 0 * label], -1)).numpy()
    values = {
        "ours": None,
        "official": {
            "image/encoded": png.getvalue(),
            "image/filename": b"a",
            "image/height": [4],
            "image/width": [6],
            "image/segmentation/class/encoded": (label.astype("<i4") * 256 + 1).tobytes(),
        },
        "tfds": {
            "image": png.getvalue(),
            "image/filename": b"a",
            "image/id": [7],
            "panoptic_image": ids,
            "panoptic_objects/id": [1, 2],
            "panoptic_objects/label": [0, 1],
            "panoptic_objects/is_crowd": [0, 0],
        },
    }[schema]
    coco = datasets.load("coco")
    if schema == "ours":
        record = serialize.record(
            image=png.getvalue(),
            filename="a",
            image_id="7",
            segment_map=label,
            segment_id=[1, 2],
            category_id=[1, 2],
            is_crowd=[False, True],
        )
        return record, example.parse
    features = {}
    for key, value in values.items():
        features[key] = tf.train.Feature()
        if isinstance(value, bytes):
            features[key].bytes_list.value.append(value)
        else:
            features[key].int64_list.value.extend(value)
    record = tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
    if schema == "tfds":
        return record, lambda r: tfds.parse(r, [c.id for c in coco.categories])
    return record, lambda r: deeplab2.parse(r, coco)


@both
@pytest.mark.parametrize("schema", ["ours", "official", "tfds"])
def test_records(schema, seeds):
    record, parse = serialized(schema)
    refused = 0

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def compiled(serialized):
        return parse(serialized)

    whole = reader.parse_one(compiled, record, "a: record 0")
    assert whole.image.shape[:2] == whole.segment_map.shape and len(whole.segment_id) == 2
    assert set(np.unique(whole.segment_map)) >= {1, 2}
    for seed in seeds:
        try:
            found = reader.parse_one(compiled, mutate(record, seed), "a: record 3")
        except errors.InputError as error:
            assert str(error).startswith("a: record 3 is corrupt") and "\n" not in str(error)
            refused += 1
            continue
        assert found.image.shape[:2] == found.segment_map.shape
        assert found.segment_map.numpy().min() >= 0
        assert found.segment_map.numpy().max() <= len(found.segment_id)
        assert len(found.segment_id) == len(found.category_id) == len(found.is_crowd)
    assert refused > len(seeds) // 3
