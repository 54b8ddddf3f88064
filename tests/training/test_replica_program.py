"""The program of one replica: what a TPU refuses is named, and the cores really meet."""

import inspect
import re

import numpy as np
import pytest
import tensorflow as tf

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
        replica_program.training_step(make_trainer(tiny(), ReplicaStrategy(32)))


@pytest.mark.xla
@pytest.mark.slow
@pytest.mark.parametrize("cores", [1, 4])
def test_the_cores_sum_gradients_and_statistics(tiny, cores):
    experiment = tiny("experiment.Experiment.batch_size=4")
    step, specs = replica_program.training_step(make_trainer(experiment, ReplicaStrategy(cores)))
    text = step.experimental_get_compiler_ir(*specs)(stage="hlo")
    groups = re.findall(r"all-reduce.*replica_groups=(\{[{}\d,]*\})", text)
    assert set(groups) == ({"{{0,1,2,3}}"} if cores == 4 else set())
    assert specs[0].shape[0] == 4 // cores
