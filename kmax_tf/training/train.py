"""The training program: a loop of steps with checkpoints, summaries and preemption."""

import contextlib
import io
import sys

import orbit
import tensorflow as tf
import tf_keras

from kmax_tf import runtime
from kmax_tf.data import training_input
from kmax_tf.data.records import reader
from kmax_tf.data.records.reader import Records
from kmax_tf.experiment import Experiment
from kmax_tf.run_folder import checkpoint, layout, provenance
from kmax_tf.training import batch_size, preemption, progress
from kmax_tf.training.trainer import make_trainer


def training_records(experiment: Experiment) -> reader.Records:
    """The `Records` of the training split, counted.

    Raises InputError if they are missing, empty, of an unknown schema or of other classes.
    """
    records = reader.find(experiment.data_dir, experiment.train_split, experiment.dataset)
    return records._replace(num_examples=reader.count(records))


def training_dataset(
    experiment: Experiment,
    records: Records,
    strategy: tf.distribute.Strategy,
    stride: int,
    start_step: int,
    service: str = "",
) -> tf.distribute.DistributedDataset:
    """The distributed training input of `records`, from `start_step` on.

    `service` is the address of a tf.data service that makes it, "" for the hosts themselves.
    """

    def per_host(context):
        replicas = context.num_replicas_in_sync // context.num_input_pipelines
        batches = training_input.training_input(
            records,
            experiment.dataset,
            experiment.training_input,
            stride=stride,
            batch_size=context.get_per_replica_batch_size(experiment.batch_size) * replicas,
            num_replicas=replicas,
            seed=experiment.seed,
            start_step=start_step,
            host_index=context.input_pipeline_id,
            num_hosts=context.num_input_pipelines,
            service=service,
        )
        # Else the strategy of several hosts, in case that one runs out, forgets the batch size.
        endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
        return batches.apply(endless)

    return strategy.distribute_datasets_from_function(per_host)


def train(
    experiment: Experiment,
    run_dir: str,
    strategy: tf.distribute.Strategy,
    service: str = "",
    *,
    allow_changes: bool = False,
) -> tf_keras.Model:
    """Trains `experiment` in `run_dir`, going on from its newest checkpoint; returns the model.

    `service` is the address of a tf.data service that makes the input, "" for the hosts themselves.
    `allow_changes`: go on although the run began with another configuration or other records.
    Writes config.gin, run.json, checkpoints/ and the TensorBoard summaries train/ into `run_dir`.
    Raises InputError for records, checkpoints or losses that training cannot go on with.
    Raises SystemExit(RESTART) once SIGTERM came and a checkpoint is saved; see preemption.py.
    """
    records = training_records(experiment)  # before anything that takes long
    print(batch_size.describe(experiment, strategy.num_replicas_in_sync, records.num_examples))
    made_with = provenance.describe(experiment.dataset, records)
    provenance.check(run_dir, made_with, allow_changes=allow_changes)
    folder = runtime.writable_dir(strategy, run_dir)
    trainer = make_trainer(experiment, strategy)
    saver = tf.train.Checkpoint(**trainer.state)
    start = _restore(trainer, saver, run_dir)
    provenance.write(folder, made_with)
    trainer.train_dataset = training_dataset(
        experiment, records, strategy, trainer.model.output_stride, start, service
    )
    every = experiment.steps_per_loop

    def after_loop(scalars):
        step = int(trainer.step.numpy())
        progress.show(line, experiment, records, trainer.nonfinite, step, scalars)
        stop = preemption.on_any_host(strategy, terminated()) and step < experiment.steps
        if stop or step % experiment.checkpoint_interval == 0 or step == experiment.steps:
            checkpoint.save(saver, folder, step, experiment.checkpoints_kept)
        if stop:
            line.write(f"stopped at step {step}; start it again to go on", sys.stderr)
            raise SystemExit(preemption.RESTART)

    with (
        reader.named_errors(records, f"{experiment.data_dir}: split {experiment.train_split!r}"),
        preemption.watch() as terminated,
        progress.line(experiment, start) as line,
        contextlib.redirect_stdout(io.StringIO()),  # orbit prints every scalar
    ):
        # Without a checkpoint manager, whose newest checkpoint orbit would insist on.
        orbit.Controller(
            global_step=trainer.step,
            trainer=trainer,
            strategy=strategy,
            train_actions=[after_loop],
            # Loops end where checkpoints are due, wherever it went on from.
            steps_per_loop=lambda step: every - step % every,
            summary_interval=every,
            summary_dir=layout.training(folder),
        ).train(experiment.steps)
    return trainer.model


def _restore(trainer, saver, run_dir):
    """Reads the newest checkpoint, or the initial one into a new run; returns the step reached."""
    initial = trainer.experiment.initial_checkpoint
    with trainer.strategy.scope():
        resumed = checkpoint.resume(saver, run_dir)
        if initial and not resumed:
            checkpoint.restore_initial(trainer.model, initial)
    print(f"resuming from {resumed}" if resumed else f"starting in {run_dir}", flush=True)
    return int(trainer.step.numpy())
