"""COCO instances become panoptic labels: polygons, RLE, crowd, overlaps, and every refusal."""

import copy

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from data_prep import coco_masks
from kmax_tf import commands
from kmax_tf.data import datasets

H, W = 20, 30


def box(top, left, bottom, right):
    mask = np.zeros((H, W), bool)
    mask[top:bottom, left:right] = True
    return mask


def polygon(top, left, bottom, right):
    return [left, top, right, top, right, bottom, left, bottom]


def rle(mask):
    """Uncompressed run lengths, down the columns."""
    flat = mask.T.ravel().astype(int)
    cuts = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *cuts, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs}


def compressed(mask):
    made = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": made["size"], "counts": made["counts"].decode()}


RING = box(2, 2, 12, 12) & ~box(5, 5, 9, 9)


@pytest.fixture
def source(tmp_path, draw_image, write_json):
    """The arguments for two images, and the JSON, which a test may change and `run` writes."""
    for k in range(2):
        draw_image(tmp_path / f"images/{k}.png", H, W, k)
    segmentations = [
        (0, 7, 0, [polygon(0, 0, 16, 20)]),  # large, listed first and last below
        (0, 9, 0, compressed(RING)),
        (0, 7, 0, rle(box(6, 6, 8, 8))),  # in the hole of the ring
        (0, 7, 1, rle(box(0, 0, 20, 30))),  # a crowd of all
        (0, 9, 0, rle(box(6, 6, 8, 8))),  # the same pixels once more: hides the other
        (0, 9, 0, [polygon(17, 0, 20, 4), polygon(17, 10, 20, 14)]),  # of two parts
        (0, 9, 0, [[1, 1, 5, 5], polygon(18, 20, 20, 22)]),  # a line, and an area
        (0, 9, 0, [polygon(3.1, 3.1, 3.2, 3.2)]),  # less than a pixel
        (0, 9, 0, []),
        (1, 7, 0, [polygon(0, 0, 5, 5)]),
    ]
    content = {
        "images": [{"id": k, "file_name": f"{k}.png", "height": H, "width": W} for k in range(2)],
        "annotations": [
            {"image_id": i, "category_id": c, "iscrowd": crowd, "segmentation": s}
            for i, c, crowd, s in segmentations
        ],
        "categories": [{"id": 9, "name": "ring"}, {"id": 7, "name": "box"}],
    }
    content["images"].append({"id": 5, "file_name": "gone.png"})
    arguments = ["--images", str(tmp_path / "images"), "--out", str(tmp_path / "out")]

    def run(*more):
        path = write_json(tmp_path / "objects.json", content)
        every = [*arguments, "--json", path, "--workers", "1", "--val_share", "0.5", *more]
        commands.main(["prepare", "coco_instances", *every])

    return content, run, tmp_path / "out"


def assert_masks(found, wanted):
    assert found.keys() == wanted.keys()
    for key, masks in wanted.items():
        assert sorted(m.tobytes() for m in found[key]) == sorted(m.tobytes() for m in masks), key


def test_overlaps_holes_and_crowd(source, read_labels, read_all, capsys):
    _, run, out = source
    run()
    labels = {**read_labels(out, "train"), **read_labels(out, "val")}
    parts = box(17, 0, 20, 4) | box(17, 10, 20, 14)
    small, line = box(6, 6, 8, 8), box(18, 20, 20, 22)
    large = box(0, 0, 16, 20) & ~RING & ~small
    wanted = {
        (None, False): [np.zeros((H, W), bool)],
        ("ring", False): [RING, small, parts, line],
        ("box", False): [large],
        ("box", True): [~(large | RING | small | parts | line)],
    }
    assert_masks(labels["0.png"], wanted)
    rest = ~box(0, 0, 5, 5)
    nothing = {(None, False): [np.zeros((H, W), bool)]}
    assert_masks(
        labels["1.png"],
        {**nothing, ("box", False): [~rest], ("background", False): [rest]},
    )
    told = capsys.readouterr().out
    seen = [
        # the ring and the smaller one lie on the large; all lie on the crowd; one hides its twin
        f"{RING.sum() + 2 * small.sum() + (large | RING | small | parts | line).sum():12,} pixels",
        "           1 objects marked as crowd",
        "           1 objects hidden by smaller ones",
        "           1 objects without a pixel",
        "           1 objects with a box but no segmentation",
        "           1 polygons of fewer than 3 corners",
        "           1 images without objects",
        "all other pixels: background",
    ]
    assert not [line for line in seen if line not in told]
    categories = datasets.load(str(out / "records")).categories
    assert [c[:3] for c in categories] == [
        (9, "ring", True),
        (7, "box", True),
        (10, "background", False),
    ]
    (example,) = [e for s in ("train", "val") for e in read_all(out / "records", s).values()][:1]
    assert example.filename.numpy().decode() in ("0.png", "1.png")


def test_a_second_run_and_void(source, read_labels, capsys):
    _, run, out = source
    run("--background", "void")
    first = (out / "train.json").read_text()
    run("--background", "void")
    assert (out / "train.json").read_text() == first
    assert "all other pixels: void" in capsys.readouterr().out
    labels = {**read_labels(out, "train"), **read_labels(out, "val")}
    rest = ~box(0, 0, 5, 5)
    assert_masks(labels["1.png"], {(None, False): [rest], ("box", False): [~rest]})
    with pytest.raises(SystemExit, match="has records of other classes; delete this folder"):
        run("--background", "ground")


def test_folders_of_the_validation(source, write_json, tmp_path, read_labels):
    content, run, out = source
    other = copy.deepcopy(content)
    other["images"], other["annotations"] = content["images"][1:2], content["annotations"][-1:]
    val = write_json(tmp_path / "val.json", other)
    run("--val_images", str(tmp_path / "images"), "--val_json", val)
    assert set(read_labels(out, "train")) == {"0.png", "1.png"}
    assert set(read_labels(out, "val")) == {"1.png"}
    other["categories"][0]["name"] = "else"
    write_json(tmp_path / "val.json", other)
    with pytest.raises(SystemExit, match='val.json: "categories" differ from those of'):
        run("--val_images", str(tmp_path / "images"), "--val_json", val)


@pytest.mark.parametrize("kind", ["jpg", "webp"])  # webp becomes an upright PNG
def test_labels_fit_the_upright_image(kind, source, tmp_path, read_labels):
    content, run, out = source
    stored = Image.fromarray(np.zeros((W, H, 3), np.uint8))
    exif = stored.getexif()
    exif[0x0112] = 6  # shown turned by a quarter: H x W
    stored.save(tmp_path / f"images/1.{kind}", exif=exif)
    content["images"][1]["file_name"] = f"1.{kind}"
    swap_sides(content)  # as Label Studio does
    with pytest.raises(
        SystemExit, match="is 30 x 20, but 20 x 30 in the JSON, .*delete"
    ) as stopped:
        run()
    assert str(stopped.value).endswith(
        ", its size before the EXIF turn; if the masks fit the upright image, delete"
        ' "width" and "height" from the JSON, else save the image upright and label it again'
    )
    del content["images"][1]["width"], content["images"][1]["height"]
    run()
    labels = {**read_labels(out, "train"), **read_labels(out, "val")}
    name = "1.jpg" if kind == "jpg" else "1.png"
    np.testing.assert_array_equal(labels[name]["box", False][0], box(0, 0, 5, 5))


def test_colors_of_tools_are_read(source):
    """The format has no field "color", but tools write one."""
    content, run, out = source
    content["categories"][0]["color"], content["categories"][1]["color"] = "#1f8b4C", None
    run()
    ring, box, _ = datasets.load(str(out / "records")).categories
    assert ring.color == (0x1F, 0x8B, 0x4C) and len(set(box.color)) > 1


def wrong(key, value):
    def change(content):
        content["annotations"][-1][key] = value

    return change


def swap_sides(content):
    content["images"][1].update(height=W, width=H)


@pytest.mark.parametrize(
    "change, message",
    [
        (wrong("segmentation", [1, 2, 3]), r'annotations\[9\]: "segmentation" is .* list of poly'),
        (wrong("segmentation", [[1, 2, 3, 4, 5]]), "list of polygons"),
        (wrong("segmentation", [[1, 2, 3, 4, 5, "6"]]), "list of polygons"),
        (wrong("segmentation", [[1, 2, 3, 4, 5, float("nan")]]), "has y nan in an image of 30 x"),
        (wrong("segmentation", [[1, 2, 3, 4, 1e9, 6]]), "has x 1000000000.0 in an image of 30 x"),
        (wrong("segmentation", {"size": [W, H], "counts": [600]}), "size .30, 20. but its image"),
        (wrong("segmentation", {"size": [H, W], "counts": [3, 5]}), "is no RLE of 600 pixels"),
        (wrong("segmentation", {"size": [H, W], "counts": "000"}), "is no RLE of 600 pixels"),
        (wrong("segmentation", {"size": [H, W], "counts": "é"}), "is no RLE of 600 pixels"),
        (wrong("segmentation", {"size": [H, W], "counts": [-1, 601]}), "is no RLE of 600"),
        (wrong("segmentation", {"counts": [600]}), '"size" is missing'),
        (wrong("category_id", 8), r'annotations\[9\]: "category_id" 8 is not in "categories"'),
        (wrong("image_id", 8), r'"image_id" 8 is not in "images"'),
        (wrong("iscrowd", 2), '"iscrowd" must be 0 or 1'),
        (wrong("segments_info", []), "panoptic format; convert it with `kmax prepare coco_format`"),
        (swap_sides, "image is 30 x 20, but 20 x 30 in the JSON; export its annotations again"),
        (lambda c: c["images"].append(c["images"][0]), '"id" 0 is used twice'),
        (lambda c: c["images"][1].update(file_name="no.png"), "no.png: cannot be read"),
        (lambda c: c["categories"][0].update(name="background"), 'a class "background" already'),
        (lambda c: c.pop("annotations"), '"annotations" is missing'),
        (
            lambda c: c["categories"][1].update(color="r\nd"),
            r'categories\[1\]: "color" is .r\\nd.;',
        ),
        (lambda c: c["categories"][1].update(color=[1, 2]), '"color" must be three integers'),
    ],
)
def test_what_is_wrong_is_named(source, change, message):
    content, run, out = source
    change(content)
    with pytest.raises(SystemExit, match=message) as stopped:
        run()
    assert "\n" not in str(stopped.value)
    assert not (out / "records").exists()


def test_run_lengths_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    for share in (0, 0.02, 0.5, 1):
        mask = rng.random((37, 51)) < share
        for form in (rle(mask), compressed(mask)):
            np.testing.assert_array_equal(coco_masks.decode_rle(form, (37, 51), "here"), mask)
