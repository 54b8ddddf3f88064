"""Every strategy trains alike: the losses of 20 steps are those of one device, for equal images.

The random numbers of a step depend on the replica, and so on how many there are: the toy model has
none (no drop path, no dropout), and all pixels take part in the contrast.
"""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from kmax_tf import runtime
from kmax_tf.run_folder import checkpoint
from kmax_tf.training import train

STEPS = 20
BINDINGS = (
    "criterion.Criterion.contrast_pixels = 169",
    f"experiment.Experiment.steps = {STEPS}",
    f"experiment.Experiment.checkpoint_interval = {STEPS}",
    "experiment.Experiment.batch_size = 4",
)

PROGRAM = """
import sys
from kmax_tf import config, runtime
from kmax_tf.experiment import Experiment
from kmax_tf.training import train
strategy = runtime.strategy("cpu")
gin_file, run_dir, *bindings = sys.argv[1:]
assert strategy.num_replicas_in_sync == 2
train.train(config.load(Experiment, gin_file, bindings), run_dir, strategy)
"""


def losses(run_dir):
    """{tag: [value of each step]} of all terms and decoders."""
    values = {}
    (path,) = (run_dir / "train").glob("events*")  # of one writer
    for event in tf.compat.v1.train.summary_iterator(str(path)):
        for value in event.summary.value:
            if value.tag.startswith(("loss", "decoder")):
                values.setdefault(value.tag, []).append(float(tf.make_ndarray(value.tensor)))
    return values


def assert_same(run_dir, expected):
    actual = losses(run_dir)
    assert actual.keys() == expected.keys()
    for tag, values in expected.items():
        assert len(values) == STEPS
        np.testing.assert_allclose(actual[tag], values, rtol=1e-5, atol=1e-5, err_msg=tag)


@pytest.fixture
def expected(tiny, tmp_path):
    train.train(tiny(*BINDINGS), str(tmp_path / "one"), runtime.strategy("cpu"))
    return losses(tmp_path / "one")


def test_mirrored(tiny, tmp_path, expected, two_replicas):
    train.train(tiny(*BINDINGS), str(tmp_path / "two"), two_replicas)
    assert_same(tmp_path / "two", expected)


@pytest.mark.slow
def test_two_workers_of_which_the_chief_writes(tiny, tmp_path, expected):
    tiny()  # writes the gin file
    workers = [f"localhost:{port}" for port in free_ports(2)]
    run_dir = tmp_path / "workers"
    processes = []
    for index in range(2):
        task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "tiny.gin"), str(run_dir)]
        environment = os.environ | {"TF_CONFIG": json.dumps(task), "TMPDIR": str(tmp_path)}
        processes.append(subprocess.Popen([*command, *BINDINGS], env=environment))
    assert [process.wait(600) for process in processes] == [0, 0]
    assert_same(run_dir, expected)
    (path,) = checkpoint.completed(str(run_dir))
    assert checkpoint.step_of(path) == STEPS
    assert not list(tmp_path.glob("tmp*"))  # what the other worker wrote is gone


def free_ports(number):
    sockets = [socket.socket() for _ in range(number)]
    for s in sockets:
        s.bind(("localhost", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports
