"""The TensorBoard summaries of a training."""

from collections.abc import Callable, Mapping
from typing import Any

import orbit
import tensorflow as tf

from kmax_tf.errors import first_line


class Summaries(orbit.utils.SummaryManager):
    """Writes the figures of a training. Where the storage takes none, they are lost, with a line.

    Args:
        folder: where the event files are.
        step: the training's step, a variable.
        tell: is called with the line.
    """

    def __init__(self, folder: str, step: tf.Variable, tell: Callable):
        super().__init__(folder, tf.summary.scalar, global_step=step)
        self._tell = tell

    def write_summaries(self, summary_dict: Mapping[str, Any]) -> None:
        """Writes a loop's figures to the storage; nothing for a loop with orbit's own alone."""
        if len(summary_dict) == 1:
            return
        try:
            super().write_summaries(summary_dict)
            super().flush()
        except tf.errors.OpError as error:
            self._summary_writers.clear()  # a new file comes next: this one may end in half of one
            self._tell(f"a summary is lost: {first_line(error)}")

    def flush(self) -> None:
        """Does nothing: all is flushed. Orbit asks for it after each loop."""
