"""Golden cases are compared whole: what differs, lacks, or cannot be compared has failed."""

import json
import math
import pathlib
import re
import runpy
import shutil
import subprocess
import sys

import numpy as np
import pytest

from kmax_tf.errors import InputError
from kmax_tf.parity import cases, check

ROOT = pathlib.Path(__file__).parents[2]
OWN = ROOT / "tests" / "golden"
# The arrays of each entry in the facts of a case of augmentation.
ENTRIES = {
    "operations": "op/{name}/",
    "resize_to_range": "resize/{case}/",
    "random_scale": "scale/{case}/",
    "pad_crop": "pad_crop/{case}/",
    "targets": "targets/{dataset}/",
    "copy_paste": "copy_paste/{dataset}_0/",
}
MERGING = ("postprocess_coco", "postprocess_cityscapes", "postprocess_ade20k")  # of the port


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
def copied(tmp_path):
    """A function: changes of arrays -> the result of one loss case with these changes."""
    source = OWN / "loss"

    def run(**changes):
        folder = tmp_path / "golden" / "loss"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / "coco_sampled.json", folder)
        arrays = dict(np.load(source / "coco_sampled.npz")) | changes
        arrays = {name: value for name, value in arrays.items() if value is not None}
        np.savez(folder / "coco_sampled.npz", **arrays)
        return check.check(str(tmp_path / "golden"))

    return run


def test_differences_fail(copied):
    terms = np.load(OWN / "loss" / "coco_sampled.npz")["terms"]
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


def test_augment(golden):
    results = check.check(str(golden), "augment")
    assert [result.case for result in results] == ["colour", "geometry", "targets"]
    assert all(result.passed for result in results), results


@pytest.mark.parametrize(
    ("case", "array", "kept"),
    [
        ("colour", "op/Equalize/large", ("op/Equalize/", "image/")),
        (
            "geometry",
            "pad_crop/1/label",
            ("pad_crop/1/", "evaluation/", "image/large", "label/large"),
        ),
        ("targets", "copy_paste/coco_0/image_out", ("targets/coco/", "copy_paste/coco_0/")),
        ("targets", "copy_paste/coco_0/label_out", ("targets/coco/", "copy_paste/coco_0/")),
        ("targets", "targets/cityscapes/semantic_loss_weight", ("targets/cityscapes/",)),
    ],
)
def test_augment_that_differs_fails(tmp_path, case, array, kept):
    whole = cases.Case(str(OWN), "augment", case)
    arrays = {name: value for name, value in whole.items() if name.startswith(kept)}
    facts = whole.facts | {"images_of_rule": {}, "policies": {}, "scale_sets": []}
    facts["resize_shapes_h_w_limit_outh_outw"] = []
    for key in facts.keys() & ENTRIES.keys():
        entries = [entry for entry in facts[key] if ENTRIES[key].format(**entry) in kept]
        facts[key] = [entry | {"cases": 1} for entry in entries]
    folder = tmp_path / "golden" / "augment"
    folder.mkdir(parents=True)
    (folder / f"{case}.json").write_text(json.dumps(facts))

    def run():
        np.savez(folder / f"{case}.npz", **arrays)
        return check.check(str(tmp_path / "golden"))

    (result,) = run()
    assert result.passed
    arrays[array].flat[7] += 1
    (result,) = run()
    assert not result.passed and result.worst == array


def test_optimizer(golden):
    (result,) = check.check(str(golden), "optimizer")
    assert result.passed, result


@pytest.mark.slow
def test_model(golden):
    results = check.check(str(golden), "model")
    assert "coco_r50" in [result.case for result in results]
    assert all(result.passed for result in results), results


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "case"), [("port", "coco_r50"), ("encoders", "timm_convnext_tiny")]
)
def test_other_code_bases(golden, part, case):
    networks = [name for name in cases.case_names(str(golden), part) if name not in MERGING]
    assert case in networks
    for name in networks:
        (result,) = check.check(str(golden), part, name)
        assert result.passed, result


@pytest.mark.parametrize("case", MERGING)
def test_merging_of_the_port(golden, case):
    (result,) = check.check(str(golden), "port", case)
    assert result.passed, result


def test_checkpoint_shapes_of_both_layouts(tmp_path):
    key = "encoder/_stem/_conv/kernel/.ATTRIBUTES/VARIABLE_VALUE"
    assert cases.checkpoint_shapes(cases.FOLDER, "coco_r50")[key] == [7, 7, 3, 64]
    (tmp_path / "checkpoint_keys").mkdir()
    entries = [{"key": key, "shape": [1, 2], "dtype": "float32"}]
    (tmp_path / "checkpoint_keys" / "coco_r50.json").write_text(json.dumps(entries))
    assert cases.checkpoint_shapes(str(tmp_path), "coco_r50") == {key: [1, 2]}


@pytest.mark.slow
def test_script(copied, tmp_path, monkeypatch, capsys):
    script, folder = str(ROOT / "scripts/check_parity.py"), str(tmp_path / "golden")
    copied(more=np.zeros(3))
    monkeypatch.setattr(check, "prepare", lambda: None)  # of a process of its own

    def refused(*words):
        monkeypatch.setattr(sys, "argv", [script, folder, *words])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(script, run_name="__main__")
        return stop.value.code

    assert refused("--json") == 1
    assert json.loads(capsys.readouterr().out)["cases"][0]["case"] == "coco_sampled"
    assert refused("--part=model").startswith(f"error: {folder}: holds no model case")
    # Without a folder, and from anywhere: the project's own numbers.
    command = [sys.executable, script, "--part=optimizer"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^optimizer/adamw .* pass ", done.stdout, re.MULTILINE)
