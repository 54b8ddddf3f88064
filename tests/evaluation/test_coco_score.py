import json
import pathlib
import runpy
import sys

import numpy as np
import pytest

from kmax_tf.data.coco_writer import PanopticWriter, coco_image_id
from kmax_tf.data.datasets import Category
from kmax_tf.data.label_png import decode_ids
from kmax_tf.errors import InputError
from kmax_tf.evaluation.coco_score import panoptic_quality

GOLDEN = pathlib.Path(__file__).parents[1] / "golden/panoptic_quality"
CAT, DOG, GRASS = 1, 2, 7
CATEGORIES = (
    Category(CAT, "cat", True, (255, 0, 0)),
    Category(DOG, "dog", True, (0, 255, 0)),
    Category(GRASS, "grass", False, (0, 0, 255)),
)


def stripes(**counts):
    """int32 [10, 10] with so many pixels of each id, in row-major order; x0, x1 mean id 0, 1."""
    ids = [int(name[1:]) for name in counts]
    return np.repeat(ids, list(counts.values())).astype(np.int32).reshape(10, 10)


def write(folder, name, *images):
    """Writes (image id, map, {segment id: category id}, crowd ids) and returns (json, folder)."""
    writer = PanopticWriter(f"{folder}/{name}.json", f"{folder}/{name}", CATEGORIES)
    for image_id, segment_map, category_of, crowds in images:
        segments = [
            {"id": i, "category_id": category, "iscrowd": int(i in crowds)}
            for i, category in category_of.items()
        ]
        writer.add(image_id, f"image_{image_id}.jpg", segment_map, segments)
    writer.finish()
    return f"{folder}/{name}.json", f"{folder}/{name}"


def score(folder, truth, prediction):
    return panoptic_quality(*write(folder, "gt", truth), *write(folder, "pred", prediction))


@pytest.mark.parametrize("case", sorted(p.parent.name for p in GOLDEN.glob("*/result.json")))
def test_equals_the_official_metric(case):
    official = json.loads((GOLDEN / case / "result.json").read_text())
    result = panoptic_quality(
        str(GOLDEN / "gt/panoptic_examples.json"),
        str(GOLDEN / "gt/panoptic_examples"),
        str(GOLDEN / case / "pred.json"),
        str(GOLDEN / case / "pred"),
    )
    for group in ("All", "Things", "Stuff"):
        assert result[group] == pytest.approx(official[group], rel=0, abs=1e-12)
    assert {str(category) for category in result["per_class"]} == set(official["per_class"])
    for category, expected in official["per_class"].items():
        assert result["per_class"][int(category)] == pytest.approx(expected, rel=0, abs=1e-12)


def test_golden_cases_are_all_there():
    assert len(list(GOLDEN.glob("*/result.json"))) == 12


def test_iou_of_a_match(tmp_path):
    truth = (5, stripes(x1=80, x2=20), {1: CAT, 2: GRASS}, ())
    prediction = (5, stripes(x3=60, x0=20, x4=20), {3: CAT, 4: GRASS}, ())
    result = score(tmp_path, truth, prediction)
    assert result["Things"] == {"pq": 0.75, "sq": 0.75, "rq": 1.0, "n": 1}
    assert result["Stuff"] == {"pq": 1.0, "sq": 1.0, "rq": 1.0, "n": 1}
    assert result["All"] == {"pq": 0.875, "sq": 0.875, "rq": 1.0, "n": 2}
    assert set(result["per_class"]) == {CAT, GRASS}
    assert result["per_class"][CAT]["tp"] == 1


def test_iou_of_a_half_is_no_match(tmp_path):
    truth = (5, stripes(x1=80, x2=20), {1: CAT, 2: GRASS}, ())
    prediction = (5, stripes(x3=40, x0=40, x4=20), {3: CAT, 4: GRASS}, ())
    counts = score(tmp_path, truth, prediction)["per_class"][CAT]
    assert (counts["tp"], counts["fp"], counts["fn"]) == (0, 1, 1)


def test_crowd_excuses_its_own_class_only(tmp_path):
    truth = (5, stripes(x1=40, x2=40, x3=20), {1: CAT, 2: CAT, 3: GRASS}, (2,))
    for found, expected in ((CAT, (1.0, 2)), (DOG, (2 / 3, 3))):
        prediction = (5, stripes(x1=40, x2=40, x3=20), {1: CAT, 2: found, 3: GRASS}, ())
        result = score(tmp_path, truth, prediction)["All"]
        assert (result["pq"], result["n"]) == pytest.approx(expected)


def test_void_counts_neither_for_nor_against(tmp_path):
    truth = (5, stripes(x1=40, x0=40, x3=20), {1: CAT, 3: GRASS}, ())
    for pixels, category_of in (
        (stripes(x1=40, x2=40, x3=20), {1: CAT, 2: DOG, 3: GRASS}),
        (stripes(x1=80, x3=20), {1: CAT, 3: GRASS}),
    ):
        assert score(tmp_path, truth, (5, pixels, category_of, ()))["All"]["pq"] == 1.0


def test_nothing_found(tmp_path):
    truth = (5, stripes(x1=80, x3=20), {1: CAT, 3: CAT}, ())
    result = score(tmp_path, truth, (5, stripes(x0=100), {}, ()))
    assert result["All"] == {"pq": 0.0, "sq": 0.0, "rq": 0.0, "n": 1}
    assert result["Stuff"] == {"pq": 0.0, "sq": 0.0, "rq": 0.0, "n": 0}


def test_images_are_paired_by_id(tmp_path):
    first, second = stripes(x1=40, x2=60), stripes(x1=70, x2=30)
    categories = {1: CAT, 2: GRASS}
    for ids in (("aachen_0", "aachen_1"), (3, 4), ("1" * 30, "2" * 30)):
        truth = write(
            tmp_path, "gt", *((i, m, categories, ()) for i, m in zip(ids, (first, second)))
        )
        prediction = write(
            tmp_path,
            "pred",
            (str(ids[1]), second, categories, ()),
            ("0", first, categories, ()),  # not in the ground truth
            (str(ids[0]), first, categories, ()),
        )
        assert panoptic_quality(*truth, *prediction)["All"]["pq"] == 1.0


def change(path, edit):
    """Edits a JSON file with a function of its content."""
    content = json.loads(pathlib.Path(path).read_text())
    edit(content)
    pathlib.Path(path).write_text(json.dumps(content))


def three_images(folder, name, ids, file_names):
    """Writes three images that differ, with ids and file names as they are given."""
    maps = [stripes(x1=share, x2=100 - share) for share in (40, 60, 80)]
    numbers = range(3)
    files = write(folder, name, *((k, maps[k], {1: CAT, 2: GRASS}, ()) for k in numbers))

    def rename(content):
        for k in numbers:
            content["images"][k].update(id=ids[k], file_name=file_names[k])
            content["annotations"][k]["image_id"] = ids[k]

    change(files[0], rename)
    return files


PADDED = ["000001", "000002", "000003"]
JPEGS = [f"{name}.jpg" for name in PADDED]
STREETS = ["street_b.jpg", "street_a.jpg", "street_c.jpg"]


@pytest.mark.parametrize(
    "true_ids, true_names, pred_ids, pred_names, said",
    [
        (PADDED, JPEGS, [1, 2, 3], JPEGS, 3),  # our predictions of padded names
        ([1, 2, 3], STREETS, [name[:-4] for name in STREETS], STREETS, 3),
        ([1, 2, 3], [f"val/{n}" for n in STREETS], ["b", "a", "c"], STREETS, 3),
        ([1, 2, 3], [n[:-3] + "png" for n in STREETS], ["b", "a", "c"], STREETS, 3),
        ([2, 1, 0], ["0.jpg", "1.jpg", "2.jpg"], [0, 1, 2], ["0.jpg", "1.jpg", "2.jpg"], 2),
        ([1, 2.0, 3], STREETS, [1.0, "2", 3], STREETS, 0),
        (["007", 7, "7.0"], ["a", "b", "c"], ["007", "7", "7.0"], ["a", "b", "c"], 0),
        ([7, 8, 9], JPEGS, ["7", "8", "9"], STREETS, 0),  # names that do not meet say nothing
        (["é ", "\u202f", "x" * 250], STREETS, ["é ", "\u202f", "x" * 250], STREETS, 0),
    ],
)
def test_identity_of_images(true_ids, true_names, pred_ids, pred_names, said, tmp_path, capsys):
    truth = three_images(tmp_path, "gt", true_ids, true_names)
    prediction = three_images(tmp_path, "pred", pred_ids, pred_names)
    assert panoptic_quality(*truth, *prediction)["All"]["pq"] == 1.0
    line = capsys.readouterr().err
    assert (f"{said} of 3 image ids differ from" in line) == bool(said)
    assert line.count("\n") == bool(said)


@pytest.mark.parametrize(
    "pred_ids, pred_names, message",
    [
        (["b", "a", "x"], [*STREETS[:2], "x.jpg"], "no prediction for 1 of 3 images, .* is 3;"),
        # Two predictions of one file name say nothing.
        (["b", "a", "x"], ["x/a.jpg", "y/a.jpg", "c.jpg"], "no prediction for 3 of 3 images"),
        ([1, 2, "1"], STREETS, r'annotations\[2\]: "image_id" 1 is annotated twice'),
        ([1, 2.5, 3], STREETS, 'images.*"id" must be int'),
    ],
)
def test_images_without_one_prediction_are_refused(pred_ids, pred_names, message, tmp_path):
    truth = three_images(tmp_path, "gt", [1, 2, 3], STREETS)
    prediction = three_images(tmp_path, "pred", pred_ids, pred_names)
    with pytest.raises(InputError, match=message):
        panoptic_quality(*truth, *prediction)


@pytest.mark.parametrize("ids", [["007", "7"], ["7.jpg", "007.png"], ["a", "b"], ["1", "2"]])
def test_writer_keeps_ids_apart(ids, tmp_path):
    segment_map = stripes(x1=40, x2=60)
    files = write(tmp_path, "gt", *((i, segment_map, {1: CAT, 2: GRASS}, ()) for i in ids))
    content = json.loads(pathlib.Path(files[0]).read_text())
    written = [image["id"] for image in content["images"]]
    assert len(set(written)) == 2
    assert [a["image_id"] for a in content["annotations"]] == written
    assert set(map(type, written)) == ({int} if ids == ["1", "2"] else {str})


def set_areas(value):
    def edit(content):
        for annotation in content["annotations"]:
            for segment in annotation["segments_info"]:
                segment["area"] = value

    return edit


@pytest.mark.parametrize("area", [1, 0, -5, 96 * 128, 10**12, 40.0, None])
def test_areas_are_counted_from_the_pixels(area, tmp_path, capsys):
    truth = write(tmp_path, "gt", (5, stripes(x1=80, x2=20), {1: CAT, 2: GRASS}, ()))
    prediction = write(tmp_path, "pred", (5, stripes(x3=60, x0=20, x4=20), {3: CAT, 4: GRASS}, ()))
    expected = panoptic_quality(*truth, *prediction)
    assert expected["All"]["pq"] == 0.875 and not capsys.readouterr().err
    for path in (truth[0], prediction[0]):
        change(path, set_areas(area))
    assert panoptic_quality(*truth, *prediction) == expected
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (0 if area is None else 2)
    for line, name in zip(lines, ("gt.json", "pred.json")):
        assert f'{name}: "area" differs from the pixel count in 2 of 2 segments' in line


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda s, image: s.pop(), "segment id 2 is not in"),
        (lambda s, image: s.append({"id": 9, "category_id": CAT}), "no pixel of segment id 9"),
        (lambda s, image: s[0].update(category_id=5), '"category_id" 5 is not in'),
        (lambda s, image: s[0].update(id=2), '"id" 2 is used twice'),
        (lambda s, image: s[0].pop("category_id"), '"category_id" is missing'),
        (lambda s, image: image.update(height=11), '10 x 10 pixels but "height" .* is 11'),
        (lambda s, image: image.update(width="10"), "10 x 10 pixels but \"width\" .* is '10'"),
    ],
)
def test_json_and_png_that_disagree_are_refused(number, edit, message, tmp_path):
    image = (5, stripes(x1=80, x2=20), {1: CAT, 2: GRASS}, ())
    files = [write(tmp_path, name, image) for name in ("gt", "pred")]
    change(
        files[number][0],
        lambda c: edit(c["annotations"][0]["segments_info"], c["images"][0]),
    )
    name = ("gt", "pred")[number]
    with pytest.raises(InputError, match=rf"{name}.json: annotations\[0\].*{message}"):
        panoptic_quality(*files[0], *files[1])


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda c: c[0].update(name="dog"), "\"name\" of id 1 is 'dog' but 'cat' in .*gt.json; "),
        (lambda c: c[0].update(id=2) or c[1].update(id=1), "of id 2 is 'cat' but 'dog' in"),
        (lambda c: c[2].update(name="Grass"), "of id 7 is 'Grass' but 'grass' in"),
        (lambda c: c[0].update(id="1"), '"id" must be int'),
        (lambda c: c[0].pop("id"), '"id" is missing'),
    ],
)
def test_predictions_of_other_classes_are_refused(edit, message, tmp_path):
    image = (5, stripes(x1=80, x2=20), {1: CAT, 2: GRASS}, ())
    truth, prediction = (write(tmp_path, name, image) for name in ("gt", "pred"))
    change(prediction[0], lambda content: edit(content["categories"]))
    with pytest.raises(InputError, match=rf"pred.json: categories\[\d\].*{message}") as refusal:
        panoptic_quality(*truth, *prediction)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content.pop("categories"),  # of the official results
        lambda content: content["categories"].reverse(),
        lambda content: content["categories"].pop(1),
        lambda content: content["categories"].append({"id": 9, "name": "else"}),
        lambda content: [category.pop("name") for category in content["categories"]],
    ],
)
def test_predictions_of_the_same_classes_are_scored(edit, tmp_path):
    image = (5, stripes(x1=80, x2=20), {1: CAT, 2: GRASS}, ())
    truth, prediction = (write(tmp_path, name, image) for name in ("gt", "pred"))
    change(prediction[0], edit)
    assert panoptic_quality(*truth, *prediction)["All"]["pq"] == 1.0


def test_prediction_of_another_size_is_refused(tmp_path):
    segment_map = stripes(x1=80, x2=20)
    truth = write(tmp_path, "gt", (5, segment_map, {1: CAT, 2: GRASS}, ()))
    prediction = write(tmp_path, "pred", (5, segment_map.repeat(2, 1), {1: CAT, 2: GRASS}, ()))
    with pytest.raises(InputError, match="pred.json.*has 20 x 10 pixels but the ground truth 10 x"):
        panoptic_quality(*truth, *prediction)


def test_remote_folders():
    image = (5, stripes(x1=80, x3=20), {1: CAT, 3: GRASS}, ())
    assert score("ram://test_metrics", image, image)["All"]["pq"] == 1.0


def test_complaints_name_file_and_remedy(tmp_path):
    image = (5, stripes(x1=80, x3=20), {1: CAT, 3: GRASS}, ())
    truth = write(tmp_path, "gt", image)
    prediction = write(tmp_path, "pred", image)
    with pytest.raises(InputError, match="absent.json"):
        panoptic_quality(*truth, str(tmp_path / "absent.json"), prediction[1])
    with pytest.raises(InputError, match="pred.json.*image_5.png"):
        panoptic_quality(*truth, prediction[0], str(tmp_path / "absent"))
    with pytest.raises(
        InputError, match="other.json.*no prediction for 1 of 1 images, the first is 5"
    ):
        panoptic_quality(*truth, *write(tmp_path, "other", (6, *image[1:])))
    with pytest.raises(InputError, match="none.json: annotations: empty; give ground truth"):
        panoptic_quality(*write(tmp_path, "none"), *prediction)
    for content in ("[]", "null", "7", '{"annotations": {}}', '{"images": [], "annotations": [3]}'):
        (tmp_path / "pred.json").write_text(content)
        with pytest.raises(InputError, match="pred.json: .*; fix it"):
            panoptic_quality(*truth, *prediction)
    (tmp_path / "pred.json").write_text('{"annotations": [{"image_id": 5}]}')
    with pytest.raises(InputError, match=r"pred.json.*annotations\[0\].*file_name"):
        panoptic_quality(*truth, *prediction)


@pytest.mark.parametrize(
    "stem, image_id",
    [
        ("000000142238", 142238),
        ("000000142238.jpg", 142238),
        ("9" * 18, 10**18 - 1),
        ("9" * 19, "9" * 19),
        ("²", "²"),
        ("", ""),
    ],
)
def test_image_id_is_an_integer_of_up_to_18_digits_else_the_stem(stem, image_id):
    assert coco_image_id(stem) == image_id


def test_written_files(tmp_path):
    segment_map = stripes(x70000=30, x0=50, x2=20)
    writer = PanopticWriter(f"{tmp_path}/a/p.json", f"{tmp_path}/a/p", CATEGORIES)
    segments = [
        {"id": np.int64(70000), "category_id": CAT, "score": np.float32(0.5), "isthing": True},
        {"id": 2, "category_id": GRASS, "iscrowd": 0},
    ]
    writer.add(142238, "folder/000000142238.jpg", segment_map, segments)
    assert not (tmp_path / "a/p.json").exists()
    writer.finish()
    png = (tmp_path / "a/p/000000142238.png").read_bytes()
    np.testing.assert_array_equal(decode_ids(png, "p"), segment_map)
    content = json.loads((tmp_path / "a/p.json").read_text())
    assert content["images"] == [
        {"id": 142238, "file_name": "folder/000000142238.jpg", "height": 10, "width": 10}
    ]
    assert content["annotations"] == [
        {
            "image_id": 142238,
            "file_name": "000000142238.png",
            "segments_info": [
                {"id": 70000, "category_id": CAT, "score": 0.5, "isthing": True, "area": 30},
                {"id": 2, "category_id": GRASS, "iscrowd": 0, "area": 20},
            ],
        }
    ]
    assert content["categories"][2] == {
        "id": GRASS,
        "name": "grass",
        "isthing": 0,
        "color": [0, 0, 255],
    }
    with pytest.raises(ValueError, match=r"x.png: segments: ids \[2\] but"):
        writer.add(1, "x.png", segment_map, segments[1:])


def test_script(tmp_path, monkeypatch, capsys):
    truth = write(tmp_path, "gt", (5, stripes(x1=80, x2=20), {1: CAT, 2: GRASS}, ()))
    pred = write(tmp_path, "pred", (5, stripes(x3=60, x0=20, x4=20), {3: CAT, 4: GRASS}, ()))

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["panoptic_quality.py", *options])
        runpy.run_path("scripts/panoptic_quality.py", run_name="__main__")
        return capsys.readouterr().out

    folders = [f"--gt_folder={truth[1]}", f"--pred_folder={pred[1]}"]
    quality = json.loads(run(f"--gt_json={truth[0]}", f"--pred_json={pred[0]}", *folders, "--json"))
    assert quality["All"] == {"pq": 0.875, "sq": 0.875, "rq": 1.0, "n": 2}
    assert quality["Things"] == {"pq": 0.75, "sq": 0.75, "rq": 1.0, "n": 1}
    counts = {"iou_sum": 0.75, "tp": 1, "fp": 0, "fn": 0}
    assert quality["per_class"]["1"] == {"pq": 0.75, "sq": 0.75, "rq": 1.0, **counts}
    # The official script's names, and its folders.
    table = run(f"--gt_json_file={truth[0]}", f"--pred_json_file={pred[0]}").splitlines()
    assert table[2].split("|")[1].split() == ["87.5", "87.5", "100.0", "2"]
    with pytest.raises(SystemExit, match="^error: .*no.json: cannot be read"):
        run(f"--gt_json={truth[0]}", f"--pred_json={tmp_path}/no.json")
