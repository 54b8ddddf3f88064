"""The input made by a tf.data service: a dispatcher and two workers in another process."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from kmax_tf import runtime
from kmax_tf.data import training_input
from kmax_tf.data.records import example
from kmax_tf.data.records.reader import Records
from kmax_tf.errors import InputError

NUMBER = 12
OPTIONS = training_input.TrainingInput(
    size=(33, 41), scales=(0.7, 1.3), max_segments=16, shuffle_buffer=4
)


# Stopped within the process that used it, a server can wait for itself for ever.
SERVERS = """
import hashlib  # before TensorFlow, see kmax_tf/__init__.py
import sys
import tensorflow as tf

service = tf.data.experimental.service
dispatcher = service.DispatchServer()
workers = []
for _ in sys.stdin:  # each line asks for one more worker
    workers.append(service.WorkerServer(service.WorkerConfig(dispatcher.target.split("/")[-1])))
    print(dispatcher.target, flush=True)
"""


@pytest.fixture
def add_worker():
    """A function: starts one more worker of a service and returns the service's address."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVERS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def add():
        process.stdin.write("\n")
        process.stdin.flush()
        return runtime.service_address(process.stdout.readline().strip())

    yield add
    process.kill()
    process.wait()


def batches(paths, made, count, service=""):
    dataset = training_input.training_input(
        Records(paths, example.parse, NUMBER),
        made.dataset,
        OPTIONS,
        stride=4,
        batch_size=2,
        seed=0,
        service=service,
    )
    return [tf.nest.map_structure(np.asarray, b) for b, _ in zip(dataset, range(count))]


@pytest.mark.slow
def test_one_worker_and_two(made, tmp_path, add_worker):
    paths = made.write(str(tmp_path), list(range(NUMBER)), num_shards=3)
    epoch = NUMBER // 2  # batches
    alone = batches(paths, made, 6 * epoch)

    served = batches(paths, made, 2 * epoch, add_worker())
    tf.nest.map_structure(np.testing.assert_array_equal, served, alone[: 2 * epoch])

    served = batches(paths, made, 4 * epoch, add_worker())
    # Each worker makes whole epochs: the same batches in another order, and none twice. As many
    # as four epochs have can be of six, for each worker is within one.
    served, alone = ([batch[0].tobytes() for batch in batches] for batches in (served, alone))
    assert len(set(served)) == len(served)
    assert set(served) <= set(alone)


@pytest.mark.parametrize("address", ["localhost:5000", "grpc://host", "grpc://host:port", "grpc:"])
def test_addresses_are_checked(address):
    with pytest.raises(InputError, match="write grpc://HOST:PORT"):
        runtime.service_address(address)
    assert runtime.service_address("") == ""
