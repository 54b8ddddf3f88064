"""Training: a loop of steps under a distribution strategy, with checkpoints and summaries."""

import contextlib
import functools
import io
import sys
from collections.abc import Iterator

import orbit
import tensorflow as tf
import tf_keras

from kmax_tf import (
    average,
    batch,
    checkpoint,
    preemption,
    progress,
    provenance,
    run_folder,
    runtime,
)
from kmax_tf.data import damaged, pipeline, records
from kmax_tf.data.records import Records
from kmax_tf.data.targets import Targets
from kmax_tf.experiment import Experiment
from kmax_tf.loss.criterion import Criterion, Losses
from kmax_tf.model.layers import random_seed, random_uniform
from kmax_tf.optimizer import AdamW, clip
from kmax_tf.skipped import SkippedSteps


def training_losses(
    model: tf_keras.Model, criterion: Criterion, image: tf.Tensor, targets: Targets
) -> Losses:
    """The `Losses` of a batch in training mode; call it within `random_seed`.

    image: float32 [batch, height, width, 3], 0..255; targets: `Targets`, batched.
    """
    outputs = model(image, training=True)
    batch, height, width, _ = outputs.final.mask_logits.shape
    noise = random_uniform([1 + len(outputs.auxiliary), batch, height * width])
    return criterion(outputs, targets, noise)


def train_step(
    model: tf_keras.Model,
    criterion: Criterion,
    optimizer: AdamW,
    image: tf.Tensor,
    targets: Targets,
    *,
    seed: tf.Tensor,
    clip_norm: float,
    accumulation: int = 1,
) -> tuple[Losses, tf.Tensor, tf.Tensor]:
    """One step on one replica; call it in a replica context.

    Arguments:
      image: float32 [batch, height, width, 3], 0..255; targets: `Targets`, batched.
      seed: int32 [2], of all random numbers of the step on this replica.
      clip_norm: largest global norm of the gradient.
      accumulation: micro-batches that the images are taken in, one after another, so that only
        one needs memory; a divisor of the batch. The gradient is that of the whole batch, but that
        batch norm sees micro-batches, and moves its statistics with each.
    Returns the batch means of `Losses`, with one number for each output, the gradient's norm, and
    whether loss and gradient were finite on all replicas; if not, nothing was trained.
    """
    replica = tf.distribute.get_replica_context()
    parts = tf.nest.map_structure(
        lambda x: tf.reshape(x, [accumulation, -1, *x.shape[1:]]), (image, targets)
    )

    def part(number):
        """Of one micro-batch: its share of the gradient, of the loss and of the means."""
        own_seed = seed * [1, accumulation] + [0, number]
        with tf.GradientTape() as tape, random_seed(own_seed):
            own = tf.nest.map_structure(lambda x: x[number], parts)
            losses = training_losses(model, criterion, *own)
            loss = tf.reduce_mean(losses.total) / (replica.num_replicas_in_sync * accumulation)
        gradients = tape.gradient(loss, model.trainable_variables, unconnected_gradients="zero")
        # Those of looked-up rows are sparse.
        gradients = [tf.convert_to_tensor(g) for g in gradients]
        return gradients, loss, Losses(*(tf.reduce_mean(v, -1) / accumulation for v in losses))

    shapes = [v.shape for v in model.trainable_variables], tf.TensorShape([]), mean_shapes(model)
    gradients, loss, means = _sum(part, accumulation, shapes)
    *gradients, loss = replica.all_reduce("SUM", [*gradients, loss])
    gradients, norm = clip(gradients, clip_norm)
    finite = tf.math.is_finite(norm) & tf.math.is_finite(loss)
    optimizer.apply(gradients, finite)
    return means, norm, finite


def mean_shapes(model: tf_keras.Model) -> Losses:
    """The shapes of the batch means of `Losses`."""
    outputs = tf.TensorShape([model.num_predictions])
    return Losses(*[outputs] * 4, semantic=tf.TensorShape([]), found=tf.TensorShape([]))


def _sum(part, count, shapes):
    """The sum of part(0) ... part(count - 1), float32 of `shapes`, made one after another."""
    add = functools.partial(tf.nest.map_structure, tf.add)
    mirrored = tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy
    if count == 1 or isinstance(tf.distribute.get_strategy(), mirrored):
        total = part(0)  # Mirrored replicas cannot meet within a loop of TensorFlow.
        for number in range(1, count):
            with tf.control_dependencies(tf.nest.flatten(total)):
                total = add(total, part(number))
        return total
    zeros = tf.nest.map_structure(tf.zeros, shapes)
    return tf.while_loop(
        lambda number, _: number < count,
        lambda number, total: (number + 1, add(total, part(number))),
        (0, zeros),
        maximum_iterations=count,
    )[1]


class Trainer(orbit.StandardTrainer):
    """Runs `train_step` on all replicas, and averages what it returns until the host looks."""

    def __init__(
        self,
        experiment: Experiment,
        strategy: tf.distribute.Strategy,
        model: tf_keras.Model,
        optimizer: AdamW,
        step: tf.Variable,
        average: tf_keras.Model | None,
    ):
        super().__init__(None)
        self.experiment, self.strategy = experiment, strategy
        self.model, self.optimizer, self.step = model, optimizer, step
        self.average = average
        self.losses = Losses(
            *(tf_keras.metrics.MeanTensor(shape=shape) for shape in mean_shapes(model))
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

    @property
    def state(self) -> dict:
        """What a checkpoint holds, by name."""
        items = {"model": self.model, "optimizer": self.optimizer, "step": self.step}
        return items | ({"average": self.average} if self.average else {})

    def train_step(self, iterator: Iterator) -> None:
        self.strategy.run(self._on_replica, args=next(iterator))
        self.step.assign_add(1)

    def _on_replica(self, *parts):
        experiment = self.experiment
        image, targets = self.examples(*parts)
        if experiment.training_input.skip_damaged:
            self.damaged.update_state(damaged.count(targets))
        context = tf.distribute.get_replica_context()
        replica = context.replica_id_in_sync_group
        losses, norm, finite = train_step(
            self.model,
            experiment.criterion,
            self.optimizer,
            image,
            targets,
            seed=tf.stack([tf.cast(self.step, tf.int32), tf.cast(replica, tf.int32)]),
            clip_norm=experiment.clip_norm,
            accumulation=experiment.accumulation,
        )
        if self.average:
            average.update(self.average, self.model, experiment.average_decay, self.step, finite)
        weight = tf.cast(finite, tf.float32)
        for metric, value in zip((*self.losses, self.norm), (*losses, norm), strict=True):
            metric.update_state(tf.where(finite, value, tf.zeros_like(value)), weight)
        self.void.update_state(tf.cast(targets.semantic < 0, tf.float32))
        self.skips.update_state((1 - weight) / context.num_replicas_in_sync)
        self.skipped.update(self.step, finite)

    def train_loop_end(self) -> dict[str, float]:
        """Means since the last call, as scalars; damaged records are counted from the start."""
        losses = Losses(*(metric.result() for metric in self.losses))
        scalars = {
            "loss/total": float(losses.total),
            "loss/semantic": float(losses.semantic),
            "found_segments": float(losses.found),
        }
        for name in Losses._fields[:4]:
            final, *auxiliary = (float(v) for v in getattr(losses, name))
            scalars[f"loss/{name}"] = final
            for i, value in enumerate(auxiliary, start=1):
                scalars[f"decoder_{i}/{name}"] = value
        scalars["learning_rate"] = float(self.optimizer.learning_rate.numpy())
        others = (self.norm, self.void, self.skips)
        scalars |= {metric.name: float(metric.result()) for metric in others}
        if self.experiment.training_input.skip_damaged:
            scalars[self.damaged.name] = float(self.damaged.result())
        for metric in (*self.losses, *others):
            metric.reset_state()
        return scalars


def make_trainer(experiment: Experiment, strategy: tf.distribute.Strategy) -> Trainer:
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
        copy = average.copy_of(experiment.build_model) if experiment.average_decay else None
        return Trainer(experiment, strategy, model, optimizer, step, copy)


def training_records(experiment: Experiment) -> records.Records:
    """The `Records` of the training split, counted.

    Raises InputError if they are missing, empty, of an unknown schema or of other classes.
    """
    found = records.find(experiment.data_dir, experiment.train_split, experiment.dataset)
    return found._replace(num_examples=records.count(found))


def training_dataset(
    experiment: Experiment,
    found: Records,
    strategy: tf.distribute.Strategy,
    stride: int,
    start_step: int,
    service: str = "",
) -> tf.distribute.DistributedDataset:
    """The distributed training input of the `Records` found, from `start_step` on.

    `service` is the address of a tf.data service that makes it, "" for the hosts themselves.
    """

    def per_host(context):
        replicas = context.num_replicas_in_sync // context.num_input_pipelines
        batches = pipeline.training_input(
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
    found = training_records(experiment)  # before anything that takes long
    print(batch.describe(experiment, strategy.num_replicas_in_sync, found.num_examples))
    made_with = provenance.describe(experiment.dataset, found)
    provenance.check(run_dir, made_with, allow_changes=allow_changes)
    folder = runtime.own_folder(strategy, run_dir)
    trainer = make_trainer(experiment, strategy)
    saver = tf.train.Checkpoint(**trainer.state)
    start = _restore(trainer, saver, run_dir)
    provenance.write(folder, made_with)
    trainer.train_dataset = training_dataset(
        experiment, found, strategy, trainer.model.output_stride, start, service
    )
    every = experiment.steps_per_loop

    def after_loop(scalars):
        step = int(trainer.step.numpy())
        progress.show(line, experiment, found, trainer.skipped, step, scalars)
        stop = preemption.on_any_host(strategy, terminated()) and step < experiment.steps
        if stop or step % experiment.checkpoint_interval == 0 or step == experiment.steps:
            checkpoint.save(saver, folder, step, experiment.checkpoints_kept)
        if stop:
            line.write(f"stopped at step {step}; start it again to go on", sys.stderr)
            raise SystemExit(preemption.RESTART)

    with (
        records.named_errors(found, f"{experiment.data_dir}: split {experiment.train_split!r}"),
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
            summary_dir=run_folder.training(folder),
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
