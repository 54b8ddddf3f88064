"""Runs a function over many jobs in worker processes, with a progress bar."""

import concurrent.futures
import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool

import tensorflow as tf
import tqdm

from kmax_tf import errors, host


def run(
    function: Callable,
    jobs: Sequence[tuple],
    workers: int | None = None,
    title: str = "writing records",
) -> list:
    """Returns [function(*job) for job in jobs], and raises what the first failing call raises.

    Args:
        function: a function of a module, so that workers can import it.
        jobs: the arguments of each call; they and the results must pickle.
        workers: number of processes, None for one per core; 1 runs in this process.
        title: of the progress bar.

    Raises:
        InputError: the system killed a worker.
    """
    if not jobs:
        return []
    workers = min(workers or host.cores(), len(jobs))
    bar = {"total": len(jobs), "unit": "job", "desc": title}
    if workers == 1:
        return list(tqdm.tqdm(map(function, *zip(*jobs, strict=True)), **bar))
    # The fork server imports TensorFlow once, before any thread starts; workers are forks of it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kmax_tf", "tensorflow"])  # kmax_tf sets TensorFlow's log level
    try:
        with concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker) as executor:
            return list(tqdm.tqdm(executor.map(function, *zip(*jobs, strict=True)), **bar))
    except BrokenProcessPool as error:
        raise errors.InputError(
            "a worker was killed, probably for lack of memory; use fewer with --workers N"
        ) from error


def _start_worker() -> None:
    """Leaves the GPUs alone. Ends this worker when the program is killed.

    It would wait for its next job forever.
    """
    tf.config.set_visible_devices([], "GPU")  # runtime.hide_gpus would import Keras first

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
