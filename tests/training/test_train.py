"""Training: replicas agree with one device, XLA takes the step, a killed run goes on exactly."""

import collections
import dataclasses
import functools
import hashlib
import os
import pathlib
import re
import shutil
import signal
import sys
import time
import types

import numpy as np
import pytest
import tensorflow as tf
import toy

from kmax_tf import runtime
from kmax_tf.data import datasets, training_input
from kmax_tf.data.records import example, serialize, shards
from kmax_tf.errors import InputError
from kmax_tf.files import write_atomic
from kmax_tf.inference import predictor
from kmax_tf.model.layers.norms import BatchNorm
from kmax_tf.model.layers.stateless_random import random_seed, random_uniform
from kmax_tf.planning import timing
from kmax_tf.run_folder import checkpoint, layout
from kmax_tf.training import ema, memory, nonfinite, optimizer, preemption, train
from kmax_tf.training.replica_strategy import ReplicaStrategy
from kmax_tf.training.trainer import Trainer, make_trainer, train_step

ONE_DEVICE = "/cpu:0"
EMA_AND_ACCUMULATION = (
    "experiment.Experiment.ema_decay = 0.9",
    "experiment.Experiment.accumulation = 2",
)
do_not_convert = tf.autograph.experimental.do_not_convert


def batch(experiment, stride, size):
    """The first `size` training examples as one batch (image, targets)."""
    strategy = tf.distribute.OneDeviceStrategy(ONE_DEVICE)
    dataset = train.training_dataset(
        experiment, train.training_records(experiment), strategy, stride, start_step=0
    )
    parts = [part for part, _ in zip(dataset, range(size // experiment.batch_size), strict=False)]
    return tf.nest.map_structure(lambda *values: tf.concat(values, axis=0), *parts)


@pytest.mark.parametrize("devices", [1, 2])
def test_only_several_devices_get_copies(tiny, devices):
    """A copying iterator is autotuned whatever the dataset's options are."""
    names = [f"/cpu:{i}" for i in range(devices)]
    strategies = tf.distribute.OneDeviceStrategy(names[0]), tf.distribute.MirroredStrategy(names)
    experiment = tiny()
    records = train.training_records(experiment)
    dataset = train.training_dataset(
        experiment, records, strategies[devices - 1], stride=4, start_step=0
    )
    assert isinstance(dataset, tf.data.Dataset) == (devices == 1)


def on_replicas(strategy, function, parts):
    """function(image, targets) on each replica, i taking parts[i]; returns replica 0's result."""

    def on_replica():
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        return function(*parts[int(replica)])

    result = strategy.run(on_replica)  # runs once, and tracing it would take minutes
    return tf.nest.map_structure(lambda v: strategy.experimental_local_results(v)[0], result)


def gradients_of_terms(trainer, image, targets):
    """The gradients of each term by itself, summed over the replicas as `train_step` does."""
    replica = tf.distribute.get_replica_context()
    variables = trainer.model.trainable_variables
    with tf.GradientTape(persistent=True) as tape, random_seed(tf.constant([1, 1])):
        outputs = trainer.model(image, training=True)
        pixels = outputs.final.mask_logits.shape[1] * outputs.final.mask_logits.shape[2]
        noise = tf.fill([trainer.model.num_predictions, image.shape[0], pixels], 0.5)
        losses = trainer.experiment.criterion(outputs, targets, noise)._asdict()
        del losses["recall"]  # has no gradient
        means = {
            name: tf.reduce_sum(tf.reduce_mean(term, axis=-1)) / replica.num_replicas_in_sync
            for name, term in losses.items()
        }
    summed = {}
    for name, mean in means.items():
        gradients = tape.gradient(mean, variables, unconnected_gradients="zero")
        gradients = [tf.convert_to_tensor(g) for g in gradients]
        summed[name] = replica.all_reduce("SUM", gradients)
    return summed


@pytest.mark.slow
def test_two_replicas_equal_one_with_the_joined_batch(tiny, two_replicas):
    # All pixels take part in the contrast, so that it does not depend on chance.
    experiment = tiny("criterion.Criterion.contrast_pixels = 169")
    one = tf.distribute.OneDeviceStrategy(ONE_DEVICE)
    assert two_replicas.num_replicas_in_sync == 2
    alone, pair = (make_trainer(experiment, strategy) for strategy in (one, two_replicas))
    image, targets = batch(experiment, alone.model.output_stride, size=4)
    halves = [
        tf.nest.map_structure(lambda v, h=h: v[2 * h : 2 * h + 2], (image, targets)) for h in (0, 1)
    ]
    joined, split = (
        on_replicas(strategy, functools.partial(gradients_of_terms, trainer), parts)
        for strategy, trainer, parts in (
            (one, alone, [(image, targets)]),
            (two_replicas, pair, halves),
        )
    )
    assert set(joined) == {"pq_mask", "pq_class", "mask_id", "contrast", "semantic"}
    for term in joined:
        largest = max(float(tf.reduce_max(tf.abs(g))) for g in joined[term])
        for a, b, v in zip(joined[term], split[term], alone.model.trainable_variables, strict=True):
            message = f"{term} {v.name}"
            np.testing.assert_allclose(b, a, rtol=2e-3, atol=1e-5 * largest, err_msg=message)
    for a, b in zip(alone.model.variables, pair.model.variables, strict=True):
        # Nothing was trained: the moving statistics are those of both halves together.
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-6, err_msg=a.name)


def test_each_replica_draws_by_its_own_seed(two_replicas):
    """Also after the replicas met, when each has drawn numbers."""

    def draw(replica, meet=tf.identity):
        with random_seed(tf.stack([7, replica])):
            first = random_uniform([3])
            meet(first)
            return first, random_uniform([3])

    def on_replica():
        context = tf.distribute.get_replica_context()
        sum_of_all = functools.partial(context.all_reduce, tf.distribute.ReduceOp.SUM)
        return draw(context.replica_id_in_sync_group, sum_of_all)

    drawn = two_replicas.run(on_replica)
    for replica in (0, 1):
        for numbers, expected in zip(drawn, draw(replica), strict=True):
            found = two_replicas.experimental_local_results(numbers)[replica]
            np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
@pytest.mark.xla
def test_step_compiles_with_xla_to_the_same_numbers(tiny):
    experiment = tiny()
    strategy = tf.distribute.OneDeviceStrategy(ONE_DEVICE)
    trainer = make_trainer(experiment, strategy)
    image, targets = batch(experiment, trainer.model.output_stride, size=2)

    def step():
        losses, norm, _ = train_step(
            trainer.model,
            experiment.criterion,
            trainer.optimizer,
            image,
            targets,
            seed=tf.constant([1, 1]),
            clip_norm=experiment.clip_norm,
        )
        return [losses.total, norm]

    # The first step has rate 0: it changes no weight, only moving statistics and moments.
    plain = step()
    compiled = tf.function(do_not_convert(step), jit_compile=True)()
    np.testing.assert_allclose(plain, compiled, rtol=1e-4)


class GradientOnly:
    """In place of an optimizer: keeps the gradient."""

    def apply(self, gradients, finite):
        self.gradients, self.finite = gradients, finite


@pytest.fixture
def without_batch_statistics(monkeypatch):
    """Batch norm as at inference: what a batch's other images are makes no difference then."""

    def call(self, x, training=None):
        return self._infer(x, tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta))

    monkeypatch.setattr(BatchNorm, "call", call)
    monkeypatch.setattr(BatchNorm, "batch_affine", lambda self, *moments: self.affine())


def accumulated(experiment, strategy, parts, accumulation, compiled=False, clip_norm=1e9):
    """The gradients, means, norm and finiteness of `train_step` in so many micro-batches."""
    trainer = make_trainer(experiment, strategy)

    def step(image, targets):
        keeper = GradientOnly()
        results = train_step(
            trainer.model,
            experiment.criterion,
            keeper,
            image,
            targets,
            seed=tf.constant([1, 1]),
            clip_norm=clip_norm,
            accumulation=accumulation,
        )
        return keeper.gradients, *results

    if len(parts) > 1:
        return on_replicas(strategy, step, parts)
    return tf.function(do_not_convert(lambda: step(*parts[0])), jit_compile=compiled)()


def assert_same_gradients(first, second):
    assert first[2] > 0.1 and first[3]  # norm and finiteness
    np.testing.assert_allclose(second[2], first[2], rtol=1e-5)
    largest = max(float(tf.reduce_max(tf.abs(g))) for g in first[0])
    for a, b in zip(first[0], second[0], strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-4, atol=1e-6 * largest)


def assert_micro_batches_are_the_batch(experiment):
    one = tf.distribute.OneDeviceStrategy(ONE_DEVICE)
    images = [batch(experiment, 8, size=2)]
    whole, looped = (accumulated(experiment, one, images, count) for count in (1, 2))
    assert_same_gradients(whole, looped)
    for a, b in zip(whole[1], looped[1], strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)


def test_micro_batches_have_the_gradient_of_the_batch(tiny, without_batch_statistics):
    assert_micro_batches_are_the_batch(toy.of(tiny(), chance=False))


@pytest.mark.slow
def test_micro_batches_of_the_whole_model(tiny, without_batch_statistics):
    assert_micro_batches_are_the_batch(tiny("criterion.Criterion.contrast_pixels = 169"))


def test_the_gradient_is_applied_as_it_was_clipped(tiny, without_batch_statistics):
    one, experiment = tf.distribute.OneDeviceStrategy(ONE_DEVICE), toy.of(tiny())
    images = [batch(experiment, 8, size=2)]
    gradients, _, norm, _ = accumulated(experiment, one, images, 1)
    clipped, _, same, _ = accumulated(experiment, one, images, 1, clip_norm=norm.numpy() / 2)
    assert norm == same > 0  # the norm that is reported is the one before
    for whole, half in zip(gradients, clipped, strict=True):
        np.testing.assert_allclose(half, whole / 2, rtol=1e-5)


@pytest.mark.slow
def test_micro_batches_of_replicas_and_under_xla(tiny, without_batch_statistics, two_replicas):
    experiment = tiny("criterion.Criterion.contrast_pixels = 169")
    one = tf.distribute.OneDeviceStrategy(ONE_DEVICE)
    images = batch(experiment, 8, size=4)
    halves = [tf.nest.map_structure(lambda v, h=h: v[2 * h : 2 * h + 2], images) for h in (0, 1)]
    whole = accumulated(experiment, one, [images], 1)
    assert_same_gradients(whole, accumulated(experiment, two_replicas, halves, 2))
    # XLA's own whole batch: without batch statistics its rounding alone changes the gradient.
    small = toy.of(experiment, chance=False)
    compiled = (accumulated(small, one, [images], count, compiled=True) for count in (1, 2))
    assert_same_gradients(*compiled)


def test_a_micro_batch_that_is_not_finite_skips_the_step(tiny, without_batch_statistics):
    experiment = toy.of(tiny())
    image, targets = batch(experiment, 8, size=2)
    poison = tf.constant([1.0, float("nan")])[:, None, None, None]
    one = tf.distribute.OneDeviceStrategy(ONE_DEVICE)
    *_, finite = accumulated(experiment, one, [(image * poison, targets)], 2)
    assert not finite


def test_average_of_the_weights_moves_with_each_step_that_is_not_skipped(tiny):
    experiment = toy.of(tiny("experiment.Experiment.ema_decay = 0.3"))
    trainer = make_trainer(experiment, tf.distribute.OneDeviceStrategy(ONE_DEVICE))
    values, kept = trainer.model.variables, trainer.ema.variables
    assert [v.shape for v in values] == [v.shape for v in kept]
    expected = None
    for step, decay, finite in (
        (0, 0.0, True),
        (1, 2 / 11, True),
        (2, 1.0, False),
        (99, 0.3, True),
    ):
        for v in values:
            v.assign_add(tf.random.stateless_normal(v.shape, [step, 1]))
        weights = [v.numpy() for v in values]
        expected = [
            decay * mean + (1 - decay) * weight
            for mean, weight in zip(expected or weights, weights, strict=True)
        ]
        ema.update(
            trainer.ema, trainer.model, 0.3, tf.constant(step, tf.int64), tf.constant(finite)
        )
        for mean, variable in zip(expected, kept, strict=True):
            np.testing.assert_allclose(variable.numpy(), mean, rtol=1e-5, atol=1e-6)
    assert "ema" not in make_trainer(toy.of(tiny()), trainer.strategy).state


@pytest.mark.slow
def test_overfits_one_image(tiny):
    experiment = tiny(
        "experiment.Experiment.steps = 400",
        "experiment.Experiment.evaluation_split = 'train'",
        "training_input.TrainingInput.augment = False",
        "kmax.KMaX.batch_norm_momentum = 0.9",
    )
    strategy = tf.distribute.OneDeviceStrategy(ONE_DEVICE)
    trainer = make_trainer(experiment, strategy)
    image, targets = batch(experiment, trainer.model.output_stride, size=2)
    one = tf.nest.map_structure(lambda v: v[:1], (image, targets))

    @tf.function
    @do_not_convert
    def step(seed):
        losses, _, _ = train_step(
            trainer.model,
            experiment.criterion,
            trainer.optimizer,
            *one,
            seed=seed,
            clip_norm=experiment.clip_norm,
        )
        return losses.total

    first, *_, last = (float(step(tf.constant([i, 0]))) for i in range(experiment.steps))
    assert last < first / 4
    panoptic, _ = predictor.build_predictor(trainer.model, experiment)(one[0])
    stride = trainer.model.output_stride
    predicted = panoptic.segment_map[0, ::stride, ::stride].numpy()
    truth = one[1].segment[0].numpy()
    for segment in np.unique(truth[truth >= 0]):
        ious = [
            ((predicted == k) & (truth == segment)).sum()
            / ((predicted == k) | (truth == segment)).sum()
            for k in np.unique(predicted[predicted > 0])
        ]
        assert max(ious) > 0.6


def test_a_gradient_is_scaled_to_the_norm_that_is_allowed():
    gradients = [tf.constant([3.0]), tf.constant([[0.0, 4.0]])]
    for most, expected in ((1.0, [[0.6], [[0.0, 0.8]]]), (10.0, gradients)):
        clipped, norm = optimizer.clip(gradients, most)
        assert float(norm) == 5
        for a, b in zip(clipped, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_kernels_are_decayed_once_and_other_weights_never():
    """Of Keras's optimizers, a step reads and writes all weights once more to decay them by 0."""
    weights = [tf.Variable(tf.ones([2]), name=name) for name in ("kernel", "bias")]
    encoder = types.SimpleNamespace(trainable_variables=[])
    adam = optimizer.AdamW(steps=10)
    adam.build_for(types.SimpleNamespace(trainable_variables=weights, pixel_encoder=encoder))
    step = tf.function(lambda: adam.apply([tf.ones([2])] * 2, tf.constant(True)), autograph=False)
    operations = step.get_concrete_function().graph.get_operations()
    written = collections.Counter(operation.type for operation in operations)
    assert written["AssignSubVariableOp"] == 1 and written["ResourceApplyAdam"] == 2


def test_gradient_that_is_not_finite_changes_nothing(tiny):
    experiment = toy.of(tiny())
    strategy = tf.distribute.OneDeviceStrategy(ONE_DEVICE)
    trainer = make_trainer(experiment, strategy)
    weights, optimizer = trainer.model.trainable_variables, trainer.optimizer
    gradients = [tf.ones_like(v) for v in weights]
    for _ in range(2):  # after the warm-up there are a rate and moments, which would move weights
        strategy.run(lambda: optimizer.apply(gradients, finite=tf.constant(True)))
    assert optimizer.schedule(optimizer.iterations) > 0
    before = [v.numpy() for v in (*weights, *optimizer.moments)]
    assert all(value.any() for value in before[-len(optimizer.moments) :])
    gradients[3] *= float("nan")
    strategy.run(lambda: optimizer.apply(gradients, finite=tf.constant(False)))
    for old, variable in zip(before, (*weights, *optimizer.moments), strict=True):
        np.testing.assert_array_equal(old, variable.numpy())


@pytest.fixture
def poisoned(tiny, monkeypatch):
    """A function: bindings -> an experiment whose loss is NaN on the first image in `bad_steps`."""

    def poison(bad_steps, *bindings):
        experiment = toy.of(tiny(*bindings))
        steps = []

        def make_watched(*arguments):
            trainer = make_trainer(*arguments)
            steps.append(trainer.step)
            return trainer

        def criterion(*arguments):
            losses = experiment.criterion(*arguments)
            bad = tf.reduce_any(steps[-1] == bad_steps)
            return losses._replace(pq_mask=losses.pq_mask * tf.where(bad, [float("nan"), 1.0], 1.0))

        monkeypatch.setattr(train, "make_trainer", make_watched)
        criterion.unmatched_class_weight = experiment.criterion.unmatched_class_weight
        return dataclasses.replace(experiment, criterion=criterion)

    return poison


def test_a_step_without_finite_loss_is_skipped_counted_and_named(poisoned, tmp_path, capsys):
    names = ("steps_per_loop", "checkpoint_interval")
    experiment = poisoned([1], *(f"experiment.Experiment.{name} = 4" for name in names))
    model = train.train(experiment, str(tmp_path / "run"), runtime.strategy("cpu"))
    assert all(np.isfinite(v.numpy()).all() for v in model.variables)
    lines = re.findall(r"step \d+ skipped: .*", capsys.readouterr().err)
    (events,) = (tmp_path / "run" / "train").glob("events*")
    values = {
        value.tag: float(tf.make_ndarray(value.tensor))
        for event in tf.compat.v1.train.summary_iterator(str(events))
        for value in event.summary.value
    }
    assert values["nonfinite_steps"] == 1
    assert np.isfinite(values["loss/total"]) and values["loss/total"] > 0
    # Images of step 1 are the third and fourth that the input gives.
    records = training_input.ordered_records(
        train.training_records(experiment), experiment.training_input, seed=0
    )
    names = [example.parse(record).filename.numpy().decode() for _, record in records.take(4)]
    assert lines == ["step 1 skipped: non-finite loss or gradient; images: " + ", ".join(names[2:])]


def test_only_the_first_skipped_steps_are_looked_up(poisoned, tmp_path, capsys, monkeypatch):
    """Each reads the epoch from its beginning, and training stands meanwhile."""
    read, ordered = [], training_input.ordered_records
    monkeypatch.setattr(
        train.training_input,
        "ordered_records",
        lambda *args, **options: read.append(options.get("start")) or ordered(*args, **options),
    )
    experiment = poisoned([1, 2, 4, 5, 7], "experiment.Experiment.steps = 8")
    train.train(experiment, str(tmp_path / "run"), runtime.strategy("cpu"))
    lines = re.findall(
        r"step (\d+) skipped: non-finite loss or gradient; (.*)", capsys.readouterr().err
    )
    assert [int(step) for step, _ in lines] == [1, 2, 4, 5, 7]
    assert [images.startswith("images: ") for _, images in lines] == [True] * 3 + [False] * 2
    batch = experiment.batch_size
    assert [start for start in read if start] == [batch, 2 * batch, 4 * batch]


def test_a_skipped_step_with_a_corrupt_record_is_described():
    features = {"image/filename": tf.train.Feature(bytes_list={"value": [b"\xff.png"]})}
    record = tf.train.Example(features={"feature": features}).SerializeToString()
    line = nonfinite.describe_step(3, [b"\xff\xff", record])
    assert line.endswith("images: a corrupt record, \N{REPLACEMENT CHARACTER}.png")


def test_hosts_that_write_nothing_look_up_no_skipped_step(tiny, monkeypatch):
    monkeypatch.setattr(train.training_input, "ordered_records", pytest.fail)
    progress = train._progress(tiny(), None, 0, ReplicaStrategy(2, process=1, processes=2))
    assert progress._describe_step(7).startswith("step 7 skipped: non-finite loss")


@pytest.mark.slow
def test_training_stops_after_too_many_skipped_steps_in_a_row(poisoned, tmp_path):
    experiment = poisoned(list(range(2, 40)), "experiment.Experiment.steps = 40")
    with pytest.raises(InputError, match="10 consecutive steps, 2 to 11, had a non-finite"):
        train.train(experiment, str(tmp_path / "run"), runtime.strategy("cpu"))
    newest = tf.train.load_checkpoint(checkpoint.completed(str(tmp_path / "run"))[-1])
    for key in newest.get_variable_to_shape_map():
        if newest.get_variable_to_dtype_map()[key] != tf.string:
            assert np.isfinite(newest.get_tensor(key)).all(), key


@pytest.mark.slow
def test_crops_without_void_are_warned_of(tiny, tmp_path, capsys):
    digits = datasets.load("panoptic_digits")
    stuff = digits.categories[-1]
    image = np.full([97, 97, 3], 90, np.uint8)
    record = serialize.record(
        image=tf.io.encode_png(image).numpy(),
        filename="a.png",
        image_id="a",
        segment_map=np.ones([97, 97], np.int32),
        segment_id=[7],
        category_id=[stuff.id],
        is_crowd=[False],
    )
    folder = tmp_path / "records"
    folder.mkdir()
    with tf.io.TFRecordWriter(str(folder / shards.name("train", 0, 1))) as writer:
        for _ in range(2):
            writer.write(record)
    text = datasets.with_split(str(folder), digits, "train", datasets.Split(2, 1))
    (folder / datasets.FILE_NAME).write_text(text)
    bindings = [
        f"experiment.Experiment.data_dir = '{folder}'",
        "experiment.Experiment.steps = 1",
        "training_input.TrainingInput.scales = (1.0,)",
    ]
    for weight, warns in (("void_share", True), ("nonvoid_share", False)):
        experiment = toy.of(tiny(*bindings), unmatched_class_weight=weight)
        train.train(experiment, str(tmp_path / weight), runtime.strategy("cpu"))
        assert ("crops have no void pixels" in capsys.readouterr().err) == warns
    assert tiny().criterion.unmatched_class_weight == "void_share"


@pytest.fixture
def heard_ctrl_c():
    """Ctrl-C is heard; a shell's background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("heard_ctrl_c")
def test_terminated_training_goes_on_bit_exactly(
    tiny, tmp_path, monkeypatch, capsys, assert_same_state
):
    """SIGTERM, Ctrl-C, then damage to what it saved: in the end all is as if none had been."""
    cpu, terminated, whole = runtime.strategy("cpu"), str(tmp_path / "a"), str(tmp_path / "b")
    experiment = toy.of(tiny(*EMA_AND_ACCUMULATION))
    train.train(experiment, whole, cpu)
    monkeypatch.setattr(sys, "argv", ["kmax train", "--run_dir=a b"])
    with monkeypatch.context() as patch:
        loop_end = Trainer.train_loop_end

        def terminate(trainer):
            if int(trainer.step) == step:
                os.kill(os.getpid(), number)
                while not re.search(f"{number.name}: saving", capsys.readouterr().err):
                    time.sleep(0.01)
            return loop_end(trainer)

        patch.setattr(Trainer, "train_loop_end", terminate)
        for step, number in ((2, signal.SIGTERM), (3, signal.SIGINT)):  # noqa: B007
            with pytest.raises(SystemExit) as stop:
                train.train(experiment, terminated, cpu)
            assert stop.value.code == preemption.RESTART == 75
            line = "to resume, run the same command: kmax train '--run_dir=a b'\n"
            assert f"stopped at step {step}; {line}" in capsys.readouterr().err
            assert summary_steps(terminated)[-1] == step
    newest = checkpoint.newest(terminated)
    data = pathlib.Path(newest + ".data-00000-of-00001")
    data.write_bytes(data.read_bytes()[:-1000])
    experiment = tiny(*EMA_AND_ACCUMULATION, "experiment.Experiment.checkpoints_kept = 9")
    train.train(toy.of(experiment), terminated, cpu)
    assert f"resuming from {tmp_path}/a/checkpoints/ckpt-2\n" in capsys.readouterr().out
    paths = [checkpoint.completed(run_dir) for run_dir in (terminated, whole)]
    assert [[checkpoint.step_of(path) for path in run] for run in paths] == [[1, 2, 3, 4]] * 2
    for pair in zip(*paths, strict=True):
        assert_same_state(*pair)
    weights, means = ([of_part(path, part) for path in paths[0]] for part in ("model", "ema"))
    expected = weights[0]
    for decay, new, mean in zip((2 / 11, 3 / 12, 4 / 13), weights[1:], means[1:], strict=True):
        expected = {name: decay * expected[name] + (1 - decay) * new[name] for name in new}
        for name, value in expected.items():
            np.testing.assert_allclose(mean[name], value, rtol=1e-5, atol=1e-7)
    assert any((means[3][name] != weights[3][name]).any() for name in means[3])


def of_part(path, part):
    """The arrays of one part of a checkpoint by their names in it."""
    reader = tf.train.load_checkpoint(path)
    return {
        name.removeprefix(f"{part}/"): reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
        if name.startswith(f"{part}/") and name.endswith("VARIABLE_VALUE")
    }


@pytest.mark.slow
def test_a_resumed_kmax_has_the_bits_of_one_that_never_stopped(
    tiny, tmp_path, assert_same_state, cut
):
    cpu, whole, resumed = runtime.strategy("cpu"), tmp_path / "a", tmp_path / "b"
    experiment = tiny(*EMA_AND_ACCUMULATION)
    train.train(experiment, str(whole), cpu)
    shutil.copytree(whole, resumed)
    cut(resumed, 2)
    train.train(experiment, str(resumed), cpu)
    paths = [checkpoint.completed(str(folder)) for folder in (resumed, whole)]
    assert [[checkpoint.step_of(path) for path in run] for run in paths] == [[1, 2, 3, 4]] * 2
    for pair in zip(*paths, strict=True):
        assert_same_state(*pair)


def summary_steps(run_dir):
    """The steps of all summaries of a run, in order."""
    found = set()
    for path in pathlib.Path(run_dir, "train").glob("events*"):
        events = tf.compat.v1.train.summary_iterator(str(path))
        found |= {event.step for event in events if event.summary.value}
    return sorted(found)


@pytest.mark.slow
def test_a_summary_is_the_mean_of_its_steps(tiny, tmp_path, losses, capsys):
    """However the host divides them into loops."""
    cpu, values = runtime.strategy("cpu"), []
    for every in (1, 4):
        names = ("steps_per_loop", "checkpoint_interval")
        experiment = toy.of(tiny(*(f"experiment.Experiment.{name} = {every}" for name in names)))
        train.train(experiment, str(tmp_path / str(every)), cpu)
        values.append(losses(tmp_path / str(every)))
    assert values[0].keys() == values[1].keys()
    for tag, single in values[0].items():
        assert len(single) == 4
        np.testing.assert_allclose(values[1][tag], [np.mean(single)], rtol=1e-6)
    made = (tmp_path / "4/config.gin").read_bytes()
    fewer = toy.of(tiny("experiment.Experiment.steps = 2"))
    for again in (experiment, fewer):
        train.train(again, str(tmp_path / "4"), cpu, allow_changes=True)
        assert f"all {again.steps} steps are done" in capsys.readouterr().out
    assert (tmp_path / "4/config.gin").read_bytes() == made  # of the weights that are there


def test_loops_are_short_again_when_steps_become_slow(tiny, tmp_path, monkeypatch):
    """A loop ends 5 to 10 seconds after it began, so that a signal is soon heard."""
    reached = []

    def show(progress, step, *arguments, **options):
        reached.append(step)
        return 0.01 if step < 15 else 3.0  # seconds a step

    monkeypatch.setattr(train.Progress, "show", show)
    names = ("steps", "steps_per_loop", "checkpoint_interval")
    experiment = toy.of(tiny(*(f"experiment.Experiment.{name} = 36" for name in names)))
    train.train(experiment, str(tmp_path), runtime.strategy("cpu"))
    # 3 s a step: a loop of 8 takes 24 s, one of 4 takes 12 s, one of 2 takes 6 s.
    assert np.diff([0, *reached]).tolist() == [1, 2, 4, 8, 4, 2, 2, 2, 2, 2, 2, 2, 2, 1]


@pytest.fixture
def flaky_bucket(monkeypatch):
    """A function: number of renames -> so many of them fail, as where gs:// answers 503."""
    rename, told = tf.io.gfile.rename, []

    def fail(number):
        def once_more(source, target, **options):
            if "ckpt-2" in target and len(told) < number:
                told.append(source)
                raise tf.errors.UnavailableError(None, None, "503 Service Unavailable\nand so on")
            rename(source, target, **options)

        monkeypatch.setattr(tf.io.gfile, "rename", once_more)
        monkeypatch.setattr(train, "PAUSE", 0)

    return fail


def test_a_save_is_tried_again_while_the_storage_does_not_answer(
    tiny, tmp_path, flaky_bucket, capsys
):
    flaky_bucket(3)
    experiment = toy.of(tiny("experiment.Experiment.steps = 3"))
    train.train(experiment, str(tmp_path), runtime.strategy("cpu"))
    assert list(map(checkpoint.step_of, checkpoint.completed(str(tmp_path)))) == [1, 2, 3]
    line = "saving failed, retrying: 503 Service Unavailable\n"
    assert capsys.readouterr().err.count(line) == 3


def test_a_summary_that_cannot_be_written_is_lost_and_no_training(
    tiny, tmp_path, monkeypatch, capsys
):
    flush, flushed = tf.summary.flush, []

    def full_at_the_second_time(writer):
        flushed.append(writer)
        if len(flushed) == 2:
            raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")
        flush(writer)

    monkeypatch.setattr(tf.summary, "flush", full_at_the_second_time)
    experiment = toy.of(
        tiny("experiment.Experiment.steps = 3", "experiment.Experiment.steps_per_loop = 1")
    )
    train.train(experiment, str(tmp_path), runtime.strategy("cpu"))
    assert list(map(checkpoint.step_of, checkpoint.completed(str(tmp_path)))) == [1, 2, 3]
    line = "a summary is lost: No space left on device\n"
    assert capsys.readouterr().err.count(line) == 1
    written = [
        event.step
        for path in sorted((tmp_path / "train").glob("events*"))
        for event in tf.compat.v1.train.summary_iterator(str(path))
        if any(value.tag == "loss/total" for value in event.summary.value)
    ]
    assert {1, 3} <= set(written)


def test_a_storage_that_never_answers_ends_the_training(tiny, tmp_path, flaky_bucket, monkeypatch):
    flaky_bucket(1000)
    monkeypatch.setattr(train, "PATIENCE", 0.2)
    with pytest.raises(tf.errors.UnavailableError, match="503"):
        train.train(toy.of(tiny()), str(tmp_path), runtime.strategy("cpu"))
    assert list(map(checkpoint.step_of, checkpoint.completed(str(tmp_path)))) == [1]


def test_a_second_training_of_a_run_stops_and_removes_nothing(tiny, tmp_path, monkeypatch):
    """As when a run that seemed dead is started again: the first one is ahead, and goes on."""
    cpu, first, folder = runtime.strategy("cpu"), tmp_path / "first", tmp_path / "run"
    experiment = toy.of(tiny())
    train.train(experiment, str(first), cpu)
    loop_end, names = Trainer.train_loop_end, ("ckpt-2.*", "ckpt-3.*")

    def overtaken(trainer):
        if int(trainer.step) == 2:
            for path in (p for name in names for p in (first / "checkpoints").glob(name)):
                shutil.copy(path, folder / "checkpoints")
        return loop_end(trainer)

    monkeypatch.setattr(Trainer, "train_loop_end", overtaken)
    with pytest.raises(InputError, match="checkpoints/ckpt-2: another training wrote it before"):
        train.train(experiment, str(folder), cpu)
    assert list(map(checkpoint.step_of, checkpoint.completed(str(folder)))) == [1, 2, 3]


def test_truncated_record_is_named(tiny, tmp_path):
    experiment = tiny()
    folder = tmp_path / "records"
    tf.io.gfile.makedirs(str(folder))
    for name in tf.io.gfile.listdir(experiment.data_dir):
        tf.io.gfile.copy(f"{experiment.data_dir}/{name}", str(folder / name))
    path = pathlib.Path(shards.paths(str(folder), "train")[1])
    path.write_bytes(path.read_bytes()[:-100])
    experiment = toy.of(tiny(f"experiment.Experiment.data_dir = '{folder}'"))
    with pytest.raises(InputError, match="train-00001-of-00002.tfrecord.*convert again"):
        train.train(experiment, str(tmp_path / "run"), runtime.strategy("cpu"))


@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_an_encoder_of_random_weights_with_a_small_rate_is_told(tiny, tmp_path, capsys, rate):
    """A recipe of the paper expects ImageNet's, and says nothing else until its PQ is low."""
    binding = f"optimizer.AdamW.encoder_multiplier = {rate}"
    experiment = toy.of(tiny(binding, "experiment.Experiment.steps = 1"))
    train.train(experiment, str(tmp_path), runtime.strategy("cpu"))
    told = capsys.readouterr().out
    assert f"starting in {tmp_path} from random weights" in told
    line = "the encoder has random weights, but 0.1 of the learning rate; set"
    assert (line in told) == (rate < 1)


def test_missing_records_are_named_before_anything_is_written(tiny, tmp_path):
    experiment = tiny("experiment.Experiment.train_split = 'trian'")
    with pytest.raises(InputError, match='no records of split "trian"'):
        train.train(experiment, str(tmp_path / "run"), runtime.strategy("cpu"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("left", [layout.metrics("", 3), layout.best_note(layout.best(""))])
def test_a_new_training_mixes_no_figures_with_those_of_an_earlier_one(tiny, tmp_path, left):
    write_atomic(str(tmp_path / left), '{"step": 3}')
    with pytest.raises(InputError, match="has metrics of an earlier training.* move .*eval and "):
        train.train(toy.of(tiny()), str(tmp_path), runtime.strategy("cpu"))
    assert not checkpoint.completed(str(tmp_path))


def test_a_lack_of_memory_is_one_line_and_a_full_disk_is_another():
    def raised(kind, reason):
        with pytest.raises(kind) as found, memory.named_errors():
            raise tf.errors.ResourceExhaustedError(None, None, reason)
        return str(found.value)

    line = raised(memory.DoesNotFit, "OOM when allocating tensor with shape[9]\nand so on")
    assert re.search(r"memory \(OOM when .*shape\[9\]\); use a smaller --batch_size[^\n]*$", line)
    raised(tf.errors.ResourceExhaustedError, "a/b.index; No space left on device")


def test_a_run_that_fitted_before_needs_no_other_settings(tmp_path):
    checkpoint.write(tf.train.Checkpoint(), checkpoint.path_of(layout.checkpoints(tmp_path), 3))
    line = "memory is full .OOM.; end other programs there, such as the evaluator"
    with pytest.raises(InputError, match=line), memory.named_errors(str(tmp_path)):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM")


@pytest.mark.parametrize("when", ["train_loop_end", "prepare"])
@pytest.mark.parametrize("program", ["training", "timing"])
def test_a_step_that_does_not_fit_is_one_line(tiny, tmp_path, monkeypatch, when, program):
    def lacks(trainer):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")

    monkeypatch.setattr(Trainer, when, lacks)
    experiment, cpu = toy.of(tiny()), runtime.strategy("cpu")
    with pytest.raises(memory.DoesNotFit, match="OOM when allocating"):
        if program == "training":
            train.train(experiment, str(tmp_path / "run"), cpu)
        else:
            timing.time_steps(experiment, cpu)


def test_unreadable_checkpoint(tiny, tmp_path):
    model = toy.of(tiny()).build_model()
    path = tf.train.Checkpoint(model=model).save(str(tmp_path / "ckpt"))
    data = pathlib.Path(path + ".data-00000-of-00001")
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with pytest.raises(InputError, match="cannot be read"):
        checkpoint.restore_model(model, path)
    with pytest.raises(InputError, match="cannot be read"):
        checkpoint.restore_model(model, str(tmp_path / "nothing-5"))


def test_checkpoint_of_another_model_is_refused(tiny, tmp_path):
    experiment = toy.of(tiny())
    path = tf.train.Checkpoint(model=experiment.build_model()).save(str(tmp_path / "ckpt"))
    with pytest.raises(InputError, match="another model"):
        checkpoint.restore_model(experiment.build_weights(15), path)


def test_a_new_run_starts_from_a_pixel_encoder_alone(tiny, tmp_path):
    """Weights to start from may be an encoder's; to evaluate or export they must be all."""
    given = tiny().build_model()
    own = [v for v in given.variables if v.ref() not in _refs(given.pixel_encoder)]
    before = [v.numpy() for v in own]
    donor = tiny("experiment.Experiment.seed = 1").build_model()
    for variable in donor.variables:
        variable.assign(tf.fill(variable.shape, 0.5))
    path = tf.train.Checkpoint(pixel_encoder=donor.pixel_encoder).save(str(tmp_path / "ckpt"))
    checkpoint.restore_initial(given, path)
    assert all((v.numpy() == 0.5).all() for v in given.pixel_encoder.variables)
    assert all((v.numpy() == old).all() for v, old in zip(own, before, strict=True))
    with pytest.raises(InputError, match="another model"):
        checkpoint.restore_model(given, path)
    wider = tiny("resnet.ResNet.widths = (8, 16, 24)").build_model()
    with pytest.raises(InputError, match="another model"):
        checkpoint.restore_initial(wider, path)


def _refs(layer):
    return {v.ref() for v in layer.variables}


def test_a_run_starts_from_the_weights_that_are_bound(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "_run", lambda *_: None)  # what is asserted comes before
    weights = toy.of(tiny()).build_model()
    for variable in weights.variables:
        variable.assign(tf.fill(variable.shape, 0.5))
    path = tf.train.Checkpoint(model=weights).save(str(tmp_path / "ckpt"))
    experiment = toy.of(tiny(f"experiment.Experiment.initial_checkpoint = {path!r}"))
    model = train.train(experiment, str(tmp_path / "run"), runtime.strategy("cpu"))
    assert all((v.numpy() == 0.5).all() for v in model.variables)


def test_a_start_from_a_run_names_the_checkpoint_and_all_hosts_compare_it(
    tiny, tmp_path, monkeypatch, capsys
):
    """While that run still saves, another host may find a newer one."""
    monkeypatch.setattr(train, "_run", lambda *_: None)  # what is asserted comes before
    compared, model = [], toy.of(tiny()).build_model()
    monkeypatch.setattr(train, "_check_hosts_agree", lambda _, number: compared.append(number))
    for step in (5, 6):
        path = checkpoint.path_of(layout.checkpoints(str(tmp_path / "other")), step)
        model.head.bias.assign_add(tf.ones_like(model.head.bias))
        checkpoint.write(tf.train.Checkpoint(model=model), path)
        experiment = tiny(f"experiment.Experiment.initial_checkpoint = '{tmp_path}/other'")
        train.train(toy.of(experiment), str(tmp_path / "run"), runtime.strategy("cpu"))
        assert f"starting in {tmp_path}/run from {path}\n" in capsys.readouterr().out
        digest = hashlib.sha256(pathlib.Path(f"{path}.index").read_bytes()).hexdigest()
        assert compared[-2:] == [0, int(digest[:6], 16)]
    assert compared[1] != compared[3]
    train.train(toy.of(tiny()), str(tmp_path / "new"), runtime.strategy("cpu"))
    assert compared[4:] == [0, 0]
