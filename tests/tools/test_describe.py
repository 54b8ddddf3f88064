"""The description of a model, and the count of multiply-adds."""

import json

import pytest
import tensorflow as tf

from kmax_tf import config
from kmax_tf.experiment import Experiment
from kmax_tf.tools import describe

pytestmark = pytest.mark.usefixtures("forget_models")

COCO, CITYSCAPES = (800, 1200), (1025, 2049)
# Height and width, and the billions of multiply-adds in the paper's tables 1 to 5.
PAPER = {
    "coco_resnet50": (COCO, 168),
    "coco_max_s": (COCO, 240),
    "coco_convnext_base": (COCO, 380),
    "coco_convnext_large": (COCO, 744),
    "coco_convnext_large_256": (COCO, 749),
    "coco_resnet50_cross_attention": (COCO, 165),
    "coco_resnet50_dual_path": (COCO, 175),
    "coco_resnet50_dual_path_kmeans": (COCO, 176),
    "coco_resnet50_decoders_111": (COCO, 159),
    "coco_resnet50_decoders_333": (COCO, 176),
    "coco_max_s_cross_attention": (COCO, 237),
    "coco_max_s_dual_path": (COCO, 247),
    "coco_max_s_dual_path_kmeans": (COCO, 248),
    "coco_max_s_decoders_111": (COCO, 231),
    "coco_max_s_decoders_333": (COCO, 248),
    "cityscapes_resnet50": (CITYSCAPES, 434),
    "cityscapes_max_s": (CITYSCAPES, 602),
    "cityscapes_convnext_base": (CITYSCAPES, 858),
    "cityscapes_convnext_large": (CITYSCAPES, 1673),
    "ade20k_resnet50": ((641, 641), 75),
    "ade20k_resnet50_1281": ((1281, 1281), 295),
    "ade20k_convnext_large": ((641, 641), 333),
    "ade20k_convnext_large_1281": ((1281, 1281), 1302),
}
IN_CI = ("coco_resnet50", "coco_convnext_base")


@pytest.mark.slow
@pytest.mark.usefixtures("zero_weights")
@pytest.mark.parametrize(
    "name", [n if n in IN_CI else pytest.param(n, marks=pytest.mark.long) for n in PAPER]
)
def test_multiply_adds_of_the_paper(name):
    size, billions = PAPER[name]
    experiment = config.load(Experiment, f"gin/experiments/{name}.gin")
    counted = describe.describe(experiment, *size)["multiply_adds"]
    assert counted / 1e9 == pytest.approx(billions, rel=0.03)


def test_multiply_adds():
    def function(image, a):
        x = tf.nn.conv2d(image, tf.zeros([3, 3, 4, 8]), 2, "SAME")
        tf.nn.conv2d(x, tf.zeros([3, 3, 8, 8]), 1, "SAME")  # nobody needs it
        x = tf.nn.depthwise_conv2d(x, tf.zeros([5, 5, 8, 1]), [1, 1, 1, 1], "SAME")
        x = tf.reshape(x, [35, 8]) @ tf.zeros([8, 3])
        return x, tf.matmul(a, a, transpose_a=True), tf.einsum("bij,bkj->bik", a, a)

    shapes = tf.TensorSpec([1, 9, 13, 4]), tf.TensorSpec([2, 5, 3])
    outputs = tf.function(function).get_concrete_function(*shapes).outputs
    convolutions = 35 * 8 * 9 * 4 + 35 * 8 * 25
    assert describe.multiply_adds(outputs) == convolutions + 35 * 3 * 8 + 2 * 9 * 5 + 2 * 25 * 3


def test_script(run_script, capsys):
    words = ["--gin_file=gin/experiments/demo.gin", "--input_size", "97", "193", "--json"]
    run_script("describe.py", *words)
    description = json.loads(capsys.readouterr().out)
    parameters = description["parameters"]
    assert parameters["total"] == sum(parameters["by_part"].values())
    assert description["outputs"]["final/mask_logits"] == [1, 25, 49, 16]
    assert description["weight_bytes"] > 4 * parameters["total"]
    assert description["multiply_adds"] > 0
