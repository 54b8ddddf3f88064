"""The input made by a tf.data service: two workers in this process."""

import numpy as np
import pytest
import tensorflow as tf

from kmax_tf import runtime
from kmax_tf.data import pipeline
from kmax_tf.files import InputError

NUMBER = 12
OPTIONS = pipeline.TrainingInput(
    size=(33, 41), scales=(0.7, 1.3), max_segments=16, shuffle_buffer=4
)


def start_workers(dispatcher, count):
    service = tf.data.experimental.service
    address = dispatcher.target.removeprefix("grpc://")
    return [service.WorkerServer(service.WorkerConfig(address)) for _ in range(count)]


def batches(paths, made, count, service=""):
    dataset = pipeline.training_input(
        paths,
        made.dataset,
        OPTIONS,
        num_examples=NUMBER,
        stride=4,
        batch_size=2,
        seed=0,
        service=service,
    )
    return [tf.nest.map_structure(np.asarray, b) for b, _ in zip(dataset, range(count))]


def test_one_worker_and_two(made, tmp_path):
    paths = made.write(str(tmp_path), list(range(NUMBER)), shards=3)
    count = 2 * NUMBER // 2  # two epochs
    alone = batches(paths, made, count)

    dispatcher = tf.data.experimental.service.DispatchServer()
    address = runtime.service_address(dispatcher.target.replace("localhost", "127.0.0.1"))
    workers = start_workers(dispatcher, 1)
    served = batches(paths, made, count, address)
    tf.nest.map_structure(np.testing.assert_array_equal, served, alone)

    workers += start_workers(dispatcher, 1)
    served = batches(paths, made, 2 * count, address)
    # Each worker makes whole epochs: the same batches in another order, and none twice.
    served, alone = ([batch[0].tobytes() for batch in batches] for batches in (served, alone))
    assert len(set(served)) == len(served)
    assert len(set(served) & set(alone)) > NUMBER // 2
    assert len(workers) == 2


@pytest.mark.parametrize("address", ["localhost:5000", "grpc://host", "grpc://host:port", "grpc:"])
def test_addresses_are_checked(address):
    with pytest.raises(InputError, match="write grpc://HOST:PORT"):
        runtime.service_address(address)
    assert runtime.service_address("") == ""
