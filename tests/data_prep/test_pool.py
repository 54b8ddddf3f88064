"""Worker processes: as many as the cores that this process may use, and one line if one dies."""

import os

import pytest

from data_prep import pool
from kmax_tf import errors


def test_a_worker_that_is_killed_is_one_line():
    with pytest.raises(errors.InputError, match="was killed, .* fewer with --workers N$"):
        pool.run(os._exit, [(9,), (9,)], workers=2)


def test_only_the_cores_of_the_process_count(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3})
    assert pool.run(lambda k: (k, os.getpid()), [(0,), (1,)]) == [(k, os.getpid()) for k in (0, 1)]
