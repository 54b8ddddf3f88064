"""Every complete checkpoint once, in the order asked for, whatever happens to the files."""

import os
import pathlib

import pytest
import tensorflow as tf

from kmax_tf.errors import InputError
from kmax_tf.files import NotAtHand
from kmax_tf.run_folder import checkpoint, layout, watch

DATA = ".data-00000-of-00001"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that writes the checkpoint of a step into a run folder, and returns its path."""
    monkeypatch.setattr(watch, "SECONDS", 0.001)
    saver = tf.train.Checkpoint(value=tf.Variable(1.0))
    folder = layout.checkpoints(tmp_path)
    manager = tf.train.CheckpointManager(saver, folder, max_to_keep=None)
    return lambda step: manager.save(checkpoint_number=step)


def step_in(done):
    return lambda path: checkpoint.step_of(path) in done


def steps(paths):
    return [checkpoint.step_of(path) for path in paths]


def test_order(run, tmp_path):
    for step in (10, 20, 30):
        run(step)
    done = set()

    def visit(**options):
        for path in watch.watch_checkpoints(str(tmp_path), step_in(done), 30, seconds=0, **options):
            yield path
            done.add(checkpoint.step_of(path))

    assert steps(visit()) == [10, 20, 30]
    assert steps(visit()) == []
    done.clear()
    assert steps(visit(newest_first=True)) == [30, 20, 10]
    done.discard(10)
    assert steps(visit()) == [10]


def test_one_that_comes_later_is_waited_for_and_newest_first_looks_again(run, tmp_path):
    done = set()
    run(10)
    run(20)
    found = []
    for path in watch.watch_checkpoints(
        str(tmp_path), step_in(done), 40, seconds=10, newest_first=True
    ):
        found.append(checkpoint.step_of(path))
        done.add(found[-1])
        if found == [20]:
            run(30)
        if found[-1] == 10:
            run(40)
    assert found == [20, 30, 10, 40]


def test_one_that_could_not_be_read_comes_again_once_it_changes(run, tmp_path):
    done = set()
    data = pathlib.Path(run(10) + DATA)
    run(20)
    whole = data.read_bytes()
    data.write_bytes(b"")
    found = []
    for path in watch.watch_checkpoints(str(tmp_path), step_in(done), 30, seconds=0):
        found.append(checkpoint.step_of(path))
        if found[-1] == 20:
            done.add(20)
            data.write_bytes(whole)
    assert found == [10, 20, 10]


def test_giving_up_is_said(run, tmp_path, capsys):
    run(10)
    assert steps(watch.watch_checkpoints(str(tmp_path), lambda path: False, 30, seconds=0.1)) == [
        10
    ]
    line = "no new checkpoint for 0.1 s, stopping before step 30; rerun the command to continue"
    assert line in capsys.readouterr().out
    assert steps(watch.watch_checkpoints(str(tmp_path), lambda path: True, 10, seconds=9)) == []
    assert not capsys.readouterr().out  # the last step is done


def test_one_that_vanished_is_passed_over(run, tmp_path):
    for file in pathlib.Path(layout.checkpoints(tmp_path)).glob(os.path.basename(run(10)) + ".*"):
        file.unlink()
    run(20)
    found = watch.watch_checkpoints(str(tmp_path), lambda path: False, 30, seconds=0)
    assert steps(found) == [20]


@pytest.mark.parametrize("failing", ["isdir", "listdir"])
def test_a_storage_that_does_not_answer_for_a_moment_is_asked_again(
    run, tmp_path, monkeypatch, capsys, failing
):
    run(10)
    real, calls, folder = getattr(tf.io.gfile, failing), [], layout.checkpoints(tmp_path)

    def flaky(path):
        if not str(path).startswith(folder):
            return real(path)
        calls.append(path)
        if len(calls) not in (1, 5, 6):
            return real(path)
        if failing == "isdir":  # as TensorFlow's: False after every error
            return False
        raise tf.errors.UnavailableError(None, None, "503\nand so on")

    monkeypatch.setattr(tf.io.gfile, failing, flaky)
    done, found = set(), []
    for path in watch.watch_checkpoints(str(tmp_path), step_in(done), 40, seconds=10):
        found.append(checkpoint.step_of(path))
        done.add(found[-1])
        if found[-1] < 40:
            run(found[-1] + 10)
    assert found == [10, 20, 30, 40] and len(calls) > 6
    expected = {"isdir": f"{folder}: cannot be listed now; try again", "listdir": "503"}
    assert capsys.readouterr().out == f"retrying: {expected[failing]}\n"


def test_a_look_that_failed_does_not_count(run, tmp_path):
    """Figures that could not be read are no reason to pass a checkpoint over."""
    run(10)
    answers = iter([NotAtHand("metrics: cannot be read"), False, True])

    def is_done(path):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert steps(watch.watch_checkpoints(str(tmp_path), is_done, 10, seconds=10)) == [10]


def test_who_does_not_wait_hears_that_the_run_cannot_be_listed(run, tmp_path, monkeypatch):
    run(10)
    monkeypatch.setattr(tf.io.gfile, "isdir", lambda path: False)
    with pytest.raises(InputError, match="checkpoints: cannot be listed now; try again"):
        list(watch.watch_checkpoints(str(tmp_path), lambda path: False, 30, seconds=0))


def test_without_a_run_there_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match="config.gin: missing; start kmax train"):
        watch.wait_for_config(str(tmp_path), seconds=0)


def test_once_does_not_wait_for_a_run_that_is_not_there(run_script, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run_script("evaluate.py", f"--run_dir={tmp_path}", "--once", "--wait=1")
    assert f"error: {tmp_path}/config.gin: missing; start kmax train" in ended.value.code
    assert "waiting for" not in capsys.readouterr().err
