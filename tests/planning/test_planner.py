"""The whole plan of a folder of records, and its timed steps."""

import pytest
import tensorflow as tf

from kmax_tf import config
from kmax_tf.errors import InputError
from kmax_tf.experiment import Experiment
from kmax_tf.planning import planner, timing


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


@pytest.mark.slow
@pytest.mark.usefixtures("forget_models")
def test_timing_writes_nothing(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "STEPS", 2)  # a loop of steps
    experiment = tiny()
    before = sorted(tmp_path.rglob("*"))
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    first, each = timing.time_steps(experiment, strategy)
    assert first > each > 0 and sorted(tmp_path.rglob("*")) == before


def test_a_plan_is_a_gin_file(records, tmp_path):
    with pytest.raises(InputError, match=r"own.txt: the plan is a gin file"):
        planner.run(records, str(tmp_path / "own.txt"), "cpu", 1, "")
    with pytest.raises(InputError, match="no such folder"):
        planner.run(str(tmp_path / "none"), str(tmp_path / "own.gin"), "cpu", 1, "")
