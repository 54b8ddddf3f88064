import json

import numpy as np
import pytest
from PIL import Image

from data_prep import demo, digit_scenes
from kmax_tf import commands, errors
from kmax_tf.data import datasets


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_same_from_a_seed_whatever_the_workers(tmp_path, monkeypatch):
    demo.make(str(tmp_path / "a"), num_train=5, num_val=2, workers=1, seed=3)
    first = contents(tmp_path / "a")
    assert len(first) == 2 * 7 + 2 + 1
    monkeypatch.setattr(demo, "IMAGES_A_JOB", 2)
    demo.make(str(tmp_path / "b"), num_train=5, num_val=2, workers=2, seed=3)
    assert contents(tmp_path / "b") == first
    demo.make(str(tmp_path / "c"), num_train=5, num_val=2, workers=1, seed=4)
    assert contents(tmp_path / "c")["train/000001.jpg"] != first["train/000001.jpg"]
    assert first["train/000001.jpg"] != first["val/000001.jpg"]


def pictures(digits):
    return [ink.tobytes() for ink in digits.ink]


@pytest.mark.parametrize("holdout, sizes", [(False, (1438, 359, 0)), (True, (1295, 359, 143))])
def test_splits_share_no_digit(holdout, sizes):
    splits = demo.split_digits(0, holdout)
    assert tuple(len(splits[split].ink) for split in demo.SPLITS) == sizes
    everything = sum((pictures(digits) for digits in splits.values()), [])
    assert len(everything) == 1797 == len(set(everything))
    assert set(splits["val"].label) == set(range(10))
    # What val holds does not depend on whether a part of train is held out.
    assert pictures(splits["val"]) == pictures(demo.split_digits(0, not holdout)["val"])


def test_train_images_use_only_digits_of_train(tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr(digit_scenes, "compose", lambda rng, digits, level: used.append(digits))
    with pytest.raises(AttributeError):  # nothing was composed
        demo.make_images(str(tmp_path), "train", range(1), "cards", 0, 5)
    assert pictures(used[0]) == pictures(demo.split_digits(0, True)["train"])


@pytest.fixture(scope="module", params=digit_scenes.LEVELS)
def scenes(request):
    digits = demo.split_digits(0, False)["train"]
    return [
        digit_scenes.compose(np.random.default_rng([0, k]), digits, request.param)
        for k in range(150)
    ]


def things(scene):
    return [s for s in scene.segments if s["category_id"] <= 10]


def test_scenes_are_as_specified(scenes):
    visible = [part for scene in scenes for part in scene.visible]
    assert min(visible) >= 0.6
    assert min(visible) < 0.9  # there is occlusion
    counts = [sum(not s["iscrowd"] for s in things(scene)) for scene in scenes]
    assert set(counts) == {1, 2, 3, 4} and 2.2 < np.mean(counts) < 2.8
    crowds = np.mean([any(s["iscrowd"] for s in scene.segments) for scene in scenes])
    assert 0.02 < crowds < 0.16
    assert any((scene.ids == 0).any() for scene in scenes)
    assert {s["category_id"] for scene in scenes for s in scene.segments} == set(range(1, 15))


def test_segments_describe_the_ids(scenes):
    for scene in scenes:
        assert scene.image.shape == (97, 97, 3) and scene.image.dtype == np.uint8
        ids = [s["id"] for s in scene.segments]
        assert len(set(ids)) == len(ids)
        assert set(np.unique(scene.ids)) - {0} == set(ids)
        assert len(things(scene)) == len(scene.visible)
        stuff = [s["category_id"] for s in scene.segments if s["category_id"] > 10]
        assert len(set(stuff)) == len(stuff)
        for s in scene.segments:
            mask = scene.ids == s["id"]
            x, y, width, height = s["bbox"]
            assert s["area"] == mask.sum() == mask[y : y + height, x : x + width].sum()
            assert mask[y].any() and mask[:, x].any()
            assert mask[y + height - 1].any() and mask[:, x + width - 1].any()


@pytest.mark.parametrize("level", digit_scenes.LEVELS)
def test_converts_as_genuine_coco_panoptic(tmp_path, level):
    demo.make(str(tmp_path), num_train=3, num_val=0, num_holdout=2, level=level, workers=1)
    assert not (tmp_path / "panoptic_val.json").exists()
    demo.convert_splits(str(tmp_path), workers=1)
    sizes = json.loads((tmp_path / "records/dataset.json").read_text())["splits"]
    assert {split: size["num_examples"] for split, size in sizes.items()} == {
        "train": 3,
        "holdout": 2,
    }
    for split in sizes:
        content = json.loads((tmp_path / f"panoptic_{split}.json").read_text())
        for image in content["images"]:
            opened = Image.open(tmp_path / split / image["file_name"])
            assert opened.size == (image["width"], image["height"]) == (97, 97)
    records = datasets.load(str(tmp_path / "records"))
    assert records.categories == datasets.load("panoptic_digits").categories


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_val": -1}, "-1: numbers"),
        ({"seed": -1}, "-1: numbers"),
        ({"level": "card"}, 'level "card"'),
        ({"num_train": 0, "num_val": 0}, "are all 0"),
    ],
)
def test_bad_options_write_nothing(tmp_path, options, message):
    with pytest.raises(errors.InputError, match=message):
        demo.make(str(tmp_path), **options)
    assert not contents(tmp_path)


@pytest.mark.parametrize(
    "others, split",
    [
        (dict(seed=1, num_val=0), "val"),
        (dict(level="strokes", num_train=0), "train"),
        (dict(num_train=0, num_val=0, num_holdout=1), "train"),
    ],
)
def test_splits_that_are_drawn_at_different_times_share_no_digit(tmp_path, others, split):
    few = dict(num_train=1, num_val=1, workers=1)
    demo.make(str(tmp_path), **few)
    before = contents(tmp_path)
    with pytest.raises(errors.InputError, match=f"the split {split} was drawn with another level"):
        demo.make(str(tmp_path), **few | others)
    assert contents(tmp_path) == before
    demo.make(str(tmp_path), **few | dict(num_val=0))  # as before
    demo.make(str(tmp_path), **few | dict(seed=1))  # all of them


def test_command_line(tmp_path, capsys):
    commands.main(["prepare", "demo", "--out", str(tmp_path), "--num_train", "1", "--num_val", "0"])
    assert "1 train, 0 val" in capsys.readouterr().out
    assert datasets.read_split(str(tmp_path / "records"), "train").num_examples == 1
    with pytest.raises(SystemExit, match="^error: -1: numbers of images"):
        commands.main(["prepare", "demo", "--out", str(tmp_path), "--num_train", "-1"])
    with pytest.raises(SystemExit, match="^error: no flag --num_trains; did you mean --num_train"):
        commands.main(["prepare", "demo", "--out", str(tmp_path), "--num_trains", "1"])
