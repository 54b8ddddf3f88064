"""Device, precision, seed and traced models of a program."""

import atexit
import contextlib
import gc
import os
import re
import shutil
import tempfile
from collections.abc import Iterable

import tensorflow as tf
import tf_keras
from tensorflow.python.framework import ops

from kmax_tf import host
from kmax_tf.errors import InputError, first_line

_PRECISIONS = ("float32", "mixed_bfloat16")


def strategy(device: str, *, trains: bool = False) -> tf.distribute.Strategy:
    """Makes the distribution strategy.

    With the environment variable TF_CONFIG, which lists several hosts, all hosts form one strategy.

    Args:
        device: "auto" (all GPUs, else the CPU), "cpu", "gpu" (all GPUs), "tpu:NAME" or "local"
            (this host's TPU). NAME is a TPU slice, used from its worker 0.
        trains: on a CPU, the cores are shared as training needs it.

    Returns:
        OneDeviceStrategy, MirroredStrategy (several GPUs), MultiWorkerMirroredStrategy or
        TPUStrategy.

    Raises:
        InputError: The device is unknown or missing, or TF_CONFIG cannot be used.
    """
    if device == "local" or device.startswith("tpu:"):
        return _tpu_strategy(device.removeprefix("tpu:"))
    if device not in ("auto", "cpu", "gpu"):
        raise InputError(f"device {device!r} is none of auto, cpu, gpu, tpu:NAME, local")
    gpus = tf.config.list_physical_devices("GPU")
    if device == "auto" and not gpus and host.has_nvidia_gpu():
        print("device: TensorFlow does not find the NVIDIA GPU; `kmax doctor` tells why")
    if device == "gpu" and not gpus:
        raise InputError("device 'gpu': TensorFlow finds no GPU on this machine")
    if device == "cpu" and gpus:
        gpus = []
        hide_gpus()
    if os.environ.get("TF_CONFIG"):
        return _multi_worker_strategy()
    if len(gpus) > 1:
        return tf.distribute.MirroredStrategy()
    if gpus:
        return tf.distribute.OneDeviceStrategy("/gpu:0")
    if trains:
        _halve_threads()
    return tf.distribute.OneDeviceStrategy("/cpu:0")


def describe(strategy: tf.distribute.Strategy) -> str:
    """Describes the devices of a strategy, such as "2 x GPU"."""
    kind = tf.DeviceSpec.from_string(strategy.extended.worker_devices[0]).device_type
    return f"{strategy.num_replicas_in_sync} x {kind}"


def is_this_cpu(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether the strategy has no device but the CPU of this process."""
    if not isinstance(strategy, tf.distribute.OneDeviceStrategy):
        return False
    return strategy.extended.worker_devices == ("/job:localhost/replica:0/task:0/device:CPU:0",)


def _halve_threads() -> None:
    """Gives each operation half of the cores, unless the environment sets a number.

    A training step has thousands of short operations, many side by side. A small model's took 15 to
    25 % less time so on 2 cores, that of ResNet-50 the same. Inference has one after another.
    """
    if "TF_NUM_INTRAOP_THREADS" not in os.environ:
        with contextlib.suppress(RuntimeError):  # TensorFlow runs already
            tf.config.threading.set_intra_op_parallelism_threads(max(1, host.cores() // 2))


def hide_gpus() -> None:
    """Leaves the GPUs and their memory to others, unless TensorFlow uses them already."""
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")


def _multi_worker_strategy() -> tf.distribute.Strategy:
    """Makes one strategy of all hosts in TF_CONFIG, and waits for them."""
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except (AttributeError, KeyError, TypeError, ValueError, tf.errors.OpError) as error:
        raise InputError(
            f"TF_CONFIG cannot be used ({first_line(error):.200}); write"
            ' {"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": 0}}'
        ) from error


def writable_dir(strategy: tf.distribute.Strategy, run_dir: str) -> str:
    """Returns where this host writes: `run_dir` on the first host, else a temporary folder.

    All hosts must take part in writing a checkpoint, because they read variables together. The
    temporary folder is deleted at exit.
    """
    if strategy.extended.should_checkpoint:
        return run_dir
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _tpu_strategy(name: str) -> tf.distribute.Strategy:
    """Connects to a TPU, and waits for servers that do not answer yet."""
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (OSError, RuntimeError, ValueError, tf.errors.OpError) as error:
        raise InputError(
            f"TPU {name!r} cannot be reached from here: {first_line(error):.200}"
        ) from error
    return tf.distribute.TPUStrategy(resolver)


def service_address(address: str) -> str:
    """Returns the address of a tf.data service, or "" for none, after a check.

    Raises:
        InputError: The address does not have the form grpc://HOST:PORT.
    """
    if address and not re.fullmatch(r"grpc://[^\s:/]+:\d{1,5}", address):
        raise InputError(f"tf.data service {address!r} is no address; write grpc://HOST:PORT")
    return address


def custom_gradients() -> set[str]:
    """Returns the names of the custom gradients that graphs hold so far; see `forget_models`."""
    registered = ops.gradient_registry._registry
    return {name for name in registered if name.startswith("CustomGradient")}


def forget_models(gradients: Iterable[str]) -> None:
    """Frees the models that were traced, unless something else holds them.

    TensorFlow never forgets a custom gradient in a graph, which holds the model.

    Args:
        gradients: `custom_gradients` of the models.
    """
    for name in gradients:
        del ops.gradient_registry._registry[name]
    gc.collect()


def set_precision(policy: str) -> None:
    """Sets the precision of all layers that are made afterwards.

    Args:
        policy: "float32", or "mixed_bfloat16" (float32 variables, bfloat16 arithmetic).

    Raises:
        InputError: The policy is neither of the two.
    """
    if policy not in _PRECISIONS:
        raise InputError(f"precision {policy!r} is none of {', '.join(_PRECISIONS)}")
    tf_keras.mixed_precision.set_global_policy(policy)


def set_seed(seed: int) -> None:
    """Seeds Python, NumPy and TensorFlow; this fixes the initial weights."""
    # With a global seed of 0, tf.data accepts no tensor as the seed of a shuffle.
    tf_keras.utils.set_random_seed(seed + 1)
