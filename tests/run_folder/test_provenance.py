"""What a run was made with is written down, and nobody goes on otherwise without saying so."""

import json
import shutil

import pytest
import tensorflow as tf

from kmax_tf import config
from kmax_tf.errors import InputError
from kmax_tf.run_folder import checkpoint, provenance
from kmax_tf.training import train


@pytest.fixture
def describe(tiny):
    """A function: gin bindings -> what a run of that experiment is made with."""

    def load(*bindings):
        experiment = tiny(*bindings)
        return provenance.describe(experiment.dataset, train.training_records(experiment))

    return load


@pytest.fixture
def begun(describe, tmp_path):
    """A run folder in which the toy experiment was trained a step."""
    made_with = describe()
    run_dir = str(tmp_path / "run")
    provenance.write(run_dir, made_with)
    checkpoint.save(tf.train.Checkpoint(step=tf.Variable(1)), run_dir, 1, keep=1)
    return run_dir


def go_on(run_dir, made_with, capsys, *, allow_changes=False):
    """Checks; returns the lines that are printed."""
    capsys.readouterr()
    provenance.check(run_dir, made_with, allow_changes=allow_changes)
    return capsys.readouterr().out.splitlines()


def test_nothing_changed(begun, describe, capsys):
    assert go_on(begun, describe(), capsys) == []


def test_another_configuration_is_refused_line_by_line(begun, describe, capsys):
    made_with = describe(
        "optimizer.AdamW.learning_rate = 0.5",
        "experiment.Experiment.precision = 'mixed_bfloat16'",
        "experiment.Experiment.steps_per_loop = 1",
    )
    with pytest.raises(InputError, match="--allow_changes"):
        go_on(begun, made_with, capsys)
    lines = [
        "changed: experiment.Experiment.precision: default -> 'mixed_bfloat16'",
        "changed: optimizer.AdamW.learning_rate: 0.01 -> 0.5",
    ]
    assert capsys.readouterr().out.splitlines() == lines
    assert go_on(begun, made_with, capsys, allow_changes=True) == lines


def test_another_model_is_named(begun, describe, capsys):
    made_with = describe("experiment.Experiment.optimizer = @optimizer.WarmupPolynomial")
    lines = go_on(begun, made_with, capsys, allow_changes=True)
    assert "changed: experiment.Experiment.optimizer: @optimizer.AdamW -> " in lines[0]


def test_what_does_not_train_may_change(begun, describe, capsys, records, tmp_path):
    moved = str(tmp_path / "moved")
    shutil.copytree(records, moved)
    made_with = describe(
        f"experiment.Experiment.data_dir = '{moved}'",
        "experiment.Experiment.checkpoints_kept = 7",
        "experiment.Experiment.checkpoint_interval = 2",
        "experiment.Experiment.initial_checkpoint = 'elsewhere-0'",
        f"datasets.load.source = '{moved}'",
    )
    made_with["tensorflow"] = "2.1"
    assert go_on(begun, made_with, capsys) == [
        f"changed: datasets.load.source: 'panoptic_digits' -> '{moved}'",
        "changed: experiment.Experiment.checkpoint_interval: 1 -> 2",
        "changed: experiment.Experiment.checkpoints_kept: default -> 7",
        f"changed: experiment.Experiment.data_dir: '{records}' -> '{moved}'",
        "changed: experiment.Experiment.initial_checkpoint: default -> 'elsewhere-0'",
        f"changed: tensorflow: {tf.__version__} -> 2.1",
    ]


def test_other_records_are_refused(begun, describe, capsys, records, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(records, other)
    shard = next(other.glob("train-00000*"))
    shard.write_bytes(shard.read_bytes() * 2)
    with pytest.raises(InputError, match="was trained with other settings"):
        go_on(begun, describe(f"experiment.Experiment.data_dir = '{other}'"), capsys)
    assert "changed: dataset: {'files': 2, 'bytes': " in capsys.readouterr().out


def test_a_run_without_a_checkpoint_begins_anew(describe, tmp_path, capsys):
    provenance.write(str(tmp_path), describe())
    assert go_on(str(tmp_path), describe("optimizer.AdamW.learning_rate = 0.5"), capsys) == []


def test_the_run_folder_tells_what_it_was_made_with(begun, tiny):
    with open(f"{begun}/run.json") as file:
        content = json.load(file)
    assert content["tensorflow"] == tf.__version__ and content["dataset"]["files"] == 2
    revision = provenance._revision()
    assert revision is None or len(revision.removesuffix("-dirty")) == 40
    with open(f"{begun}/config.gin") as file:
        assert config.bindings(file.read())["experiment.Experiment.steps"] == "4"
