"""The progress of a training: a bar, or lines in a log, the time that is left, and warnings."""

import sys
import time
from collections.abc import Callable, Mapping

from tqdm import tqdm

from kmax_tf.training.nonfinite import NonFiniteSteps

NO_VOID = (
    "crops have no void pixels: unmatched clusters hardly learn void, and instances separate"
    ' slowly; bind Criterion.unmatched_class_weight to "nonvoid_share", or use scales below 1'
)
# Always steps a second; below 1 tqdm would switch to seconds a step.
RATE = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
MEASURED = 5  # seconds of steps before the first estimate
LOG_INTERVAL = 60  # seconds between two lines of a log


class Progress:
    """The progress from step `start` to `steps`; use it in a `with` statement.

    A terminal shows a bar from the first step on; a log gets a line a minute.

    Args:
        batch_size: images a step.
        needs_void: whether the loss learns from void pixels; a training without any is warned of.
        describe_step: step -> one line about a non-finite step.
    """

    def __init__(
        self, start: int, steps: int, batch_size: int, *, needs_void: bool, describe_step: Callable
    ):
        self._step, self._steps, self._batch_size = start, steps, batch_size
        self._needs_void, self._describe_step = needs_void, describe_step
        self._begin = self._now = time.monotonic()
        self._told = None  # when the last line of a log was written
        self._bar = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._bar:
            self._bar.close()

    def show(
        self, step: int, scalars: Mapping[str, float], nonfinite: NonFiniteSteps, *, summary: bool
    ) -> float:
        """Shows that training reached `step`.

        Args:
            scalars: means over the steps since the last summary.
            summary: whether they are a summary, and so means over many steps.

        Returns:
            The seconds of a step since the last call; the first one takes the compilation, too.

        Raises:
            InputError: too many steps in a row were non-finite.
        """
        for skipped in nonfinite.since(self._step):
            self.write(self._describe_step(skipped))
        nonfinite.check()
        if summary and self._needs_void:
            self._needs_void = False
            if scalars["void_share"] == 0:
                self.write(NO_VOID)
        before, self._now = self._now, time.monotonic()
        seconds = (self._now - before) / (step - self._step)
        self._step = step
        self._update(scalars)
        return seconds

    def _update(self, scalars):
        corrupt = scalars.get("corrupt_records")
        text = f"loss {scalars['loss/total']:.3f}"
        text += f", {corrupt:.0f} corrupt records skipped" if corrupt else ""
        if self._bar is None:  # the first step, whose time says nothing about the others
            self._first = self._step, self._now
            bar = dict(unit=" steps", bar_format=RATE, postfix=text, disable=None)
            self._bar = tqdm(None, "training", self._steps, initial=self._step, **bar)
            if self._step == self._steps:
                self._write_step(text)
            return
        step, now = self._first
        each = (self._now - now) / (self._step - step)
        text = f"{self._batch_size / each:.1f} images/s, {text}"
        self._bar.update(self._step - self._bar.n)
        self._bar.set_postfix_str(text)
        self._write_estimate(each, text)

    def _write_estimate(self, each, text):
        """Writes what is left: once in a terminal, and again and again in a log."""
        _, first = self._first
        left = self._steps - self._step
        since, interval = (first, MEASURED) if self._told is None else (self._told, LOG_INTERVAL)
        if left and self._now - since < interval:
            return
        to_go = f": about {duration(each * left)} to go" if left else ""
        if self._told is None:
            start = duration(first - self._begin)
            self.write(f"first step after {start}, then {each:.2f} s a step{to_go}")
        if self._told is not None or not left:
            self._write_step(text + to_go)
        self._told = self._now

    def _write_step(self, text):
        """Writes a line to a log; the bar of a terminal shows the same."""
        if self._bar.disable:
            self.write(f"step {self._step} of {self._steps}, {text}")

    def write(self, line: str) -> None:
        """Writes a line to stderr, above the bar."""
        tqdm.write(line, sys.stderr)


def duration(seconds: float) -> str:
    """Returns a time in words: "40 s", "7 min" or "3.2 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
