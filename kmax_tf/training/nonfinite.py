"""Steps without a finite loss and gradient: left out, counted, and named with their images."""

from collections.abc import Sequence

import tensorflow as tf

from kmax_tf.data import training_input
from kmax_tf.data.records.reader import Records
from kmax_tf.errors import InputError
from kmax_tf.experiment import Experiment

LIMIT = 10  # skipped steps in a row that end a training
NAMES = 8  # images of a step that are named


class NonFiniteSteps:
    """The last `LIMIT` skipped steps, on the device; make it in the strategy's scope."""

    def __init__(self):
        self._steps = tf.Variable(
            tf.fill([LIMIT], tf.constant(-1, tf.int64)),
            trainable=False,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )

    def update(self, step: tf.Tensor, finite: tf.Tensor) -> None:
        """Notes `step`, an int64 scalar, unless it was `finite`; in a replica context."""
        pushed = tf.concat([[step], self._steps[:-1]], axis=0)
        self._steps.assign(tf.where(finite, self._steps, pushed))

    def since(self, step: int) -> list[int]:
        """The skipped ones of the steps from `step` on, in order, at most `LIMIT`."""
        return sorted(int(s) for s in self._steps.numpy() if s >= step)

    def in_a_row(self) -> bool:
        """Whether the last `LIMIT` skipped steps came one after the other."""
        steps = self._steps.numpy()
        return steps[-1] >= 0 and steps[0] - steps[-1] == LIMIT - 1


def report(experiment: Experiment, records: Records, steps: Sequence[int]) -> list[str]:
    """One line for each of `steps`: that it was skipped, and which images of `records` it had."""
    return [
        f"step {step} was skipped, its loss or gradient is not finite; images: "
        + ", ".join(_images(experiment, records, step))
        for step in steps
    ]


def check(skipped: NonFiniteSteps, step: int) -> None:
    """Raises InputError if too many steps in a row were skipped up to `step`."""
    if skipped.in_a_row():
        raise InputError(
            f"{LIMIT} steps in a row up to step {step} had no finite loss and gradient; the weights"
            " are those of before: lower AdamW.learning_rate, bind Experiment.clip_norm, or look at"
            " the images named above"
        )


def _images(experiment, records, step):
    """File names of the images of a step: the input's order is known by position."""
    ordered = training_input.ordered_records(
        records,
        experiment.training_input,
        seed=experiment.seed,
        start=step * experiment.batch_size,
    )
    names = [
        tf.train.Example.FromString(record).features.feature["image/filename"].bytes_list.value
        for _, record, *_ in ordered.take(experiment.batch_size).as_numpy_iterator()
    ]
    names = [b"".join(name).decode() for name in names]
    return names[:NAMES] + [f"{len(names) - NAMES} more"] * (len(names) > NAMES)
