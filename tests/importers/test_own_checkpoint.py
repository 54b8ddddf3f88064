"""A run starts from a run of other classes: those of the same name keep their weights."""

import json
from typing import NamedTuple

import numpy as np
import pytest
import tf_keras

from kmax_tf import config, runtime
from kmax_tf.errors import InputError
from kmax_tf.experiment import Experiment
from kmax_tf.importers import output, own_checkpoint
from kmax_tf.importers.variables import variables
from kmax_tf.run_folder import checkpoint
from kmax_tf.training import train
from kmax_tf.training.trainer import make_trainer

MAX_POOL = "resnet.ResNet.max_pool = True"
HEADS = ["cluster_path/head", "cluster_path/decoders/0/head", "semantic_branch"]
THREE = [("cat", 1), ("dog", 1), ("sky", 0)]
FOUR = [("cat", 1), ("bird", 1), ("sky", 0), ("tree", 0)]


@pytest.fixture(scope="module")
def build(records, tiny_text, tmp_path_factory):
    """A function: (name, isthing) of classes -> the toy experiment and its model."""
    folder = tmp_path_factory.mktemp("classes")
    (folder / "tiny.gin").write_text(tiny_text.format(records=records))

    def build(classes, *bindings):
        categories = [
            {"id": i, "name": name, "isthing": thing} for i, (name, thing) in enumerate(classes, 1)
        ]
        path = folder / f"{len(classes)}{classes[0][0]}.json"
        path.write_text(json.dumps({"name": "pets", "categories": categories}))
        bindings = [f"datasets.load.source = '{path}'", *bindings]
        experiment = config.load(Experiment, str(folder / "tiny.gin"), bindings)
        return experiment, experiment.build_model()

    return build


class Trained(NamedTuple):
    """A model and its checkpoint; no test changes them."""

    experiment: Experiment
    model: tf_keras.Model
    path: str


@pytest.fixture(scope="module")
def three(build, tmp_path_factory):
    """A model of THREE, for all tests: building it takes its time."""
    experiment, model = build(THREE)
    run_dir = str(tmp_path_factory.mktemp("runs") / "three")
    output.write(model, experiment.dataset, run_dir)
    return Trained(experiment, model, own_checkpoint.find(run_dir))


def classifiers(model):
    """{path: array} of the weights whose last axis is classes."""
    return {p: v.numpy() for p, v in variables(model).items() if "/classifier/" in p}


def start(model, path, experiment):
    return own_checkpoint.start_from(model, path, experiment.dataset, experiment.build_weights)


def test_three_classes_become_four(build, three):
    experiment, model = build(FOUR)
    before, source = classifiers(model), classifiers(three.model)
    lines = start(model, three.path, experiment)
    assert lines == [
        "kept the weights of classes: cat, sky",
        "newly initialized classes, not in the source: bird, tree",
        "dropped classes of the source: dog",
    ]
    after = classifiers(model)
    assert len(after) == 2 * len(HEADS)
    for name, values in after.items():
        np.testing.assert_array_equal(values[..., 0], source[name][..., 0], name)  # cat
        np.testing.assert_array_equal(values[..., 1], before[name][..., 1], name)  # bird
        np.testing.assert_array_equal(values[..., 2], source[name][..., 2], name)  # sky
        np.testing.assert_array_equal(values[..., 3], before[name][..., 3], name)  # tree
        if not name.startswith("semantic_branch"):
            np.testing.assert_array_equal(values[..., 4], source[name][..., 3], name)  # void
    theirs = variables(three.model)
    for name, variable in variables(model).items():
        if name not in after:
            np.testing.assert_array_equal(variable, theirs[name], name)


def test_as_many_classes_of_other_names_keep_none(build, three):
    experiment, model = build([("car", 1), ("bus", 1), ("road", 0)])
    before = classifiers(model)
    lines = start(model, three.path, experiment)
    assert lines[0] == "kept the weights of classes: none"
    for name, values in classifiers(model).items():
        np.testing.assert_array_equal(values[..., :3], before[name][..., :3], name)


def test_the_same_classes_keep_all(build, three):
    experiment, model = build(THREE)
    assert start(model, three.path, experiment) == []
    theirs = variables(three.model)
    for name, variable in variables(model).items():
        np.testing.assert_array_equal(variable, theirs[name], name)


def test_another_model_is_refused_with_the_file(build, three):
    experiment, model = build(FOUR, "kmax_decoder.ClusterPath.num_clusters = 24")
    with pytest.raises(InputError, match=f"{three.path}: belongs to another model"):
        start(model, three.path, experiment)


@pytest.mark.parametrize(
    "binding, there",
    [
        ("resnet.ResNet.activation = 'relu'", "pixel_encoder.activation_name is 'silu' here and"),
        ("pixel_decoder.PixelDecoder.activation = 'relu'", "pixel_decoder.activation_name is"),
        ("pixel_decoder.PixelDecoder.endpoints = [3, 1]", "pixel_decoder.endpoints is"),
        ("kmax_decoder.ClusterPath.activation = 'relu'", "cluster_path.activation_name is"),
        (
            "kmax_decoder.ClusterPath.cross_attention = 'spatial_softmax'",
            "cluster_path.cross_attention is 'kmeans' here and 'spatial_softmax' there",
        ),
        ("semantic_branch.SemanticBranch.activation = 'relu'", "semantic_branch.activation_name"),
        (
            "kmax_decoder.ClusterPath.depths = (0, 1)",
            "cluster_path.source is .0. here and",
        ),
    ],
)
def test_weights_of_another_experiment_are_another_function(build, three, tmp_path, binding, there):
    experiment, trained = build(THREE, binding)
    path = output.write(trained, experiment.dataset, str(tmp_path / "a-0"))
    with pytest.raises(InputError, match=f"belongs to another model .*{there}"):
        start(three.model, path, three.experiment)
    start(trained, path, experiment)


def test_weights_of_another_network_with_equal_shapes_are_refused(build, three, tmp_path):
    """As those of the PyTorch port, for the same classes and for others."""
    experiment, trained = build(THREE, MAX_POOL)
    output.write(trained, experiment.dataset, str(tmp_path / "whole-0"))
    output.write(trained, None, str(tmp_path / "encoder-0"))
    same, others = (three.experiment, three.model), build(FOUR)
    pairs = (same, "whole-0"), (others, "whole-0"), (same, "encoder-0")
    for (experiment, model), name in pairs:
        path = str(tmp_path / name)
        before = [(name, v, v.numpy()) for name, v in variables(model).items()]
        message = (
            f"{path}: belongs to another model \\(pixel_encoder.max_pool is False here and True"
        )
        with pytest.raises(InputError, match=message):
            start(model, path, experiment)
        for name, variable, value in before:
            np.testing.assert_array_equal(variable, value, name)
    experiment, model = build(THREE, MAX_POOL, "pixel_decoder.PixelDecoder.dilation = 1")
    start(model, str(tmp_path / "encoder-0"), experiment)
    for ours, theirs in zip(
        model.pixel_encoder.weights, trained.pixel_encoder.weights, strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_training_says_its_classes(tiny, build, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "_run", lambda trainer, folder, *_: trainer.save(folder))
    experiment = tiny("experiment.Experiment.steps = 1")
    train.train(experiment, str(tmp_path / "run"), runtime.strategy("cpu"))
    found = checkpoint.read_classes(checkpoint.newest(str(tmp_path / "run")))
    classes, model = build(FOUR)
    path = checkpoint.newest(str(tmp_path / "run"))
    lines = start(model, path, classes)
    assert lines[0] == "kept the weights of classes: sky" and len(lines) == 3
    assert found.categories == experiment.dataset.categories and found.name == "panoptic_digits"


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_heads_of_a_run(tiny, tmp_path, decay):
    """Its optimizer has its weights too, by shorter names."""
    bindings = [
        f"experiment.Experiment.ema_decay = {decay}",
        "kmax_decoder.ClusterPath.num_clusters = 24",
        "semantic_branch.SemanticBranch.void_channel = True",
    ]
    trainer = make_trainer(tiny(*bindings), runtime.strategy("cpu"))
    trainer.save(str(tmp_path / "run"))
    dataset = trainer.experiment.dataset
    found = own_checkpoint.heads(own_checkpoint.find(str(tmp_path / "run")), dataset)
    assert found == own_checkpoint.Heads(num_clusters=24, void_channel=True)
    encoder = output.write(trainer.model, None, str(tmp_path / "encoder-0"))
    assert own_checkpoint.heads(encoder, dataset) is None
