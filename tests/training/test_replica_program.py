"""The program of one replica: what a TPU refuses is named, and the cores really meet."""

import inspect
import re

import numpy as np
import pytest
import tensorflow as tf
import toy

from kmax_tf.errors import InputError
from kmax_tf.training import replica_program
from kmax_tf.training.replica_strategy import ReplicaStrategy
from kmax_tf.training.trainer import make_trainer

SPECS = [tf.TensorSpec([4, 4], tf.float32)]


def calls_python(x):
    return tf.numpy_function(np.sin, [x], tf.float32)  # noqa: TID251


def depends_on_values(x):
    return tf.where(x > 0)


def is_double(x):
    return tf.cast(x, tf.float64) * 2


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (calls_python, "calls Python"),
        (depends_on_values, "makes a shape that depends on values"),
        (is_double, "computes in double precision"),
    ],
)
def test_what_a_tpu_refuses_is_named_with_its_line(function, reason):
    line = inspect.getsourcelines(function)[1] + 1
    step = tf.function(lambda x: tf.cond(x[0, 0] > 0, lambda: function(x), lambda: function(x)))
    with pytest.raises(InputError, match=re.escape(f"{__file__}:{line}: ")) as error:
        replica_program.lower(step, SPECS)
    assert reason in str(error.value)


def test_the_batch_must_be_a_multiple_of_the_cores(tiny):
    with pytest.raises(InputError, match="cannot be divided among 32 replicas"):
        replica_program.training_step(make_trainer(toy.of(tiny()), ReplicaStrategy(32)))


@pytest.mark.xla
@pytest.mark.parametrize("cores", [1, 4])
def test_the_cores_sum_gradients_statistics_and_loss(tiny, cores):
    trainer = make_trainer(
        toy.of(tiny("experiment.Experiment.batch_size=4")), ReplicaStrategy(cores)
    )
    step, specs = replica_program.training_step(trainer)
    text = step.experimental_get_compiler_ir(*specs)(stage="hlo")
    summed = re.findall(r"f32\[([\d,]*)\]\S* all-reduce\(.*replica_groups=(\{[{}\d,]*\})", text)
    gradients = [",".join(map(str, v.shape)) for v in trainer.model.trainable_variables]
    statistics = ["2,8", "2,8"]  # mean and square of the norm's 8 channels, and their gradients
    expected = [*gradients, *statistics, ""] if cores == 4 else []
    assert sorted(summed) == sorted((shape, "{{0,1,2,3}}") for shape in expected)
    assert specs[0].shape[0] == 4 // cores
