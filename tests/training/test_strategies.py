"""Every strategy trains alike: the losses of 20 steps are those of one device, for equal images.

The random numbers of a step depend on the number of replicas. So the models have no drop path and
no dropout, and all pixels take part in the contrast.
"""

import json
import os
import subprocess
import sys

import pytest

from kmax_tf import config, runtime
from kmax_tf.experiment import Experiment
from kmax_tf.run_folder import checkpoint
from kmax_tf.training import train

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


@pytest.mark.slow
def test_mirrored(either_gin_file, tmp_path, same_on_all, losses, assert_same_losses, two_replicas):
    experiment = config.load(Experiment, either_gin_file, same_on_all)
    train.train(experiment, str(tmp_path / "one"), runtime.strategy("cpu"))
    train.train(experiment, str(tmp_path / "two"), two_replicas)
    assert_same_losses(losses(tmp_path / "two"), losses(tmp_path / "one"))


@pytest.mark.slow
def test_two_workers_of_which_the_chief_writes(
    either_gin_file, tmp_path, same_on_all, losses, assert_same_losses, free_ports
):
    experiment = config.load(Experiment, either_gin_file, same_on_all)
    train.train(experiment, str(tmp_path / "one"), runtime.strategy("cpu"))
    workers = [f"localhost:{port}" for port in free_ports(2)]
    run_dir = tmp_path / "workers"
    processes = []
    for index in range(2):
        task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        command = [sys.executable, "-c", PROGRAM, either_gin_file, str(run_dir)]
        environment = os.environ | {"TF_CONFIG": json.dumps(task), "TMPDIR": str(tmp_path)}
        processes.append(subprocess.Popen([*command, *same_on_all], env=environment))
    assert [process.wait(600) for process in processes] == [0, 0]
    assert_same_losses(losses(run_dir), losses(tmp_path / "one"))
    (path,) = checkpoint.completed(str(run_dir))
    assert checkpoint.step_of(path) == 20
    assert not list(tmp_path.glob("tmp*"))  # what the other worker wrote is gone
