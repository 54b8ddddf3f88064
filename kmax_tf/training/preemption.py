"""Handles SIGTERM (sent before preemption) and Ctrl-C: training saves a checkpoint, then exits.

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
import time
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from kmax_tf.training.replica_strategy import ReplicaStrategy

RESTART = 75  # exit status "try again" (EX_TEMPFAIL of sysexits.h)
ECHO = 0.2  # seconds after a signal in which another is the same one: `timeout` sends two


@contextlib.contextmanager
def watch() -> Iterator[Callable[[], bool]]:
    """Catches SIGTERM and SIGINT (Ctrl-C), and yields a function that tells whether one came.

    A second one ends the process at once. Ignored signals stay so. Only the main thread gets
    signals: in another one, nothing is caught.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came, first = threading.Event(), 0.0
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def act():  # a handler in Python would wait for the main thread, which runs a loop of steps
        nonlocal first
        while number := os.read(reader, 1):
            if number[0] not in before or (came.is_set() and time.monotonic() < first + ECHO):
                continue
            name = signal.Signals(number[0]).name
            if came.is_set():
                tqdm.write(f"{name} again: stopped without saving", sys.stderr)
                os._exit(128 + number[0])
            first = time.monotonic()
            came.set()
            line = f"{name}: saving after this loop of steps; a second one stops without saving"
            tqdm.write(line, sys.stderr)
        os.close(reader)

    caught = [s for s in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(s) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda *_: None) for number in caught}
    descriptor = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=act, daemon=True).start()
    try:
        yield came.is_set
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writer)


def on_any_host(strategy: tf.distribute.Strategy, came: bool) -> bool:
    """Returns whether `came` is true in any program of the strategy; all of them must call it."""
    return sum_of_hosts(strategy, float(came)) > 0


def sum_of_hosts(strategy: tf.distribute.Strategy, value: float) -> float:
    """Sums a number over the programs of the strategy; all of them must call it.

    Under MultiWorkerMirroredStrategy, a program's number counts once for each of its replicas.
    """
    if isinstance(strategy, ReplicaStrategy):
        return float(strategy.sum_of_processes(np.float32(value)))
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return value  # there is only one program
    total = strategy.run(
        lambda part: tf.distribute.get_replica_context().all_reduce("SUM", part),
        args=(tf.constant(value),),
    )
    return float(strategy.experimental_local_results(total)[0])
