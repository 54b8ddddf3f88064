"""SIGTERM, by which a machine that is taken away ends its programs: training saves, then leaves.

TensorFlow's own (PreemptionCheckpointHandler, orbit's SaveCheckpointIfPreempted) does nothing on
Cloud TPU and CPU hosts of Google Cloud, restores the newest checkpoint itself, corrupt or not, and
adds a variable to it.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import tensorflow as tf

RESTART = 75  # exit status "try again" (EX_TEMPFAIL of sysexits.h)


@contextlib.contextmanager
def watch() -> Iterator[Callable[[], bool]]:
    """Within it SIGTERM ends nothing; gives a function that says whether one came.

    A second one, or SIGINT after it, ends the process at once. Use it in the main thread.
    """
    came = threading.Event()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def act():  # Python's own handlers wait for the main thread, which is in a loop of steps
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
    """Whether `came`, a bool, is true in any program of the strategy; all of them must ask."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return came  # there is but one program
    count = strategy.run(
        lambda value: tf.distribute.get_replica_context().all_reduce("SUM", value),
        args=(tf.constant(float(came)),),
    )
    return bool(strategy.experimental_local_results(count)[0] > 0)
