"""Files of the authors' PyTorch port: nine lists of names, the function that each belongs to.

That its networks give the port's outputs: tests/parity/test_check.py.
"""

import numpy as np
import pytest

from kmax_tf import config
from kmax_tf.errors import InputError
from kmax_tf.experiment import Experiment
from kmax_tf.importers import importer, names
from kmax_tf.importers.variables import variables
from kmax_tf.parity import cases, port

CLASSES = "/classifier/bias"  # of a prediction head or the semantic branch


def source_of(model):
    """A state dict of the port of ones, without their memory; biases of classes count up."""
    name_map = names.load(port.KIND)

    def values(key, shape):
        if name_map.rename(key).endswith(CLASSES):
            return np.arange(*shape, dtype=np.float32)
        return np.broadcast_to(np.float32(1), shape)

    shapes = port.state_shapes(cases.FOLDER, model)
    return {key: values(key, shape) for key, shape in shapes.items()}


@pytest.mark.slow
@pytest.mark.usefixtures("zero_weights")
@pytest.mark.parametrize("model", port.MODELS)
def test_every_published_file_fits_its_experiment(model):
    experiment = config.load(Experiment, port.gin_file(model))
    ours = experiment.model(experiment.dataset.num_classes).create_variables(65, 129)
    report = importer.import_weights(
        ours, port.KIND, source_of(model), experiment.dataset, semantic_channels="by_id"
    )
    assert report.assigned == len(variables(ours)) and not report.fresh_parts
    ids = sorted(c.id for c in experiment.dataset.categories)
    channels = [*(ids.index(c.id) for c in experiment.dataset.categories), len(ids)]  # void last
    for path, v in variables(ours).items():
        expected = channels[: v.shape[-1]] if path.endswith(CLASSES) else 1
        assert (v.numpy() == expected).all(), path


@pytest.mark.parametrize("model", port.MODELS)
def test_the_official_model_is_refused_and_the_right_file_named(model):
    gin_file = port.gin_file(model).replace("port_", "")
    experiment = config.load(Experiment, gin_file)
    unbuilt = experiment.model(experiment.dataset.num_classes)
    message = (
        f"pixel_decoder.dilation is 2 here and 1 there.* use --gin_file={port.gin_file(model)}$"
    )
    with pytest.raises(InputError, match=message):
        importer.import_weights(
            unbuilt, port.KIND, source_of(model), experiment.dataset, gin_file=gin_file
        )


@pytest.mark.parametrize("model", port.MODELS)
def test_the_model_of_the_port_refuses_official_weights(model):
    experiment = config.load(Experiment, port.gin_file(model))
    unbuilt = experiment.model(experiment.dataset.num_classes)
    wanted = port.gin_file(model).replace("port_", "")
    with pytest.raises(InputError, match=f"need other settings: .*{wanted}$"):
        importer.import_weights(
            unbuilt, "deeplab2", {}, experiment.dataset, gin_file=port.gin_file(model)
        )


@pytest.mark.parametrize("kind, gin_file", [("deeplab2", ""), ("pytorch", "port_")])
@pytest.mark.parametrize(
    "binding",
    [
        "pixel_decoder.PixelDecoder.activation = 'silu'",
        "kmax_decoder.ClusterPath.activation = 'relu'",
        "kmax_decoder.ClusterPath.cross_attention = 'spatial_softmax'",
        "semantic_branch.SemanticBranch.activation = 'relu'",
    ],
)
def test_official_weights_are_those_of_the_official_activations(kind, gin_file, binding):
    gin_file = f"gin/experiments/{gin_file}coco_resnet50.gin"
    experiment = config.load(Experiment, gin_file, [binding])
    unbuilt = experiment.model(experiment.dataset.num_classes)
    value = binding.split("'")[1]
    with pytest.raises(
        InputError, match=f"need other settings: .* is '{value}' here.*; bind as there"
    ):
        importer.import_weights(unbuilt, kind, {}, experiment.dataset, gin_file=gin_file)


def test_converted_weights_are_the_official_function():
    """The port's script changes their names and layouts, not what they compute."""
    gin_file = port.gin_file("coco_r50")
    experiment = config.load(Experiment, gin_file)
    unbuilt = experiment.model(experiment.dataset.num_classes)
    message = f"need other settings: .*{gin_file.replace('port_', '')}$"
    with pytest.raises(InputError, match=message):
        importer.import_weights(
            unbuilt,
            port.KIND,
            source_of("coco_r50"),
            experiment.dataset,
            semantic_channels="by_id_void_first",
            gin_file=gin_file,
        )


def test_the_order_of_semantic_channels_is_asked_for():
    """No name tells whether void is the first or the last channel."""
    experiment = config.load(Experiment, port.gin_file("coco_r50"))
    unbuilt = experiment.model(experiment.dataset.num_classes)
    with pytest.raises(InputError, match="give --semantic_channels=by_id .*or by_id_void_first"):
        importer.import_weights(unbuilt, port.KIND, source_of("coco_r50"), experiment.dataset)
