import copy
import functools
import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from data_prep import coco_format, convert, pool
from kmax_tf import commands, errors
from kmax_tf.data import datasets, label_png
from kmax_tf.data.records import example, shards

ALONE = functools.partial(pool.run, workers=1)
CATEGORIES = [
    {"id": 1, "name": "cat", "isthing": 1, "color": [250, 0, 0]},
    {"id": 5, "name": "sky", "isthing": 0, "color": [0, 0, 250]},
]


def read_all(folder, split):
    paths = shards.paths(str(folder), split)
    return [example.parse(record) for path in paths for record in shards.read(path)]


def test_real_coco_reads_back_equal(shared, tmp_path):
    sample = shared / "data/coco_sample/sample_data"
    source = sample / "panoptic_examples.json"
    items, dataset = coco_format.read(
        [str(sample / "input_images")], [str(source)], [str(sample / "panoptic_examples")]
    )
    size = convert.convert(items, dataset, str(tmp_path), "val", run=ALONE)
    assert size == datasets.read_split(str(tmp_path), "val") and size[:2] == (2, 2)
    dataset = datasets.load(str(tmp_path))
    assert dataset.name == "panoptic_examples"
    assert dataset.categories == datasets.load("coco").categories

    content = json.loads(source.read_text())
    names = {str(image["id"]): image["file_name"] for image in content["images"]}
    entries = {str(entry["image_id"]): entry for entry in content["annotations"]}
    examples = read_all(tmp_path, "val")
    assert {e.image_id.numpy().decode() for e in examples} == set(entries)
    for e in examples:
        image_id = e.image_id.numpy().decode()
        assert e.filename.numpy().decode() == names[image_id]
        with open(sample / "input_images" / names[image_id], "rb") as jpeg:
            np.testing.assert_array_equal(e.image, tf.io.decode_jpeg(jpeg.read()))
        entry = entries[image_id]
        segments = entry["segments_info"]
        assert e.segment_id.numpy().tolist() == [s["id"] for s in segments]
        assert e.category_id.numpy().tolist() == [s["category_id"] for s in segments]
        assert e.is_crowd.numpy().tolist() == [s["iscrowd"] == 1 for s in segments]
        rgb = np.asarray(Image.open(sample / "panoptic_examples" / entry["file_name"]), int)
        ids = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
        lookup = np.array([0, *(s["id"] for s in segments)])
        np.testing.assert_array_equal(lookup[e.segment_map.numpy()], ids)
    assert any(e.is_crowd.numpy().any() for e in examples)


@pytest.fixture
def source(tmp_path):
    """A source of three images, 6 x 8, and the arguments that convert it."""
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    ids = np.zeros((6, 8), int)
    ids[:2], ids[2:, 3:] = 70000, 9
    segments = [
        {"id": 9, "category_id": 1, "iscrowd": 0, "area": 20},
        {"id": 70000, "category_id": 5, "iscrowd": 0, "area": 16},
    ]
    content = {"images": [], "annotations": [], "categories": copy.deepcopy(CATEGORIES)}
    for k in range(3):
        Image.fromarray(np.full((6, 8, 3), k, np.uint8)).save(tmp_path / f"images/{k}.png")
        (tmp_path / f"labels/{k}.png").write_bytes(label_png.encode_ids(ids))
        content["images"].append({"id": k, "file_name": f"{k}.png"})
        content["annotations"].append(
            {
                "image_id": k,
                "file_name": f"{k}.png",
                "segments_info": copy.deepcopy(segments),
            }
        )
    return tmp_path, content


def run(source, split="train", name=None, **options):
    folder, content = source
    (folder / "own.json").write_text(json.dumps(content))
    read = coco_format.read(
        [str(folder / "images")], [str(folder / "own.json")], [str(folder / "labels")], name
    )
    return convert.convert(*read, str(folder / "out"), split, **{"run": ALONE, **options})


def listing(folder):
    return {path.name: path.read_bytes() for path in folder.glob("out/*") if path.is_file()}


def test_segments_are_numbered_in_json_order_and_area_may_be_absent(source):
    _, content = source
    content["annotations"][0]["segments_info"][0]["area"] = None
    del content["annotations"][1]["segments_info"][0]["area"]
    run(source, num_shards=1)
    for e in read_all(source[0] / "out", "train"):
        expected = np.zeros((6, 8), int)
        expected[:2], expected[2:, 3:] = 2, 1
        np.testing.assert_array_equal(e.segment_map, expected)


def test_images_without_an_annotation_are_counted(source, capsys):
    folder, content = source
    assert run(source).num_examples == 3
    assert "without an annotation" not in capsys.readouterr().out
    content["images"].append({"id": 3, "file_name": "3.png"})
    assert run(source).num_examples == 3
    line = f"{folder}/own.json: 1 images without an annotation: left out"
    assert line in capsys.readouterr().out.splitlines()


def test_splits_add_up_and_converting_again_replaces(source):
    run(source, "train", num_shards=3, name="pets")
    run(source, "val", num_shards=1)
    run(source, "train", num_shards=2)
    out = source[0] / "out"
    assert datasets.load(str(out)).name == "pets"
    assert datasets.read_split(str(out), "train")[:2] == (3, 2)
    assert datasets.read_split(str(out), "val")[:2] == (3, 1)
    assert sorted(listing(source[0])) == [
        "dataset.json",
        "dataset_info.json",
        "features.json",
        "train-00000-of-00002.tfrecord",
        "train-00001-of-00002.tfrecord",
        "val-00000-of-00001.tfrecord",
    ]
    assert {e.image_id.numpy() for e in read_all(out, "train")} == {b"0", b"1", b"2"}


def test_worker_processes_write_the_same(source):
    run(source, num_shards=3)
    alone = listing(source[0])
    run(source, num_shards=3, run=functools.partial(pool.run, workers=2))
    assert listing(source[0]) == alone


def segments_of_last(content):
    return content["annotations"][2]["segments_info"]


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda f, c: (f / "images/2.png").unlink(), r"images/2\.png: cannot be read.*own\.json"),
        (lambda f, c: (f / "labels/2.png").unlink(), r"labels/2\.png: cannot be read.*own\.json"),
        (
            lambda f, c: (f / "images/2.png").write_bytes(b"\xff\xd8\xff"),
            "2.png: broken or truncated",
        ),
        (lambda f, c: (f / "labels/2.png").write_bytes(b"\x89PNG"), "labels/2.png: not a readable"),
        (
            lambda f, c: Image.new("RGB", (6, 8)).save(f / "images/2.png"),
            r"2\.png: the image is 6 x 8 but its label map 8 x 6",
        ),
        (
            lambda f, c: segments_of_last(c).pop(),
            r"own\.json: .*labels/2\.png: segment id 70000 is not in",
        ),
        (
            lambda f, c: segments_of_last(c).append({"id": 4, "category_id": 1, "area": 3}),
            r'own\.json: .*labels/2\.png: segment id 4: "area" is 3 but the PNG has no pixels',
        ),
        (
            lambda f, c: segments_of_last(c)[0].update(area=21),
            r'own\.json: .*labels/2\.png: segment id 9: "area" is 21 but the PNG has 20 pixels',
        ),
        (lambda f, c: segments_of_last(c)[0].update(category_id=2), '"category_id" 2 is not in'),
        (lambda f, c: c.update(annotations=[]), '"annotations" is empty'),
        (lambda f, c: c["categories"].pop(), '"category_id" 5 is not in "categories"'),
        (lambda f, c: c["categories"][0].update(name="dog"), '"categories" differ'),
    ],
)
def test_bad_input_is_one_line_and_leaves_what_was_there(source, spoil, message):
    folder, content = source
    run(source, "train", num_shards=2)
    before = listing(folder)
    spoil(folder, content)
    for split in ("train", "val"):
        with pytest.raises(errors.InputError, match=message) as error:
            run(source, split, num_shards=3 if content["annotations"] else None)
        assert "\n" not in str(error.value)
        assert listing(folder) == before


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_shards": 4}, "--shards 4: choose 1 to 3"),
        ({"num_shards": 0}, "--shards 0: choose 1 to 3"),
        ({"split": "a/b"}, '--split "a/b"'),
    ],
)
def test_bad_options(source, options, message):
    with pytest.raises(errors.InputError, match=message):
        run(source, **options)
    assert not listing(source[0])


def test_command_line(source, capsys):
    folder, content = source
    (folder / "own.json").write_text(json.dumps(content))
    flags = [
        *("--images", str(folder / "images"), "--panoptic_dir", str(folder / "labels")),
        *("--out", str(folder / "out"), "--split", "val", "--shards", "1"),
    ]
    commands.main(["prepare", "coco_format", *flags, "--panoptic_json", str(folder / "own.json")])
    assert "3 images, 1 shards" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"^error: .*gone\.json: cannot be read.*") as stop:
        commands.main(
            ["prepare", "coco_format", *flags, "--panoptic_json", str(folder / "gone.json")]
        )
    assert "\n" not in stop.value.code
    with pytest.raises(SystemExit, match="^error: no flag --split_name"):
        commands.main(
            ["prepare", "coco_format", *flags, "--panoptic_json", "x", "--split_name", "val"]
        )


def test_folder_that_cannot_be_made(source):
    (source[0] / "out").write_text("a file")
    with pytest.raises(errors.InputError, match="out.*: cannot be created"):
        run(source)
