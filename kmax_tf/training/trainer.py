"""The training step on one replica, and the trainer that runs it on all of them."""

import functools
from collections.abc import Iterator

import orbit
import tensorflow as tf
import tf_keras

from kmax_tf import runtime
from kmax_tf.data import training_input
from kmax_tf.data.records import corrupt
from kmax_tf.data.transforms.targets import Targets
from kmax_tf.experiment import Experiment
from kmax_tf.loss.criterion import Criterion, Losses
from kmax_tf.model.layers.stateless_random import random_seed, random_uniform
from kmax_tf.run_folder import checkpoint
from kmax_tf.training import ema
from kmax_tf.training.nonfinite import NonFiniteSteps
from kmax_tf.training.optimizer import AdamW, clip


def training_losses(
    model: tf_keras.Model, criterion: Criterion, image: tf.Tensor, targets: Targets
) -> Losses:
    """Computes the `Losses` of a batch in training mode; call it within `random_seed`.

    Args:
        image: float32 [batch, height, width, 3], 0..255.
        targets: `Targets`, batched.
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
    """Takes one step on one replica; call it in a replica context.

    Args:
        image: float32 [batch, height, width, 3], 0..255.
        targets: `Targets`, batched.
        seed: int32 [2], of all random numbers of the step on this replica.
        clip_norm: largest global norm of the gradient.
        accumulation: number of micro-batches, a divisor of the batch. They run one after another
            and only one needs memory. The gradient is that of the whole batch; batch norm sees
            micro-batches, and each of them moves its statistics.

    Returns:
        The batch means of `Losses`, with one number for each output; the gradient's norm; and
        whether loss and gradient were finite on all replicas. If not, no weight changed.
    """
    replica = tf.distribute.get_replica_context()
    parts = tf.nest.map_structure(
        lambda x: tf.reshape(x, [accumulation, -1, *x.shape[1:]]), (image, targets)
    )

    def part(number):
        """Computes a micro-batch's share of the gradient, the loss and the means."""
        own_seed = seed * [1, accumulation] + [0, number]
        with tf.GradientTape() as tape, random_seed(own_seed):
            own = tf.nest.map_structure(lambda x: x[number], parts)
            losses = training_losses(model, criterion, *own)
            loss = tf.reduce_mean(losses.total) / (replica.num_replicas_in_sync * accumulation)
        gradients = tape.gradient(loss, model.trainable_variables, unconnected_gradients="zero")
        # Gradients of look-ups are sparse.
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
    """Returns the shapes of the batch means of `Losses`."""
    outputs = tf.TensorShape([model.num_predictions])
    return Losses(*[outputs] * 4, semantic=tf.TensorShape([]), recall=tf.TensorShape([]))


def _sum(part, count, shapes):
    """Sums part(0) ... part(count - 1), float32 of `shapes`, one after another."""
    add = functools.partial(tf.nest.map_structure, tf.add)
    mirrored = tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy
    if count == 1 or isinstance(tf.distribute.get_strategy(), mirrored):
        total = part(0)  # Mirrored replicas cannot reduce within a tf.while_loop.
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
    """Runs `train_step` on all replicas, and averages its results over a loop of steps."""

    def __init__(
        self,
        experiment: Experiment,
        strategy: tf.distribute.Strategy,
        model: tf_keras.Model,
        optimizer: AdamW,
        step: tf.Variable,
        ema_model: tf_keras.Model | None,
    ):
        super().__init__(None)
        self.experiment, self.strategy = experiment, strategy
        self.model, self.optimizer, self.step = model, optimizer, step
        self.ema = ema_model
        self.losses = Losses(
            *(tf_keras.metrics.MeanTensor(shape=shape) for shape in mean_shapes(model))
        )
        self.norm = tf_keras.metrics.Mean("gradient_norm")
        self.void = tf_keras.metrics.Mean("void_share")
        self.nonfinite_count = tf_keras.metrics.Sum("nonfinite_steps")
        self.nonfinite = NonFiniteSteps()
        self.corrupt_count = tf_keras.metrics.Sum("corrupt_records")
        self.examples = training_input.step_examples(
            experiment.training_input,
            experiment.dataset,
            model.output_stride,
            compiled=not isinstance(strategy, tf.distribute.TPUStrategy),
        )
        self.saver = tf.train.Checkpoint(**self.state)

    @property
    def state(self) -> dict:
        """The items of a checkpoint, by name."""
        classes = checkpoint.Description(self.model, self.experiment.dataset)
        items = {"model": self.model, "optimizer": self.optimizer, "step": self.step}
        items |= {"classes": classes}
        return items | ({"ema": self.ema} if self.ema else {})

    @property
    def step_variables(self) -> list[tf.Variable]:
        """All variables that a step may read or change, always in the same order."""
        metrics = (*self.losses, self.norm, self.void, self.nonfinite_count, self.corrupt_count)
        owners = (self.model, self.optimizer, *([self.ema] if self.ema else []), *metrics)
        others = [self.optimizer.learning_rate, self.step, self.nonfinite.steps]
        return [v for owner in owners for v in owner.variables] + others

    def prepare(self) -> None:
        """Gets ready for the first step, after a restart too; here, the first step does it."""
        print("compiling the training step; this can take minutes", flush=True)

    def save(self, run_dir: str) -> None:
        """Saves `state` as a checkpoint of the step that is reached.

        A host that writes only because all must take part keeps one.
        """
        step, keeps = int(self.step.numpy()), self.strategy.extended.should_checkpoint
        checkpoint.save(self.saver, run_dir, step, self.experiment.checkpoints_kept if keeps else 1)

    @tf.autograph.experimental.do_not_convert
    def train_step(self, iterator: Iterator) -> None:
        self.strategy.run(self._on_replica, args=next(iterator))
        self.step.assign_add(1)

    def _on_replica(self, *parts):
        experiment = self.experiment
        image, targets = self.examples(*parts)
        if experiment.training_input.skip_corrupt:
            self.corrupt_count.update_state(corrupt.count(targets))
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
        if self.ema:
            ema.update(self.ema, self.model, experiment.ema_decay, self.step, finite)
        weight = tf.cast(finite, tf.float32)
        for metric, value in zip((*self.losses, self.norm), (*losses, norm), strict=True):
            metric.update_state(tf.where(finite, value, tf.zeros_like(value)), weight)
        self.void.update_state(tf.cast(targets.semantic < 0, tf.float32))
        self.nonfinite_count.update_state((1 - weight) / context.num_replicas_in_sync)
        self.nonfinite.update(self.step, finite)

    def train_loop_end(self) -> dict[str, float]:
        """Returns scalars: means since the last summary, and corrupt records since the start."""
        losses = Losses(*(metric.result() for metric in self.losses))
        scalars = {
            "loss/total": float(losses.total),
            "loss/semantic": float(losses.semantic),
            "recall": float(losses.recall),
        }
        for name in Losses._fields[:4]:
            final, *auxiliary = (float(v) for v in getattr(losses, name))
            scalars[f"loss/{name}"] = final
            for i, value in enumerate(auxiliary, start=1):
                scalars[f"decoder_{i}/{name}"] = value
        scalars["learning_rate"] = float(self.optimizer.learning_rate.numpy())
        others = (self.norm, self.void, self.nonfinite_count)
        scalars |= {metric.name: float(metric.result()) for metric in others}
        if self.experiment.training_input.skip_corrupt:
            scalars[self.corrupt_count.name] = float(self.corrupt_count.result())
        if int(self.step.numpy()) % self.experiment.steps_per_loop == 0:
            for metric in (*self.losses, *others):
                metric.reset_state()
        return scalars


def make_trainer(
    experiment: Experiment, strategy: tf.distribute.Strategy, kind: type[Trainer] = Trainer
) -> Trainer:
    """Builds model, optimizer and step counter in the strategy's scope, as a `Trainer`.

    Set its `train_dataset` once the first step is known.
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
        ema_model = ema.build_ema(experiment.build_model) if experiment.ema_decay else None
        return kind(experiment, strategy, model, optimizer, step, ema_model)
