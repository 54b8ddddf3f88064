"""Non-finite steps: training skips them, counts them, and names their images."""

from collections.abc import Iterable, Sequence

import tensorflow as tf

from kmax_tf.errors import InputError

LIMIT = 10  # non-finite steps in a row that end a training
NAMES = 8  # images of a step that are named


class NonFiniteSteps:
    """The last `LIMIT` non-finite steps, on the device; create it in the strategy's scope."""

    def __init__(self):
        self.steps = tf.Variable(
            tf.fill([LIMIT], tf.constant(-1, tf.int64)),
            trainable=False,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )

    def update(self, step: tf.Tensor, finite: tf.Tensor) -> None:
        """Adds `step`, an int64 scalar, unless `finite` is true; call it in a replica context."""
        pushed = tf.concat([[step], self.steps[:-1]], axis=0)
        self.steps.assign(tf.where(finite, self.steps, pushed))

    def since(self, step: int) -> list[int]:
        """Returns the non-finite steps from `step` on, ascending, at most `LIMIT`."""
        return sorted(int(s) for s in self.steps.numpy() if s >= step)

    def check(self) -> None:
        """Raises InputError if the last `LIMIT` non-finite steps came one after another."""
        steps = self.steps.numpy()
        if steps[-1] >= 0 and steps[0] - steps[-1] == LIMIT - 1:
            raise InputError(
                f"{LIMIT} consecutive steps, {steps[-1]} to {steps[0]}, had a non-finite loss or"
                " gradient and changed no weights; lower AdamW.learning_rate, bind"
                " Experiment.clip_norm, or check the images named above"
            )


def describe_step(step: int, records: Iterable[bytes]) -> str:
    """Says in one line that a step was skipped, and names the images of its serialized records.

    Without records it names none.
    """
    names = [_name(record) for record in records]
    shown = ", ".join(_shortened(names))
    images = f"images: {shown}" if names else "images not looked up"
    return f"step {step} skipped: non-finite loss or gradient; {images}"


def _name(record):
    try:
        feature = tf.train.Example.FromString(record).features.feature["image/filename"]
    except Exception:  # of protobuf, whose kind depends on its version
        return "a corrupt record"
    return b"".join(feature.bytes_list.value).decode(errors="replace")


def _shortened(names: Sequence[str]) -> list[str]:
    return [*names[:NAMES], *([f"{len(names) - NAMES} more"] if len(names) > NAMES else [])]
