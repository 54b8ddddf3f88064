"""Golden cases are compared whole: what differs, lacks, or cannot be compared has failed."""

import json
import math
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from kmax_tf.errors import InputError
from kmax_tf.parity import cases, check

ROOT = pathlib.Path(__file__).parents[2]


def test_comparison():
    comparison = cases.Comparison()
    comparison.add("a", [1.0, 2.0], [1.0, 2.1], [0.0, 0.2])
    comparison.add("a", 1.0, 1.01, 0.1)
    comparison.add("exact", [3, 4], [3, 4], 0)
    assert comparison.worst() == ("a", pytest.approx(0.5))
    assert comparison.ratios["exact"] == 0
    comparison.add("b", [1, 2], [1, 3], 0)
    comparison.add("c", [np.nan], [1.0], 1e9)
    comparison.add("d", [1.0, 2.0], [1.0], 1e9)
    assert [n for n, r in comparison.ratios.items() if r == math.inf] == [
        "b",
        "c",
        "d: shape (2,) for (1,)",
    ]


def test_comparison_of_a_tensor_stored_in_part():
    ours = np.arange(12.0).reshape(3, 4)
    facts = dict(name="x", shape=[3, 4], stride=5, tol=0.5, mean=5.5, max_abs=11.0)
    comparison = cases.Comparison()
    comparison.add_whole(facts, ours, np.array([0.0, 5.0, 10.25]))
    assert comparison.ratios == {"x": 0.5}
    comparison.add_whole(facts | {"max_abs": 12.0}, ours, np.array([0.0, 5.0, 10.0]))
    assert comparison.ratios == {"x": 2.0}
    comparison.add_whole(facts | {"shape": [12]}, ours, np.array([0.0, 5.0, 10.0]))
    assert comparison.worst()[1] == math.inf


@pytest.fixture
def copied(shared, tmp_path):
    """A function: changes of arrays -> the result of one loss case with these changes."""
    source = shared / "golden" / "loss"

    def run(**changes):
        folder = tmp_path / "golden" / "loss"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / "ade20k.json", folder)
        arrays = dict(np.load(source / "ade20k.npz")) | changes
        np.savez(folder / "ade20k.npz", **{k: v for k, v in arrays.items() if v is not None})
        return check.check(str(tmp_path / "golden"))

    return run


def test_differences_fail(copied, shared):
    terms = np.load(shared / "golden" / "loss" / "ade20k.npz")["terms"]
    (result,) = copied()
    assert result.passed and 0 < result.deviation_over_tolerance <= 1
    (result,) = copied(terms=terms + 1e-3)
    assert not result.passed and 1 < result.deviation_over_tolerance < math.inf
    assert result.worst.startswith("terms/")
    (result,) = copied(more=np.zeros(3))
    assert (result.passed, result.worst) == (False, "more: not compared")
    (result,) = copied(**{"match/cost": None})
    assert not result.passed and result.deviation_over_tolerance == math.inf
    facts = check.as_json([result])
    assert facts["passed"] is False and facts["cases"][0]["deviation_over_tolerance"] is None
    assert set(facts["cases"][0]) == {
        "part",
        "case",
        "tensors",
        "worst",
        "deviation_over_tolerance",
        "passed",
    }
    assert "FAIL" in check.table([result])


def test_wrong_folders(tmp_path):
    with pytest.raises(InputError, match="is no folder"):
        check.check(str(tmp_path / "none"))
    with pytest.raises(InputError, match="holds no golden case"):
        check.check(str(tmp_path))
    with pytest.raises(InputError, match="holds no loss case"):
        check.check(str(tmp_path), "loss")
    with pytest.raises(InputError, match="part 'weather' is none of model, loss"):
        check.check(str(tmp_path), "weather")


def test_cases_that_cannot_be_run_fail(tmp_path):
    (tmp_path / "augment").mkdir()
    (tmp_path / "augment" / "colour.json").write_text("{}")
    np.savez(tmp_path / "augment" / "colour.npz", a=np.zeros(1))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "coco_vgg.json").write_text('{"model": "coco_vgg", "seed": 1}')
    np.savez(tmp_path / "model" / "coco_vgg.npz", a=np.zeros(1))
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "coco.json").write_text("{")
    model, loss, augment = check.check(str(tmp_path))
    assert not any(result.passed for result in (model, loss, augment))
    assert "coco.json: not valid JSON" in loss.worst
    assert "'policies'" in augment.worst


@pytest.mark.parametrize("case", ["colour", "geometry", "targets"])
def test_augment(shared, case):
    (result,) = check.check(str(shared / "golden"), "augment", case)
    assert result.passed, result


@pytest.mark.parametrize(
    ("case", "array"),
    [
        ("geometry", "pad_crop/1/label"),
        ("targets", "copy_paste/coco_0/label_out"),
        ("targets", "targets/cityscapes/semantic_loss_weight"),
    ],
)
def test_augment_that_differs_fails(shared, tmp_path, case, array):
    folder = tmp_path / "golden" / "augment"
    folder.mkdir(parents=True)
    shutil.copy(shared / "golden" / "augment" / f"{case}.json", folder)
    arrays = dict(np.load(shared / "golden" / "augment" / f"{case}.npz"))
    arrays[array].flat[7] += 1
    np.savez(folder / f"{case}.npz", **arrays)
    (result,) = check.check(str(tmp_path / "golden"))
    assert not result.passed and result.worst == array


def test_optimizer(shared):
    (result,) = check.check(str(shared / "golden"), "optimizer")
    assert result.passed, result


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", ["coco_r50", "coco_axial_r50", "coco_convnext_tiny", "cityscapes_r50"]
)
def test_model(shared, case):
    (result,) = check.check(str(shared / "golden"), "model", case)
    assert result.passed, result


@pytest.mark.slow
def test_script(copied, tmp_path):
    copied(more=np.zeros(3))
    script = [sys.executable, ROOT / "scripts" / "check_parity.py", tmp_path / "golden"]
    done = subprocess.run([*script, "--json"], capture_output=True, text=True)
    assert done.returncode == 1
    assert json.loads(done.stdout)["cases"][0]["case"] == "ade20k"
    assert subprocess.run([*script, "--part=model"], capture_output=True).returncode == 1
