"""What all converters share: it resumes, runs on Beam, and leaves metadata for TFDS."""

import importlib.util
import itertools
import json
import os
import pathlib
import resource
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from data_prep import beam, coco_format, convert, validate
from kmax_tf import commands, errors
from kmax_tf.data import datasets, label_png
from kmax_tf.data.records import example, serialize

ROOT = pathlib.Path(__file__).parents[2]


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
        (tmp_path / "labels" / image["file_name"]).write_bytes(label_png.encode_ids(ids))
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
    with pytest.raises(errors.InputError, match=r"own\.json: .* 0 is also in another JSON"):
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

    def convert_item(item, *content):
        made.append(item.annotation.image_id)
        return original(item, *content)

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


@pytest.mark.parametrize("moment", range(12))
def test_no_interruption_mixes_two_divisions(source, tmp_path, monkeypatch, read_all, moment):
    """Whichever file was to be moved or removed next: no image is of both splits."""
    (zero, one, two, *_), dataset = source()
    out, publish, operation = str(tmp_path / "out"), convert._publish, itertools.count()

    def convert_all(train, val):
        convert.convert_together({"train": train, "val": val}, dataset, out, 1)

    def found(split):
        try:
            return set(read_all(out, split))
        except errors.InputError:
            return set()

    def interrupted(function):
        def call(*arguments, **options):
            if next(operation) == moment:
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return call

    def publish_until_then(*arguments):
        for name in ("remove", "rename", "rmtree"):
            patch.setattr(tf.io.gfile, name, interrupted(getattr(tf.io.gfile, name)))
        publish(*arguments)

    convert_all([zero, one], [two])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(convert, "_publish", publish_until_then)
        convert_all([one, two], [zero])
    assert not found("train") & found("val")
    convert_all([one, two], [zero])
    assert found("train") == {"1", "2"} and found("val") == {"0"}


@pytest.mark.parametrize("folder", ["images", "labels"])
@pytest.mark.parametrize("date", [1e9, 0, 4e9])  # the same one, older, in the future
def test_shards_of_changed_files_are_made_again(source, tmp_path, alone, monkeypatch, folder, date):
    interrupt(source, tmp_path, alone, monkeypatch, shards=2)
    changed = tmp_path / folder / "a/0.png"
    pixels = np.asarray(Image.open(changed))
    Image.fromarray(pixels[::-1] if folder == "labels" else pixels + 1).save(changed)
    os.utime(changed, (date, date))
    made = converted(source(), tmp_path, alone, monkeypatch, 2)
    assert made == ["0", "2", "4", "1", "3", "5"]


def test_shards_of_files_with_new_dates_stay(source, tmp_path, alone, monkeypatch):
    interrupt(source, tmp_path, alone, monkeypatch, shards=2)
    os.utime(tmp_path / "labels/a/0.png")
    made = converted(source(), tmp_path, alone, monkeypatch, 2)
    assert made == ["1", "3", "5"]


def test_shards_of_another_json_or_number_are_made_anew(source, tmp_path, alone, monkeypatch):
    interrupt(source, tmp_path, alone, monkeypatch, shards=2)
    changed = source(lambda c: c["annotations"][2]["segments_info"][0].update(category_id=5))
    assert converted(changed, tmp_path, alone, monkeypatch, 2) == ["0", "2", "4", "1", "3", "5"]
    interrupt(source, tmp_path, alone, monkeypatch, shards=2)
    assert len(converted(source(), tmp_path, alone, monkeypatch, 3)) == 6


def interrupt(source, tmp_path, alone, monkeypatch, shards):
    """Begins a conversion and ends it with the first shard finished."""
    original, seen = convert.convert_item, []

    def convert_item(item, *content):
        seen.append(item)
        if len(seen) > 3:
            raise KeyboardInterrupt
        return original(item, *content)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(convert, "convert_item", convert_item)
        convert.convert(*source(), str(tmp_path / "out"), "train", shards, alone)


def converted(read, tmp_path, alone, monkeypatch, shards):
    """Converts, and returns the ids of the images that were."""
    made, original = [], convert.convert_item

    def convert_item(item, *content):
        made.append(item.annotation.image_id)
        return original(item, *content)

    with monkeypatch.context() as patch:
        patch.setattr(convert, "convert_item", convert_item)
        convert.convert(*read, str(tmp_path / "out"), "train", shards, alone)
    return made


def test_the_fingerprint_is_that_of_the_content(source, tmp_path, alone, monkeypatch):
    """Names and sizes of the files stay the same if a class or crowd is corrected."""

    def make(**corrected):
        read = source(lambda c: c["annotations"][2]["segments_info"][0].update(corrected))
        convert.convert(*read, str(tmp_path / "out"), "train", 2, alone)
        sizes = {name: len(data) for name, data in shards(tmp_path).items()}
        return datasets.read_split(str(tmp_path / "out"), "train").fingerprint, sizes

    (first, sizes), *others = make(), make(category_id=5), make(category_id=1, iscrowd=1)
    assert len({first, *(fingerprint for fingerprint, _ in others)}) == 3
    assert all(same == sizes for _, same in others)
    interrupt(source, tmp_path, alone, monkeypatch, shards=2)
    assert make() == others[1]  # of its two files, one was already there
    assert make(iscrowd=0) == (first, sizes)
    convert.convert(*source(), str(tmp_path / "out"), "val", 2, alone)
    assert datasets.read_split(str(tmp_path / "out"), "train").fingerprint == first


def test_a_split_that_lost_a_file_does_not_stop_another(source, tmp_path, alone, capsys):
    out = str(tmp_path / "out")
    convert.convert(*source(), out, "val", 2, alone)
    (tmp_path / "out/val-00001-of-00002.tfrecord").unlink()
    convert.convert(*source(), out, "train", 2, alone)
    assert "out: split val lacks files, so TFDS cannot read it" in capsys.readouterr().out
    assert datasets.read_split(out, "train").num_examples == 6
    assert not (tmp_path / "out/dataset_info.json").exists()  # of before
    convert.convert(*source(), out, "val", 2, alone)
    assert set(tfds.builder_from_directory(out).info.splits) == {"train", "val"}


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


def flags_of(tmp_path):
    return [
        *("--panoptic_json", str(tmp_path / "own.json"), "--images", str(tmp_path / "images")),
        *("--panoptic_dir", str(tmp_path / "labels"), "--out", str(tmp_path / "out")),
        *("--split", "train", "--workers", "1"),
    ]


def test_a_full_disk_is_one_line(source, tmp_path):
    source()
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "images/a/0.png")
    ids = np.full((60, 80), 9)
    (tmp_path / "labels/a/0.png").write_bytes(label_png.encode_ids(ids))

    def limit():  # a write that goes over it fails, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    command = [sys.executable, "-m", "kmax_tf.commands", "prepare", "coco_format"]
    command += flags_of(tmp_path)
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, preexec_fn=limit)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "train-00000-of-00006" in line and "File too large" in line
    assert "run the same command again" in line
    left = [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not left
    commands.main(["prepare", "coco_format", *flags_of(tmp_path)])
    assert len(list((tmp_path / "out").glob("*.tfrecord"))) == 6


@pytest.mark.parametrize("kind", ["crowd", "no segment", "void"])
def test_a_set_without_anything_to_learn_is_told(source, tmp_path, capsys, kind):
    def change(content):
        for annotation in content["annotations"]:
            for segment in annotation["segments_info"]:
                segment["iscrowd"] = int(kind == "crowd")
            if kind == "no segment":
                annotation["segments_info"] = []

    source(change)
    if kind != "crowd":
        for path in (tmp_path / "labels").glob("*/*.png"):
            path.write_bytes(label_png.encode_ids(np.zeros((6, 8), int)))
    commands.main(["prepare", "coco_format", *flags_of(tmp_path)])
    message = "warning: none of the 6 images has a segment that is not crowd"
    assert message in capsys.readouterr().out
    paths = (str(tmp_path / name) for name in ("images", "own.json", "labels"))
    text, count = validate.validate(validate.raw(*paths), str(tmp_path / "validation"), 1)
    assert "warning: nothing to learn (1)" in text and count == 0
    made = validate.converted(str(tmp_path / "out"), "train")
    assert "nothing to learn" in validate.validate(made, str(tmp_path / "validation"), 1)[0]


def test_one_thing_to_learn_is_enough(source, tmp_path, capsys):
    def change(content):
        for annotation in content["annotations"]:
            for segment in annotation["segments_info"]:
                segment["iscrowd"] = int(annotation["image_id"] != 5)

    source(change)
    commands.main(["prepare", "coco_format", *flags_of(tmp_path)])
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["a\u202fPM.png", "\u5199\u3000 1.png", "v\u00a0[1]*?.png", "-\\.png"]
)
def test_names_of_all_kinds(source, tmp_path, alone, read_all, name):
    def change(content):
        content["images"][0]["file_name"] = content["annotations"][0]["file_name"] = name

    read = source(change)
    for folder in ("images", "labels"):
        os.rename(tmp_path / folder / "a/0.png", tmp_path / folder / name)
    convert.convert(*read, str(tmp_path / "out"), "train", 2, alone)
    found = read_all(tmp_path / "out", "train")
    assert found["0"].filename.numpy().decode() == name and len(found) == 6
    paths = (str(tmp_path / name) for name in ("images", "own.json", "labels"))
    assert validate.validate(validate.raw(*paths), str(tmp_path / "validation"), 1)[1] == 0


def test_a_name_that_is_not_utf8_stops_before_anything_is_written(source, tmp_path, alone):
    (tmp_path / "out").mkdir()
    with open(os.fsencode(tmp_path) + b"/out/caf\xe9.txt", "w"):
        pass
    with pytest.raises(errors.InputError, match=r"has a name that is not UTF-8 .*caf.*; rename it"):
        convert.convert(*source(), str(tmp_path / "out"), "train", 3, alone)
    assert len(os.listdir(os.fsencode(tmp_path / "out"))) == 1


def test_images_of_a_folder_with_signs_of_patterns(tmp_path):
    folder = tmp_path / "a [1]*?/x"
    folder.mkdir(parents=True)
    for name in ("2.png", "[1].png", "c.jpg"):
        (folder / name).touch()
    (folder.parent / ".cache").mkdir()
    for name in (".cache/3.png", "x/._2.png"):  # hidden
        (folder.parent / name).touch()
    items = convert.list_unlabelled(str(folder.parent), "*/*.png", lambda stem: stem)
    assert [item.annotation.image_name for item in items] == ["x/2.png", "x/[1].png"]
    with open(os.fsencode(folder) + b"/caf\xe9.png", "w"):
        pass
    with pytest.raises(errors.InputError, match=r"name that is not UTF-8 .*caf.*; rename it"):
        convert.list_unlabelled(str(folder), "*.png", lambda stem: stem)


@pytest.mark.skipif(importlib.util.find_spec("apache_beam"), reason="apache_beam is installed")
def test_beam_that_is_not_installed_is_named(source, tmp_path):
    with pytest.raises(errors.InputError, match=r"apache_beam is not installed; run pip install"):
        beam.run(print, [], ["--runner=DirectRunner"])


@pytest.mark.skipif(not importlib.util.find_spec("apache_beam"), reason="needs apache_beam")
def test_beam_writes_the_same(source, tmp_path, alone):
    convert.convert(*source(), str(tmp_path / "out"), "train", 3, alone)
    expected = shards(tmp_path)
    for path in (tmp_path / "out").glob("*"):
        path.unlink()
    flags = [
        *("--panoptic_json", str(tmp_path / "own.json"), "--images", str(tmp_path / "images")),
        *("--panoptic_dir", str(tmp_path / "labels"), "--out", str(tmp_path / "out")),
        *("--split", "train", "--shards", "3", "--runner", "DirectRunner"),
    ]
    commands.main(["prepare", "coco_format", *flags, "--direct_num_workers=1"])
    assert shards(tmp_path) == expected
    (tmp_path / "labels/a/2.png").write_bytes(b"\x89PNG")
    with pytest.raises(SystemExit, match=r"^error: .*labels/a/2\.png: not a readable PNG"):
        commands.main(["prepare", "coco_format", *flags])
    with pytest.raises(SystemExit, match="^error: Unexpected pipeline runner: DirectRunn"):
        commands.main(["prepare", "coco_format", *flags[:-1], "DirectRunn"])


def test_unknown_flags_are_refused_without_runner():
    flags = [f"--{name}=x" for name in ("split", "out", "images", "panoptic_json", "panoptic_dir")]
    with pytest.raises(SystemExit, match="^error: unrecognized arguments: --project c"):
        commands.main(["prepare", "coco_format", *flags, "--project", "c"])


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
