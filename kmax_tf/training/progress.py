"""The progress bar of a training, and its warnings."""

import sys
from collections.abc import Callable, Mapping

from tqdm import tqdm

from kmax_tf.training.nonfinite import NonFiniteSteps

NO_VOID = (
    "no pixel of the crops is void: unmatched clusters hardly learn to predict void, and instances"
    ' separate slowly; bind Criterion.unmatched_class_weight to "nonvoid_share", or scale images'
    " below 1"
)
# Always steps a second; below 1 tqdm would switch to seconds a step.
RATE = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"


class Progress:
    """A progress bar from step `start` to `steps`; use it in a `with` statement.

    Args:
        batch_size: images a step.
        needs_void: whether the loss learns from void pixels; a training without any is warned of.
        describe_step: step -> one line about a non-finite step.
    """

    def __init__(
        self, start: int, steps: int, batch_size: int, *, needs_void: bool, describe_step: Callable
    ):
        self._bar = tqdm(None, "training", steps, initial=start, unit=" steps", bar_format=RATE)
        self._batch_size, self._needs_void = batch_size, needs_void
        self._describe_step = describe_step

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()

    def show(self, step: int, scalars: Mapping[str, float], nonfinite: NonFiniteSteps) -> None:
        """Shows that training reached `step`, with the scalars of its last loop.

        Raises InputError after too many non-finite steps in a row.
        """
        bar = self._bar
        for skipped in nonfinite.since(bar.n):
            self.write(self._describe_step(skipped))
        nonfinite.check(step)
        if bar.n == bar.initial and scalars["void_share"] == 0 and self._needs_void:
            self.write(NO_VOID)
        bar.update(step - bar.n)
        corrupt = scalars.get("corrupt_records")
        note = f", {corrupt:.0f} corrupt records skipped" if corrupt else ""
        images = self._batch_size * (bar.format_dict["rate"] or 0)
        bar.set_postfix_str(f"{images:.1f} images/s, loss {scalars['loss/total']:.3f}{note}")

    def write(self, line: str) -> None:
        """Writes a line to stderr above the bar."""
        self._bar.write(line, sys.stderr)
