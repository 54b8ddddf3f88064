"""The length of a training, by steps, passes over the images or minutes."""

import math
import types

import pytest
import tensorflow as tf

from kmax_tf import commands
from kmax_tf.errors import InputError
from kmax_tf.planning import timing
from kmax_tf.run_folder import checkpoint, provenance
from kmax_tf.training import train

ONE = tf.distribute.OneDeviceStrategy("/cpu:0")


@pytest.fixture
def gin_file(tmp_path, tiny_text, records):
    """An experiment of 4 steps; 6 images in batches of 2."""
    path = tmp_path / "tiny.gin"
    path.write_text(tiny_text.format(records=records))
    return str(path)


def steps(gin_file, run_dir, **given):
    """The number of steps by the arguments that are given."""
    return timing.load(gin_file, [], ONE, str(run_dir), **given).steps


def test_steps_and_epochs(gin_file, tmp_path):
    assert steps(gin_file, tmp_path) == 4
    assert steps(gin_file, tmp_path, steps=7) == 7
    assert steps(gin_file, tmp_path, epochs=2.5) == 8  # 7.5, to the even number
    assert steps(gin_file, tmp_path, epochs=0.1) == 1


def test_the_batch_size_scales_rate_and_steps(gin_file, tmp_path):
    found = []
    for given in ({}, {"batch_size": 1}):
        experiment = timing.load(gin_file, [], ONE, str(tmp_path), **given)
        rate = experiment.optimizer(experiment.steps).schedule.base
        found.append((experiment.batch_size, rate, experiment.steps))
    (batch, rate, number), half = found
    assert batch == 2 and half == (1, rate / 2, 2 * number)
    assert steps(gin_file, tmp_path, batch_size=1, epochs=2) == 2 * steps(
        gin_file, tmp_path, epochs=2
    )


def test_minutes_of_a_new_run_are_timed_and_those_of_an_old_one_are_not(
    gin_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(timing, "time_steps", lambda *_: (30.0, 0.5))
    assert steps(gin_file, tmp_path, minutes=2) in (179, 180)
    assert "2 minutes: 30 s for timing and startup, then " in capsys.readouterr().out
    with pytest.raises(InputError, match="0.5 minutes: timing and startup take 30 s"):
        steps(gin_file, tmp_path, minutes=0.5)
    provenance.write(str(tmp_path), {})
    assert steps(gin_file, tmp_path, minutes=2) > 100  # it has no checkpoint yet
    checkpoint.save(tf.train.Checkpoint(step=tf.Variable(1)), str(tmp_path), 1, keep=1)
    assert steps(gin_file, tmp_path, minutes=2) == 4
    assert "keeps its 4 steps" in capsys.readouterr().out


def test_the_service_makes_the_timed_input_too(gin_file, tmp_path, monkeypatch):
    def training_dataset(*arguments):
        raise InputError(f"asked {arguments[-1]}")

    trainer = types.SimpleNamespace(model=types.SimpleNamespace(output_stride=4))
    monkeypatch.setattr(train, "new_trainer", lambda *_: trainer)
    monkeypatch.setattr(train, "training_dataset", training_dataset)
    flags = [f"--gin_file={gin_file}", f"--run_dir={tmp_path}/run", "--device=cpu", "--minutes=1"]
    with pytest.raises(SystemExit, match="asked grpc://host:5000$"):
        commands.main(["train", *flags, "--tf_data_service=grpc://host:5000"])


def test_a_batch_that_the_replicas_do_not_divide_is_refused_before_anything_is_made(
    tiny, two_replicas
):
    with pytest.raises(InputError, match="batch_size 3 cannot be divided among 2 replicas"):
        timing.time_steps(tiny("experiment.Experiment.batch_size = 3"), two_replicas)


NOT_FINITE = [{"minutes": math.nan}, {"minutes": math.inf}, {"epochs": math.inf}]


@pytest.mark.parametrize(
    "given", [{"steps": 3, "minutes": 5}, {"epochs": -1}, {"steps": 0}, *NOT_FINITE]
)
def test_one_positive_length(gin_file, tmp_path, given):
    with pytest.raises(InputError, match="give one of steps, epochs or minutes, above 0"):
        steps(gin_file, tmp_path, **given)
