"""Training: replicas agree with one device, XLA takes the step, a killed run goes on exactly."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from kmax_tf import checkpoint, inference, runtime, train
from kmax_tf.data import example
from kmax_tf.files import InputError

ONE_DEVICE = "/cpu:0"


def batch(experiment, stride, size):
    """The first `size` training examples as one batch (image, targets)."""
    strategy = tf.distribute.OneDeviceStrategy(ONE_DEVICE)
    dataset = train.training_dataset(experiment, strategy, stride, start_step=0)
    parts = [part for part, _ in zip(dataset, range(size // experiment.batch_size), strict=False)]
    return tf.nest.map_structure(lambda *values: tf.concat(values, axis=0), *parts)


def run_step(trainer, strategy, parts):
    """One step, replica i taking parts[i]; returns the losses of replica 0."""

    def on_replica():
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        image, targets = tf.switch_case(
            replica, [lambda p=p: tf.nest.map_structure(tf.identity, p) for p in parts]
        )
        return train.train_step(
            trainer.model,
            trainer.experiment.criterion,
            trainer.optimizer,
            tf.ensure_shape(image, parts[0][0].shape),
            tf.nest.map_structure(lambda t, p: tf.ensure_shape(t, p.shape), targets, parts[0][1]),
            seed=tf.constant([1, 1]),
            clip_norm=trainer.experiment.clip_norm,
        )

    return tf.function(lambda: strategy.run(on_replica))()


def test_two_replicas_equal_one_with_the_joined_batch(tiny):
    # All pixels take part in the contrast, so that it does not depend on chance.
    experiment = tiny("criterion.Criterion.contrast_pixels = 169")
    one = tf.distribute.OneDeviceStrategy(ONE_DEVICE)
    two = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    assert two.num_replicas_in_sync == 2
    alone = train.make_trainer(experiment, one)
    image, targets = batch(experiment, alone.model.output_stride, size=4)
    halves = [
        tf.nest.map_structure(lambda v, h=h: v[2 * h : 2 * h + 2], (image, targets)) for h in (0, 1)
    ]
    pair = train.make_trainer(experiment, two)
    for trainer, strategy, parts in ((alone, one, [(image, targets)]), (pair, two, halves)):
        trainer.optimizer._learning_rate.warmup_steps = 0  # so that the first step moves
        run_step(trainer, strategy, parts)
    for a, b in zip(alone.model.variables, pair.model.variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-3, atol=3e-4, err_msg=a.name)
    for a, b in zip(alone.optimizer._first, pair.optimizer._first, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-3, atol=2e-6, err_msg=a.name)


def test_step_compiles_with_xla_to_the_same_numbers(tiny):
    experiment = tiny()
    strategy = tf.distribute.OneDeviceStrategy(ONE_DEVICE)
    trainer = train.make_trainer(experiment, strategy)
    image, targets = batch(experiment, trainer.model.output_stride, size=2)

    def step():
        losses, norm = train.train_step(
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
    plain = tf.function(step)()
    compiled = tf.function(step, jit_compile=True)()
    np.testing.assert_allclose(plain, compiled, rtol=1e-4)


def test_overfits_one_image(tiny):
    experiment = tiny(
        "experiment.Experiment.steps = 400",
        "experiment.Experiment.evaluation_split = 'train'",
        "pipeline.TrainingInput.augment = False",
        "kmax.KMaX.batch_norm_momentum = 0.9",
    )
    strategy = tf.distribute.OneDeviceStrategy(ONE_DEVICE)
    trainer = train.make_trainer(experiment, strategy)
    image, targets = batch(experiment, trainer.model.output_stride, size=2)
    one = tf.nest.map_structure(lambda v: v[:1], (image, targets))

    @tf.function
    def step(seed):
        losses, _ = train.train_step(
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
    panoptic, _ = inference.predictor(trainer.model, experiment)(one[0])
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


def test_gradient_that_is_not_finite_changes_nothing(tiny):
    experiment = tiny()
    strategy = tf.distribute.OneDeviceStrategy(ONE_DEVICE)
    trainer = train.make_trainer(experiment, strategy)
    before = [v.numpy() for v in trainer.model.trainable_variables]
    gradients = [tf.ones_like(v) for v in trainer.model.trainable_variables]
    gradients[3] *= float("nan")
    strategy.run(lambda: trainer.optimizer.apply(gradients, finite=tf.constant(False)))
    for old, variable in zip(before, trainer.model.trainable_variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())
    assert all((m.numpy() == 0).all() for m in trainer.optimizer._first)


PROGRAM = """
import sys
from kmax_tf import config, runtime, train
from kmax_tf.experiment import Experiment
gin_file, run_dir = sys.argv[1:]
train.train(config.load(Experiment, gin_file), run_dir, runtime.strategy("cpu"))
"""


def test_killed_training_goes_on_bit_exactly(tiny, tmp_path):
    tiny()  # writes the gin file
    gin_file = str(tmp_path / "tiny.gin")

    def start(run_dir):
        command = [sys.executable, "-c", PROGRAM, gin_file, str(run_dir)]
        environment = os.environ | {"TF_NUM_INTRAOP_THREADS": "1"}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    first = start(killed)
    while not (killed / "checkpoints" / "ckpt-2.index").exists():
        assert first.poll() in (None, 0)
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    for run_dir in (killed, whole):
        process = start(run_dir)
        output, _ = process.communicate()
        assert process.returncode == 0
        assert ("resuming from" in output) == (run_dir == killed)
    states = [tf.train.load_checkpoint(checkpoint.completed(str(d))[-1]) for d in (killed, whole)]
    assert states[0].get_tensor("step/.ATTRIBUTES/VARIABLE_VALUE") == 4
    for key in states[1].get_variable_to_shape_map():
        if key not in ("_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter/.ATTRIBUTES/VARIABLE_VALUE"):
            np.testing.assert_array_equal(*(s.get_tensor(key) for s in states), err_msg=key)


def test_damaged_checkpoint_is_passed_over_on_resume(tiny, tmp_path, capsys):
    run_dir = tmp_path / "run"
    train.train(tiny("experiment.Experiment.steps = 2"), str(run_dir), runtime.strategy("cpu"))
    newest = run_dir / "checkpoints" / "ckpt-2.data-00000-of-00001"
    newest.write_bytes(newest.read_bytes()[:-1000])
    train.train(tiny("experiment.Experiment.steps = 2"), str(run_dir), runtime.strategy("cpu"))
    assert "ckpt-1" in capsys.readouterr().out
    checkpoint.restore_model(tiny().build_model(), checkpoint.completed(str(run_dir))[-1])
    assert checkpoint.step_of(checkpoint.completed(str(run_dir))[-1]) == 2


def test_truncated_record_is_named(tiny, tmp_path):
    experiment = tiny()
    folder = tmp_path / "records"
    tf.io.gfile.makedirs(str(folder))
    for name in tf.io.gfile.listdir(experiment.data_dir):
        tf.io.gfile.copy(f"{experiment.data_dir}/{name}", str(folder / name))
    path = pathlib.Path(example.shard_paths(str(folder), "train")[1])
    path.write_bytes(path.read_bytes()[:-100])
    experiment = tiny(f"experiment.Experiment.data_dir = '{folder}'")
    with pytest.raises(InputError, match="train-00001-of-00002.tfrecord.*convert again"):
        train.train(experiment, str(tmp_path / "run"), runtime.strategy("cpu"))


def test_missing_records_are_named_before_anything_is_written(tiny, tmp_path):
    experiment = tiny("experiment.Experiment.train_split = 'trian'")
    with pytest.raises(InputError, match='no records of split "trian"'):
        train.train(experiment, str(tmp_path / "run"), runtime.strategy("cpu"))
    assert not (tmp_path / "run").exists()


def test_unreadable_checkpoint(tiny, tmp_path):
    experiment = tiny()
    model = experiment.build_model()
    path = tf.train.Checkpoint(model=model).save(str(tmp_path / "ckpt"))
    data = pathlib.Path(path + ".data-00000-of-00001")
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with pytest.raises(InputError, match="cannot be read"):
        checkpoint.restore_model(model, path)
    with pytest.raises(InputError, match="cannot be read"):
        checkpoint.restore_model(model, str(tmp_path / "nothing-5"))


def test_checkpoint_of_another_model_is_refused(tiny, tmp_path):
    path = tf.train.Checkpoint(model=tiny().build_model()).save(str(tmp_path / "ckpt"))
    other = tiny("kmax_decoder.ClusterPath.channels = 24").build_model()
    with pytest.raises(InputError, match="another model"):
        checkpoint.restore_model(other, path)
