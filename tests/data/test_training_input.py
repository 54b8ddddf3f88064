"""The training input: position by step, every example once an epoch, no Python operation."""

import dataclasses
import glob
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from kmax_tf import config
from kmax_tf.data import datasets, training_input
from kmax_tf.data.evaluation_input import evaluation_images, evaluation_input
from kmax_tf.data.records import example, serialize
from kmax_tf.data.records.reader import Records
from kmax_tf.errors import InputError
from kmax_tf.experiment import Experiment

ROOT = pathlib.Path(__file__).parents[2]
THIN = [(2, 3000), (3000, 2), (1, 700), (1, 1)]  # heights and widths
NUMBER = 26  # divided by neither 3 shards nor 4 hosts
EVERYTHING = dict(
    size=(33, 41),
    scales=(0.5, 1.0, 1.7),
    paste_scales=(0.3, 0.8),
    color=0.6,
    max_segments=16,
    shuffle_buffer=8,
)


@pytest.fixture(scope="module")
def paths(made, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("records"))
    return made.write(folder, list(range(NUMBER)), num_shards=3)


def found(paths, number=NUMBER):
    return Records(paths, example.parse, number)


def batches(paths, count, options=None, number=NUMBER, **arguments):
    """The first batches, as arrays."""
    dataset = training_input.training_input(
        found(paths, number),
        datasets.load("panoptic_digits"),
        training_input.TrainingInput(**options or EVERYTHING),
        **{"stride": 4, "batch_size": 2, "seed": 3} | arguments,
    )
    return [tf.nest.map_structure(np.asarray, b) for b, _ in zip(dataset, range(count))]


def ids(paths, count, placement="host", number=NUMBER, **arguments):
    """The ids of the first records of a host's order: of both, where it takes pairs."""
    options = training_input.TrainingInput(**EVERYTHING, placement=placement)
    records = found(paths, number)
    records = training_input.ordered_records(records, options, **{"seed": 3} | arguments)

    def read(record):
        features = tf.train.Example.FromString(record).features.feature
        return int(features["image/id"].bytes_list.value[0])

    rows = records.take(count).as_numpy_iterator()
    return [(int(position), *map(read, examples)) for position, *examples in rows]


def assert_equal(a, b):
    tf.nest.map_structure(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("hosts", [1, 4])
def test_each_epoch_holds_each_example_once(paths, hosts):
    epochs = 3 if hosts == 1 else 4  # so that the hosts' shares of them are equal
    share = epochs * NUMBER // hosts
    rows = sorted(sum((ids(paths, share, host_index=h, num_hosts=hosts) for h in range(hosts)), []))
    assert [position for position, *_ in rows] == list(range(epochs * NUMBER))
    for which in (1, 2):  # the examples, and the images to paste
        orders = [[r[which] for r in rows[k : k + NUMBER]] for k in range(0, len(rows), NUMBER)]
        assert all(sorted(order) == list(range(NUMBER)) for order in orders)
        assert len(set(map(tuple, orders))) == epochs
    # The order is the same whatever the number of hosts.
    assert rows[:NUMBER] == ids(paths, NUMBER)


def test_a_crop_of_an_image_with_many_segments_shows_all_of_its_own():
    rows, columns = np.mgrid[:160, :160] // 8
    segment_map = (1 + rows * 20 + columns).astype(np.int32)  # 400 squares
    count = segment_map.max()
    record = serialize.record(
        image=tf.io.encode_png(np.zeros([160, 160, 3], np.uint8)).numpy(),
        filename="squares.png",
        image_id="1",
        segment_map=segment_map,
        segment_id=list(range(1, count + 1)),
        category_id=[datasets.load("panoptic_digits").categories[0].id] * count,
        is_crowd=[False] * count,
    )
    options = training_input.TrainingInput(
        size=(65, 65), resize_to_crop=False, flip=False, max_segments=128
    )
    for number in range(8):
        _, targets = training_input.training_example(
            (record,),
            example.parse,
            datasets.load("panoptic_digits"),
            options,
            stride=4,
            seed=tf.constant([0, number], tf.int64),
        )
        assert targets.segment.numpy().min() == 0  # no void
        shown = len(np.unique(targets.segment))
        assert 64 <= shown == np.count_nonzero(targets.segment_class.numpy() == 0) <= 81


@pytest.mark.parametrize("hosts", [1, 4])
def test_order_goes_on_as_if_uninterrupted(paths, hosts):
    random = np.random.default_rng(0)
    host = int(random.integers(hosts))
    total = 3 * NUMBER // hosts
    common = dict(host_index=host, num_hosts=hosts)
    whole = ids(paths, total, **common)
    for start in random.choice(total, min(20, total), replace=False):
        rest = ids(paths, min(5, total - start), start=int(start) * hosts, **common)
        assert rest == whole[start : start + 5]


@pytest.mark.parametrize("placement", training_input.PLACEMENTS)
def test_pixels_go_on_as_if_uninterrupted(paths, placement):
    options = EVERYTHING | dict(placement=placement)
    common = dict(host_index=1, num_hosts=4)
    whole = batches(paths, 3 * NUMBER // 8, options, **common)
    for start in (1, 7):  # in the first and in the third epoch
        assert_equal(batches(paths, 2, options, start_step=start, **common), whole[start:][:2])


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("hosts", [1, 4])
def test_interrupted_at_twenty_steps(paths, hosts):
    common = dict(host_index=hosts - 1, num_hosts=hosts)
    whole = batches(paths, 3 * NUMBER // (2 * hosts), **common)
    for start in np.random.default_rng(1).integers(0, len(whole), 20):
        rest = whole[start:][:2]
        assert_equal(batches(paths, len(rest), start_step=int(start), **common), rest)


@pytest.fixture(scope="module")
def thin(made, tmp_path_factory):
    """A file of two records of each thin size."""
    path = str(tmp_path_factory.mktemp("thin") / "train-00000-of-00001.tfrecord")
    with tf.io.TFRecordWriter(path) as writer:
        for number in (0, 1):
            for height, width in THIN:
                writer.write(made.record(number, height, width))
    return [path]


@pytest.mark.parametrize("placement", training_input.PLACEMENTS)
def test_thin_images_keep_a_pixel(thin, placement):
    options = EVERYTHING | dict(placement=placement, color=None)
    for batch in batches(thin, 4 * len(THIN), options, number=2 * len(THIN), batch_size=1):
        if placement == "host":
            assert batch[0].shape == (1, 33, 41, 3) and np.isfinite(batch[0]).all()
        else:
            assert batch.size.min() == 1
            assert all(side.min() >= 1 for side in batch.params.geometry[:2])


def test_thin_images_fill_a_side_of_the_crop(thin):
    options = EVERYTHING | dict(augment=False, shuffle_buffer=1)  # in the order of the file
    whole = batches(thin, 2 * len(THIN), options, number=2 * len(THIN), batch_size=1)
    for (height, width), (image, _) in zip(2 * THIN, whole, strict=True):
        shown = (image[0] != 127.5).any(axis=-1)
        rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
        assert rows.size == (1 if width > height else 33) and columns.size > 0


def test_replicas_share_the_images_of_a_step(paths):
    whole = batches(paths, 4, batch_size=4)
    halves = batches(paths, 4, batch_size=4, num_replicas=2, start_step=2)
    joined = [
        tf.nest.map_structure(lambda a, b: np.concatenate([a, b]), *halves[k : k + 2])
        for k in (0, 2)
    ]
    assert_equal(joined, whole[2:])


@pytest.mark.parametrize("enlarge", [True, False])
def test_without_augmentation_examples_are_as_in_evaluation(paths, enlarge):
    options = dict(size=(65, 65), augment=False, shuffle_buffer=1, max_segments=16)
    options["resize_to_crop"] = enlarge
    (image, _), *_ = batches(paths, 1, options, batch_size=NUMBER)
    seen = next(iter(evaluation_input(found(paths), (65, 65), NUMBER, enlarge))).image.numpy()
    order = [int(i) for _, i in ids(paths, NUMBER, "device")]
    assert sorted(order) == list(range(NUMBER))
    sums = [images.astype(np.float64).sum(axis=(1, 2, 3)) for images in (image, seen)]
    assert len(set(sums[1])) == NUMBER
    np.testing.assert_allclose(image[np.argsort(sums[0])], seen[np.argsort(sums[1])])


def test_wrong_number_of_examples(paths):
    for number in (NUMBER - 1, NUMBER + 1):
        with pytest.raises(tf.errors.FailedPreconditionError, match="was expected to contain"):
            ids(paths, 2 * NUMBER, number=number)


@pytest.mark.parametrize("flip", [True, False])
def test_what_is_drawn_is_what_the_options_say(made, flip):
    options = training_input.TrainingInput(
        size=(65, 65), scales=(0.5, 1.0, 1.5), paste_scales=(0.25, 0.75), flip=flip
    )
    seeds = [tf.constant([0, number], tf.int64) for number in range(60)]
    *roles, _ = zip(*(training_input.draw_params(seed, made.dataset, options) for seed in seeds))
    for params, scales in zip(roles, (options.scales, options.paste_scales), strict=True):
        assert {float(p.scale) for p in params} == set(scales)
        assert {bool(p.flip) for p in params} == {False, flip}


def test_crowd_is_void(made):
    """Odd records have a crowd of class 7, which even ones have as a segment."""
    options = training_input.TrainingInput(size=(65, 65), augment=False)
    rest = example.parse, made.dataset, options
    arguments = dict(stride=4, seed=tf.constant([0, 0], tf.int64))
    for number in range(4):
        _, targets = training_input.training_example((made.record(number),), *rest, **arguments)
        assert (7 in targets.segment_class.numpy()) == (number % 2 == 0)


def test_options_are_checked():
    with pytest.raises(InputError, match='"devise" is none of host, device'):
        training_input.TrainingInput(size=(65, 65), placement="devise")
    with pytest.raises(InputError, match="augments"):
        training_input.TrainingInput(size=(65, 65), placement="device", augment=False)


def operations(dataset):
    """The names of all operations of a dataset and of the functions in it."""
    graph = tf.compat.v1.GraphDef.FromString(dataset._as_serialized_graph().numpy())
    nodes = list(graph.node) + [n for f in graph.library.function for n in f.node_def]
    return {node.op for node in nodes}


def inputs():
    """Datasets and options of gin/experiments, one for each set of operations."""
    different = {}
    for path in sorted(glob.glob(str(ROOT / "gin/experiments/*.gin"))):
        own = ["datasets.load.source = 'coco'"] if "own_dataset" in path else []
        experiment = config.load(Experiment, path, own)
        for placement in training_input.PLACEMENTS:
            options = experiment.training_input
            augment = options.augment or placement == "device"
            options = dataclasses.replace(options, placement=placement, augment=augment)
            # Numbers and classes change no operation, but for a number that leaves a step out.
            branches = vars(options) | {"small_thing_weight": options.small_thing_weight != 1}
            key = placement, *map(bool, branches.values())
            name = f"{placement}-{os.path.basename(path)}"
            different.setdefault(key, pytest.param(experiment.dataset, options, id=name))
    return list(different.values())


@pytest.mark.parametrize(("dataset", "options"), inputs())
def test_no_python_operation_in_any_training_input(paths, dataset, options):
    """On a slice the input runs in servers without Python."""
    names = operations(
        training_input.training_input(
            found(paths), dataset, options, stride=4, batch_size=2, seed=0
        )
    )
    assert "DecodePng" in names or "DecodeImage" in names
    assert not [name for name in names if "PyFunc" in name or name == "GeneratorDataset"]


@pytest.mark.parametrize("made_of", ["training", "evaluation", "images"])
def test_no_input_is_autotuned(paths, made_of):
    """The thread of the autotuning can keep a process from its end for a minute."""
    dataset = datasets.load("panoptic_digits")
    inputs = {
        "training": lambda: training_input.training_input(
            found(paths),
            dataset,
            training_input.TrainingInput(**EVERYTHING),
            stride=4,
            batch_size=2,
            seed=0,
        ),
        "evaluation": lambda: evaluation_input(found(paths), (33, 41), 2, enlarge=False),
        "images": lambda: evaluation_images(found(paths)),
    }
    assert inputs[made_of]().options().autotune.enabled is False


def test_a_python_operation_would_be_found(paths):
    def parse(record):
        return example.parse(tf.numpy_function(lambda x: x, [record], tf.string))  # noqa: TID251

    options = training_input.TrainingInput(size=(33, 41), augment=False)
    with_python = training_input.training_input(
        Records(paths, parse, NUMBER),
        datasets.load("panoptic_digits"),
        options,
        stride=4,
        batch_size=2,
        seed=0,
    )
    assert any("PyFunc" in name for name in operations(with_python))
