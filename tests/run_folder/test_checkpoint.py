"""Checkpoints: whole or not there, kept and removed as asked, and damage noticed in every file."""

import contextlib
import itertools
import pathlib
import random

import pytest
import tensorflow as tf

from kmax_tf.data import datasets
from kmax_tf.errors import InputError
from kmax_tf.evaluation import best_checkpoint
from kmax_tf.files import NotAtHand
from kmax_tf.run_folder import checkpoint, layout


def module(value):
    result = tf.Module()
    result.weight = tf.Variable(value)
    return result


class State:
    """A training state of two layers, all of whose numbers are its step, and its run folder."""

    def __init__(self, run_dir):
        self.run_dir = str(run_dir)
        self.folder = pathlib.Path(layout.checkpoints(run_dir))
        self.variables = [tf.Variable(tf.zeros([50, 20])) for _ in range(2)]
        self.step = tf.Variable(0, dtype=tf.int64)
        self.saver = tf.train.Checkpoint(layers=self.variables, step=self.step)

    def save(self, step, keep=3):
        self.step.assign(step)
        for variable in self.variables:
            variable.assign(tf.fill(variable.shape, float(step)))
        checkpoint.save(self.saver, self.run_dir, step, keep)

    def resume(self):
        """What a new process goes on from: the step, which all numbers agree on."""
        fresh = State(self.run_dir)
        path = checkpoint.resume(fresh.saver, self.run_dir)
        step = int(fresh.step)
        assert all((variable.numpy() == step).all() for variable in fresh.variables)
        assert path == (str(self.folder / f"ckpt-{step}") if step else None)
        return step

    def steps(self):
        return [checkpoint.step_of(path) for path in checkpoint.completed(self.run_dir)]


@pytest.fixture
def state(tmp_path):
    return State(tmp_path)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_last_few_are_kept_and_nothing_else(state):
    assert state.resume() == 0
    for step in (1, 2, 3, 10):
        state.save(step, keep=3)
    assert state.steps() == [2, 3, 10]
    files = [f"ckpt-{n}.{end}" for n in (10, 2, 3) for end in ("data-00000-of-00001", "index")]
    assert names(state.folder) == files
    assert state.resume() == 10


def test_weights_are_no_training_to_go_on_with(state):
    """As `kmax import_checkpoint` writes them, into a run folder of their own."""
    path = checkpoint.path_of(str(state.folder), 0)
    checkpoint.write(tf.train.Checkpoint(layers=state.variables), path)
    with pytest.raises(InputError, match=f"{path}: has weights only; use another"):
        state.resume()


def test_a_checkpoint_without_an_average_gives_none(state):
    state.save(1)
    state.saver.ema = module(0.0)
    with pytest.raises(
        InputError, match="ckpt-1: has no EMA; bind experiment.Experiment.ema_decay"
    ):
        checkpoint.resume(state.saver, state.run_dir)


@pytest.mark.parametrize("moments", [1, 2])
def test_a_save_cut_off_at_any_moment_is_no_checkpoint(state, monkeypatch, moments):
    """The process ends before the first or second file gets its name; the next save cleans up."""
    state.save(1)
    rename, renamed = tf.io.gfile.rename, []

    def cut(*arguments, **options):
        renamed.append(arguments)
        if len(renamed) == moments:
            raise KeyboardInterrupt
        rename(*arguments, **options)

    monkeypatch.setattr(tf.io.gfile, "rename", cut)
    with pytest.raises(KeyboardInterrupt):
        state.save(2)
    monkeypatch.undo()
    assert len(names(state.folder)) == 4
    assert state.steps() == [1] and state.resume() == 1
    state.save(3)
    assert [name for name in names(state.folder) if "-2" in name] == []
    assert state.steps() == [1, 3]


def test_what_tensorflow_leaves_when_killed_is_no_checkpoint_and_goes(state):
    """Before it names its own files, they are in a folder."""
    left = state.folder / "writing-ckpt-7_temp"
    left.mkdir(parents=True)
    (left / "part-00000-of-00001.data-00000-of-00001").write_bytes(b"half")
    (state.folder / "notes.txt").write_text("the user's")
    assert state.steps() == [] and state.resume() == 0
    state.save(1)
    assert [name for name in names(state.folder) if not name.startswith("ckpt-1.")] == ["notes.txt"]


def damages(content, drawn):
    """A file's content, corrupt: cut at some place, and with some bytes other than they were."""
    yield b""
    for _ in range(4):
        yield content[: drawn.randrange(len(content))]
    for _ in range(12):
        place = drawn.randrange(len(content))
        yield (
            content[:place]
            + bytes([content[place] ^ drawn.randrange(1, 256)])
            + content[place + 1 :]
        )
    place = drawn.randrange(len(content) // 2)
    yield content[:place] + bytes(64) + content[place + 64 :]


@pytest.mark.parametrize("file", ["ckpt-2.index", "ckpt-2.data-00000-of-00001"])
def test_a_damaged_file_is_noticed_and_the_one_before_taken(state, file):
    state.save(1)
    state.save(2)
    path = state.folder / file
    content = path.read_bytes()
    passed = 0
    for corrupt in damages(content, random.Random(7)):
        path.write_bytes(corrupt)
        # Not everything in a file counts (padding): then all numbers are those that were saved.
        passed += state.resume() == 1
    assert passed > 12
    path.unlink()
    assert state.steps() == [1] and state.resume() == 1


def test_a_file_of_another_checkpoint_is_noticed(state):
    for step in (1, 2):
        state.save(step)
    one, two = (state.folder / f"ckpt-{n}.data-00000-of-00001" for n in (1, 2))
    two.write_bytes(one.read_bytes())
    assert state.resume() == 1
    one.write_bytes(one.read_bytes()[:-1])
    with pytest.raises(InputError, match="no readable checkpoint; to start from step 0, delete"):
        state.resume()


def test_one_that_could_not_be_read_is_replaced_or_goes(state):
    for step in (10, 20):
        state.save(step, keep=1 + (step == 20))
    (state.folder / "ckpt-20.index").write_bytes(b"")
    assert state.resume() == 10
    state.save(15, keep=1)  # as when a signal came on the way to 20
    assert state.steps() == [15] and state.resume() == 15


def test_a_training_behind_another_stops_and_removes_nothing(state):
    """As when a run that seemed dead is started again."""
    state.save(10)
    behind = State(state.run_dir)
    checkpoint.resume(behind.saver, state.run_dir)
    checkpoint.check_alone(state.run_dir, 20)
    state.save(20)
    for step in (15, 20):  # a signal, or the same interval
        line = rf"ckpt-20: another training wrote it before this one came to step {step}; let only"
        with pytest.raises(InputError, match=line):
            checkpoint.check_alone(state.run_dir, step)
    assert state.steps() == [10, 20]
    checkpoint.check_alone(state.run_dir, 30)
    (state.folder / "ckpt-20.index").write_bytes(b"")
    checkpoint.check_alone(state.run_dir, 15)  # `resume` passes over what cannot be read


def test_a_later_one_that_does_not_answer_is_not_taken_for_a_corrupt_one(state, monkeypatch):
    def load(path):
        raise tf.errors.UnavailableError(None, None, "the bucket does not answer")

    state.save(20)
    monkeypatch.setattr(tf.train, "load_checkpoint", load)
    with pytest.raises(InputError, match="ckpt-20: another training wrote it"):
        checkpoint.check_alone(state.run_dir, 15)


def test_a_save_that_another_program_cleans_away_is_one_line(state, monkeypatch):
    rename = tf.io.gfile.rename

    def clean(source, target, **options):
        checkpoint.prune(str(state.folder), [])
        rename(source, target, **options)

    monkeypatch.setattr(tf.io.gfile, "rename", clean)
    line = r"ckpt-1: was removed while it was written \(.*; let only one program write there$"
    with pytest.raises(NotAtHand, match=line):
        state.save(1)


def test_a_shard_of_several_is_missed(state):
    for index in range(2):
        name = f"ckpt-5.data-{index:05d}-of-00002"
        state.folder.mkdir(exist_ok=True)
        (state.folder / name).write_bytes(b"")
        (state.folder / "ckpt-5.index").write_bytes(b"")
        assert state.steps() == [5] * index


def test_the_best_is_there_whenever_the_evaluator_is_cut_off(tmp_path, monkeypatch):
    """What best.json notes can be read at each moment of replacing it."""
    noted, digits = [], datasets.load("panoptic_digits")

    def look():
        if (tmp_path / "best" / "best.json").exists():
            note = best_checkpoint._read_note(str(tmp_path / "best"))
            restored = module(0.0)
            checkpoint.restore_model(
                restored, checkpoint.path_of(str(tmp_path / "best"), note["step"])
            )
            assert float(restored.weight) == note["PQ"]
            noted.append(note["step"])

    for name in ("rename", "remove"):
        real = getattr(tf.io.gfile, name)

        def watched(*arguments, real=real, **options):
            look()
            real(*arguments, **options)
            look()

        monkeypatch.setattr(tf.io.gfile, name, watched)
    for step, quality in ((1, 30.0), (2, 20.0), (3, 40.0), (4, None), (5, 40.0)):
        metrics = {"step": step, "PQ": quality}
        best_checkpoint.update(str(tmp_path), module(quality or 0.0), digits, metrics)
    assert noted[0] == 1 and noted[-1] == 3
    assert names(tmp_path / "best") == [
        "best.json",
        "ckpt-3.data-00000-of-00001",
        "ckpt-3.index",
    ]


def test_the_average_counts_where_there_is_one(tmp_path):
    items = {"model": module(1.0), "ema": module(2.0)}
    for kept, expected in ((items, 2.0), ({"model": items["model"]}, 1.0)):
        path = tf.train.Checkpoint(**kept).save(str(tmp_path / "ckpt"))
        restored = module(0.0)
        checkpoint.restore_model(restored, path)
        assert float(restored.weight) == expected


def test_what_a_user_keeps_beside_the_checkpoints_stays(tmp_path):
    saver = tf.train.Checkpoint(number=tf.Variable(1.0))
    checkpoint.save(saver, str(tmp_path), 1, keep=1)
    folder = tmp_path / "checkpoints"
    (folder / "ckpt-1-mine.index").write_text("mine")
    (folder / "ckpt-backup").mkdir()
    checkpoint.save(saver, str(tmp_path), 2, keep=1)
    assert {path.name for path in folder.iterdir()} == {
        "ckpt-1-mine.index",
        "ckpt-backup",
        "ckpt-2.index",
        "ckpt-2.data-00000-of-00001",
    }


def test_a_folder_that_cannot_be_listed_now_loses_no_checkpoint(state, monkeypatch):
    """TensorFlow's isdir is False after every error, also of a storage that does not answer."""
    for step in (1, 2):
        state.save(step)
    isdir = tf.io.gfile.isdir
    for failing in range(4):
        calls = itertools.count()

        def once_false(path, calls=calls, failing=failing):
            return next(calls) != failing and isdir(path)

        monkeypatch.setattr(tf.io.gfile, "isdir", once_false)
        with contextlib.suppress(InputError):
            state.save(3)
        monkeypatch.setattr(tf.io.gfile, "isdir", isdir)
        assert {1, 2} <= set(state.steps())
    monkeypatch.setattr(tf.io.gfile, "isdir", lambda path: False)
    with pytest.raises(InputError, match="checkpoints: cannot be listed now; try again"):
        state.resume()


@pytest.mark.parametrize(
    "kind",
    [
        tf.errors.FailedPreconditionError,
        tf.errors.PermissionDeniedError,
        tf.errors.UnavailableError,
        tf.errors.UnknownError,
    ],
)
def test_a_checkpoint_that_is_not_at_hand_is_not_taken_for_a_corrupt_one(tmp_path, kind):
    """Else training would go on from an older one, and delete the newer ones."""
    saver = tf.train.Checkpoint(number=tf.Variable(1.0))
    for step in (1, 2):
        checkpoint.save(saver, str(tmp_path), step, keep=2)

    class Away(tf.train.Checkpoint):
        def read(self, path):
            raise kind(None, None, "the bucket does not answer")

    with pytest.raises(InputError, match="ckpt-2: cannot be read now .the bucket does not answer"):
        checkpoint.resume(Away(number=tf.Variable(1.0)), str(tmp_path))
    assert checkpoint.resume(saver, str(tmp_path)).endswith("ckpt-2")


def test_weights_of_other_classes_are_refused(tmp_path):
    """As an evaluation or an export would give each class the name of another."""
    digits = datasets.load("panoptic_digits")
    best_checkpoint.update(str(tmp_path), module(1.0), digits, {"step": 1, "PQ": 50.0})
    path, (first, second, *rest) = str(tmp_path / "best/ckpt-1"), digits.categories
    checkpoint.restore_model(module(0.0), path, digits)
    for categories in ((second, first, *rest), (first, second, *rest[:-1])):
        with pytest.raises(InputError, match=r"best/ckpt-1: has other classes than .* against "):
            checkpoint.restore_model(module(0.0), path, datasets.Dataset("other", categories))


def test_a_folder_has_no_classes(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        checkpoint.read_classes(str(tmp_path))


def test_step_of_a_name():
    assert checkpoint.step_of("gs://bucket/run-2/checkpoints/ckpt-1000") == 1000
    with pytest.raises(InputError, match="ckpt-1000.index: not the name of a checkpoint"):
        checkpoint.step_of("run/ckpt-1000.index")
