"""Every kind of problem, planted once in a dataset, is told, all of them in one run."""

import json
import pathlib
import re
import runpy
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps

from data_prep import coco_format, convert, demo, validate
from kmax_tf import commands, errors, files
from kmax_tf.data import datasets, label_png
from kmax_tf.data.records import example, shards

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def digits(tmp_path):
    """A folder of twelve images of the built-in dataset, and its paths as flags."""
    demo.make(str(tmp_path), num_train=12, num_val=0, workers=1)
    return tmp_path, {
        "images": str(tmp_path / "train"),
        "panoptic_json": str(tmp_path / "panoptic_train.json"),
        "panoptic_dir": str(tmp_path / "panoptic_train"),
    }


def spoil(folder):
    """Plants one problem of each kind in images 1 to 10; returns what must be said of each."""
    path = folder / "panoptic_train.json"
    content = json.loads(path.read_text())
    entries = {entry["image_id"]: entry for entry in content["annotations"]}
    segments = {k: entry["segments_info"] for k, entry in entries.items()}
    stuff = {c["id"] for c in content["categories"] if not c["isthing"]}

    gone = segments[1].pop()["id"]
    segments[2][0]["area"] += 5
    segments[3].append({"id": 99, "category_id": 1, "area": 7, "iscrowd": 0})
    segments[4].append({"id": 98, "category_id": 1, "area": None, "iscrowd": 0})
    segments[5][0]["category_id"] = 777
    (folder / "train/000006.jpg").unlink()
    jpeg = (folder / "train/000007.jpg").read_bytes()
    (folder / "train/000007.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "panoptic_train/000008.png").write_bytes(b"\x89PNG")
    Image.new("RGB", (40, 30)).save(folder / "train/000009.jpg")
    (folder / "train/000010.jpg").write_bytes((folder / "train/000011.jpg").read_bytes())
    content["annotations"].remove(entries[12])
    whole = np.asarray(Image.open(folder / "panoptic_train/000011.png"), int)
    ids = whole[..., 0] + 256 * whole[..., 1] + 65536 * whole[..., 2]
    ids[ids == 0] = segments[11][0]["id"]
    for k, entry in enumerate(s for s in segments[11] if s["category_id"] not in stuff):
        entry["category_id"] = 11 if k < 2 else entry["category_id"]
    (folder / "panoptic_train/000011.png").write_bytes(label_png.encode_ids(ids))
    for entry in segments[11]:
        entry["area"] = int((ids == entry["id"]).sum())
    path.write_text(json.dumps(content))
    return [
        ("error", "labels that do not fit the JSON", f"000001.png: segment id {gone} is not in"),
        ("error", "labels that do not fit the JSON", '000002.png: segment id .* "area" is '),
        ("error", "labels that do not fit the JSON", "000003.png: segment id 99: .* no pixels"),
        ("warning", "segments without pixels", "000004.png: segment id 98 has no pixels"),
        ("error", "entries of the JSON", r"segments_info\[0\]: \"category_id\" 777 is not in"),
        ("error", "images that cannot be read", "000006.jpg: cannot be read"),
        ("error", "images that cannot be read", "000007.jpg: broken or truncated"),
        ("error", "label files that cannot be read", "000008.png: not a readable PNG"),
        ("error", "sizes of image and label map", "000009.jpg: the image is 40 x 30 .* 97 x 97"),
        ("warning", "duplicate images", "000011.jpg is the same .* 000010.jpg"),
        ("warning", "images without annotation", "000012.jpg"),
        ("warning", "stuff in several segments", "000011.jpg: [23] segments of grass"),
    ]


def test_all_problems_are_reported_at_once(digits):
    folder, flags = digits
    expected = spoil(folder)
    text, errors = validate.validate(validate.raw(**flags), str(folder / "out"), workers=1)
    report = (folder / "out/report.txt").read_text()
    for level, kind, words in expected:
        lines = report.split(f"{level}: {kind}")[1].split("\n    ")
        assert any(re.search(words, line) for line in lines), words
    # The segment that lost its category is missing among those of image 5, too.
    assert errors == 9 and "of 14 classes" in text
    sheet = np.asarray(Image.open(folder / "out/contact_sheet.png"))
    assert sheet.shape[1] > 4 * 97 and sheet.std() > 20


def test_good_dataset_and_its_records_have_no_error(digits, alone):
    folder, flags = digits
    _, errors = validate.validate(validate.raw(**flags), str(folder / "out"), workers=1)
    assert errors == 0
    read = coco_format.read(*([flags[k]] for k in ("images", "panoptic_json", "panoptic_dir")))
    convert.convert(*read, str(folder / "records"), "train", 2, alone)
    dataset = validate.converted(str(folder / "records"), "train")
    _, errors = validate.validate(dataset, str(folder / "out2"), workers=1)
    assert errors == 0
    raw, converted = ((folder / f"{out}/report.txt").read_text() for out in ("out", "out2"))
    assert raw.splitlines()[1:] == converted.splitlines()[1:]


def test_class_table_counts_by_hand(tmp_path, write_json, alone):
    ids = np.zeros((4, 5), int)
    ids[0], ids[1] = 1, 2
    (tmp_path / "a.png").write_bytes(label_png.encode_ids(ids))
    Image.new("RGB", (5, 4)).save(tmp_path / "image.png")
    segments = [{"id": 1, "category_id": 1}, {"id": 2, "category_id": 1}]
    content = {
        "images": [{"id": 1, "file_name": "image.png"}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": segments}],
        "categories": [{"id": k, "name": "xyz"[k], "isthing": 1} for k in (1, 2)],
    }
    path = write_json(tmp_path / "a.json", content)
    dataset = validate.raw(str(tmp_path), path, str(tmp_path))
    text, errors = validate.validate(dataset, str(tmp_path / "out"), 1)
    assert errors == 0 and "1 images, 1 of 2 classes" in text and "void: 50.0 %" in text
    assert "segments in an image: median 2, at most 2; over 128 in 0 images" in text
    assert "things: 2; 2 have less than 16 pixels\nkmax plan" in text
    table = (tmp_path / "out/report.txt").read_text().splitlines()
    row = next(line for line in table if line.startswith("y "))
    assert row.split() == ["y", "thing", "1", "2", "100.000", "%"]
    assert "classes without any segment (1)\n    z" in text


def test_corrupt_records_are_reported_and_the_others_read(records, tmp_path):
    paths = shards.paths(records, "train")
    for path in [*paths, f"{records}/dataset.json"]:
        (tmp_path / pathlib.Path(path).name).write_bytes(pathlib.Path(path).read_bytes())
    corrupt = tmp_path / pathlib.Path(paths[1]).name
    data = bytearray(corrupt.read_bytes())
    data[-100] ^= 1  # in the last record of the second shard
    corrupt.write_bytes(data)
    text, errors = validate.validate(
        validate.converted(str(tmp_path), "train"), str(tmp_path / "out"), 1
    )
    assert errors == 1 and "train: 5 images" in text
    assert "corrupt files of records (1)" in text and corrupt.name in text


def test_a_storage_that_does_not_answer_is_no_corrupt_file(records, tmp_path, monkeypatch):
    read, last = shards.read, shards.paths(records, "train")[1]

    def refuse_last(path):
        if path == last:
            raise files.NotAtHand(f"{path}: cannot be read now (busy); try again")
        return read(path)

    monkeypatch.setattr(shards, "read", refuse_last)
    dataset = validate.converted(records, "train")
    text, count = validate.validate(dataset, str(tmp_path / "out"), 1)
    assert count == 1 and "records that cannot be read now (1)" in text and "corrupt" not in text


def test_files_whose_first_record_is_damaged_are_all_named(digits, alone):
    folder, flags = digits
    read = coco_format.read(*([flags[k]] for k in ("images", "panoptic_json", "panoptic_dir")))
    convert.convert(*read, str(folder / "records"), "train", 4, alone)
    paths = [pathlib.Path(path) for path in shards.paths(str(folder / "records"), "train")]
    for path in (paths[0], paths[3]):
        data = bytearray(path.read_bytes())
        data[20] ^= 1
        path.write_bytes(data)
    dataset = validate.converted(str(folder / "records"), "train")
    text, count = validate.validate(dataset, str(folder / "out"), 1)
    assert count == 2 and "train: 6 images" in text and "corrupt files of records (2)" in text
    assert paths[0].name in text and paths[3].name in text


def test_records_that_are_missing_are_an_error(records, tmp_path):
    for path in pathlib.Path(records).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    first, second = map(pathlib.Path, shards.paths(str(tmp_path), "train"))
    length = 16 + len(next(shards.read(str(first))))  # a record and its frame
    first.write_bytes(first.read_bytes()[:length])
    second.write_bytes(b"")
    dataset = validate.converted(str(tmp_path), "train")
    text, count = validate.validate(dataset, str(tmp_path / "out"), 1)
    assert count == 2 and "files that do not hold what dataset.json says (2)" in text
    assert f"{first}: holds 1 records, not 3; convert again" in text
    assert f"{second}: holds 0 records, not 3; convert again" in text


def test_records_of_other_categories(records, tmp_path):
    digits = datasets.load(records)
    fewer = datasets.Dataset("fewer", digits.categories[:5])
    path = shards.paths(records, "train")[0]
    facts = validate.look_at_shard(records, "train", digits, path)
    assert not any(fact.problems for fact in facts)
    record = next(shards.read(path))
    _, problems = validate._read_record(example.parse, record, "a", fewer)
    assert problems and all(p.text.startswith("a: category ") for p in problems)


def test_command_line(digits, monkeypatch, capsys):
    folder, flags = digits
    command = [str(ROOT / "scripts/validate_dataset.py"), f"--out={folder}/out", "--workers=1"]
    command += [f"--{key}={value}" for key, value in flags.items()]
    (folder / "train/000003.jpg").unlink()
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(command[0], run_name="__main__")
    assert stop.value.code == 1 and "1 errors; all problems" in capsys.readouterr().out


RAW = ["--images=i", "--panoptic_json=j", "--panoptic_dir=d"]


@pytest.mark.parametrize(
    "flags", [[], ["--records=r"], ["--split=val"], RAW[1:], [*RAW, "--records=r", "--split=val"]]
)
def test_half_a_dataset_or_two_are_refused(flags):
    with pytest.raises(SystemExit, match="^error: give --records and --split, or --images, --pan"):
        commands.main(["validate", *flags])


def test_json_of_which_nothing_can_be_used(tmp_path, write_json):
    content = {"images": [3], "annotations": [{}], "categories": [{"id": 1, "name": "a"}]}
    content["categories"][0]["isthing"] = 1
    path = write_json(tmp_path / "a.json", content)
    dataset = validate.raw(str(tmp_path), path, str(tmp_path))
    text, errors = validate.validate(dataset, str(tmp_path / "out"), 1)
    assert errors == 2 and "images[0]: expected a JSON object" in text
    assert 'annotations[0]: field "image_id" is missing' in text
    assert not (tmp_path / "out/contact_sheet.png").exists()


def test_json_that_is_none_is_one_line(tmp_path):
    (tmp_path / "a.json").write_text("[")
    with pytest.raises(errors.InputError, match=r"a\.json: not valid JSON"):
        validate.raw(str(tmp_path), str(tmp_path / "a.json"), str(tmp_path))


@pytest.mark.parametrize("turn", range(2, 9))
def test_images_that_exif_turns_are_named_and_shown_upright(tmp_path, write_json, turn):
    stored = np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x112] = turn
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [
            {
                "image_id": 1,
                "file_name": "label.png",
                "segments_info": [{"id": 7, "category_id": 1}],
            }
        ],
        "categories": [{"id": 1, "name": "x", "isthing": 1}],
    }
    path = write_json(tmp_path / "a.json", content)
    (tmp_path / "label.png").write_bytes(label_png.encode_ids(np.full(upright.shape[:2], 7)))
    dataset = validate.raw(str(tmp_path), path, str(tmp_path))
    text, count = validate.validate(dataset, str(tmp_path / "out"), 1)
    assert count == 0 and f"a.png: EXIF orientation {turn}; its labels must fit the upright" in text
    np.testing.assert_array_equal(dataset.load((0,)).image, upright)
    if turn >= 5:
        (tmp_path / "label.png").write_bytes(label_png.encode_ids(np.full((6, 9), 7)))
        text, count = validate.validate(dataset, str(tmp_path / "out"), 1)
        assert count == 1 and "(upright, as its EXIF orientation shows it) but its label" in text
