"""`kmax train` asks to be started again where its storage does not answer."""

import pytest
import tensorflow as tf

from kmax_tf import commands
from kmax_tf.errors import InputError
from kmax_tf.training import preemption, train

HTTP = "Error executing an HTTP request: HTTP response code 503 when reading gs://bucket/records"


@pytest.fixture
def run(tmp_path, tiny_text, records):
    """A function: trains, and returns the exit status."""
    path = tmp_path / "tiny.gin"
    path.write_text(tiny_text.format(records=records))

    def call():
        with pytest.raises(SystemExit) as stop:
            words = [f"--gin_file={path}", f"--run_dir={tmp_path / 'run'}", "--device=cpu"]
            commands.main(["train", *words])
        return stop.value.code

    return call


def test_a_folder_that_cannot_be_listed_now(run, records, monkeypatch, capsys):
    monkeypatch.setattr(tf.io.gfile, "isdir", lambda _: False)
    assert run() == preemption.RESTART
    assert capsys.readouterr().err == f"error: {records}: cannot be listed now; try again\n"


def fail(monkeypatch, error):
    def end(*_, **__):
        raise error

    monkeypatch.setattr(train, "train", end)


def test_a_request_that_fails(run, monkeypatch, capsys):
    fail(monkeypatch, tf.errors.UnavailableError(None, None, HTTP))
    assert run() == preemption.RESTART
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: gs://bucket/records; HTTP response code 503; check the path")


def test_other_errors_do_not_ask_for_it(run, monkeypatch):
    fail(monkeypatch, InputError("loss is not finite"))
    assert run() == "error: loss is not finite"
    fail(monkeypatch, tf.errors.UnavailableError(None, None, "the socket is closed"))
    with pytest.raises(tf.errors.UnavailableError, match="socket"):
        run()
