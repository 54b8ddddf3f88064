"""What the tests of several devices and hosts share."""

import contextlib
import pathlib
import socket
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
import toy

from kmax_tf.run_folder import checkpoint

FOLDER = pathlib.Path(__file__).parent

STEPS = 20


@pytest.fixture
def same_on_all(request) -> tuple[str, ...]:
    """Bindings of 20 steps whose random numbers do not depend on the number of replicas.

    The toy model has no drop path and no dropout, and all pixels take part in the contrast.
    """
    has_contrast = "three_layers" not in request.node.name
    return (
        *(["criterion.Criterion.contrast_pixels = 169"] if has_contrast else []),
        f"experiment.Experiment.steps = {STEPS}",
        f"experiment.Experiment.checkpoint_interval = {STEPS}",
        "experiment.Experiment.batch_size = 4",
    )


@pytest.fixture(scope="session")
def losses() -> Callable:
    """A function: a run -> {tag: [value of each step]} of all terms and decoders."""

    def read(run_dir: pathlib.Path):
        values = {}
        (path,) = (run_dir / "train").glob("events*")  # of one writer
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                if value.tag.startswith(("loss", "decoder")):
                    values.setdefault(value.tag, []).append(float(tf.make_ndarray(value.tensor)))
        return values

    return read


@pytest.fixture
def assert_same_losses() -> Callable:
    """A function: two results of `losses` must be equal, step by step."""

    def compare(actual, expected, tolerance=1e-5, steps=STEPS):
        assert actual.keys() == expected.keys()
        for tag, values in expected.items():
            assert len(values) == steps
            np.testing.assert_allclose(actual[tag], values, tolerance, tolerance, err_msg=tag)

    return compare


@pytest.fixture(params=["three_layers", pytest.param("kmax", marks=pytest.mark.long)])
def either_gin_file(request, tiny, tmp_path, monkeypatch) -> str:
    """The gin file of a model for `same_on_all`, also for another process."""
    tiny()
    if request.param == "kmax":
        return str(tmp_path / "tiny.gin")
    monkeypatch.setenv("PYTHONPATH", str(FOLDER))
    (tmp_path / "toy.gin").write_text(toy.GIN)
    return str(tmp_path / "toy.gin")


@pytest.fixture
def cut() -> Callable:
    """A function: removes a run's checkpoints after a step, as if it had been killed there."""

    def remove(run_dir, step):
        for path in checkpoint.completed(str(run_dir)):
            if checkpoint.step_of(path) > step:
                for file in tf.io.gfile.glob(f"{path}.*"):
                    tf.io.gfile.remove(file)

    return remove


@pytest.fixture
def free_ports() -> Callable:
    """A function: a number -> as many free ports of this machine."""

    def find(number):
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
            for one in sockets:
                one.bind(("localhost", 0))
            return [one.getsockname()[1] for one in sockets]

    return find
