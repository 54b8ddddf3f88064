"""The gin files: what an experiment says of itself, and that each file is part of one.

model/test_parameters.py builds each; data/test_training_input.py checks that its input is free of
Python.
"""

import json
import pathlib
import re

import numpy as np
import pytest

from kmax_tf import config
from kmax_tf.experiment import Experiment
from kmax_tf.training.batch_size import per_replica_batch_size

ROOT = pathlib.Path(__file__).parents[1]
EXPERIMENTS = sorted((ROOT / "gin/experiments").glob("*.gin"))
# PQ on val and test-dev of the official models (deeplab2, g3doc/projects/kmax_deeplab.md).
ZOO = {
    "coco_resnet50": "53.0 on val, 53.4 on test-dev",
    "coco_max_s": "56.2 on val, 56.4 on test-dev",
    "coco_convnext_tiny": "55.3 on val, 55.7 on test-dev",
    "coco_convnext_small": "56.3 on val, 57.0 on test-dev",
    "coco_convnext_base": "57.2 on val, 57.8 on test-dev",
    "coco_convnext_large": "57.9 on val, 58.0 on test-dev",
    "coco_convnext_large_pseudo_labels": "58.1 on val, 58.5 on test-dev",
    "cityscapes_resnet50": "64.3 on val",
    "cityscapes_max_s": "66.4 on val",
    "cityscapes_convnext_tiny": "66.3 on val",
    "cityscapes_convnext_small": "67.3 on val",
    "cityscapes_convnext_base": "68.0 on val",
    "cityscapes_convnext_large": "68.4 on val",
    "ade20k_resnet50": "41.5 on val",
    "ade20k_resnet50_1281": "42.3 on val",
    "ade20k_convnext_large": "48.7 on val",
    "ade20k_convnext_large_1281": "50.9 on val",
}
SCHEDULES = {
    "coco": (64, 150_000),
    "cityscapes": (32, 60_000),
    "ade20k": (64, 100_000),
}


def head(path):
    """The comment that a file starts with, as its parts: "" for the title, else by their names."""
    lines = re.match(r"(#.*\n)+", path.read_text())[0].splitlines()
    parts, name = {"": ""}, ""
    for line in lines:
        part = re.match(r"# ([A-Z]\w+): +(.*)", line)
        name = part[1] if part else name
        parts[name] = f"{parts.get(name, '')} {part[2] if part else line[1:].strip()}".strip()
    return parts


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_heads(path):
    parts = head(path)
    assert parts[""] and parts["Hardware"] and parts["Hours"]
    assert (
        path.stem == "demo"
        or f"kmax train --gin_file=gin/experiments/{path.name}" in (parts["Command"])
    )
    if "tpu:NAME" in parts["Command"]:
        assert f"--run_dir=gs://BUCKET/{path.stem} " in parts["Command"]
        assert parts["Hours"] == f"scripts/tpu_compile.py --gin_file=gin/experiments/{path.name}"
    if path.stem in ZOO:
        assert parts["Expected"].startswith(f"PQ {ZOO[path.stem]} (deeplab2 model zoo, ")
    else:
        sources = r"(\(paper|your data|\(README of the|\((README|docs/\w+)(?:\.md)?\))"
        found = re.match(rf"PQ (unknown|\d\d\.\d).*{sources}", parts["Expected"])
        page = (ROOT / f"{found[3]}.md").read_text() if found[3] else found[1]
        assert found[1] in page


def test_tiles_can_be_bound_on_the_command_line():
    """As the count of lost segments advises."""
    binding = "experiment.Experiment.tiles = @tiles.Tiles()"
    assert config.load(Experiment, "gin/experiments/coco_resnet50.gin", [binding]).tiles


# Crop, magnitude scale of the auto-augment policy, pixels of the contrast term (deeplab2,
# configs/*/kmax_deeplab, by dataset; ADE20K also at 1281).
INPUTS = {
    "coco": ((1281, 1281), 1.0, 4096),
    "cityscapes": ((1025, 2049), 0.2, 4096),
    "ade20k": ((641, 641), 1.0, 1024),
    "ade20k_1281": ((1281, 1281), 1.0, 4096),
}
OFFICIAL = [p for p in EXPERIMENTS if p.stem.split("_")[0] in SCHEDULES]
OFFICIAL = [p for p in OFFICIAL if not re.search("sample|lite", p.stem)]


@pytest.mark.parametrize("path", OFFICIAL, ids=lambda path: path.stem)
def test_numbers_are_those_of_the_official_configuration(path):
    """Which the golden cases were made with."""
    golden, dataset = ROOT / "tests/golden", path.stem.split("_")[0]
    experiment = config.load(Experiment, str(path))
    optimizer, postprocess = experiment.optimizer(experiment.steps), experiment.postprocess
    facts = json.loads((golden / "optimizer/adamw.json").read_text())["schedules"][dataset]
    assert optimizer.schedule.base == facts["base_rate"]
    assert optimizer.schedule.warmup_steps == facts["warmup"]
    assert optimizer.decay == facts["weight_decay"]
    assert optimizer.encoder_multiplier == facts["backbone_multiplier"]
    facts = json.loads((golden / f"postprocess/{dataset}.json").read_text())
    for kind in ("thing", "stuff"):
        assert getattr(postprocess, f"{kind}_threshold") == facts[f"class_threshold_{kind}"]
        assert getattr(postprocess, f"{kind}_area") == facts[f"{kind}_area_limit"]
    for name in ("overlap_threshold", "pixel_threshold", "mask_exponent"):
        assert getattr(postprocess, name) == facts[name]
    sampled = {"cityscapes": "cityscapes"}.get(dataset, "coco_sampled")
    facts = json.loads((golden / f"loss/{sampled}.json").read_text())
    assert experiment.criterion.contrast_temperature == facts["sample_temperature"]
    assert experiment.criterion.semantic_top_fraction == facts["semantic_top_k"]


@pytest.mark.parametrize("path", OFFICIAL, ids=lambda path: path.stem)
def test_the_training_input_is_that_of_the_official_configuration(path):
    golden, dataset = ROOT / "tests/golden", path.stem.split("_")[0]
    experiment = config.load(Experiment, str(path))
    options, pixels = experiment.training_input, experiment.criterion.contrast_pixels
    name = f"{dataset}_1281" if path.stem.endswith("_1281") else dataset
    assert (options.size, options.color, pixels) == INPUTS[name]
    assert experiment.evaluation_size == options.size
    assert options.augment and options.flip
    with np.load(golden / "augment/geometry.npz") as sets:
        assert list(options.scales) == sets[f"scale_set/{dataset}_main"].tolist()
        assert list(options.paste_scales) == sets[f"scale_set/{dataset}_paste"].tolist()
    cases = json.loads((golden / "augment/targets.json").read_text())["targets"]
    [small] = [case["small_instance"] for case in cases if case["dataset"] == dataset]
    assert [options.small_thing_area, options.small_thing_weight] == (small or [0, 1.0])
    facts = json.loads((golden / f"postprocess/{dataset}.json").read_text())
    assert options.max_segments == facts["mask_slots"]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_parses_with_the_official_schedule(path):
    own = ["datasets.load.source = 'coco'"] if path.stem.startswith("own_dataset") else []
    experiment = config.load(Experiment, str(path), own)
    optimizer = experiment.optimizer(experiment.steps)
    assert float(optimizer.learning_rate) == 0  # before the warm-up
    dataset = path.stem.split("_")[0]
    if dataset in SCHEDULES and path.stem != "coco_sample":
        batch_size, steps = SCHEDULES[dataset]
        thousands = re.search(r"_(\d+)k$", path.stem)
        steps = int(thousands[1]) * 1000 if thousands else steps
        assert (experiment.batch_size, experiment.steps) == (batch_size, steps)
    if slice_ := re.search(r"v3-(\d+)", head(path)["Hardware"]):
        assert per_replica_batch_size(experiment, int(slice_[1])) >= 1  # trains there


def test_every_file_is_part_of_an_experiment_or_a_study():
    includes = {
        path.relative_to(ROOT).as_posix(): set(
            re.findall(r'^include "(.*)"', path.read_text(), re.M)
        )
        for path in (ROOT / "gin").rglob("*.gin")
    }
    used = {name for names in includes.values() for name in names}
    used.add("gin/models/small_lite0.gin")  # of plans, see planning/plan.py
    assert used <= set(includes)
    parts = {name for name in includes if name.split("/")[1] in ("data", "models", "runs")}
    assert parts <= used


def test_the_table_of_the_paper_names_experiments_that_exist():
    table = re.findall(r"^\|(.*)\|$", (ROOT / "gin/README.md").read_text(), re.M)
    names = set()
    for words in re.findall(r"`([a-z]\w*(?:\{[^}]*\}\w*)?)`", "".join(table)):
        start, choices, end = re.fullmatch(r"(\w*)(?:\{(.*)\})?(\w*)", words).groups()
        names |= {start + choice + end for choice in (choices or "").split(",")}
    assert set(ZOO) - {n for n in ZOO if n.endswith("_1281")} <= names
    assert names <= {path.stem for path in EXPERIMENTS}


def test_only_cityscapes_enlarges_nothing():
    def enlarges(name):
        return config.load(Experiment, f"gin/experiments/{name}.gin").enlarges

    names = ("cityscapes_resnet50", "port_cityscapes_resnet50", "coco_resnet50", "ade20k_resnet50")
    assert [enlarges(name) for name in names] == [False, False, True, True]
