"""What the rules make of fingerprints whose answer is known by hand."""

import numpy as np
import pytest
import tensorflow as tf

from kmax_tf import config
from kmax_tf.data import datasets
from kmax_tf.data.records import reader
from kmax_tf.errors import InputError
from kmax_tf.experiment import Experiment
from kmax_tf.planning import fingerprint, plan, rules
from kmax_tf.predict.tiles import Tiles

CROPS = (97, 129, 161, 193, 225, 257)


def made(size, side, per_image=50, images=4, num_things=1):
    """A fingerprint of square images with a row of square things (or stuff)."""
    count = per_image * images
    corner = np.zeros([count, 2], np.int64)
    corner[:, 1] = np.tile(np.arange(per_image) * size // per_image, images)
    return fingerprint.Fingerprint(
        num_images=images,
        num_things=num_things,
        num_classes=2,
        size=np.full([images, 2], size),
        void=np.zeros(images),
        record_bytes=1000,
        image=np.repeat(np.arange(images), per_image),
        segment_class=np.zeros(count, np.int64),
        area=np.full(count, side**2),
        box=np.concatenate([corner, corner + side], axis=1),
    )


@pytest.mark.parametrize(
    "size, side, crop, scale",
    [
        (90, 20, 97, None),  # no larger than the images
        (640, 200, 129, None),  # things that are large enough at the usual size
        (640, 40, 193, None),  # 12 of 40 pixels are 192 of 640
        (640, 24, 129, 0.5),  # half of the scale shows 3 x 3 pixels of the grid
        (1000, 12, 129, 1.0),
        (120, 6, 257, None),  # twice the scale shows them, and the image fits
        (250, 4, 129, 2.0),  # as for 1,000 pixels, though the image itself would fit
        (1000, 4, 129, 2.0),
        (6000, 1, 129, 2.0),  # no more than that
    ],
)
def test_view(size, side, crop, scale):
    view = rules.choose_view(made(size, side), CROPS, 129)
    assert (view.crop, view.scale) == (crop, scale)


def test_things_that_are_too_long_for_a_tile_are_seen_whole():
    mixed = made(2000, 10)
    mixed.box[::5, 2:] = mixed.box[::5, :2] + 900
    assert rules.choose_view(mixed, CROPS, 129)[:2] == (257, None)


def test_stuff_alone_is_seen_whole():
    assert rules.choose_view(made(480, 8, num_things=0), CROPS, 129)[:2] == (257, None)


def test_segments_of_crops():
    row = made(1000, 10, per_image=100)  # one every 10 pixels, in the first 10 rows
    assert set(row.segments_of_crops(None)) == {100}
    assert set(row.segments_of_crops(1000)) == {100}
    counts = row._replace(size=np.full([4, 2], [10, 1000])).segments_of_crops(100)
    assert {10, 11} >= set(counts)
    stuff = row._replace(num_things=0)
    assert set(stuff.segments_of_crops(None)) == {1}


def test_clusters_hold_the_segments_of_a_crop():
    view = rules.View(129, 1.0, "")
    names = ["kmax_decoder.ClusterPath.num_clusters", "training_input.TrainingInput.max_segments"]
    for per_image, clusters in ((10, 16), (100, 128), (1000, 240)):
        data = made(129, 1, per_image=per_image)
        settings = rules.cluster_settings(data, view)
        assert [(s.name, s.value) for s in settings] == [(name, clusters) for name in names]


def test_fingerprint_of_records(records):
    dataset = datasets.load(records)
    found = reader.find(records, "train", dataset)
    taken = fingerprint.take(found, dataset)
    examples = [found.parse(record) for record in tf.data.TFRecordDataset(found.paths)]
    assert taken.num_images == len(examples) == 6 and (taken.size == 97).all()
    for number, example in enumerate(examples):
        mine = taken.image == number
        ids = example.segment_map.numpy()
        expected = [np.argwhere(ids == k + 1) for k in range(len(example.category_id))]
        assert taken.area[mine].tolist() == [len(places) for places in expected]
        boxes = [[*places.min(0), *(places.max(0) + 1)] for places in expected]
        assert taken.box[mine].tolist() == boxes
        categories = [dataset.categories[c].id for c in taken.segment_class[mine]]
        assert categories == example.category_id.numpy().tolist()
        assert taken.void[number] == pytest.approx(np.mean(ids == 0))


@pytest.mark.parametrize(
    "device, weights, installed, expected",
    [
        ("cpu", "", True, ("small_lite0", "lite0", 257, 16, 1e-2, 0.1)),
        ("cpu", "", False, ("small", "", 257, 16, 1e-2, 1.0)),
        ("gpu", "", True, ("efficientnet_lite0", "lite0", 641, 16, 4e-3, 0.1)),
        ("gpu", "", False, ("efficientnet_lite0", "", 641, 16, 4e-3, 1.0)),
        ("gpu", "ckpt-1", True, ("resnet50", "", 641, 8, 6.25e-5, 0.1)),
        ("tpu", "ckpt-1", True, ("resnet50", "", 641, 64, 5e-4, 0.1)),
    ],
)
def test_the_model_of_a_device(device, weights, installed, expected, monkeypatch):
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: installed or None)
    recipe = plan.choose_recipe(device, weights)
    largest, rates = recipe.crops[-1], (recipe.learning_rate, recipe.encoder_multiplier)
    assert (recipe.model, recipe.package, largest, recipe.batch_size, *rates) == expected


@pytest.mark.parametrize("weights", ["", "runs/official/ckpt-1"])
@pytest.mark.parametrize("device", ["cpu", "gpu", "tpu"])
def test_a_plan_is_an_experiment_whose_lines_say_why(records, tmp_path, device, weights):
    dataset = datasets.load(records)
    taken = fingerprint.take(reader.find(records, "train", dataset), dataset)
    recipe = plan.choose_recipe(device, weights)
    first = plan.make(taken, recipe, records, weights)
    timed = plan.with_steps(first, 1000, minutes=10, start=60, seconds=0.5)
    path = tmp_path / "plan.gin"
    path.write_text(plan.gin_text(timed, str(path)))
    experiment = config.load(Experiment, str(path))
    assert 9 * 60 * 0.8 < 0.5 * experiment.steps <= 9 * 60
    assert experiment.training_input.size == experiment.evaluation_size == (97, 97)
    assert experiment.initial_checkpoint == weights and experiment.tiles is None
    assert experiment.training_input.max_segments % 16 == 0


@pytest.mark.parametrize("minutes", [10, 30])
@pytest.mark.parametrize("seconds", [0.1, 3, 10, 30])
def test_a_plan_keeps_its_minutes(minutes, seconds):
    first = plan.make(made(640, 24), plan.choose_recipe("cpu", ""), "panoptic_digits", "")
    timed = plan.with_steps(first, 1000, minutes, start=60, seconds=seconds)
    values = {s.name.split(".")[-1]: s.value for s in timed.settings}
    steps, interval = values["steps"], values["checkpoint_interval"]
    assert 0.8 * 60 * minutes <= 60 + seconds * steps <= 60 * minutes
    assert steps == 6 * interval and interval % values["steps_per_loop"] == 0
    assert seconds > 0.1 or values["steps_per_loop"] == 50


def test_fewer_steps_than_checkpoints_are_no_plan():
    first = plan.make(made(640, 24), plan.choose_recipe("cpu", ""), "panoptic_digits", "")
    with pytest.raises(InputError, match="^1 minutes: startup takes 49 s, and 6 steps 12 s; give"):
        plan.with_steps(first, 1000, minutes=1, start=49, seconds=2.0)


def test_a_rare_class_of_small_things_is_kept():
    """200 things, 5 of them of a class with 5 x 5 pixels; whole images are seen as they are."""
    rare = made(129, 20, num_things=2)
    rare.segment_class[:5], rare.area[:5] = 1, 25
    view = rules.View(129, None, "")
    settings = {s.name: s.value for s in rules.merging_settings(rare, view)}
    assert settings["postprocess.PostProcess.thing_area"] == 12


def test_a_plan_says_its_epochs():
    first = plan.make(made(640, 24), plan.choose_recipe("cpu", ""), "panoptic_digits", "")
    timed = plan.with_steps(first, 500, minutes=11, start=60, seconds=1.0)
    (steps,) = (s for s in timed.settings if s.name == "experiment.Experiment.steps")
    epochs = steps.value * first.recipe.batch_size / 500
    assert steps.value == 600 and steps.reason.endswith(f"; {epochs:.1f} epochs")


@pytest.mark.parametrize("void, weight", [(0.0, "nonvoid_share"), (0.1, "void_share")])
def test_a_plan_with_tiles_is_an_experiment(tmp_path, void, weight):
    """Things of 24 x 24 pixels are seen as 12 x 12, and half of that is the least area."""
    small = made(640, 24)._replace(void=np.full(4, void))
    small.segment_class[::2] = 1  # stuff, of which a tile may show a corner
    planned = plan.make(small, plan.choose_recipe("cpu", ""), "panoptic_digits", "")
    path = tmp_path / "plan.gin"
    path.write_text(plan.gin_text(planned, str(path)))
    experiment = config.load(Experiment, str(path))
    options, merging = experiment.training_input, experiment.postprocess
    assert experiment.tiles == Tiles(0.5, 32)
    assert options.size == experiment.evaluation_size == (129, 129)
    assert not options.resize_to_crop
    ends = options.scales[0], options.scales[-1]
    assert ends == pytest.approx((0.5 / 1.2, 0.5 * 1.2), abs=1e-4)
    assert (merging.thing_area, merging.stuff_area) == (72, 0)
    on_device = ['training_input.TrainingInput.placement = "device"']
    with pytest.raises(InputError, match="shrunk to TrainingInput.size for the device; bind"):
        config.load(Experiment, str(path), on_device)
    on_device.append("training_input.TrainingInput.decoded_size = (640, 640)")
    assert config.load(Experiment, str(path), on_device).tiles
    assert experiment.criterion.unmatched_class_weight == weight
