"""Name maps lead every name of another codebase to a name of its own."""

import json

import pytest

from kmax_tf.errors import InputError
from kmax_tf.importers import names
from kmax_tf.parity import cases

VARIANTS = [
    "ade20k_convnext_large",
    "ade20k_r50",
    "cityscapes_axial_r50",
    "cityscapes_convnext_base",
    "cityscapes_convnext_large",
    "cityscapes_convnext_small",
    "cityscapes_convnext_tiny",
    "cityscapes_r50",
    "coco_axial_r50",
    "coco_convnext_base",
    "coco_convnext_large",
    "coco_convnext_small",
    "coco_convnext_tiny",
    "coco_r50",
]
PARTS = ("pixel_encoder/", "pixel_decoder/", "cluster_path/", "semantic_branch/")


def test_replacement(tmp_path, monkeypatch):
    monkeypatch.setattr(names, "MAPS", str(tmp_path))
    base = {"ignore": ["^x"], "rules": [[r"^s(\d+)\.b(\d)", "stages/<1-2>/<2>"]]}
    more = {"include": "base", "rules": [["/3$", "/three"]], "part": "stages"}
    (tmp_path / "base.json").write_text(json.dumps(base))
    (tmp_path / "more.json").write_text(json.dumps(more))
    assert names.kinds() == ["base", "more"]
    assert names.load("base").rename("s12.b3") == "stages/10/3"
    assert names.load("more").rename("s12.b3") == "stages/10/three"
    assert names.load("more").ignores("x/y") and not names.load("more").ignores("y/x")
    assert names.load("more").part == "stages" and names.load("base").part == ""


def test_unknown_kind():
    with pytest.raises(InputError, match="no kind 'deeplab'; did you mean 'deeplab2'?"):
        names.load("deeplab")


@pytest.mark.parametrize(
    "kind, gin_file, remedy",
    [
        ("pytorch", "coco_resnet50", "use --gin_file=gin/experiments/port_coco_resnet50.gin"),
        ("deeplab2", "port_coco_resnet50", "use --gin_file=gin/experiments/coco_resnet50.gin"),
        ("pytorch", "own", "include gin/models/port.gin in the gin file, after the model"),
        ("pytorch", "coco_max_s", "include gin/models/port.gin in the gin file, after the model"),
        ("deeplab2", "port_own", "leave gin/models/port.gin out of the gin file"),
    ],
)
def test_a_model_of_another_function_has_a_remedy(kind, gin_file, remedy):
    """Never the experiment of other classes or of another backbone."""
    assert names.remedy(names.load(kind), f"plans/{gin_file}.gin") == remedy


@pytest.mark.parametrize("variant", VARIANTS)
def test_official_names(variant):
    keys = [*cases.checkpoint_shapes(cases.FOLDER, variant)]
    name_map = names.load("deeplab2")
    renamed = [name_map.rename(key) for key in keys]
    assert len(set(renamed)) == len(keys)
    assert all(name.startswith(PARTS) and "/_" not in name for name in renamed)
    slot = ".OPTIMIZER_SLOT/optimizer/m/.ATTRIBUTES/VARIABLE_VALUE"
    suffix = ".ATTRIBUTES/VARIABLE_VALUE"
    assert not any(map(name_map.ignores, keys))
    assert all(name_map.ignores(key.replace(suffix, slot)) for key in keys)
    others = ["global_step/", "save_counter/", "optimizer/iter/", "backbone_optimizer/decay/"]
    assert all(name_map.ignores(other + suffix) for other in others)
    assert name_map.ignores("_CHECKPOINTABLE_OBJECT_GRAPH")
    encoder = names.load("imagenet_deeplab2")
    kept = [key for key in keys if not encoder.ignores(key)]
    assert kept == [key for key in keys if key.startswith("encoder/")]
    assert all(encoder.rename(key) == name_map.rename(key) for key in kept)
    # ImageNet checkpoints of the Model Garden's trainer, and ConvNeXt's weights by themselves.
    prefixes = ["backbone/_encoder/"] + [""] * ("convnext" in variant)
    for prefix in prefixes:
        for key in kept:
            other = key.replace("encoder/", prefix, 1)
            assert not encoder.ignores(other) and encoder.rename(other) == name_map.rename(key)
