import json
import pathlib
import runpy
import sys

import numpy as np
import pytest

from kmax_tf.data.coco_panoptic import decode_ids
from kmax_tf.data.coco_writer import PanopticWriter
from kmax_tf.data.datasets import Category
from kmax_tf.errors import InputError
from kmax_tf.evaluation.metrics import panoptic_quality

GOLDEN = pathlib.Path(__file__).parents[2].parent / "shared/golden/panoptic_quality"
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


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs the shared golden numbers")
@pytest.mark.parametrize(
    "case", sorted(p.parent.name for p in GOLDEN.glob("*/result.json")) or ["none"]
)
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
    if not GOLDEN.is_dir():
        pytest.skip("needs the shared golden numbers")
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
    for ids in (("aachen_0", "aachen_1"), (3, 4)):
        truth = write(
            tmp_path, "gt", *((i, m, categories, ()) for i, m in zip(ids, (first, second)))
        )
        prediction = write(
            tmp_path,
            "pred",
            (str(ids[1]), second, categories, ()),
            ("0", first, categories, ()),  # an image that nobody asks for
            (str(ids[0]), first, categories, ()),
        )
        assert panoptic_quality(*truth, *prediction)["All"]["pq"] == 1.0


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
    (tmp_path / "pred.json").write_text('{"annotations": [{"image_id": 5}]}')
    with pytest.raises(InputError, match=r"pred.json.*annotations\[0\].*file_name"):
        panoptic_quality(*truth, *prediction)


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
