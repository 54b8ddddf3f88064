"""Training: a loop of steps under a distribution strategy, with checkpoints and summaries."""

import contextlib
import io
import os
import sys

import orbit
import tensorflow as tf
import tf_keras
from tqdm import tqdm

from kmax_tf import checkpoint, config, runtime, skipped
from kmax_tf.data import datasets, pipeline, records
from kmax_tf.data.targets import count_damaged
from kmax_tf.files import InputError, write_atomic
from kmax_tf.loss.criterion import Losses
from kmax_tf.model.layers import random_seed, random_uniform
from kmax_tf.optimizer import clip
from kmax_tf.skipped import SkippedSteps

NO_VOID = (
    "no pixel of the crops is void: clusters without a segment hardly learn that they have none,"
    ' and instances separate slowly; bind Criterion.unmatched to "nonvoid", or scale images below 1'
)


def training_losses(model, criterion, image, targets):
    """The `Losses` of a batch in training mode; call it within `random_seed`."""
    outputs = model(image, training=True)
    batch, height, width, _ = outputs.final.mask_logits.shape
    noise = random_uniform([1 + len(outputs.auxiliary), batch, height * width])
    return criterion(outputs, targets, noise)


def train_step(model, criterion, optimizer, image, targets, *, seed, clip_norm):
    """One step on one replica; call it in a replica context.

    Arguments:
      image: float32 [batch, height, width, 3], 0..255; targets: `Targets`, batched.
      seed: int32 [2], of all random numbers of the step on this replica.
      clip_norm: largest global norm of the gradient.
    Returns the batch means of `Losses`, with one number for each output, the gradient's norm, and
    whether loss and gradient were finite on all replicas; if not, nothing was trained.
    """
    replica = tf.distribute.get_replica_context()
    with tf.GradientTape() as tape, random_seed(seed):
        losses = training_losses(model, criterion, image, targets)
        loss = tf.reduce_mean(losses.total) / replica.num_replicas_in_sync
    gradients = tape.gradient(loss, model.trainable_variables, unconnected_gradients="zero")
    gradients = [tf.convert_to_tensor(g) for g in gradients]  # those of looked-up rows are sparse
    *gradients, loss = replica.all_reduce("SUM", [*gradients, loss])
    gradients, norm = clip(gradients, clip_norm)
    finite = tf.math.is_finite(norm) & tf.math.is_finite(loss)
    optimizer.apply(gradients, finite)
    return Losses(*(tf.reduce_mean(term, axis=-1) for term in losses)), norm, finite


class Trainer(orbit.StandardTrainer):
    """Runs `train_step` on all replicas, and averages what it returns until the host looks."""

    def __init__(self, experiment, strategy, model, optimizer, step, dataset):
        super().__init__(dataset)
        self.experiment, self.strategy = experiment, strategy
        self.model, self.optimizer, self.step = model, optimizer, step
        outputs = [model.num_predictions]
        self.losses = Losses(
            *(tf_keras.metrics.MeanTensor(shape=outputs) for _ in Losses._fields[:-1]),
            semantic=tf_keras.metrics.MeanTensor(shape=[]),
        )
        self.norm = tf_keras.metrics.Mean("gradient_norm")
        self.void = tf_keras.metrics.Mean("void_share")
        self.skips = tf_keras.metrics.Sum("skipped_steps")
        self.skipped = SkippedSteps()
        self.damaged = tf_keras.metrics.Sum("damaged_records")
        self.examples = pipeline.step_examples(
            experiment.training_input,
            experiment.dataset,
            model.output_stride,
            compiled=not isinstance(strategy, tf.distribute.TPUStrategy),
        )

    def train_step(self, iterator):
        def on_replica(*batch):
            image, targets = self.examples(*batch)
            if self.experiment.training_input.skip_damaged:
                self.damaged.update_state(count_damaged(targets))
            context = tf.distribute.get_replica_context()
            replica = context.replica_id_in_sync_group
            losses, norm, finite = train_step(
                self.model,
                self.experiment.criterion,
                self.optimizer,
                image,
                targets,
                seed=tf.stack([tf.cast(self.step, tf.int32), tf.cast(replica, tf.int32)]),
                clip_norm=self.experiment.clip_norm,
            )
            for metric, value in zip((*self.losses, self.norm), (*losses, norm), strict=True):
                weight = tf.cast(finite, tf.float32)
                metric.update_state(tf.where(finite, value, tf.zeros_like(value)), weight)
            self.void.update_state(tf.cast(targets.semantic < 0, tf.float32))
            self.skips.update_state((1 - weight) / context.num_replicas_in_sync)
            self.skipped.update(self.step, finite)

        self.strategy.run(on_replica, args=next(iterator))
        self.step.assign_add(1)

    def train_loop_end(self):
        """Means since the last call, as scalars; damaged records are counted from the start."""
        losses = Losses(*(metric.result() for metric in self.losses))
        scalars = {"loss/total": float(losses.total), "loss/semantic": float(losses.semantic)}
        for name in Losses._fields[:-1]:
            final, *auxiliary = (float(v) for v in getattr(losses, name))
            scalars[f"loss/{name}"] = final
            for i, value in enumerate(auxiliary, start=1):
                scalars[f"decoder_{i}/{name}"] = value
        scalars["learning_rate"] = float(self.optimizer.learning_rate)
        others = (self.norm, self.void, self.skips)
        scalars |= {metric.name: float(metric.result()) for metric in others}
        if self.experiment.training_input.skip_damaged:
            scalars[self.damaged.name] = float(self.damaged.result())
        for metric in (*self.losses, *others):
            metric.reset_state()
        return scalars


def make_trainer(experiment, strategy):
    """Model, optimizer and step counter in the strategy's scope; returns them as a `Trainer`.

    Its dataset is set once the step to start from is known.
    """
    runtime.set_seed(experiment.seed)
    with strategy.scope():
        model = experiment.build_model()
        optimizer = experiment.optimizer(experiment.steps)
        optimizer.build_for(model)
        step = tf.Variable(
            0,
            dtype=tf.int64,
            trainable=False,
            name="step",
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )
        return Trainer(experiment, strategy, model, optimizer, step, dataset=None)


def training_records(experiment):
    """The `Records` of the training split.

    Raises InputError if they are missing, empty, of an unknown schema or of other classes.
    """
    return records.find(experiment.data_dir, experiment.train_split, experiment.dataset)


def training_dataset(experiment, found, strategy, stride, start_step, service=""):
    """The distributed training input of the `Records` found, from `start_step` on.

    `service` is the address of a tf.data service that makes it, "" for the hosts themselves.
    """

    def per_host(context):
        replicas = context.num_replicas_in_sync // context.num_input_pipelines
        return pipeline.training_input(
            found,
            experiment.dataset,
            experiment.training_input,
            stride=stride,
            batch_size=context.get_per_replica_batch_size(experiment.batch_size) * replicas,
            num_replicas=replicas,
            seed=experiment.seed,
            start_step=start_step,
            host=context.input_pipeline_id,
            num_hosts=context.num_input_pipelines,
            service=service,
        )

    return strategy.distribute_datasets_from_function(per_host)


def train(experiment, run_dir, strategy, service=""):
    """Trains `experiment` in `run_dir`, going on from its newest checkpoint; returns the model.

    `service` is the address of a tf.data service that makes the input, "" for the hosts themselves.
    Writes config.gin, checkpoints/ and the TensorBoard summaries train/ into `run_dir`.
    Raises InputError for records, checkpoints or losses that training cannot go on with.
    """
    found = training_records(experiment)  # before anything that takes long
    trainer = make_trainer(experiment, strategy)
    manager = checkpoint.manager(
        run_dir,
        model=trainer.model,
        optimizer=trainer.optimizer,
        step=trainer.step,
        keep=experiment.checkpoints_kept,
    )
    with strategy.scope():
        resumed = checkpoint.resume(manager)
        if experiment.initial_checkpoint and not resumed:
            checkpoint.restore_model(trainer.model, experiment.initial_checkpoint)
    start = int(trainer.step)
    print(f"resuming from {resumed}" if resumed else f"starting in {run_dir}", flush=True)
    write_atomic(os.path.join(run_dir, "config.gin"), config.resolved())
    trainer.train_dataset = training_dataset(
        experiment, found, strategy, trainer.model.output_stride, start, service
    )
    progress = tqdm(total=experiment.steps, initial=start, desc="training", unit="step")

    def after_loop(scalars):
        step = int(trainer.step)
        for line in skipped.report(experiment, found, trainer.skipped.since(progress.n)):
            progress.write(line, sys.stderr)
        skipped.check(trainer.skipped, step)
        if (
            progress.n == start
            and scalars["void_share"] == 0
            and experiment.criterion.unmatched == "void"
        ):
            progress.write(NO_VOID, sys.stderr)
        progress.update(step - progress.n)
        damaged = scalars.get("damaged_records")
        note = f", {damaged:.0f} damaged records skipped" if damaged else ""
        progress.set_postfix_str(f"loss {scalars['loss/total']:.3f}{note}")
        if step % experiment.checkpoint_interval == 0 or step == experiment.steps:
            manager.save(checkpoint_number=step)

    try:
        with progress, contextlib.redirect_stdout(io.StringIO()):  # orbit prints every scalar
            # Without the checkpoint manager, whose newest checkpoint orbit would insist on.
            orbit.Controller(
                global_step=trainer.step,
                trainer=trainer,
                strategy=strategy,
                train_actions=[after_loop],
                steps_per_loop=experiment.steps_per_loop,
                summary_interval=experiment.steps_per_loop,
                summary_dir=os.path.join(run_dir, "train"),
            ).train(experiment.steps)
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError):
        records.check(found)
        raise
    except tf.errors.FailedPreconditionError as error:
        if "expected to contain" not in error.message:
            raise
        raise InputError(
            f"{experiment.data_dir}: split {experiment.train_split!r} does not hold as many"
            f" records as {datasets.FILE_NAME} says; convert again"
        ) from error
    return trainer.model
