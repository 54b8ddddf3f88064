"""Corrupt records: a named error, or an example that weighs nothing and is counted."""

import numpy as np
import pytest
import tensorflow as tf

from kmax_tf import errors
from kmax_tf.data import segment_counts, training_input
from kmax_tf.data.records import corrupt, example, reader
from kmax_tf.data.records.reader import Records
from kmax_tf.data.transforms import device

OPTIONS = dict(size=(33, 41), max_segments=16, shuffle_buffer=1)
NUMBER = 6


def input_of(paths, made, placement="host", skip_corrupt=True, **options):
    return training_input.training_input(
        Records(paths, example.parse, NUMBER),
        made.dataset,
        training_input.TrainingInput(
            **OPTIONS | options, placement=placement, skip_corrupt=skip_corrupt, paste_scales=(0.5,)
        ),
        stride=4,
        batch_size=NUMBER,
        seed=0,
    )


@pytest.fixture
def halved(made, tmp_path):
    """Records 0 to 5; every second one has only half of its image's bytes."""
    paths = made.write(str(tmp_path), list(range(NUMBER)), num_shards=1)
    with tf.io.TFRecordWriter(paths[0]) as writer:
        for number in range(NUMBER):
            half = (lambda png: png[: len(png) // 2]) if number % 2 else None
            writer.write(made.record(number, damage=half))
    return paths


@pytest.mark.parametrize("placement", ["host", pytest.param("device", marks=pytest.mark.xla)])
def test_skipped_and_counted(halved, made, placement):
    options = training_input.TrainingInput(**OPTIONS, placement=placement, paste_scales=(0.5,))
    for one in input_of(halved, made, placement).take(2):
        image, made_targets = training_input.step_examples(options, made.dataset, 4, True)(*one)
        assert float(corrupt.count(made_targets)) == 3
        assert np.isfinite(image).all()
        lost = (made_targets.semantic_weight.numpy() == 0).all(axis=(1, 2))
        assert lost.sum() == 3


def test_positions_do_not_depend_on_damage(halved, made, tmp_path):
    """The intact examples are those of intact records: no order changes."""
    whole = made.write(str(tmp_path / "whole"), list(range(NUMBER)), num_shards=1)
    _, ours = next(iter(input_of(halved, made, augment=False)))
    _, expected = next(iter(input_of(whole, made, augment=False)))
    assert float(corrupt.count(expected)) == 0
    intact = ours.semantic_weight.numpy().any(axis=(1, 2))
    np.testing.assert_array_equal(ours.segment[intact], expected.segment[intact])


@pytest.mark.parametrize("placement", training_input.PLACEMENTS)
def test_an_error_by_default(halved, made, placement):
    with pytest.raises(tf.errors.InvalidArgumentError):
        next(iter(input_of(halved, made, placement, skip_corrupt=False)))


def test_a_file_that_is_cut_off(made, tmp_path):
    paths = made.write(str(tmp_path), list(range(NUMBER)), num_shards=1)
    with open(paths[0], "r+b") as file:
        file.truncate(file.seek(0, 2) // 2)
    with pytest.raises((tf.errors.DataLossError, tf.errors.FailedPreconditionError)):
        next(iter(input_of(paths, made, skip_corrupt=False)))
    for _, ours in input_of(paths, made).take(2):
        assert 2 <= float(corrupt.count(ours)) <= 4


def test_damaged_bytes_lose_the_rest_of_their_file(made, tmp_path):
    """As the docstring of `corrupt` says; the order resumes exactly all the same."""
    paths = made.write(str(tmp_path), list(range(NUMBER)), num_shards=2)
    with open(paths[0], "r+b") as file:  # records 0, 2 and 4
        file.seek(16 + len(made.record(0)) + 12 + 100)  # in the data of record 2
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    options = training_input.TrainingInput(**OPTIONS, skip_corrupt=True)

    def order(start):
        ordered = training_input.ordered_records(
            Records(paths, example.parse, NUMBER), options, seed=0, start=start
        )
        return [one[1].numpy() for one in ordered.take(2 * NUMBER - start)]

    epochs = order(0)
    for epoch in (epochs[:NUMBER], epochs[NUMBER:]):
        kept = {made.record(k) for k in (0, 1, 3, 5)}
        assert set(epoch) == {*kept, b""} and epoch[4:] == [b"", b""]
    assert order(3) == epochs[3:] and order(8) == epochs[8:]


def test_a_split_is_read_whichever_first_record_is_damaged(made, tmp_path):
    paths = made.write(str(tmp_path), list(range(NUMBER)), num_shards=4)
    damage(paths[0])  # records 0 and 4
    damage(paths[3])  # record 3
    records = reader.find(str(tmp_path), "train", made.dataset)
    assert records == Records(paths, example.parse, NUMBER)
    _, ours = next(iter(input_of(records.paths, made)))
    assert float(corrupt.count(ours)) == 3
    damage(paths[1])
    damage(paths[2])
    with pytest.raises(errors.InputError, match="train-00000-of-00004.tfrecord: .*convert again"):
        reader.find(str(tmp_path), "train", made.dataset)


def damage(path):
    """Flips a bit of the first record."""
    with open(path, "r+b") as file:
        file.seek(20)
        byte = file.read(1)[0]
        file.seek(20)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("skip_corrupt", [False, True])
def test_a_file_that_vanishes_is_named(made, tmp_path, skip_corrupt):
    """TensorFlow would try it again for ever, if errors were skipped."""
    paths = made.write(str(tmp_path), list(range(NUMBER)), num_shards=2)
    records = Records(paths, example.parse, NUMBER)
    name = "train-00001-of-00002.tfrecord: cannot be read any more .No such file or directory.; "
    with (
        pytest.raises(errors.InputError, match=name),
        reader.named_errors(records, "train", skips=skip_corrupt),
    ):
        for _ in input_of(paths, made, skip_corrupt=skip_corrupt):
            (tmp_path / "train-00001-of-00002.tfrecord").unlink(missing_ok=True)
    with pytest.raises(errors.InputError, match=name):
        segment_counts.count(
            records,
            made.dataset,
            training_input.TrainingInput(**OPTIONS, skip_corrupt=skip_corrupt),
            evaluation_size=(33, 41),
            scale=None,
            stride=4,
            num_clusters=16,
        )


def test_contradictions(made):
    """What decodes, but does not belong together, is corrupt as well."""
    message = tf.train.Example.FromString(made.record(1))
    other = tf.train.Example.FromString(made.record(2, 44, 44))
    features = message.features.feature
    features["image/encoded"].CopyFrom(other.features.feature["image/encoded"])
    with pytest.raises(tf.errors.InvalidArgumentError, match="sizes of image and labels"):
        example.parse(tf.constant(message.SerializeToString()))
    message = tf.train.Example.FromString(made.record(1))
    features = message.features.feature
    for key in ("id", "category_id", "is_crowd"):
        del features[f"segment/{key}"].int64_list.value[2:]
    with pytest.raises(tf.errors.InvalidArgumentError, match="a segment that is not listed"):
        example.parse(tf.constant(message.SerializeToString()))


@pytest.mark.slow
def test_thousand_mutations(made):
    """A blank or a whole example with labels that can be, never a crash or a hang."""
    random = np.random.default_rng(0)
    options = training_input.TrainingInput(**OPTIONS, placement="device", skip_corrupt=True)
    original = np.frombuffer(made.record(3), np.uint8)
    mutated = []
    for _ in range(1000):
        data = original.copy()
        begin = random.integers(len(data))
        if random.random() < 0.3:
            data = data[:begin]
        else:
            some = data[begin : begin + random.integers(1, 9)]
            some[:] = random.integers(0, 256, len(some))
        mutated.append(data.tobytes())
    examples = tf.data.Dataset.from_tensor_slices(mutated).map(
        lambda record: training_input.training_example(
            (record,),
            example.parse,
            made.dataset,
            options,
            stride=4,
            seed=tf.constant([0, 0], tf.int64),
        )
    )
    intact = 0
    for one in examples:
        decoded = device.Decoded(*one)
        assert int(tf.reduce_max(decoded.segments.classes)) < made.dataset.num_classes
        assert int(tf.reduce_max(decoded.segment_map)) <= 6
        intact += bool(decoded.intact)
    assert 0 < intact < 1000
