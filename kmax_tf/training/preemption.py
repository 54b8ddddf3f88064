"""Handles SIGTERM (sent before preemption): training saves a checkpoint, then exits.

TensorFlow's PreemptionCheckpointHandler and orbit's SaveCheckpointIfPreempted do not fit:
  - they do nothing on Cloud TPU and CPU hosts of Google Cloud;
  - they restore the newest checkpoint themselves, corrupt or not;
  - they add a variable to it.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from kmax_tf.training.replica_strategy import ReplicaStrategy

RESTART = 75  # exit status "try again" (EX_TEMPFAIL of sysexits.h)


@contextlib.contextmanager
def watch() -> Iterator[Callable[[], bool]]:
    """Catches SIGTERM, and yields a function that tells whether one came.

    A second SIGTERM, or SIGINT after the first, ends the process at once. Use it in the main
    thread.
    """
    came = threading.Event()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def act():  # a handler in Python would wait for the main thread, which runs a loop of steps
        while number := os.read(reader, 1):
            if came.is_set() and number[0] in (signal.SIGTERM, signal.SIGINT):
                os._exit(128 + number[0])
            if number[0] == signal.SIGTERM:
                came.set()
                print("SIGTERM: saving after this loop of steps", file=sys.stderr, flush=True)
        os.close(reader)

    before = signal.signal(signal.SIGTERM, lambda *_: None)
    descriptor = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=act, daemon=True).start()
    try:
        yield came.is_set
    finally:
        signal.set_wakeup_fd(descriptor)
        signal.signal(signal.SIGTERM, before)
        os.close(writer)


def on_any_host(strategy: tf.distribute.Strategy, came: bool) -> bool:
    """Returns whether `came` is true in any program of the strategy; all of them must call it."""
    if isinstance(strategy, ReplicaStrategy):
        return bool(strategy.sum_of_processes(np.float32(came)) > 0)
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return came  # there is only one program
    count = strategy.run(
        lambda value: tf.distribute.get_replica_context().all_reduce("SUM", value),
        args=(tf.constant(float(came)),),
    )
    return bool(strategy.experimental_local_results(count)[0] > 0)
