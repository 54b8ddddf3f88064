"""The description of a model, and the count of multiply-adds."""

import json
import subprocess
import sys

import tensorflow as tf

from kmax_tf.tools import describe


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


def test_script():
    command = [sys.executable, "scripts/describe.py", "--gin_file=gin/experiments/demo.gin"]
    command += ["--input_size", "97", "193", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    description = json.loads(result.stdout)
    parameters = description["parameters"]
    assert parameters["total"] == sum(parameters["by_part"].values())
    assert description["outputs"]["final/mask_logits"] == [1, 25, 49, 16]
    assert description["weight_bytes"] > 4 * parameters["total"]
    assert description["multiply_adds"] > 0
