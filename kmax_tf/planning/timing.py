"""How long a training takes: times a few steps on this machine, and chooses their number."""

import math
import tempfile
import time
from collections.abc import Sequence

import tensorflow as tf

from kmax_tf import runtime
from kmax_tf.data.records import reader
from kmax_tf.errors import InputError
from kmax_tf.experiment import Experiment
from kmax_tf.run_folder import provenance
from kmax_tf.training import batch_size as scaling
from kmax_tf.training import memory, preemption, train
from kmax_tf.training.progress import duration

STEPS = 50  # fewer are too fast, while buffers of the input are full
LOOP = 5  # steps
SECONDS = 30  # of slow steps, fewer are enough
START = 1.5  # times the first loop: a training also counts segments, and saves at its end


def load(
    gin_file: str,
    bindings: Sequence[str],
    strategy: tf.distribute.Strategy,
    run_dir: str,
    service: str = "",
    *,
    batch_size: int | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    minutes: float | None = None,
) -> Experiment:
    """Loads the experiment of a training, as long as one of the last three arguments asks.

    Args:
        run_dir: a run that has begun keeps its number of steps, whatever `minutes` are.
        service: as in `train.training_dataset`, for the timed steps.
        batch_size: images a step, of all replicas together.
        epochs: passes over the training images.
        minutes: of training on this machine.

    Raises:
        InputError: the file, a binding, a number or the records are wrong.
    """
    given = [value for value in (steps, epochs, minutes) if value is not None]
    if len(given) > 1 or not all(0 < value < math.inf for value in given):
        raise InputError("give one of steps, epochs or minutes, above 0 and finite")
    experiment = scaling.load(gin_file, bindings, batch_size=batch_size)
    if epochs is not None:
        images = train.training_records(experiment).num_examples
        steps = max(1, round(epochs * images / experiment.batch_size))
    if minutes is not None:
        steps = provenance.steps(run_dir)
        if steps is not None:
            print(f"{run_dir}: keeps its {steps} steps; minutes apply to new runs only")
        else:
            print(f"timing the steps, to fit {minutes:g} minutes", flush=True)
            steps = steps_within(minutes, experiment, strategy, service)
    return scaling.load(gin_file, bindings, batch_size=batch_size, steps=steps)


def time_steps(
    experiment: Experiment, strategy: tf.distribute.Strategy, service: str = ""
) -> tuple[float, float]:
    """Trains up to `STEPS` steps and forgets them and the model; nothing is written.

    Args:
        service: as in `train.training_dataset`.

    Returns:
        The seconds that a training needs beside its steps, estimated from its start with
        compilation; and the seconds of a step.

    Raises:
        InputError: the records are missing or corrupt, or the replicas cannot divide the batch.
        DoesNotFit: a step needs more memory than the device has.
    """
    scaling.per_replica_batch_size(experiment, strategy.num_replicas_in_sync)
    others = runtime.custom_gradients()
    try:
        return _time_steps(experiment, strategy, service)
    finally:
        runtime.forget_models(runtime.custom_gradients() - others)


def _time_steps(experiment, strategy, service):
    begin = time.perf_counter()
    records = train.training_records(experiment)
    with memory.named_errors(), tempfile.TemporaryDirectory() as folder:
        trainer = train.new_trainer(experiment, strategy, folder)
        source = records, strategy, trainer.model.output_stride, 0, service
        trainer.train_dataset = train.training_dataset(experiment, *source)
        trainer.prepare()
    skips = experiment.training_input.skip_corrupt
    with reader.named_errors(records, experiment.data_dir, skips=skips), memory.named_errors():
        trainer.train(tf.constant(2))
        first, steps = time.perf_counter(), 0
        slow = False
        while steps < STEPS and not slow:
            trainer.train(tf.constant(LOOP))
            steps += LOOP
            # All hosts must train equally long.
            slow = preemption.on_any_host(strategy, time.perf_counter() > first + SECONDS)
    return START * (first - begin), (time.perf_counter() - first) / steps


def steps_within(
    minutes: float, experiment: Experiment, strategy: tf.distribute.Strategy, service: str
) -> int:
    """Returns how many steps fit into `minutes`, with this timing and the start of the training.

    Args:
        service: as in `train.training_dataset`.

    Raises:
        InputError: none fits, or as `time_steps` does.
    """
    begin = time.perf_counter()
    first, each = time_steps(experiment, strategy, service)
    start = time.perf_counter() - begin + first
    # All hosts must take the same number.
    start, each, one = (preemption.sum_of_hosts(strategy, v) for v in (start, each, 1.0))
    steps = int((60 * minutes * one - start) / each)
    start, each = start / one, each / one
    if steps < 1:
        raise InputError(f"{minutes:g} minutes: timing and startup take {start:.0f} s; give more")
    print(
        f"{minutes:g} minutes: {duration(start)} for timing and startup, then {steps} steps of"
        f" {each:.2f} s",
        flush=True,
    )
    return steps
