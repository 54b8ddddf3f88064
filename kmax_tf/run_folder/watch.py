"""Waits for what training writes: the run's configuration, then one checkpoint after the other."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from kmax_tf.errors import InputError
from kmax_tf.run_folder import checkpoint, layout

SECONDS = 1.0  # between two looks


def poll(look: Callable[[], Any], seconds: float) -> Any:
    """Calls `look` until it returns anything but None; returns that, or None after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found is not None or time.monotonic() >= deadline:
            return found
        time.sleep(SECONDS)


def wait_for_config(run_dir: str, seconds: float) -> str:
    """The path of the run's config.gin, once training has written it.

    Raises InputError if it is not there after `seconds`.
    """
    path = layout.config(run_dir)
    if not poll(lambda: tf.io.gfile.exists(path) or None, seconds):
        raise InputError(f"{path}: missing; start scripts/train.py with this run_dir")
    return path


def checkpoints(
    run_dir: str,
    is_done: Callable[[int], bool],
    last_step: int,
    *,
    seconds: float,
    newest_first: bool = False,
) -> Iterator[str]:
    """Yields the complete checkpoints of a run, until the last step's is done.

    One whose files change after it was tried, and which is still not done, is yielded again: it
    was being written or repaired.

    Arguments:
      is_done: step -> whether its checkpoint needs no visit.
      seconds: how long to wait for the next one; 0 takes what is there.
    """
    tried = {}  # path -> what its files were like

    def fresh():
        paths = checkpoint.completed(run_dir)
        for path in reversed(paths) if newest_first else paths:
            state = None if is_done(checkpoint.step_of(path)) else _state(path)
            if state and tried.get(path) != state:
                tried[path] = state
                return path
        return "" if is_done(last_step) else None

    while path := poll(fresh, seconds):
        yield path


def _state(path):
    """Sizes and times of the files of a checkpoint, None if one vanishes."""
    try:
        stats = [(name, tf.io.gfile.stat(name)) for name in tf.io.gfile.glob(f"{path}.*")]
    except tf.errors.OpError:
        return None
    return [(name, stat.length, stat.mtime_nsec) for name, stat in sorted(stats)]
