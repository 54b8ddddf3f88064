"""The training input made by another server, as on a slice, from files that the client cannot see.

As a script, `test_remote.py server` and `test_remote.py client ADDRESS FILE` are the two processes.
"""

import hashlib  # noqa: F401 (before TensorFlow, see kmax_tf/__init__.py)
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from kmax_tf import config, runtime
from kmax_tf.data import training_input
from kmax_tf.data.records import example, shards
from kmax_tf.data.records.reader import Records
from kmax_tf.experiment import Experiment
from kmax_tf.training import train

NUMBER = 6  # records


def batches(folder, device):
    """The arrays of two batches of each placement, made on `device` from a folder of records."""
    paths = [os.path.join(folder, shards.name("train", shard, 2)) for shard in range(2)]
    strategy = tf.distribute.OneDeviceStrategy(device)
    arrays = []
    for placement in training_input.PLACEMENTS:
        experiment = config.load(
            Experiment,
            "gin/experiments/demo.gin",
            [
                f"training_input.TrainingInput.placement = '{placement}'",
                "training_input.TrainingInput.size = (33, 41)",
                "experiment.Experiment.batch_size = 2",
            ],
        )
        runtime.set_seed(experiment.seed)  # as training does: tf.data's shuffle depends on it too
        found = Records(paths, example.parse, NUMBER)
        dataset = train.training_dataset(experiment, found, strategy, stride=4, start_step=0)
        arrays += [np.asarray(x) for _, b in zip(range(2), dataset) for x in tf.nest.flatten(b)]
    return arrays


def server():
    """Serves until it is killed; prints its address."""
    made = tf.distribute.Server.create_local_server()
    print(made.target, flush=True)
    made.join()


def client(address, file):
    """Writes `batches` made by the server, from a folder in the working directory of that."""
    tf.config.experimental_connect_to_host(address, job_name="worker")
    assert not os.path.exists("records")
    np.savez(file, *batches("records", "/job:worker/task:0/device:CPU:0"))


@pytest.mark.slow
def test_input_is_made_where_only_the_server_sees_the_records(made, tmp_path):
    folders = {name: tmp_path / name for name in ("server", "client")}
    for folder in folders.values():
        folder.mkdir()
    made.write(str(folders["server"] / "records"), list(range(NUMBER)), num_shards=2)

    def start(*words, cwd):
        root = pathlib.Path(__file__).parents[2]
        return subprocess.Popen(
            [sys.executable, __file__, *words],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            text=True,
        )

    serving = start("server", cwd=folders["server"])
    try:
        address = serving.stdout.readline().strip()
        process = start("client", address, str(tmp_path / "made.npz"), cwd=folders["client"])
        process.communicate()
    finally:
        serving.kill()
        serving.wait()
    assert process.returncode == 0
    there = np.load(tmp_path / "made.npz")
    here = batches(str(folders["server"] / "records"), "/cpu:0")
    assert len(there) == len(here)
    for name, array in zip(there, here):
        np.testing.assert_array_equal(there[name], array)


if __name__ == "__main__":
    {"server": server, "client": client}[sys.argv[1]](*sys.argv[2:])
