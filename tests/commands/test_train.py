"""The length of a training, by steps, passes over the images or minutes."""

import sys
import types

import pytest
import tensorflow as tf

from kmax_tf.commands import train
from kmax_tf.errors import InputError
from kmax_tf.planning import timing
from kmax_tf.run_folder import checkpoint, provenance

ONE = tf.distribute.OneDeviceStrategy("/cpu:0")


def steps(experiment, run_dir, **given):
    """The number of steps by the flags that are given."""
    flags = dict.fromkeys(train.LENGTHS) | {"run_dir": str(run_dir)} | given
    return train.number_of_steps(types.SimpleNamespace(**flags), experiment, ONE)


def test_steps_and_epochs(tiny, tmp_path):
    experiment = tiny()  # 6 images in batches of 2
    assert steps(experiment, tmp_path) is None
    assert steps(experiment, tmp_path, steps=7) == 7
    assert steps(experiment, tmp_path, epochs=2.5) == 8  # 7.5, to the even number
    assert steps(experiment, tmp_path, epochs=0.1) == 1


def test_minutes_of_a_new_run_are_timed_and_those_of_an_old_one_are_not(
    tiny, tmp_path, monkeypatch, capsys
):
    experiment = tiny()
    monkeypatch.setattr(timing, "time_steps", lambda *_: (30.0, 0.5))
    assert steps(experiment, tmp_path, minutes=2) in (179, 180)
    assert "2 minutes: 30 s for timing and the start, then " in capsys.readouterr().out
    with pytest.raises(InputError, match="0.5 minutes: timing and the start take 30 s"):
        steps(experiment, tmp_path, minutes=0.5)
    provenance.write(str(tmp_path), {})
    assert steps(experiment, tmp_path, minutes=2) > 100  # it has no checkpoint yet
    checkpoint.save(tf.train.Checkpoint(step=tf.Variable(1)), str(tmp_path), 1, keep=1)
    assert steps(experiment, tmp_path, minutes=2) == experiment.steps
    assert "began with 4 steps, which stay" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--steps=3", "--minutes=5"], "--steps and --minutes: give one of them"),
        (["--epochs=-1"], "--epochs: give a number above 0"),
        (["--step=3"], "no flag --step; did you mean --steps?"),
    ],
)
def test_mistakes(flags, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["kmax train", "--gin_file=a", "--run_dir=b", *flags])
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        train.parse()
