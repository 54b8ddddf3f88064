"""Where and how a program runs: device, precision, seed, and the frame around its main."""

import atexit
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras
from absl import app, logging

from kmax_tf.errors import InputError, first_line

_PRECISIONS = ("float32", "mixed_bfloat16")


def strategy(device: str) -> tf.distribute.Strategy:
    """Makes the distribution strategy; call it once, before anything touches a device.

    Args:
      device: "auto" (all GPUs, or the CPU where there is none), "cpu", "gpu" (all GPUs),
        "tpu:NAME" (a TPU slice by its name; run on worker 0 only) or "local" (this host's TPU).

    The environment variable TF_CONFIG of TensorFlow names several hosts, of which this is one: then
    all of them, each with its CPU or GPUs, are one MultiWorkerMirroredStrategy.

    Returns:
      OneDeviceStrategy, MirroredStrategy (several GPUs), MultiWorkerMirroredStrategy or
      TPUStrategy.

    Raises:
      InputError: The word is unknown, the device is not there, or TF_CONFIG cannot be used.
    """
    if device == "local" or device.startswith("tpu:"):
        return _tpu_strategy(device.removeprefix("tpu:"))
    if device not in ("auto", "cpu", "gpu"):
        raise InputError(f"device {device!r} is none of auto, cpu, gpu, tpu:NAME, local")
    gpus = tf.config.list_physical_devices("GPU")
    if device == "gpu" and not gpus:
        raise InputError("device 'gpu': TensorFlow finds no GPU on this machine")
    if device == "cpu" and gpus:
        gpus = []
        tf.config.set_visible_devices(gpus, "GPU")  # else TensorFlow takes the GPU's memory
    for gpu in gpus:  # so that the evaluator can run beside training
        tf.config.experimental.set_memory_growth(gpu, True)
    if os.environ.get("TF_CONFIG"):
        return _multi_worker_strategy()
    if len(gpus) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.OneDeviceStrategy("/gpu:0" if gpus else "/cpu:0")


def _multi_worker_strategy() -> tf.distribute.Strategy:
    """Waits for the other hosts of TF_CONFIG."""
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except (AttributeError, KeyError, TypeError, ValueError, tf.errors.OpError) as error:
        raise InputError(
            f"TF_CONFIG cannot be used ({first_line(error):.200}); write"
            ' {"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": 0}}'
        ) from error


def writable_dir(strategy: tf.distribute.Strategy, run_dir: str) -> str:
    """The folder that this program writes: `run_dir`, but of several hosts on the first one alone.

    The others must take part in writing checkpoints, where they read variables together: theirs go
    to a temporary folder, which is gone at exit.
    """
    if strategy.extended.should_checkpoint:
        return run_dir
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _tpu_strategy(name: str) -> tf.distribute.Strategy:
    """Connects to a TPU. A slice whose servers do not answer is waited for."""
    logging.info("Connecting to TPU %r.", name)
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
    """Checks the address of a tf.data service, "" for none, and returns it.

    Raises:
      InputError: It is not of the form grpc://HOST:PORT.
    """
    if address and not re.fullmatch(r"grpc://[^\s:/]+:\d{1,5}", address):
        raise InputError(f"tf.data service {address!r} is no address; write grpc://HOST:PORT")
    return address


def set_precision(policy: str) -> None:
    """Sets the precision of all layers made from here on.

    Args:
      policy: "float32", or "mixed_bfloat16" (float32 variables, bfloat16 arithmetic).

    Raises:
      InputError: Another policy.
    """
    if policy not in _PRECISIONS:
        raise InputError(f"precision {policy!r} is none of {', '.join(_PRECISIONS)}")
    tf_keras.mixed_precision.set_global_policy(policy)


def set_seed(seed: int) -> None:
    """Seeds Python, NumPy and TensorFlow, and so the initial weights."""
    # Under a global seed of 0, tf.data takes no tensor as the seed of a shuffle.
    tf_keras.utils.set_random_seed(seed + 1)


def run(main: Callable[..., None], *options: Any) -> None:
    """Runs a program: absl parses its flags, then main(*options) is called; never returns.

    Where there are `options`, argparse made them of all words, and absl gets none.
    What the user got wrong (InputError) is one line `error: ...` on stderr and exit status 1, not
    a traceback. To absl a word that is no flag is such an error too.
    """

    def guarded(words):
        try:
            logging.set_verbosity(logging.WARNING)
            tf.get_logger().setLevel("ERROR")  # deprecations of operations that are meant
            if words[1:]:
                raise InputError(f"{words[1]!r} is not a flag; flags are --name=value")
            main(*options)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1

    app.run(guarded, sys.argv[:1] if options else None)
