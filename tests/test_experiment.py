"""What an experiment refuses when it builds its model."""

import pytest

from kmax_tf.errors import InputError
from kmax_tf.model.kmax import KMaX

ROWS = "training_input.TrainingInput.max_segments = {}"
DROP = "kmax_decoder.ClusterPath.drop_query = True"


@pytest.fixture(autouse=True)
def without_variables(monkeypatch):
    """Building checks the size and makes no variables, which takes its time."""

    def create_variables(model, height, width):
        model.check_size(height, width)
        return model

    monkeypatch.setattr(KMaX, "create_variables", create_variables)


@pytest.mark.parametrize(
    "bindings, clusters",
    [((ROWS.format(17),), 16), ((ROWS.format(9), DROP), 8)],  # dropping trains half of 16
)
def test_more_segments_than_clusters(tiny, bindings, clusters):
    with pytest.raises(InputError, match=f"exceeds the {clusters} clusters .*num_clusters 16$"):
        tiny(*bindings).build_model()
    assert tiny(*bindings).build_evaluation_model()  # has no targets


def test_as_many_segments_as_clusters(tiny):
    assert tiny(ROWS.format(8), DROP).build_model()


def test_a_size_that_only_the_evaluator_would_refuse(tiny):
    with pytest.raises(InputError, match="image size 96 x 96: height and width must be a multiple"):
        tiny("experiment.Experiment.evaluation_size = (96, 96)").build_model()


@pytest.mark.parametrize(
    "binding, message",
    [
        ("checkpoints_kept = 0", "checkpoints_kept 0 is below 1; bind it to 1 or more"),
        ("checkpoint_interval = 0", "checkpoint_interval 0 is below 1"),
        ("steps_per_loop = 0", "steps_per_loop 0 is below 1"),
        ("batch_size = -2", "batch_size -2 is below 1"),
        ("steps = 1e5", "steps 100000.0 is not a whole number"),
        ("steps = '100'", "steps '100' is not a whole number"),
        ("seed = 0.5", "seed 0.5 is not a whole number"),
        ("clip_norm = 0", "clip_norm 0 is not positive; leave it out for no limit"),
        ("clip_norm = None", "clip_norm None is not a number; leave it out, or bind one"),
        ("ema_decay = None", "ema_decay None is not a number"),
        ("evaluation_size = 129", r"evaluation_size 129 is not \(height, width\); bind e.g. "),
        ("evaluation_size = (129, 129.5)", r"evaluation_size \(129, 129.5\) is not \(height"),
        ("seed = -1", "seed -1 is not 0 to 2147483647"),
        ("seed = 4294967295", "seed 4294967295 is not 0 to 2147483647"),
    ],
)
def test_numbers_that_would_fail_later_or_never(tiny, binding, message):
    with pytest.raises(InputError, match=message):
        tiny(f"experiment.Experiment.{binding}")


@pytest.mark.parametrize(
    "name, part",
    [
        ("dataset", "@datasets.load"),
        ("training_input", "@training_input.TrainingInput"),
        ("criterion", "@criterion.Criterion"),
        ("postprocess", "@postprocess.PostProcess"),
        ("tiles", "@tiles.Tiles"),
    ],
)
def test_parts_without_their_parentheses(tiny, name, part):
    """Of the merging, an evaluation would say it: after the training."""
    with pytest.raises(InputError, match=rf"Experiment.{name} is not .*; write it as {part}\(\)$"):
        tiny(f"experiment.Experiment.{name} = {part}")
    assert getattr(tiny(f"experiment.Experiment.{name} = {part}()"), name)


@pytest.mark.parametrize("name", ["size", "decoded_size"])
def test_a_size_is_a_height_and_a_width(tiny, name):
    with pytest.raises(InputError, match=rf"TrainingInput.{name} 97 is not \(height, width\)"):
        tiny(f"training_input.TrainingInput.{name} = 97")


def test_none_undoes_the_weights_to_start_from(tiny):
    assert tiny("experiment.Experiment.initial_checkpoint = None").initial_checkpoint == ""
