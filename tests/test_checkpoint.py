"""Weights alone from a checkpoint of training: their average where it keeps one."""

import pytest
import tensorflow as tf

from kmax_tf import checkpoint
from kmax_tf.files import InputError


def module(value):
    result = tf.Module()
    result.weight = tf.Variable(value)
    return result


def test_the_average_counts_where_there_is_one(tmp_path):
    items = {"model": module(1.0), "average": module(2.0)}
    for kept, expected in ((items, 2.0), ({"model": items["model"]}, 1.0)):
        path = tf.train.Checkpoint(**kept).save(str(tmp_path / "ckpt"))
        restored = module(0.0)
        checkpoint.restore_model(restored, path)
        assert float(restored.weight) == expected


def test_step_of_a_name():
    assert checkpoint.step_of("gs://bucket/run-2/checkpoints/ckpt-1000") == 1000
    with pytest.raises(InputError, match="ckpt-1000.index: no checkpoint's name"):
        checkpoint.step_of("run/ckpt-1000.index")
