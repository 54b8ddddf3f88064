"""The global batch and the schedule that follows its size."""

import pytest

from kmax_tf import config
from kmax_tf.errors import InputError
from kmax_tf.experiment import Experiment
from kmax_tf.training import batch_size

RECIPE = (
    "experiment.Experiment.batch_size = 64",
    "experiment.Experiment.steps = 150000",
    "experiment.Experiment.ema_decay = 0.9999",
    "optimizer.AdamW.learning_rate = 5e-4",
    "optimizer.AdamW.warmup_steps = 5000",
)


def test_a_quarter_of_the_batch_takes_a_quarter_of_the_rate_and_as_many_epochs(tiny, tmp_path):
    recipe = tiny(*RECIPE)
    scaled = tiny(*RECIPE, *batch_size.linear_scaling(recipe, 16))
    (tmp_path / "config.gin").write_text(config.resolved())
    # What the evaluator reads from the run folder is what runs.
    for experiment in (scaled, config.load(Experiment, str(tmp_path / "config.gin"))):
        schedule = experiment.optimizer(experiment.steps).schedule
        assert experiment.batch_size == 16 and experiment.steps == 600_000
        assert (schedule.base, schedule.warmup_steps, schedule.steps) == (1.25e-4, 20_000, 600_000)
        # After equally many images equally much is left of the old weights.
        assert experiment.ema_decay**4 == pytest.approx(0.9999, abs=1e-12)
    line = batch_size.describe(scaled, 8, num_examples=120_000)
    assert "batch of 16 = 8 replicas x 2 images x 1 micro-batches" in line
    assert "learning rate 0.000125 after 20000 steps" in line
    assert "600000 steps = 80.0 epochs of 120000 images" in line
    assert "80.0 epochs" in batch_size.describe(recipe, 8, num_examples=120_000)


def test_the_recipe_itself_is_left_as_it_is(tiny):
    recipe = tiny(*RECIPE)
    assert tiny(*RECIPE, *batch_size.linear_scaling(recipe, 64)).ema_decay == recipe.ema_decay
    with pytest.raises(InputError, match="batch_size 0 is below 1"):
        batch_size.linear_scaling(recipe, 0)


@pytest.mark.parametrize(
    "steps, warmup, interval, loop",
    [(150_000, 5000, 1000, 100), (6000, 200, 1000, 100), (1000, 33, 100, 100), (40, 1, 6, 6)],
)
def test_another_number_of_steps_keeps_the_share_of_the_warm_up(
    tiny, steps, warmup, interval, loop
):
    intervals = ("checkpoint_interval = 1000", "steps_per_loop = 100")
    recipe = (*RECIPE, *(f"experiment.Experiment.{name}" for name in intervals))
    made = tiny(*recipe, *batch_size.length(tiny(*recipe), steps))
    schedule = made.optimizer(made.steps).schedule
    assert (made.steps, schedule.steps, schedule.warmup_steps) == (steps, steps, warmup)
    assert (made.checkpoint_interval, made.steps_per_loop) == (interval, loop)
    assert (made.batch_size, schedule.base) == (64, 5e-4)


@pytest.mark.parametrize(
    "size, given, steps, interval",
    [
        (160, None, 200, 33),  # with the demo's interval it would save at the end alone
        (8, None, 4000, 500),
        (160, 2000, 2000, 300),  # not the interval of 200 steps
    ],
)
def test_another_batch_size_saves_often_enough(tiny, tmp_path, size, given, steps, interval):
    numbers = {"batch_size": 16, "steps": 2000, "checkpoint_interval": 500, "steps_per_loop": 100}
    bindings = [f"experiment.Experiment.{name} = {value}" for name, value in numbers.items()]
    tiny()
    path = str(tmp_path / "tiny.gin")
    made = batch_size.load(path, bindings, batch_size=size, steps=given)
    assert (made.batch_size, made.steps, made.checkpoint_interval) == (size, steps, interval)


def test_a_batch_that_the_replicas_do_not_divide(tiny):
    experiment = tiny("experiment.Experiment.batch_size = 64")
    assert batch_size.per_replica_batch_size(experiment, 32) == 2
    with pytest.raises(
        InputError, match=r"64 cannot be divided among 12 replicas.*--batch_size=60"
    ):
        batch_size.per_replica_batch_size(experiment, 12)
    experiment = tiny("experiment.Experiment.accumulation = 4", *RECIPE)
    assert batch_size.per_replica_batch_size(experiment, 8) == 2
    with pytest.raises(InputError, match=r"among 32 replicas x 4 micro-batches.*--batch_size=128"):
        batch_size.per_replica_batch_size(experiment, 32)


@pytest.mark.parametrize("placement, pastes", [("device", True), ("device", False), ("host", True)])
def test_an_image_is_not_pasted_onto_itself(tiny, placement, pastes):
    inputs = {"placement": placement, "paste_scales": (0.5,) if pastes else ()}
    if placement == "device":
        inputs["decoded_size"] = (97, 97)
    bound = [f"training_input.TrainingInput.{k} = {v!r}" for k, v in inputs.items()]
    experiment = tiny("experiment.Experiment.batch_size = 8", *bound)
    assert batch_size.per_replica_batch_size(experiment, 4) == 2
    if placement == "device" and pastes:
        with pytest.raises(InputError, match="each of 8 replicas would paste its one image onto"):
            batch_size.per_replica_batch_size(experiment, 8)
    else:
        assert batch_size.per_replica_batch_size(experiment, 8) == 1
    parts = tiny(
        "experiment.Experiment.accumulation = 2", *bound, "experiment.Experiment.batch_size = 8"
    )
    assert batch_size.per_replica_batch_size(parts, 4) == 1  # of two, which are pasted


def test_numbers_that_make_no_sense(tiny):
    with pytest.raises(InputError, match="accumulation 0 is below 1"):
        tiny("experiment.Experiment.accumulation = 0")
    with pytest.raises(InputError, match=r"ema_decay 1.0 is not in \[0, 1\)"):
        tiny("experiment.Experiment.ema_decay = 1.0")
