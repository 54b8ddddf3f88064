"""The whole plan of a folder of records, and its timed steps."""

import math
import pathlib
import tempfile
import types
import weakref

import pytest
import tensorflow as tf

from kmax_tf import config
from kmax_tf.errors import InputError
from kmax_tf.experiment import Experiment
from kmax_tf.importers import output
from kmax_tf.planning import page, plan, planner, timing
from kmax_tf.run_folder import checkpoint
from kmax_tf.training import memory, train


@pytest.mark.slow
@pytest.mark.usefixtures("forget_models")
def test_plan_and_page(records, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(timing, "time_steps", lambda *arguments: (30.0, 0.5))
    planner.run(records, str(tmp_path / "own.gin"), "cpu", minutes=5.5, weights="")
    experiment = config.load(Experiment, str(tmp_path / "own.gin"))
    assert experiment.steps == 600 and "5.5 minutes at 0.50 s a step" in capsys.readouterr().out
    start = experiment.initial_checkpoint  # "" without the package of weights
    assert not start or tf.io.gfile.exists(f"{start}.index")
    page = (tmp_path / "own.html").read_text()
    for text in ("What the model sees in training", "data:image/webp", "num_clusters", "6 images"):
        assert text in page


@pytest.mark.parametrize("minutes", [0, math.nan, math.inf])
def test_minutes_of_no_training(tmp_path, minutes):
    with pytest.raises(InputError, match="^minutes must be above 0 and finite, not"):
        planner.run("none", str(tmp_path / "own.gin"), "cpu", minutes, "")


@pytest.mark.parametrize("replicas, batches", [(1, [16, 8, 4]), (3, [18, 9, 3])])
def test_the_batch_fits_the_replicas_and_their_memory(
    records, tmp_path, monkeypatch, capsys, replicas, batches
):
    """The rate changes in proportion; a step that never fits ends in one line.

    The model of a batch that does not fit is free before the next one is tried.
    """
    tried, least, model = [], batches[-1], lambda: None
    strategy = types.SimpleNamespace(num_replicas_in_sync=replicas)
    monkeypatch.setattr(planner.runtime, "strategy", lambda *_, **__: strategy)
    monkeypatch.setattr(planner.runtime, "describe", lambda _: "some devices")
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(page, "write", lambda *_: None)

    def time_steps(experiment, strategy):
        nonlocal model
        assert model() is None
        tried.append(experiment.batch_size)
        if experiment.batch_size > least:
            made = tf.Module()
            made.part_of_itself, model = made, weakref.ref(made)
            raise memory.DoesNotFit(ValueError("OOM when allocating"))
        return 30.0, 0.5

    monkeypatch.setattr(timing, "time_steps", time_steps)
    planner.run(records, str(tmp_path / "own.gin"), "cpu", minutes=5.5, weights="")
    assert tried == batches
    assert f"(OOM when allocating): trying batches of {least}" in capsys.readouterr().out
    experiment = config.load(Experiment, str(tmp_path / "own.gin"))
    rate = experiment.optimizer(experiment.steps).schedule.base
    assert (experiment.batch_size, rate) == (least, pytest.approx(1e-2 * least / 16))
    assert experiment.evaluation_batch_size == least // replicas
    least = 0
    with pytest.raises(InputError, match="does not fit .* .OOM .*; free its memory, or plan with"):
        planner.run(records, str(tmp_path / "two.gin"), "cpu", minutes=5.5, weights="")
    assert tried[-1] == replicas and not (tmp_path / "two.gin").exists()


@pytest.mark.slow
def test_timing_leaves_neither_files_nor_the_model(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "STEPS", 2)  # a loop of steps
    variables, new_trainer = [], train.new_trainer

    def remember(*arguments):
        trainer = new_trainer(*arguments)
        variables.extend(map(weakref.ref, trainer.step_variables))
        return trainer

    monkeypatch.setattr(train, "new_trainer", remember)
    experiment = tiny()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def everything():
        found = [*tmp_path.rglob("*"), *pathlib.Path(experiment.data_dir).rglob("*")]
        # TensorFlow removes what it generates of orbit's code when the process ends.
        return sorted(path for path in found if not path.name.startswith("__autograph"))

    before = everything()
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    first, each = timing.time_steps(experiment, strategy)
    assert first > each > 0 and everything() == before
    assert variables and not any(variable() is not None for variable in variables)


def test_a_plan_is_a_gin_file(records, tmp_path):
    with pytest.raises(InputError, match=r"own.txt: the plan is a gin file"):
        planner.run(records, str(tmp_path / "own.txt"), "cpu", 1, "")
    with pytest.raises(InputError, match="no such folder"):
        planner.run(str(tmp_path / "none"), str(tmp_path / "own.gin"), "cpu", 1, "")


@pytest.mark.slow
@pytest.mark.usefixtures("forget_models")
def test_a_plan_starts_from_official_weights(records, tmp_path, monkeypatch):
    """With their clusters and their channel for void, which the data would not ask for."""
    weights, out = str(tmp_path / "weights"), str(tmp_path / "own.gin")
    official = config.load(
        Experiment,
        "gin/experiments/demo.gin",
        [
            "kmax_decoder.ClusterPath.num_clusters = 24",
            "semantic_branch.SemanticBranch.void_channel = True",
        ],
    )
    output.write(official.build_model(), official.dataset, weights)
    monkeypatch.setattr(timing, "time_steps", lambda *arguments: (30.0, 0.5))
    recipe = plan.choose_recipe("cpu", weights)._replace(model="small_lite0")
    monkeypatch.setattr(plan, "choose_recipe", lambda *_: recipe)
    with pytest.raises(InputError, match="ckpt-0: belongs to another model"):
        planner.run(records, out, "cpu", minutes=5.5, weights=weights)
    assert not tf.io.gfile.exists(out)
    recipe = recipe._replace(model="small")  # a ResNet-50 takes longer
    planner.run(records, out, "cpu", minutes=5.5, weights=weights)
    experiment = config.load(Experiment, out)
    assert experiment.training_input.max_segments == 24
    checkpoint.restore_initial(experiment.build_model(), experiment.initial_checkpoint)
