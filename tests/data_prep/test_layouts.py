"""Samples, laid out as people have them, convert and read back as the source says."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from data_prep import ade20k, cityscapes
from kmax_tf import commands, errors
from kmax_tf.data import datasets, label_png

BANDS = np.repeat([0, 1, 2, 3], [2, 5, 6, 7])[:, None].repeat(24, axis=1)  # 0 is void


def draw_panoptic(labels, dataset, name, stems):
    """Writes labels of a thing, its crowd and stuff: a JSON, and PNGs called name(stem)."""
    thing, stuff = dataset.categories[0].id, dataset.categories[-1].id
    ids = np.array([0, 70000, 9, 300])[BANDS]
    segments = [
        {"id": i, "category_id": category, "iscrowd": crowd, "area": int((ids == i).sum())}
        for i, category, crowd in ((70000, thing, 0), (9, thing, 1), (300, stuff, 0))
    ]
    content = {"images": [], "annotations": []}
    content["categories"] = [c._asdict() for c in dataset.categories]
    labels.mkdir(parents=True)
    for identity, stem in stems.items():
        (labels / name(stem)).write_bytes(label_png.encode_ids(ids))
        content["images"].append({"id": identity, "file_name": f"{stem}.jpg"})
        entry = {"image_id": identity, "file_name": name(stem), "segments_info": segments}
        content["annotations"].append(entry)
    labels.with_suffix(".json").write_text(json.dumps(content))


@pytest.fixture(params=["drawn", "real"])
def samples(request, tmp_path, draw_image):
    """A folder with samples of three datasets: small drawn ones, and the real ones of --shared."""
    if request.param == "real":
        return request.getfixturevalue("shared") / "data"
    folder, size = tmp_path / "samples", BANDS.shape
    coco, city = folder / "coco_sample/sample_data", folder / "cityscapes_layout_sample"
    stems = {142238: "000000142238", 439180: "000000439180"}
    draw_panoptic(coco / "panoptic_examples", datasets.load("coco"), "{}.png".format, stems)
    for seed, stem in stems.items():
        draw_image(coco / f"input_images/{stem}.jpg", *size, seed)
    labels, stem = city / "gtFine/cityscapes_panoptic_dummy_trainId", "dummy_000000_000000"
    name = "{}_gtFine_panoptic.png".format
    draw_panoptic(labels, datasets.load("cityscapes"), name, {stem: stem})
    draw_image(city / f"leftImg8bit/{stem}_leftImg8bit.png", *size, 1)
    ade = folder / "ade20k_semantic_sample"
    (ade / "annotations").mkdir(parents=True)
    for seed in (1, 2, 3):
        draw_image(ade / f"images/ADE_val_{seed}.jpg", *size, seed)
        semantic = np.array([0, 1, 13, 4], np.uint8)[BANDS]  # wall, person, floor
        Image.fromarray(semantic).save(ade / f"annotations/ADE_val_{seed}.png")
    return folder


@pytest.fixture
def prepare(tmp_path):
    """A function: words of `kmax prepare`, which writes the records to out/."""

    def run(*words):
        out = ["--out", str(tmp_path / "out"), "--workers", "1"]
        commands.main(["prepare", *map(str, words), *out])

    return run


def test_coco(samples, tmp_path, prepare, read_all, assert_equals_source, capsys):
    sample, source = samples / "coco_sample/sample_data", tmp_path / "coco"
    labels = source / "annotations/panoptic_val2017"
    shutil.copytree(sample / "panoptic_examples", labels)
    for split in ("val", "test"):
        shutil.copytree(sample / "input_images", source / f"{split}2017")
    content = json.loads((sample / "panoptic_examples.json").read_text())
    more = [*content["images"], {"id": 1, "file_name": "unlabelled.jpg"}]
    (source / "annotations/panoptic_val2017.json").write_text(
        json.dumps(content | {"images": more})
    )
    prepare("coco", "--source", source, "--split", "val", "test")
    printed = capsys.readouterr().out
    assert "split test, 2 images, 2 shards" in printed
    assert "1 images without an annotation: left out" in printed

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


def test_cityscapes(samples, tmp_path, prepare, read_all, assert_equals_source):
    sample, source = samples / "cityscapes_layout_sample", tmp_path / "cityscapes"
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
    prepare("cityscapes", "--source", source, "--split", "train", "test")

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
def ade(samples, tmp_path):
    """The ADE20K sample in the layout of the release."""
    sample, source = samples / "ade20k_semantic_sample", tmp_path / "ade"
    shutil.copytree(sample / "images", source / "images/validation")
    shutil.copytree(sample / "annotations", source / "annotations/validation")
    return source


def test_ade20k_semantic(ade, tmp_path, prepare, read_all):
    prepare("ade20k", "--source", ade, "--split", "val", "--semantic")
    examples = read_all(tmp_path / "out", "val")
    assert len(examples) == 3
    for name, example in examples.items():
        semantic = np.asarray(Image.open(ade / f"annotations/validation/{name}.png"), int)
        category = np.array([-1, *example.category_id.numpy()])
        np.testing.assert_array_equal(category[example.segment_map.numpy()], semantic - 1)


def test_ade20k_panoptic(ade, tmp_path, prepare, read_all, write_json, capsys):
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
    content["images"].append({"id": "unlabelled", "file_name": "unlabelled.jpg"})
    write_json(ade / "ade20k_panoptic_val.json", content)
    prepare("ade20k", "--source", ade, "--split", "val")
    assert "1 images without an annotation: left out" in capsys.readouterr().out
    for name, example in read_all(tmp_path / "out", "val").items():
        kept, ids = wanted[name]
        assert example.segment_id.numpy().tolist() == kept
        np.testing.assert_array_equal(np.array([0, *kept])[example.segment_map.numpy()], ids)

    content["categories"] = [{**c, "id": c["id"] + 1} for c in content["categories"]]
    write_json(ade / "ade20k_panoptic_val.json", content)
    with pytest.raises(errors.InputError, match=r"ade20k_panoptic_val\.json: .* other ids"):
        ade20k.read(str(ade), "val", False)
