"""The program of one replica: what a TPU refuses is named, and the cores really meet."""

import dataclasses
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
def test_a_variable_that_does_not_learn_has_no_output(tiny):
    pytest.importorskip("jax")
    trainer = make_trainer(
        dataclasses.replace(toy.of(tiny()), model=toy.Frozen), ReplicaStrategy(1)
    )
    program = replica_program.step_program(trainer)
    read = [n for n, k in zip(program.variables, program.outputs, strict=True) if k is None]
    frozen = {variable.ref() for variable in trainer.model.pixel_encoder.variables}
    assert {trainer.step_variables[number].ref() for number in read} == frozen
    outputs = [k for k in program.outputs if k is not None]
    assert sorted(outputs) == list(range(len(program.outputs) - len(read)))


class WithConstant(toy.Toy):
    """Keeps an array that is no variable."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.shift = tf.constant(np.arange(200, dtype=np.float32))

    def call(self, image, training):
        return super().call(image + tf.reduce_mean(self.shift), training)


class WithHiddenVariable(WithConstant):
    """Keeps a variable where Keras does not find it."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        variable = tf.Variable(1.0, name="hidden")
        self.shift = lambda: variable

    def call(self, image, training):
        return toy.Toy.call(self, image + self.shift(), training)


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (WithConstant, r"a constant, float32 \(200,\)"),
        (WithHiddenVariable, "the variable hidden:0"),
    ],
)
def test_what_the_model_does_not_track_is_named(tiny, model, what):
    trainer = make_trainer(dataclasses.replace(toy.of(tiny()), model=model), ReplicaStrategy(1))
    with pytest.raises(InputError, match=f"the step reads {what}, which the model does not track"):
        replica_program.step_program(trainer)


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
