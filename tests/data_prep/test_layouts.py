"""The real samples, laid out as people have them, convert and read back as the source says."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from data_prep import ade20k, cityscapes, convert
from kmax_tf import commands, errors
from kmax_tf.data import datasets, label_png


def test_coco(shared, tmp_path, alone, read_all, assert_equals_source, capsys):
    sample, source = shared / "data/coco_sample/sample_data", tmp_path / "coco"
    labels = source / "annotations/panoptic_val2017"
    shutil.copytree(sample / "panoptic_examples", labels)
    shutil.copy(sample / "panoptic_examples.json", f"{labels}.json")
    for split in ("val", "test"):
        shutil.copytree(sample / "input_images", source / f"{split}2017")
    flags = ["--source", str(source), "--out", str(tmp_path / "out"), "--workers", "1"]
    commands.main(["prepare", "coco", *flags, "--split", "val", "test"])
    assert "split test, 2 images, 2 shards" in capsys.readouterr().out

    content = json.loads((sample / "panoptic_examples.json").read_text())
    examples = read_all(tmp_path / "out", "val")
    assert sorted(examples) == ["142238", "439180"]
    for entry in content["annotations"]:
        example = examples[str(entry["image_id"])]
        stem = entry["file_name"].removesuffix(".png")
        assert example.filename.numpy().decode() == f"{stem}.jpg"
        assert_equals_source(
            example,
            sample / f"input_images/{stem}.jpg",
            labels / entry["file_name"],
            entry["segments_info"],
        )
    assert any(e.is_crowd.numpy().any() for e in examples.values())
    unlabelled = read_all(tmp_path / "out", "test")
    assert sorted(unlabelled) == sorted(examples)
    for identity, example in unlabelled.items():
        np.testing.assert_array_equal(example.image, examples[identity].image)
        assert example.segment_map.shape == example.image.shape[:2]
        assert not example.segment_map.numpy().any() and not len(example.segment_id)


def test_cityscapes(shared, tmp_path, alone, read_all, assert_equals_source):
    sample, source = shared / "data/cityscapes_layout_sample", tmp_path / "cityscapes"
    stem, labels = "dummy_000000_000000", "cityscapes_panoptic_{}_trainId"
    name = f"{stem}_gtFine_panoptic.png"
    for kind in ("", ".json"):
        copy = shutil.copy if kind else shutil.copytree
        (source / "gtFine").mkdir(parents=True, exist_ok=True)
        made = source / "gtFine" / (labels.format("train") + kind)
        copy(sample / "gtFine" / (labels.format("dummy") + kind), made)
    for split in ("train", "test"):
        image = source / f"leftImg8bit/{split}/dummy/{stem}_leftImg8bit.png"
        image.parent.mkdir(parents=True)
        shutil.copy(sample / f"leftImg8bit/{stem}_leftImg8bit.png", image)
    for split in ("train", "test"):
        read = cityscapes.read(str(source), split)
        convert.convert(*read, str(tmp_path / "out"), split, run=alone)

    (example,) = read_all(tmp_path / "out", "train").values()
    assert example.image_id.numpy().decode() == stem
    entry = json.loads((source / "gtFine" / (labels.format("train") + ".json")).read_text())
    png = source / "gtFine" / labels.format("train") / name
    segments = entry["annotations"][0]["segments_info"]
    image = source / f"leftImg8bit/train/dummy/{stem}_leftImg8bit.png"
    assert_equals_source(example, image, png, segments)
    assert any(s["iscrowd"] for s in segments)
    assert list(read_all(tmp_path / "out", "test")) == [stem]
    with pytest.raises(errors.InputError, match=r"nowhere.leftImg8bit.test: no file matches"):
        cityscapes.read(str(tmp_path / "nowhere"), "test")
    with pytest.raises(errors.InputError, match=r"panoptic_val_trainId\.json: cannot be read \(No"):
        cityscapes.read(str(tmp_path / "nowhere"), "val")


@pytest.fixture
def ade(shared, tmp_path):
    """The ADE20K sample in the layout of the release."""
    sample, source = shared / "data/ade20k_semantic_sample", tmp_path / "ade"
    shutil.copytree(sample / "images", source / "images/validation")
    shutil.copytree(sample / "annotations", source / "annotations/validation")
    return source


def test_ade20k_semantic(ade, tmp_path, alone, read_all):
    convert.convert(*ade20k.read(str(ade), "val", True), str(tmp_path / "out"), "val", run=alone)
    examples = read_all(tmp_path / "out", "val")
    assert len(examples) == 3
    for name, example in examples.items():
        semantic = np.asarray(Image.open(ade / f"annotations/validation/{name}.png"), int)
        category = np.array([-1, *example.category_id.numpy()])
        np.testing.assert_array_equal(category[example.segment_map.numpy()], semantic - 1)


def test_ade20k_panoptic(ade, tmp_path, alone, read_all, write_json):
    """Made as Mask2Former's script does: things over stuff whose area was counted before."""
    labels = ade / "ade20k_panoptic_val"
    labels.mkdir()
    things = {c.id for c in datasets.load("ade20k").categories if c.isthing}
    content = {"images": [], "annotations": [], "categories": []}
    wanted = {}
    for path in sorted((ade / "annotations/validation").glob("*.png")):
        semantic = np.asarray(Image.open(path), int)
        ids, segments = np.zeros(semantic.shape, int), []
        for value in np.unique(semantic[semantic > 0]).tolist():
            area = int((semantic == value).sum())
            segments.append({"id": 1000 + value, "category_id": value - 1, "area": area})
            ids[semantic == value] = 1000 + value
        stuff = next(s for s in segments if s["category_id"] not in things)
        thing = {"id": 7, "category_id": 12, "area": stuff["area"], "iscrowd": 0}
        ids[ids == stuff["id"]] = 7  # a person hides the first stuff
        (labels / path.name).write_bytes(label_png.encode_ids(ids))
        content["images"].append({"id": path.stem, "file_name": f"{path.stem}.jpg"})
        content["annotations"].append(
            {
                "image_id": path.stem,
                "file_name": path.name,
                "segments_info": [*segments, thing],
            }
        )
        wanted[path.stem] = [s["id"] for s in [*segments, thing] if s is not stuff], ids
    for c in datasets.load("ade20k").categories:
        content["categories"].append({"id": c.id, "name": f" {c.name}, x", "isthing": c.isthing})
    write_json(ade / "ade20k_panoptic_val.json", content)
    convert.convert(*ade20k.read(str(ade), "val", False), str(tmp_path / "out"), "val", run=alone)
    for name, example in read_all(tmp_path / "out", "val").items():
        kept, ids = wanted[name]
        assert example.segment_id.numpy().tolist() == kept
        np.testing.assert_array_equal(np.array([0, *kept])[example.segment_map.numpy()], ids)

    content["categories"] = [{**c, "id": c["id"] + 1} for c in content["categories"]]
    write_json(ade / "ade20k_panoptic_val.json", content)
    with pytest.raises(errors.InputError, match=r"ade20k_panoptic_val\.json: .* other ids"):
        ade20k.read(str(ade), "val", False)
