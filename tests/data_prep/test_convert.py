"""What all converters share: it resumes, runs on Beam, and leaves metadata for TFDS."""

import importlib.util
import json
import os

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from data_prep import beam, coco_format, convert
from kmax_tf import errors
from kmax_tf.data import coco_panoptic, datasets
from kmax_tf.data.records import example, serialize


@pytest.fixture
def source(tmp_path, write_json):
    """A function: changes of the JSON -> items and dataset of six images, 6 x 8, in subfolders."""
    ids = np.zeros((6, 8), int)
    ids[:2], ids[2:, 3:] = 70000, 9
    content = {
        "images": [{"id": k, "file_name": f"{'ab'[k % 2]}/{k}.png"} for k in range(6)],
        "annotations": [],
        "categories": [
            {"id": 1, "name": "cat", "isthing": 1},
            {"id": 5, "name": "sky", "isthing": 0},
        ],
    }
    for image in content["images"]:
        for folder in ("images", "labels"):
            (tmp_path / folder / image["file_name"]).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((6, 8, 3), image["id"], np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / image["file_name"])
        (tmp_path / "labels" / image["file_name"]).write_bytes(coco_panoptic.encode_ids(ids))
        for folder in ("images", "labels"):  # older than any shard, at a resolution of a second
            os.utime(tmp_path / folder / image["file_name"], (1e9, 1e9))
        segments = [
            {"id": 9, "category_id": 1, "area": None},  # as COCONut has it
            {"id": 70000, "category_id": 5, "area": None},
        ]
        content["annotations"].append(
            {"image_id": image["id"], "file_name": image["file_name"], "segments_info": segments}
        )

    def make(change=lambda content: None):
        change(content)
        path = write_json(tmp_path / "own.json", content)
        return coco_format.read([str(tmp_path / "images")], [path], [str(tmp_path / "labels")])

    return make


def shards(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("out/*.tfrecord"))}


def test_subfolders_and_null_areas(source, tmp_path, alone, read_all):
    convert.convert(*source(), str(tmp_path / "out"), "train", 2, alone)
    examples = read_all(tmp_path / "out", "train")
    assert {k: e.filename.numpy().decode() for k, e in examples.items()} == {
        str(k): f"{'ab'[k % 2]}/{k}.png" for k in range(6)
    }
    expected = np.zeros((6, 8), int)
    expected[:2], expected[2:, 3:] = 2, 1
    for identity, e in examples.items():
        assert (e.image.numpy() == int(identity)).all()
        np.testing.assert_array_equal(e.segment_map, expected)


def test_several_json_files_make_one_split(source, tmp_path, alone, read_all, write_json):
    content = json.loads((tmp_path / "own.json").read_text()) if source() else None
    parts = []
    for k, name in enumerate("ab"):
        part = {**content, "annotations": content["annotations"][k::2]}
        part["categories"] = [{**c, "color": [k, k, c["id"]]} for c in content["categories"]]
        parts.append(write_json(tmp_path / f"{name}.json", part))
    folders = [str(tmp_path / "images")], parts, [str(tmp_path / "labels")] * 2
    convert.convert(*coco_format.read(*folders), str(tmp_path / "out"), "train", 1, alone)
    assert sorted(read_all(tmp_path / "out", "train")) == [str(k) for k in range(6)]
    with pytest.raises(errors.InputError, match=r"own\.json: image 0 is in another JSON"):
        coco_format.read(folders[0], [parts[0], str(tmp_path / "own.json")], folders[2])
    with pytest.raises(errors.InputError, match="--panoptic_dir: 3 folders for 2 JSON files"):
        coco_format.read(folders[0], parts, ["x"] * 3)
    part["categories"].pop()
    part["annotations"].clear()
    with pytest.raises(errors.InputError, match=r'b\.json: "categories" differ from those of'):
        coco_format.read(folders[0], [parts[0], write_json(tmp_path / "b.json", part)], folders[2])


def test_interrupted_conversion_goes_on_with_what_is_missing(source, tmp_path, alone, monkeypatch):
    convert.convert(*source(), str(tmp_path / "out"), "train", 3, alone)
    whole = shards(tmp_path)
    for path in (tmp_path / "out").glob("*"):
        path.unlink()

    made, original = [], convert.convert_item

    def convert_item(item):
        made.append(item.annotation.image_id)
        return original(item)

    monkeypatch.setattr(convert, "convert_item", convert_item)
    broken = tmp_path / "images/b/5.png"  # in the last of the three shards
    png = broken.read_bytes()
    broken.write_bytes(png[:40])
    with pytest.raises(errors.InputError, match=r"b/5\.png: broken or truncated image"):
        convert.convert(*source(), str(tmp_path / "out"), "train", 3, alone)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["train.partial"]
    broken.write_bytes(png)
    made.clear()
    convert.convert(*source(), str(tmp_path / "out"), "train", 3, alone)
    assert made == ["2", "5"] and shards(tmp_path) == whole
    assert not (tmp_path / "out/train.partial").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda f: (f / "labels/a/0.png").write_bytes((f / "labels/a/0.png").read_bytes()),
        lambda f: os.utime(f / "images/a/0.png"),
    ],
)
def test_shards_of_a_changed_source_are_made_anew(source, tmp_path, alone, monkeypatch, change):
    interrupt(source, tmp_path, alone, monkeypatch, shards=2)
    change(tmp_path)
    made = converted(source(), tmp_path, alone, monkeypatch, 2)
    assert made == ["0", "2", "4", "1", "3", "5"]


def test_shards_of_another_json_or_number_are_made_anew(source, tmp_path, alone, monkeypatch):
    interrupt(source, tmp_path, alone, monkeypatch, shards=2)
    changed = source(lambda c: c["annotations"][2]["segments_info"][0].update(category_id=5))
    assert converted(changed, tmp_path, alone, monkeypatch, 2) == ["0", "2", "4", "1", "3", "5"]
    interrupt(source, tmp_path, alone, monkeypatch, shards=2)
    assert len(converted(source(), tmp_path, alone, monkeypatch, 3)) == 6


def interrupt(source, tmp_path, alone, monkeypatch, shards):
    """Begins a conversion and ends it with the first shard finished."""
    original, seen = convert.convert_item, []

    def convert_item(item):
        seen.append(item)
        if len(seen) > 3:
            raise KeyboardInterrupt
        return original(item)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(convert, "convert_item", convert_item)
        convert.convert(*source(), str(tmp_path / "out"), "train", shards, alone)


def converted(read, tmp_path, alone, monkeypatch, shards):
    """Converts, and returns the ids of the images that were."""
    made, original = [], convert.convert_item

    def convert_item(item):
        made.append(item.annotation.image_id)
        return original(item)

    with monkeypatch.context() as patch:
        patch.setattr(convert, "convert_item", convert_item)
        convert.convert(*read, str(tmp_path / "out"), "train", shards, alone)
    return made


def test_tfds_reads_the_records(source, tmp_path, alone):
    convert.convert(*source(), str(tmp_path / "out"), "train", 4, alone)
    convert.convert(*source(), str(tmp_path / "out"), "val_2", 1, alone)
    builder = tfds.builder_from_directory(str(tmp_path / "out"))
    assert {k: s.num_examples for k, s in builder.info.splits.items()} == {"train": 6, "val_2": 6}
    found = {}
    for item in builder.as_dataset(split="train"):
        found[item["image"]["id"].numpy()] = item
        label = tf.io.decode_png(item["panoptic"]["encoded"])[..., 0]
        assert tf.math.bincount(tf.cast(label, tf.int32)).numpy().tolist() == [12, 20, 16]
        assert item["segment"]["category_id"].numpy().tolist() == [1, 5]
        assert item["segment"]["area"].numpy().tolist() == [20, 16]
    assert (found[b"3"]["image"]["encoded"].numpy() == 3).all() and len(found) == 6
    assert len(list(builder.as_dataset(split="train[2:5]"))) == 3


@pytest.mark.skipif(importlib.util.find_spec("apache_beam"), reason="apache_beam is installed")
def test_beam_that_is_not_installed_is_named(source, tmp_path):
    with pytest.raises(errors.InputError, match=r"apache_beam is not installed; pip install"):
        beam.run(print, [], ["--runner=DirectRunner"])


@pytest.mark.skipif(not importlib.util.find_spec("apache_beam"), reason="needs apache_beam")
def test_beam_writes_the_same(source, tmp_path, alone, capsys):
    convert.convert(*source(), str(tmp_path / "out"), "train", 3, alone)
    expected = shards(tmp_path)
    for path in (tmp_path / "out").glob("*"):
        path.unlink()
    flags = [
        *("--panoptic_json", str(tmp_path / "own.json"), "--images", str(tmp_path / "images")),
        *("--panoptic_dir", str(tmp_path / "labels"), "--out", str(tmp_path / "out")),
        *("--split", "train", "--shards", "3", "--runner", "DirectRunner"),
    ]
    assert coco_format.main([*flags, "--direct_num_workers=1"]) == 0
    assert shards(tmp_path) == expected
    (tmp_path / "labels/a/2.png").write_bytes(b"\x89PNG")
    assert coco_format.main(flags) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "labels/a/2.png: not a readable PNG" in error
    assert coco_format.main([*flags[:-1], "DirectRunn"]) == 1
    assert "Unexpected pipeline runner: DirectRunn" in capsys.readouterr().err


def test_unknown_flags_are_refused_without_runner(source, tmp_path, capsys):
    with pytest.raises(SystemExit):
        coco_format.main(["--split", "a", "--out", "b", "--project", "c"])


def test_record_of_an_image_without_labels():
    png = tf.io.encode_png(np.zeros((4, 5, 3), np.uint8)).numpy()
    parsed = example.parse(
        serialize.record(
            image=png,
            filename="a.png",
            image_id="1",
            segment_map=None,
            segment_id=[],
            category_id=[],
            is_crowd=[],
        )
    )
    assert parsed.segment_map.shape == (4, 5) and not parsed.segment_map.numpy().any()


def test_shard_lengths_are_those_of_the_conversion():
    assert datasets.Split(10, 4).shard_lengths() == [3, 3, 2, 2]
