import os

import pytest
import tensorflow as tf
import tf_keras

from kmax_tf import host, runtime
from kmax_tf.errors import InputError


def test_cpu():
    strategy = runtime.strategy("cpu")
    assert isinstance(strategy, tf.distribute.OneDeviceStrategy)
    with strategy.scope():
        assert "CPU:0" in tf.Variable(1.0).device


@pytest.mark.parametrize("words, cores, expected", [([], 8, [4]), ([], 1, [1]), (["3"], 8, [])])
def test_in_training_an_operation_has_half_of_the_cores_unless_the_user_says_more(
    words, cores, expected, monkeypatch
):
    given = []
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    for number in words:
        monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", number)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.setattr(os, "cpu_count", lambda: 128)  # of the machine, as in a container
    monkeypatch.setattr(tf.config.threading, "set_intra_op_parallelism_threads", given.append)
    runtime.strategy("cpu")
    assert not given
    runtime.strategy("cpu", trains=True)
    assert given == expected


def test_devices_are_described(two_replicas):
    assert runtime.describe(runtime.strategy("cpu")) == "1 x CPU"
    assert runtime.describe(two_replicas) == "2 x CPU"


@pytest.mark.parametrize("has_gpu", [True, False])
def test_a_gpu_that_is_not_found_is_said(has_gpu, monkeypatch, capsys):
    monkeypatch.setattr(host, "has_nvidia_gpu", lambda: has_gpu)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    runtime.strategy("cpu")
    assert not capsys.readouterr().out
    runtime.strategy("auto")
    assert ("does not find the NVIDIA GPU; `kmax doctor`" in capsys.readouterr().out) == has_gpu


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="this machine has a GPU")
def test_without_gpu():
    with runtime.strategy("auto").scope():
        assert "CPU:0" in tf.Variable(1.0).device
    with pytest.raises(InputError, match="finds no GPU"):
        runtime.strategy("gpu")


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_a_gpu_that_is_in_use_already(monkeypatch, device):
    """The devices of a process are fixed once it has run an operation."""

    def refuse(devices, kind):
        raise RuntimeError("Visible devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["gpu"])
    monkeypatch.setattr(tf.config, "set_visible_devices", refuse)
    strategy = runtime.strategy(device)
    expected = {"auto": "GPU:0", "cpu": "CPU:0"}[device]
    assert strategy.extended.worker_devices[0].endswith(expected)
    assert os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"


@pytest.mark.parametrize("word", ["cuda", "", "TPU:x"])
def test_unknown_device(word):
    with pytest.raises(InputError, match="is none of auto, cpu, gpu, tpu:NAME, local"):
        runtime.strategy(word)


def test_tpu_that_is_not_there(monkeypatch):
    def resolve(tpu):
        raise tf.errors.NotFoundError(None, None, f"{tpu} not found\nin the cluster")

    monkeypatch.setattr(tf.distribute.cluster_resolver, "TPUClusterResolver", resolve)
    with pytest.raises(InputError, match="^TPU 'v3' cannot be reached from here: v3 not found$"):
        runtime.strategy("tpu:v3")


@pytest.mark.parametrize("text", ["{", '{"cluster": {"worker": 3}}'])
def test_hosts_that_cannot_be_read(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(InputError, match='^TF_CONFIG cannot be used .*; write {"cluster": '):
        runtime.strategy("cpu")


def test_precision():
    runtime.set_precision("mixed_bfloat16")
    try:
        assert tf_keras.layers.Dense(2)(tf.ones((1, 2))).dtype == tf.bfloat16
    finally:
        runtime.set_precision("float32")
    assert tf_keras.layers.Dense(2)(tf.ones((1, 2))).dtype == tf.float32
    with pytest.raises(InputError, match="precision 'mixed_float16' is none of float32, mixed_b"):
        runtime.set_precision("mixed_float16")


def test_seed():
    values = []
    for _ in range(2):
        runtime.set_seed(7)
        values.append(tf_keras.layers.Dense(3)(tf.ones((1, 4))).numpy())
    assert (values[0] == values[1]).all()
