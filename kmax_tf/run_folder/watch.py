"""Waits for the configuration and the checkpoints that a training writes."""

import glob
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from kmax_tf.errors import InputError, first_line
from kmax_tf.files import NotAtHand, matching
from kmax_tf.run_folder import checkpoint, layout

SECONDS = 1.0  # between two probes


def poll(probe: Callable[[], Any], seconds: float, what: str) -> Any:
    """Calls `probe` until it returns anything but None; returns that, or None after `seconds`.

    Lines on stderr say when it waits for `what`, and when no longer; the launcher reads them.
    """
    deadline, told = time.monotonic() + seconds, False
    while True:
        result = probe()
        if result is not None or time.monotonic() >= deadline:
            if told:
                print(f"no longer waiting for {what}", file=sys.stderr, flush=True)
            return result
        if not told:
            print(f"waiting for {what}", file=sys.stderr, flush=True)
        told = True
        time.sleep(SECONDS)


def wait_for_config(run_dir: str, seconds: float) -> str:
    """Waits for the run's config.gin and returns its path.

    Raises InputError if it is missing after `seconds`.
    """
    path = layout.config(run_dir)
    if not poll(lambda: tf.io.gfile.exists(path) or None, seconds, path):
        raise InputError(f"{path}: missing; start kmax train with this run_dir")
    return path


def watch_checkpoints(
    run_dir: str,
    is_done: Callable[[str], bool],
    last_step: int,
    *,
    seconds: float,
    newest_first: bool = False,
) -> Iterator[str]:
    """Yields the complete checkpoints of a run until that of the last step is done.

    A checkpoint that is not done is yielded again if its files change: it was being written or
    repaired.

    Args:
        is_done: whether the checkpoint of this path needs no visit; called once for each state of
            its files.
        seconds: how long to wait for the next one; 0 takes only what exists.

    Raises:
        NotAtHand, tf.errors.OpError: the run cannot be looked at, and `seconds` is 0.
    """
    tried = {}  # path -> state of its files when `is_done` was asked
    last, told = checkpoint.path_of(layout.checkpoints(run_dir), last_step), False

    def fresh():
        paths = checkpoint.completed(run_dir)
        for path in reversed(paths) if newest_first else paths:
            state = _state(path)
            if state and tried.get(path) != state:
                done = is_done(path)
                tried[path] = state  # not earlier: `is_done` may fail, and is asked again
                if not done:
                    return path
        return "" if is_done(last) else None

    def probe():
        nonlocal told
        try:
            return fresh()
        except (NotAtHand, tf.errors.OpError) as error:
            if not seconds:
                raise
            if not told:
                print(f"retrying: {first_line(error)}", flush=True)
            told = True

    while path := poll(probe, seconds, f"the next checkpoint of {run_dir}"):
        yield path
    if path is None and seconds:
        print(
            f"no new checkpoint for {seconds:g} s, stopping before step {last_step}; rerun the"
            " command to continue, or set a longer --wait",
            flush=True,
        )


def _state(path):
    """Returns sizes and times of a checkpoint's files, None if one vanishes."""
    folder, name = os.path.split(path)
    files = matching(folder, f"{glob.escape(name)}.*")
    try:
        stats = [(file, tf.io.gfile.stat(file)) for file in files]
    except tf.errors.OpError:
        return None
    return [(file, stat.length, stat.mtime_nsec) for file, stat in stats]
