"""The batch size and the number of steps: their schedule, and the division among replicas."""

from collections.abc import Sequence

from kmax_tf import config
from kmax_tf.errors import InputError
from kmax_tf.experiment import Experiment

SAVES = 6  # checkpoints of a training at least


def load(
    gin_file: str,
    bindings: Sequence[str],
    *,
    batch_size: int | None = None,
    steps: int | None = None,
) -> Experiment:
    """Loads an experiment, with another batch size or number of steps if they are given.

    Raises InputError as `config.load`, `linear_scaling` and `length` do.
    """
    experiment = config.load(Experiment, gin_file, bindings)
    if batch_size is not None:
        bindings = [*bindings, *linear_scaling(experiment, batch_size)]
        experiment = config.load(Experiment, gin_file, bindings)
        steps = experiment.steps if steps is None else steps  # `length` has the last word on saves
    if steps is not None:
        bindings = [*bindings, *length(experiment, steps)]
        experiment = config.load(Experiment, gin_file, bindings)
    return experiment


def linear_scaling(experiment: Experiment, batch_size: int) -> list[str]:
    """Returns gin bindings that train `experiment` with `batch_size` images a step.

    This is the linear scaling rule (Goyal et al., arXiv 1706.02677). With k times the images:
      - the learning rate is multiplied by k;
      - warm-up and schedule take 1 / k of the steps, so as many epochs as before;
      - the decay of the EMA is raised to the power of k (Busbridge et al., arXiv 2307.13813).

    Raises InputError if `batch_size` is not positive.
    """
    if batch_size < 1:
        raise InputError(f"batch_size {batch_size} is below 1; give the number of images a step")
    k = batch_size / experiment.batch_size
    schedule = experiment.optimizer(experiment.steps).schedule
    return [
        f"experiment.Experiment.batch_size = {batch_size}",
        f"experiment.Experiment.ema_decay = {experiment.ema_decay**k!r}",
        f"optimizer.AdamW.learning_rate = {schedule.base * k!r}",
        *_schedule(experiment, k),
    ]


def length(experiment: Experiment, steps: int) -> list[str]:
    """Returns gin bindings that train `experiment` for `steps` steps.

    Warm-up and schedule keep their proportion. The interval of checkpoints becomes shorter if
    there would be less than `SAVES`.

    Raises InputError if `steps` is not positive.
    """
    if steps < 1:
        raise InputError(f"{steps} steps: too few; give 1 or more")
    interval = min(experiment.checkpoint_interval, max(1, steps // SAVES))
    loop = min(experiment.steps_per_loop, interval)
    return [
        f"experiment.Experiment.checkpoint_interval = {interval // loop * loop}",
        f"experiment.Experiment.steps_per_loop = {loop}",
        *_schedule(experiment, experiment.steps / steps),
    ]


def _schedule(experiment, k):
    """Returns the bindings of 1 / k of the steps."""
    schedule = experiment.optimizer(experiment.steps).schedule
    return [
        f"experiment.Experiment.steps = {max(1, round(experiment.steps / k))}",
        f"optimizer.AdamW.warmup_steps = {round(schedule.warmup_steps / k)}",
    ]


def per_replica_batch_size(experiment: Experiment, replicas: int) -> int:
    """Returns the number of images in a replica's micro-batch.

    Raises InputError if the batch cannot be divided equally, or a replica has one image where it
    pastes its images onto each other.
    """
    parts = replicas * experiment.accumulation
    if experiment.batch_size % parts:
        fitting = max(parts, experiment.batch_size // parts * parts)
        raise InputError(
            f"Experiment.batch_size {experiment.batch_size} cannot be divided among {replicas}"
            f" replicas x {experiment.accumulation} micro-batches; give a multiple of {parts}, such"
            f" as --batch_size={fitting}, which also scales the schedule"
        )
    options = experiment.training_input
    if experiment.batch_size == replicas and options.placement == "device" and options.paste_scales:
        raise InputError(
            f"Experiment.batch_size {experiment.batch_size}: each of {replicas} replicas would"
            " paste its one image onto itself; bind training_input.TrainingInput.placement = 'host'"
        )
    return experiment.batch_size // parts


def describe(experiment: Experiment, replicas: int, num_examples: int) -> str:
    """Describes the effective batch and its schedule in one line."""
    schedule = experiment.optimizer(experiment.steps).schedule
    epochs = experiment.steps * experiment.batch_size / num_examples
    images = per_replica_batch_size(experiment, replicas)
    return (
        f"batch of {experiment.batch_size} = {replicas} replicas x {images} images x"
        f" {experiment.accumulation} micro-batches; learning rate {schedule.base:g} after"
        f" {schedule.warmup_steps} steps of warm-up; {experiment.steps} steps ="
        f" {epochs:.1f} epochs of {num_examples} images"
    )
