"""Signals are heard at once, also in the middle of a loop of steps, and by all hosts together."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from kmax_tf.training import preemption

IN_A_LOOP_OF_STEPS = """
import ctypes
from kmax_tf.training import preemption
lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
with preemption.watch():
    print("ready", flush=True)
    lock(mutex)
    lock(mutex)  # for ever, and Python's signal handlers do not run
"""

HOST = """
import sys
import tensorflow as tf
from kmax_tf.training import preemption
strategy = tf.distribute.MultiWorkerMirroredStrategy()
for came in sys.argv[1:]:
    print(preemption.on_any_host(strategy, came == "True"))
"""


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_noted_and_the_handlers_come_back(kind, monkeypatch):
    before = signal.signal(kind, signal.default_int_handler)
    with preemption.watch() as came:
        assert not came()
        os.kill(os.getpid(), kind)
        while not came():
            time.sleep(0.01)
    assert signal.signal(kind, before) == signal.default_int_handler
    assert signal.set_wakeup_fd(-1) == -1


def test_a_thread_trains_without_signals():
    """As a web application that calls kmax_tf.train; only the main thread may catch signals."""
    before, found = signal.getsignal(signal.SIGTERM), []

    def work():
        with preemption.watch() as came:
            found.append((came(), signal.getsignal(signal.SIGTERM) is before))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, True)]


def test_what_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a shell's background
    with preemption.watch() as came:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        while not came():
            time.sleep(0.01)
    assert signal.signal(signal.SIGINT, before) == signal.SIG_IGN


@pytest.mark.parametrize("first, second", [("SIGTERM", "SIGINT"), ("SIGINT", "SIGINT")])
def test_the_second_signal_ends_it_at_once(first, second, default_signals):
    command = [sys.executable, "-c", IN_A_LOOP_OF_STEPS]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(command, preexec_fn=default_signals, **pipes) as process:

        def told(start):  # some versions of TensorFlow write lines of their own
            return any(line.startswith(start) for line in process.stderr)

        try:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.Signals[first])
            assert told(f"{first}: saving after this loop")
            process.send_signal(signal.Signals[first])  # the same one, as `timeout` sends it
            time.sleep(2 * preemption.ECHO)
            process.send_signal(signal.Signals[second])
            assert told(f"{second} again: stopped without saving\n")
            assert process.wait() == 128 + signal.Signals[second]
        finally:
            process.kill()


@pytest.mark.slow
def test_all_hosts_hear_of_a_signal_to_one(free_ports):
    cluster = {"worker": [f"localhost:{port}" for port in free_ports(2)]}
    processes = []
    for index, signals in enumerate((["False", "False", "True"], ["False", "True", "True"])):
        config = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", HOST, *signals],
                env=os.environ | {"TF_CONFIG": config},
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    for process in processes:
        assert process.communicate(timeout=300)[0].split() == ["False", "True", "True"]
