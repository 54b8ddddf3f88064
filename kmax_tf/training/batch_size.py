"""The global batch: how it is dealt out, and the rule by which the schedule follows its size."""

from kmax_tf.errors import InputError
from kmax_tf.experiment import Experiment


def linear_scaling(experiment: Experiment, batch_size: int) -> list[str]:
    """gin bindings that train the recipe `experiment` with `batch_size` images a step.

    The linear scaling rule (Goyal et al., arXiv 1706.02677): with k times the images the learning
    rate is k times as large, and warm-up and schedule have 1 / k of the steps, so that they last
    as many epochs. The average of the weights goes back as many images too: its decay is raised to
    the power of k (Busbridge et al., arXiv 2307.13813).

    Raises InputError if `batch_size` is not positive.
    """
    if batch_size < 1:
        raise InputError(f"batch_size {batch_size} is below 1; give the images of a step")
    k = batch_size / experiment.batch_size
    schedule = experiment.optimizer(experiment.steps).schedule
    return [
        f"experiment.Experiment.batch_size = {batch_size}",
        f"experiment.Experiment.steps = {max(1, round(experiment.steps / k))}",
        f"experiment.Experiment.ema_decay = {experiment.ema_decay**k!r}",
        f"optimizer.AdamW.learning_rate = {schedule.base * k!r}",
        f"optimizer.AdamW.warmup_steps = {round(schedule.warmup_steps / k)}",
    ]


def per_replica_batch_size(experiment: Experiment, replicas: int) -> int:
    """How many images each replica has in a micro-batch.

    Raises InputError if the replicas cannot have equally many.
    """
    parts = replicas * experiment.accumulation
    if experiment.batch_size % parts:
        fitting = max(parts, experiment.batch_size // parts * parts)
        raise InputError(
            f"Experiment.batch_size {experiment.batch_size} cannot be dealt to {replicas} replicas"
            f" in {experiment.accumulation} micro-batches each; give a multiple of {parts},"
            f" such as --batch_size={fitting}, by which the schedule follows"
        )
    return experiment.batch_size // parts


def describe(experiment: Experiment, replicas: int, num_examples: int) -> str:
    """One line: the effective batch and its schedule."""
    schedule = experiment.optimizer(experiment.steps).schedule
    epochs = experiment.steps * experiment.batch_size / num_examples
    images = per_replica_batch_size(experiment, replicas)
    return (
        f"batch of {experiment.batch_size} = {replicas} replicas x {images} images x"
        f" {experiment.accumulation} micro-batches; learning rate {schedule.base:g} after"
        f" {schedule.warmup_steps} steps of warm-up; {experiment.steps} steps ="
        f" {epochs:.1f} epochs of {num_examples} images"
    )
